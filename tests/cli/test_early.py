"""What is wrong with a command is said before anything is loaded or computed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from causal_tracing.cli import app as cli

PAIR = ["--clean", "a b", "--corrupt", "a c", "--answer", " d", "--foil", " e"]
TRACE = ["trace", "--model", "demo", *PAIR]
WRONG = {
    "metric": ([*TRACE, "--metric", "foo"], "There is no metric 'foo'"),
    "component": ([*TRACE, "--components", "mlp"], "There is no component 'mlp'"),
    "direction": ([*TRACE, "--directions", "foo"], "There is no direction 'foo'"),
    "engine": ([*TRACE, "--engine", "foo"], "There is no engine 'foo'"),
    "keep": ([*TRACE, "--keep", "foo"], "There is no keep 'foo'"),
    "align": ([*TRACE, "--align", "sufix"], "There is no alignment 'sufix'. Did you mean 'suffix'?"),
    "window": ([*TRACE, "--window", "mlp=3"], "There is no window for 'mlp'. Did you mean 'mlp_out'?"),
    "no window": ([*TRACE, "--window", "0"], "must be a whole number of at least 1"),
    "position": ([*TRACE, "--positions", "lats"], "There is no position 'lats'. Did you mean 'last'?"),
    "heads' position": ([*TRACE, "--heads", "z", "--head-positions", "lats"], "There is no position 'lats'"),
    "position of no heads": (
        [*TRACE, "--head-positions", "last"],
        "head_positions=['last'] counts beside heads= alone",
    ),
    "dtype": ([*TRACE, "--dtype", "float23"], "There is no dtype 'float23'"),
    "device": ([*TRACE, "--device", "cdua"], "device='cdua' is none"),
    "noise": ([*TRACE, "--noise", "3sigma"], "has no subject"),
    "noise and direction": (
        [*TRACE, "--noise", "3sigma", "--directions", "disruption"],
        "only restoration is measured",
    ),
    "preset": ([*TRACE, "--preset", "rome", "--metric", "logit"], "leave out metric= or the preset"),
    "noise and alignment": (
        ["trace", "--model", "demo", *PAIR[:2], *PAIR[4:], "--subject", "a", "--noise", "3sigma", "--align", "suffix"],
        "align='suffix' pairs two prompts, and noise corrupts the one",
    ),
    "metrics of no document": ([*TRACE, "--all-metrics"], "--all-metrics says what --json prints: give --json too"),
    "overwriting nothing": ([*TRACE, "--overwrite"], "--overwrite replaces what lies at --out: give --out too"),
    "ablation": ([*TRACE, "--write", "zero", "--directions", "restoration"], "only disruption is measured"),
    "layers": ([*TRACE, "--layers", "0-99999999999"], "no model has so many layers as '0-99999999999' names"),
    "a layer": ([*TRACE, "--layers", 5000 * "9"], "no model has so many layers"),
    "layers backwards": ([*TRACE, "--layers", "5-3"], "'5-3' runs backwards. Write 3-5"),
    "half a range": ([*TRACE, "--layers", "3-"], "'3-' is neither a layer nor a range"),
    "a budget": ([*TRACE, "--budget", 400 * "9" + "GB"], "is not a size"),
    "a wide window": ([*TRACE, "--window", 5000 * "9"], "is no width"),
    "a neuron": ([*TRACE, "--neurons", 5000 * "9"], "names no neurons"),
    "an expert": ([*TRACE, "--experts", "1:" + 5000 * "9"], "names no experts"),
    "a shard": (["trace", "--model", "demo", "--pairs", "facts", "--shard", "1/" + 5000 * "9"], "is no shard"),
    "workers": (["trace", "--model", "demo", "--pairs", "facts", "--workers", 5000 * "9"], "is a number of processes"),
    "spot checks": ([*TRACE, "--spot-checks", 13 * "9"], "must be 100,000 at most"),
    "draws": ([*TRACE, "--write", "mean", "--draws", 12 * "9"], "--draws and --draw-seed"),
    "many draws": (["trace", "--model", "demo", "--noise", "3sigma", "--draws", 12 * "9"], "must be 100,000 at most"),
    "no corrupt prompt": (["trace", "--model", "demo", *PAIR[:2], *PAIR[4:]], "has no corrupt prompt"),
    "reference": ([*TRACE, "--write", "mean", "--reference", "none.txt"], "--reference none.txt cannot be read"),
    "tensors": ([*TRACE, "--write", "given", "--tensors", "none"], "--tensors none cannot be read"),
    "sets": ([*TRACE, "--sets", "z 1.2 @ last"], "'z 1.2 @ last' has no = behind a set's name. Write such as"),
    "a set twice": ([*TRACE, "--sets", "a = z 1.2 @ 0 | a = z 1.3 @ 0"], "names a set twice"),
    "a set of none": ([*TRACE, "--sets", "a = "], "The set 'a' has no sites"),
    "a site": ([*TRACE, "--sets", "a = z last"], "'z last' is no site"),
    "a file of sets": ([*TRACE, "--sets", "none.toml"], "--sets none.toml cannot be read"),
    "a broken file of sets": ([*TRACE, "--sets", "broken.toml"], "--sets broken.toml is no TOML"),
    "a file of other sets": (
        [*TRACE, "--sets", "other.toml"],
        '--sets other.toml: movers must be a list of sites, such as ["z 3.1 @ last"]; it is 3.',
    ),
    "three lists": (
        [*TRACE, "--interactions", "z 1.2 @ 0 | z 1.3 @ 0 | z 1.1 @ 0"],
        "one list of sites or two; it got 3",
    ),
    "config": ([*TRACE, "--config", "none.toml"], "--config none.toml cannot be read"),
    "method": (["attribute", "--model", "demo", *PAIR, "--method", "foo"], "There is no method 'foo'"),
    "steps": (["attribute", "--model", "demo", *PAIR, "--steps", 12 * "9"], "must be 100,000 at most"),
    "no pairs": (["trace", "--model", "demo", "--pairs", "none.csv"], "none.csv is not there"),
    "a folder of pairs": (["trace", "--model", "demo", "--pairs", "folder"], "folder: this is a folder"),
    "latin pairs": (["trace", "--model", "demo", "--pairs", "latin.csv"], "latin.csv cannot be read as text (UTF-8)"),
    "broken pairs": (["trace", "--model", "demo", "--pairs", "broken.json"], "broken.json: not JSON"),
    "out is a file": ([*TRACE, "--out", "file"], "file exists already. It is not a saved trace"),
    "out is below a file": ([*TRACE, "--out", "file/x"], "file/x cannot be written"),
    "a long out": ([*TRACE, "--out", 300 * "x"], "cannot be written: File name too long"),
    "a run's long out": (["trace", "--model", "demo", "--pairs", "facts", "--out", 300 * "x"], "File name too long"),
    "a long page": (["attribute", "--model", "demo", *PAIR, "--page", 300 * "x"], "File name too long"),
    "scores": (["circuit", "--model", "demo", *PAIR, "--scores", "none/scores.json"], "there is no folder"),
    "a folder of scores": (["circuit", "--model", "demo", *PAIR, "--scores", "folder"], "folder is a folder"),
    "a ranking of a file": (
        ["circuit", "--model", "demo", *PAIR, "--ranking", "scores.json"],
        "--ranking 'scores.json' is a file or folder. Give it as --ranking-from scores.json.",
    ),
    "a ranking of a folder": (["circuit", "--model", "demo", *PAIR, "--ranking", "folder"], "--ranking-from folder."),
    "a node": (["circuit", "--model", "demo", *PAIR, "--ranking", "zz 3"], "'zz 3': there is no component 'zz'"),
    "no node": (["circuit", "--model", "demo", *PAIR, "--ranking", "z 3.1; mlps"], "'mlps' is no node: nodes are"),
    "an edge": (["circuit", "--model", "demo", *PAIR, "--ranking", "z 3.1 -> w 5"], "'w' receives nothing"),
    "a port": (["explore", "--model", "none", "--port", "70000"], "port must be 0-65535. Give another --port"),
    "a shelf": (["explore", "--model", "none", "--out", "file/x"], "file/x cannot be written: "),
    "a shelf that is a file": (["explore", "--model", "none", "--out", "file"], "file is no folder, and traces are"),
    "a run's out": (["trace", "--model", "demo", "--pairs", "facts", "--out", "file"], "file cannot be written"),
    "another's folder": (["trace", "--model", "demo", "--pairs", "facts", "--out", "folder"], "folder holds thesis"),
    "a page": (["attribute", "--model", "demo", *PAIR, "--page", "none/page.html"], "there is no folder"),
    "the demo's page": (["demo", "--out", "folder"], "folder is a folder"),
    "a comparison": (["compare", "one", "other", "--out", "none/c.json"], "there is no folder"),
    "an export": (["export", "one", "none/c.csv"], "there is no folder"),
    "no model": (["trace", "--model", "none/none/none", *PAIR], "There is no folder or file none/none/none"),
    "a long model": (["check", "--model", "./" + 5000 * "x"], "There is no folder or file ./xxx"),
    "no model at all": (["check", "--model", "./none"], "There is no folder or file ./none"),
}
FRESH = """
import contextlib, json, sys
from causal_tracing.cli import app as cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["causal-tracing", *arguments]
    with contextlib.suppress(SystemExit):
        cli.main()
print([name for name in ("torch", "transformers", "numpy", "xarray") if name in sys.modules])
"""
HEAVY = ("a comparison", "an export")  # of what was saved, which is arrays


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with things that stand in the way."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    (tmp_path / "latin.csv").write_bytes("clean,answer\ncafé, b\n".encode("latin-1"))
    (tmp_path / "broken.toml").write_text("movers = [")
    (tmp_path / "other.toml").write_text("movers = 3")
    (tmp_path / "broken.json").write_text('[{"clean": "a"')
    return tmp_path


@pytest.mark.parametrize("name", WRONG)
def test_it_is_said_before_a_model_is_looked_for(name: str, place: Path, monkeypatch, capsys):
    from causal_tracing.models import demo

    monkeypatch.setattr(demo, "demo_folder", lambda **_: pytest.fail("a model was looked for"))
    before = sorted(place.rglob("*"))
    arguments, message = WRONG[name]
    monkeypatch.setattr(sys, "argv", ["causal-tracing", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = capsys.readouterr()
    assert stop.value.code in (2, 3, 4)
    assert message in shown.err
    assert shown.out == ""
    assert sorted(place.rglob("*")) == before


def test_a_folder_that_was_deleted_below_a_command_is_said(monkeypatch, capsys):
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", gone)
    monkeypatch.setattr(sys, "argv", ["causal-tracing", *TRACE])
    with pytest.raises(SystemExit, match="^3$"):
        cli.main()
    assert "The folder that this is run in has been deleted. Change into another one." in capsys.readouterr().err


def test_nothing_heavy_is_loaded_to_say_it(place: Path):
    commands = json.dumps([arguments for name, (arguments, _) in WRONG.items() if name not in HEAVY])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, commands], capture_output=True, text=True, check=True, cwd=place
    )
    assert [name for name, (_, message) in WRONG.items() if name not in HEAVY and message not in done.stderr] == []
    assert done.stdout == "[]\n"


def test_a_list_of_commands_declares_no_options():
    """Each of five commands has a hundred of them, and a list shows none."""
    code = """
import sys
from causal_tracing.cli.app import app, main
whole = [each.callback for each in app.registered_commands]
for words in (["--help"], ["datasets", "--help"], ["trace", "--help"]):
    sys.argv = ["causal-tracing", *words]
    try:
        main()
    except SystemExit:
        pass
    print([name for name in sys.modules if name.endswith("patching.options.trace")], file=sys.stderr)
assert [each.callback for each in app.registered_commands] == whole
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["[]", "[]", "['causal_tracing.patching.options.trace']"]
    assert "knockout" in done.stdout
    assert "--neurons" in done.stdout
