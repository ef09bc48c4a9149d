"""The Python face: signatures, help and types of the verbs are those of the declared options."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options.declare import specs
from causal_tracing.patching.options.estimate import EstimateOptions
from causal_tracing.patching.options.trace import Options, RunOptions

VERBS = {"trace": Options, "estimate": Options, "run": RunOptions, "attribute": EstimateOptions}
SOURCES = Path(ct.__file__).parents[1]


@pytest.mark.parametrize("name", VERBS)
def test_the_signature_shows_every_option(name):
    declared: Any = VERBS[name]
    shown = inspect.signature(getattr(ct, name)).parameters
    for option, spec in specs(declared).items():
        assert shown[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[option].default == spec.default
        assert shown[option].annotation is not inspect.Parameter.empty
    assert "options" not in shown
    own = [each for each in shown if each not in specs(declared)]
    assert own == {"run": ["model", "pairs", "folder"]}.get(name, ["model", "pairs"])


@pytest.mark.parametrize("name", VERBS)
def test_help_explains_every_option_by_group_and_ends_with_an_example(name):
    declared: Any = VERBS[name]
    said = getattr(ct, name).__doc__
    for option in specs(declared):
        assert f"\n    {option}: " in said
    groups = [said.index(f"\n\n{group}:\n") for group in ("What is patched", "Model and engine", "Output", "Example")]
    assert groups == sorted(groups)
    assert f"ct.{name}(" in said.rpartition("Example:")[2]


def test_an_option_that_is_not_there_is_said_with_the_nearest():
    bad: dict[str, Any] = {"componets": ["mlp_out"]}
    for name in VERBS:
        with pytest.raises(InvalidOption, match="There is no option 'componets'. Did you mean 'components'"):
            getattr(ct, name)(None, None, **bad)


def test_what_is_missing_or_too_much_is_an_error_as_of_any_function():
    trace: Any = ct.trace
    with pytest.raises(TypeError, match="missing a required argument: 'pairs'"):
        trace(None)
    with pytest.raises(TypeError, match="too many positional arguments"):
        trace(None, None, Options())


SNIPPET = """
import causal_tracing as ct
from causal_tracing.models.model import Model

def calls(model: Model, pair: ct.Pair) -> None:
    ct.trace(model, pairs=[pair], components=["mlp_out"], window={"mlp_out": 3}, progress=False)  # right
    ct.run(model, [pair], folder="run", keep="all", seed=3)  # right
    ct.attribute(model, pairs=pair, method="ig")  # right
    ct.trace(model, pair, component=["mlp_out"])
    ct.trace(model, pair, layers=3)
    ct.estimate(model, pair, sed=3)
    ct.run(model, pair, "run", shard=1)
    ct.attribute(model, pair, steps="many")
    ct.attribute(model, [pair], keep="all")
    print(ct.trace(model, pair).no_such_thing)
"""


def test_a_type_checker_sees_wrong_names_and_types(tmp_path):
    """In the lines after those that are right, and nowhere else."""
    (tmp_path / "snippet.py").write_text(SNIPPET)
    settings = {"extraPaths": [str(SOURCES)], "include": ["snippet.py"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {each["range"]["start"]["line"]: each["message"] for each in json.loads(done.stdout)["generalDiagnostics"]}
    lines = SNIPPET.splitlines()
    after = max(number for number, line in enumerate(lines) if line.endswith("# right"))
    assert [*sorted(found)] == [*range(after + 1, len(lines))], found
    assert 'No parameter named "component"' in found[after + 1]
    assert '"layers"' in found[after + 2]
    assert "no_such_thing" in found[len(lines) - 1]
    assert '"Trace"' in found[len(lines) - 1]
