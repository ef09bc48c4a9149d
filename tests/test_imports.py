"""The house: which folder may import which, and what importing the package may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import causal_tracing

PACKAGE = Path(causal_tracing.__file__).parent
# From the ground up: a folder imports from floors below its own, and no other of its floor.
FLOORS = (
    ("errors", "validation"),
    ("prompts", "interventions"),
    ("models", "results"),
    ("engine", "report"),
    ("patching", "testing"),
    ("experiments",),
    ("explorer",),
    ("cli",),
)
FLOOR = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
HEAVY = ("torch", "transformers", "xarray", "pandas", "scipy", "matplotlib", "numpy", "nnsight")


def folder(module: str) -> str:
    """The folder (or the module beside them) that a module of the package lives in."""
    return module.removeprefix("causal_tracing.").split(".")[0]


def imports(path: Path) -> set[str]:
    """The folders that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "causal_tracing"  # public names stand for the folders they come from
            names = [f"causal_tracing.{alias.name}" for alias in node.names] if inside else [node.module]
        found |= {folder(name) for name in names if name.startswith("causal_tracing.")}
    return found & {*FLOOR}


# What is known of the engine above it: its seam, and the one way to a backend. Opening and checking a model is more.
SEAM = ("causal_tracing.engine.backend", "causal_tracing.engine.choose")
KNOWN_OF_THE_ENGINE = {"testing": SEAM[:1], "patching": SEAM, "experiments": SEAM, "explorer": SEAM}
BEYOND = {"experiments/load.py": {"causal_tracing.engine.checks.check", "causal_tracing.engine.nnsight.open"}}


def of_the_engine(path: Path) -> set[str]:
    """The engine's modules that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if is_module(node, alias)}
    return {name for name in found if name.startswith("causal_tracing.engine.")}


def is_module(node: ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether a name is imported as a module of the package, and not out of one."""
    folders = [*(node.module or "").split(".")[1:], alias.name]
    return PACKAGE.joinpath(*folders).is_dir() or PACKAGE.joinpath(*folders).with_suffix(".py").exists()


@pytest.mark.parametrize("name", list(KNOWN_OF_THE_ENGINE))
def test_methods_know_the_engine_by_its_seam_alone(name: str):
    for file in (PACKAGE / name).rglob("*.py"):
        allowed = {*KNOWN_OF_THE_ENGINE[name]} | BEYOND.get(file.relative_to(PACKAGE).as_posix(), set())
        assert of_the_engine(file) <= allowed, file


def test_a_reach_past_the_seam_would_be_noticed(tmp_path: Path):
    code = tmp_path / "reaching.py"
    code.write_text("from causal_tracing.engine.hooks import record\nimport causal_tracing.engine.memory\n")
    hooks = {"causal_tracing.engine.hooks", "causal_tracing.engine.hooks.record"}
    assert of_the_engine(code) == {*hooks, "causal_tracing.engine.memory"}


def breaks_the_house(importing: str, imported: str) -> bool:
    return importing != imported and FLOOR[imported] >= FLOOR[importing] and (importing, imported) != INSIDE


INSIDE = ("validation", "errors")  # the ground floor's own order


@pytest.mark.parametrize("name", list(FLOOR))
def test_a_folder_imports_only_from_below(name: str):
    files = sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / f"{name}.py"]
    wrong = {str(file): [each for each in imports(file) if breaks_the_house(name, each)] for file in files}
    assert not any(wrong.values()), {file: each for file, each in wrong.items() if each}


def test_every_folder_has_its_floor():
    there = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert there == {*FLOOR, "__init__", "__main__"}


def test_the_house_would_notice():
    assert breaks_the_house("errors", "prompts")
    assert breaks_the_house("results", "experiments")
    assert breaks_the_house("results", "models")
    assert breaks_the_house("report", "engine")
    assert not breaks_the_house("experiments", "results")


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh process holds after running the code."""
    report = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    names = "import causal_tracing as ct; ct.Pair, ct.read_pairs, ct.CausalTracingError"
    assert loaded_by(names) == set()


def test_that_test_can_fail():
    assert "torch" in loaded_by("import torch")


@pytest.mark.parametrize(
    "arguments",
    [[], ["demo"], ["trace"], ["attribute"], ["check"], ["report"], ["export"], ["compare"], ["explore"]],
    ids=str,
)
def test_help_loads_nothing_heavy(arguments: list[str]):
    code = f"""
import sys
sys.argv = ["causal-tracing", *{arguments}, "--help"]
import io, contextlib
from causal_tracing.cli import app as cli
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    cli.main()
assert "Usage" in shown.getvalue(), shown.getvalue()
"""
    assert loaded_by(code) == set()


def test_saved_traces_are_explored_without_torch():
    loaded = loaded_by(
        "import causal_tracing.explorer.saved, causal_tracing.explorer.serve, causal_tracing.explorer.app"
    )
    assert "xarray" in loaded
    assert not loaded & {"torch", "transformers", "nnsight"}


def test_a_saved_trace_is_drawn_without_torch():
    names = ("words.one_pair", "figures.plot", "page.page", "document", "export")
    code = f"import {', '.join(f'causal_tracing.report.{name}' for name in names)}, causal_tracing.results.comparison"
    loaded = loaded_by(code)
    assert "xarray" in loaded
    assert not loaded & {"torch", "transformers", "nnsight"}


def test_the_public_face():
    assert len(causal_tracing.__all__) <= 22
    for name in causal_tracing.__all__:
        assert getattr(causal_tracing, name).__name__ == name
        assert name in dir(causal_tracing)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = causal_tracing.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_the_package_can_be_run_as_a_module():
    command = [sys.executable, "-m", "causal_tracing", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == causal_tracing.__version__
