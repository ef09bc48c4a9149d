"""The house: which module may import which, and what importing the package may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import causal_tracing

PACKAGE = Path(causal_tracing.__file__).parent
# From the ground up. A module imports lower floors, or modules to its left on its own floor's row.
FLOORS = [
    [["errors", "checks", "files", "sites", "edits"]],
    [
        ["tokens", "alignment", "prompts", "datasets", "datasets.*", "pair_files"],
        ["metrics"],
        ["statistics", "flips", "peaks"],
    ],
    [["anatomy", "model"], ["results", "joined"]],
    [
        [
            *("engine.taps", "engine.attention", "engine.writes", "engine.forward", "engine.record", "engine.plan"),
            *("engine.replay", "engine.tape", "engine.packing", "engine.blocks", "engine.wave", "engine.tail"),
            *("engine.packed", "engine.evaluate", "engine.agreement"),
            *("engine.findings", "engine.mediators", "engine.check", "engine.gradients"),
        ],
        ["testing"],
    ],
    [
        ["embedded", "hub", "loading"],
        [
            *("effects", "evidence", "differences", "rows", "conditions", "evidence_words", "difference_words"),
            *("reading", "unit_maps"),
        ],
        [
            *("written", "controls", "contrasts", "previews", "windows", "noise", "scoring", "sweeps", "units", "jobs"),
            *("assembly", "measuring", "estimates", "provenance"),
        ],
    ],
    [
        ["drawing", "unit_plots", "mean_plots", "plots"],
        ["terminal"],
        ["documents"],
        ["exporting"],
        ["report.*", "screens", "attribution"],
    ],
    [["run_folders", "run_results", "traces", "comparing", "tracing", "choosing", "runs"]],
    [["parse", "console", "commands", "cli_results", "cli"]],
]
HEAVY = ("torch", "transformers", "xarray", "pandas", "scipy", "matplotlib", "numpy", "nnsight")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def place(name: str) -> tuple[int, int, int]:
    """A module's floor, row and place in the row."""
    key = "report.*" if name == "report" or name.startswith("report.") else name
    key = "datasets.*" if name.startswith("datasets.") else key
    for floor, rows in enumerate(FLOORS):
        for row, members in enumerate(rows):
            if key in members:
                return floor, row, members.index(key)
    raise AssertionError(f"{name} lives on no floor: give it one")


def imports(path: Path) -> set[str]:
    """The package's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            inner = name.removeprefix("causal_tracing").lstrip(".")
            file = PACKAGE / (inner.replace(".", "/") + ".py")
            if name.startswith("causal_tracing") and inner and (file.exists() or inner == "report"):
                found.add(inner)
    return found


def breaks_the_house(name: str, imported: str) -> bool:
    floor, row, order = place(name)
    other = place(imported)
    if other[0] != floor:
        return other[0] > floor
    same_room = name.split(".")[0] == imported.split(".")[0] == "report"
    return not same_room and not (other[1] == row and other[2] < order)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_a_module_imports_only_from_below_or_from_its_left(path: Path):
    name = module_name(path)
    if name.endswith("__init__") and not name.startswith("report"):
        return
    name = name.removesuffix(".__init__")
    wrong = [imported for imported in imports(path) if imported != name and breaks_the_house(name, imported)]
    assert not wrong, f"{name} imports {wrong}"


def test_the_house_would_notice():
    assert breaks_the_house("errors", "sites")
    assert breaks_the_house("effects", "tracing")
    assert breaks_the_house("results", "model")
    assert not breaks_the_house("tracing", "traces")


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh process holds after running the code."""
    report = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    names = "import causal_tracing as ct; ct.Pair, ct.read_pairs, ct.CausalTracingError"
    assert loaded_by(names) == set()


def test_that_test_can_fail():
    assert "torch" in loaded_by("import causal_tracing as ct; ct.load")


@pytest.mark.parametrize(
    "arguments", [[], ["demo"], ["trace"], ["check"], ["report"], ["export"], ["compare"]], ids=str
)
def test_help_loads_nothing_heavy(arguments: list[str]):
    code = f"""
import sys
sys.argv = ["causal-tracing", *{arguments}, "--help"]
import io, contextlib
from causal_tracing import cli
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    cli.main()
assert "Usage" in shown.getvalue(), shown.getvalue()
"""
    assert loaded_by(code) == set()


def test_a_saved_trace_is_drawn_without_torch():
    code = "import causal_tracing.reading, causal_tracing.plots, causal_tracing.report, causal_tracing.documents"
    code += ", causal_tracing.exporting, causal_tracing.comparing"
    loaded = loaded_by(code)
    assert "xarray" in loaded
    assert not loaded & {"torch", "transformers", "nnsight"}


def test_the_public_face():
    assert len(causal_tracing.__all__) <= 15
    for name in causal_tracing.__all__:
        assert getattr(causal_tracing, name).__name__ == name
        assert name in dir(causal_tracing)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = causal_tracing.nothing  # pyright: ignore[reportAttributeAccessIssue]
