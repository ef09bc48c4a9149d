"""Files beside the sources that say what the package is: they go with its version, and what they name is there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import yaml

import causal_tracing

ROOT = Path(__file__).parents[1]
ASSERTS = re.compile(r"(^|[._])(assert|raises|warns|skip|fail)")


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == causal_tracing.__version__
    assert cited["license"] == re.findall('license = "(.*)"', (ROOT / "pyproject.toml").read_text())[0]
    assert {"cff-version", "message", "title", "authors"} <= {*cited}


def test_the_form_for_faults_asks_for_what_the_check_says():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    fields = {each["id"]: each for each in form["body"]}
    check = fields["check"]
    assert check["validations"]["required"]
    assert check["attributes"]["label"] == "causal-tracing check --json"
    shown = subprocess.run(
        [sys.executable, "-m", "causal_tracing", "check", "--help"], capture_output=True, text=True, check=True
    )
    assert "--json" in shown.stdout
    assert "--model" in shown.stdout


def test_what_the_makefile_runs_is_there():
    recipe = (ROOT / "Makefile").read_text().partition("\nwheel:")[2].partition("\n\n")[0]
    assert "-I installed.py" in recipe
    assert (ROOT / "tests" / "installed.py").is_file()


def test_no_test_passes_by_returning():
    """What does not apply to a case is skipped, with its reason: a test returns only behind what it asserts."""
    found = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for test in ast.parse(file.read_text()).body:
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                found += [f"{file.name}::{test.name}, line {line}" for line in _returns_before_all(test)]
    assert found == []


def _returns_before_all(test: ast.FunctionDef) -> list[int]:
    """The lines where a test itself returns, and nothing was asserted before."""
    left: list[ast.AST] = list(test.body)
    returns, asserts = [], []
    while left:
        part = left.pop()
        if isinstance(part, ast.Return):
            returns.append(part.lineno)
        elif isinstance(part, ast.Assert) or (isinstance(part, ast.Call) and ASSERTS.search(ast.unparse(part.func))):
            asserts.append(part.lineno)
        elif not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            left += ast.iter_child_nodes(part)
    return [line for line in returns if line < min(asserts, default=line + 1)]
