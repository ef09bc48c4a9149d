"""The installed package, away from its sources: `python -I installed.py` of an environment that has the wheel alone."""

import subprocess
import sys
from importlib.metadata import files, version
from importlib.resources import files as resources
from pathlib import Path

import causal_tracing as ct

DATA = {"report.page": ("page.js", "page.css"), "prompts.datasets": ("facts.csv",)}


def check() -> None:
    """Raises AssertionError where something is missing, or comes from elsewhere."""
    home = Path(ct.__file__).resolve()
    assert home.is_relative_to(Path(sys.prefix).resolve()), f"{home} is not of this environment"
    assert ct.__version__ == version("causal-tracing")
    for folder, names in DATA.items():
        for name in names:
            file = resources(f"causal_tracing.{folder}").joinpath(name)
            assert file.is_file(), f"{file} is not in the wheel"
    shipped = {str(file).split("/")[0] for file in files("causal-tracing") or ()}
    assert "tests" not in shipped, "the tests are in the wheel"
    assert len(ct.read_pairs("facts")) == 217
    command = Path(sys.prefix) / ("Scripts" if sys.platform == "win32" else "bin") / "causal-tracing"
    for words in (["--version"], ["trace", "--help"], ["datasets", "--formats"]):
        done = subprocess.run([str(command), *words], capture_output=True, text=True, check=True)
        assert words != ["--version"] or done.stdout.strip() == ct.__version__
    for name in ct.__all__:
        getattr(ct, name)
    print(f"causal-tracing {ct.__version__} works from {home.parent}")


if __name__ == "__main__":
    check()
