"""Pages of reference name what there is: statuses, exit codes, components, variables, commands, errors."""

import inspect
import re
from pathlib import Path
from typing import Any

import typer

from causal_tracing import errors
from causal_tracing.cli.app import app
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS, MIXTURE
from causal_tracing.results.effects import STATUSES
from causal_tracing.results.site_kinds import KINDS
from causal_tracing.results.units import UNITS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def first_column(page: str, heading: str) -> set[str]:
    """The names in the first column of the tables under a heading, in code."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`([^`]+)`", row)}


def test_every_status_is_explained():
    assert first_column("effects.md", "Statuses") == {*STATUSES}


def test_every_metric_is_explained():
    assert first_column("effects.md", "Metrics") == {*UNITS}


def test_every_command_is_listed():
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    page = (DOCS / "command-line.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert {*re.findall(r"^\| `(\w+)` \|", page, re.M)} == {*commands}


def test_every_exit_code_is_listed():
    page = (DOCS / "command-line.md").read_text(encoding="utf-8").partition("\n## Exit codes\n")[2]
    kinds = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    codes = {getattr(each, "exit_code", 1) for each in kinds} - {1}
    assert codes <= {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}


def test_every_component_is_described():
    page = (DOCS / "reference" / "sites.md").read_text(encoding="utf-8")
    for name in (*COMPONENTS, *MEDIATORS, *MIXTURE, *(kind for kind in KINDS if kind not in ("blocks", "heads"))):
        assert f"`{name}`" in page, name


def test_every_variable_is_described():
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    asked = {*re.findall(r'os\.environ(?:\.get|\.setdefault)?[(\[]"([A-Z_]+)"', source)}
    asked |= {*re.findall(r'"(CAUSAL_TRACING_[A-Z_]+)"', source)}
    assert len(asked) >= 5
    assert [name for name in sorted(asked) if f"`{name}`" not in page] == []


def test_every_error_says_its_cause_and_what_to_do():
    for name, each in inspect.getmembers(errors, inspect.isclass):
        if issubclass(each, errors.CausalTracingError) and each is not errors.CausalTracingError:
            said = inspect.getdoc(each) or ""
            assert "\n\nCause: " in said, name
            assert "\n\nRemedy: " in said, name


def test_every_page_is_in_the_site_and_in_the_list():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS))
        if "_build" not in page.parts and name not in ("index.md", "README.md"):
            assert f"\n{name.removesuffix('.md')}\n" in index, name
            if name not in ("contributing.md", "benchmarks.md", "reference/changelog.md"):
                assert f"({name})" in listed, name
