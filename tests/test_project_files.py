"""Files beside the sources that say what the package is: they go with its version, and what they name is there."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

import causal_tracing

ROOT = Path(__file__).parents[1]


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
