"""A configuration file: what is said there, what flags change, and the file that repeats a trace."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import causal_tracing as ct
from causal_tracing.cli.app import app
from causal_tracing.errors import InvalidOption
from loaded import shared
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15", " w11 w12 w43 w14 w15"
PAIR = ["--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7", "--foil", " w8"]
HEAD = f'model = "tiny"\nclean = "{CLEAN}"\ncorrupt = "{CORRUPT}"\nanswer = " w7"\nfoil = " w8"\nspot_checks = 0\n'


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`load` gives a tiny model, whatever it is asked for."""
    monkeypatch.chdir(tmp_path)

    def load(name: str, **_: Any) -> Any:
        return replace(shared("llama"), tokenizer=WORDS, name=name, source={"kind": "folder"})

    monkeypatch.setattr(ct, "load", load)


def ask(*arguments: str) -> Any:
    done = CliRunner().invoke(app, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def document(*arguments: str) -> dict[str, Any]:
    return json.loads(ask(*arguments, "--json").stdout)


def equal(one: Path, other: Path) -> None:
    """The same arrays to the bit, and the same options."""
    first, second = ct.open_trace(one), ct.open_trace(other)
    assert first.provenance["options"] == second.provenance["options"]
    assert first.provenance["pairs"] == second.provenance["pairs"]
    assert first.measurements.kinds == second.measurements.kinds
    for kind in first.measurements.kinds:
        assert first.of(kind).identical(second.of(kind)), kind


ASKED = [
    [],
    ["--metric", "prob", "--positions", "last,2", "--directions", "disruption", "--budget", "2MB", "--seed", "3"],
    ["--heads", "true", "--neurons", "true", "--neuron-positions", "last"],
    ["--heads", "z,k", "--neurons", "1,2:14+60", "--neuron-positions", "2,last", "--window", "mlp_out=2"],
    ["--write", "mean", "--reference", "reference.txt", "--no-window-sums", "--align", "suffix"],
    ["--write", "given", "--tensors", "given.safetensors", "--components", "resid_post", "--layers", "1"],
    [
        "--components",
        "none",
        "--sets",
        "a b = z 1.2 @ last; mlp_out 0-1 @ 2 | c = resid_post 1 @ 2",
        "--growing",
        "a b",
    ],
    ["--components", "none", "--sets", "a = z 1.2 @ last", "--growing", "true", "--interactions", "each z 2 @ last"],
    ["--components", "none", "--interactions", "true", "--given", "z 1.2 @ last"],
    ["--components", "none", "--interactions", "z 1.2 @ -1; mlp_out 0 @ 2 | each neurons 3.1-2 @ last"],
]


@pytest.mark.parametrize("options", ASKED, ids=str)
def test_the_file_in_a_folder_makes_the_trace_again(options, tmp_path):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "reference.txt").write_text(" w1 w2 w3 w4 w5\n w5 w6 w7 w8 w9\n")
    save_file({"resid_post.1": torch.linspace(-1, 1, 32)}, tmp_path / "given.safetensors")
    ask("trace", "--model", "tiny", *PAIR, *options, "--out", "first")
    for name in ("reference.txt", "given.safetensors"):  # the folder holds all that it takes
        (tmp_path / name).unlink()
    ask("trace", "--config", "first/config.toml", "--out", "second")
    equal(tmp_path / "first", tmp_path / "second")
    assert Path("first/config.toml").read_text() == Path("second/config.toml").read_text()


NOISED = ["--clean", CLEAN, "--subject", "w12 w13", "--answer", " w7", "--foil", " w8"]


@pytest.mark.parametrize(
    "options",
    [
        ["--noise", "3sigma", "--draws", "3", "--draw-seed", "4", "--window", "2", "--sever", "mlp_out"],
        ["--noise", "0.7", "--draws", "2"],
        ["--noise", "0.7", "--draws", "2", "--heads", "z", "--direct", "mlps_live", "--direct-norm", "frozen"],
        ["--preset", "rome", "--components", "mlp_out", "--layers", "1"],
    ],
    ids=str,
)
def test_so_it_does_with_noise(options, tmp_path):
    ask("trace", "--model", "tiny", *NOISED, *options, "--out", "first")
    ask("trace", "--config", "first/config.toml", "--out", "second")
    equal(tmp_path / "first", tmp_path / "second")


def test_a_run_folder_has_it_too_and_a_shard_is_the_same_shard(tmp_path):
    rows = [{"clean": f" w11 w{20 + n} w13", "corrupt": f" w11 w{50 + n} w13", "answer": " w7"} for n in range(9)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["trace", "--model", "tiny", "--pairs", "asked.jsonl", "--keep", "all", "--shard", "1/2"]
    ask_part(*arguments, "--out", "first")
    (tmp_path / "asked.jsonl").unlink()
    ask_part("trace", "--config", "first/config.toml", "--out", "second")
    equal(tmp_path / "first", tmp_path / "second")
    assert ct.open_trace("second").effects.sizes["pair"] == 1
    assert 'pairs = "pairs.jsonl"' in Path("first/config.toml").read_text()


def ask_part(*arguments: str) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 5  # the other shard is not done


def test_a_model_in_memory_has_no_such_file(tmp_path):
    model = replace(shared("llama"), tokenizer=WORDS, name="mine")
    pair = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7")
    ct.run(model, [pair], tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_any_text_comes_back_as_it_was(tmp_path):
    from causal_tracing.experiments.repeat import config

    odd = 'a "b" \\ \n\t\x7f\x00 é 😀 = # [x]'
    model = replace(shared("llama"), tokenizer=WORDS, name="x", source={"kind": "hub", "commit": "c"})
    text = config(model, [ct.Pair(clean=odd, answer=" w7", subject="é")], {"write": {"kind": "mean", "prompts": [odd]}})
    assert text is not None
    found = tomllib.loads(text)
    assert (found["clean"], found["write"]["prompts"]) == (odd, [odd])
    assert (found["model"], found["revision"]) == ("x", "c")


def test_values_as_toml_has_them_mean_what_flags_mean(tmp_path):
    toml = HEAD + (
        'layers = [0, 1]\ncomponents = ["resid_post", "mlp_out"]\nwindow = {mlp_out = 2}\nneurons = {1 = [3], 0 = []}\n'
        'heads = ["z"]\nhead_positions = ["last"]\nwindow_sums = false\nbudget = "2MB"\nmetric = "prob"\n'
    )
    Path("asked.toml").write_text(toml)
    flags = [
        "--layers", "0-1", "--components", "resid_post,mlp_out", "--window", "mlp_out=2", "--neurons", "1:3,0",
        "--heads", "z", "--head-positions", "last", "--no-window-sums", "--budget", "2MB", "--metric", "prob",
    ]  # fmt: skip
    here = document("trace", "--config", "asked.toml")
    there = document("trace", "--model", "tiny", *PAIR, "--spot-checks", "0", *flags)
    for one in (here, there):
        del one["seconds"], one["provenance"]["seconds"], one["provenance"]["started"]
    assert here == there


def test_flags_win(tmp_path):
    Path("asked.toml").write_text(HEAD + 'layers = [0, 1]\nwrite = {kind = "mean", prompts = [" w1 w2 w3 w4 w5"]}\n')
    found = document("trace", "--config", "asked.toml", "--layers", "2", "--write", "zero", "--foil", " w9")
    assert found["layers"] == [2]
    assert found["provenance"]["options"]["write"] == {"kind": "zero", "alpha": 1.0}
    assert found["pairs"][0]["foil"] == " w9"
    kept = document("trace", "--config", "asked.toml")
    assert kept["layers"] == [0, 1]
    assert kept["provenance"]["options"]["write"]["prompts"] == [" w1 w2 w3 w4 w5"]


def test_a_flag_may_change_a_part_of_what_the_file_says():
    noised = HEAD.replace(f'corrupt = "{CORRUPT}"', 'subject = "w13"')
    Path("asked.toml").write_text(noised + "noise = {scale = 3.0, draws = 4}\n")
    noise = document("trace", "--config", "asked.toml", "--draws", "2")["provenance"]["options"]["noise"]
    assert (noise["scale"], noise["draws"]) == (3.0, 2)
    noise = document("trace", "--config", "asked.toml", "--noise", "1sigma")["provenance"]["options"]["noise"]
    assert (noise["scale"], noise["draws"]) == (1.0, 10)


def test_paths_are_relative_to_the_file_and_sets_are_named(tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text(json.dumps({"clean": CLEAN, "corrupt": CORRUPT, "answer": " w7"}))
    (folder / "asked.toml").write_text('model = "tiny"\npairs = "pairs.jsonl"\nout = "run"\nlayers = [0]\n')
    ask("trace", "--config", "deep/asked.toml")
    assert (folder / "run" / "report.html").is_file()
    (folder / "set.toml").write_text('model = "tiny"\npairs = "ioi:no_such"\n')
    with pytest.raises(Exception, match=r"deep/ioi:no_such is not there"):
        ask("trace", "--config", "deep/set.toml")
    (folder / "set.toml").write_text('model = "tiny"\npairs = "greater_than"\nlayers = [99]\n')
    with pytest.raises(Exception, match=r"(?i)token|layer 99"):  # the set is read: the tiny model lacks its words
        ask("trace", "--config", "deep/set.toml")


def test_sets_are_tables_in_a_file(tmp_path):
    """In the configuration, and in a file of their own, whose path is relative to it."""
    sites = {"movers": ["z 1.2 @ last", "z 2.0-1 @ last"], "by the subject": ["resid_post 0-1 @ 2"]}
    table = "".join(f"{json.dumps(name)} = {json.dumps(each)}\n" for name, each in sites.items())
    Path("table.toml").write_text(
        f"{HEAD}components = []\ngrowing = ['movers']\n"
        f"interactions = [['z 1.2 @ last'], ['each z 3 @ last']]\n[sets]\n{table}"
    )
    Path("sets.toml").write_text(table)
    Path("file.toml").write_text(f"{HEAD}components = []\nsets = 'sets.toml'\ngrowing = 'movers'\n")
    found = document("trace", "--config", "table.toml")["provenance"]["options"]
    assert found["sets"] == sites
    assert found["growing"] == ["movers"]
    assert found["interactions"] == [["z 1.2 @ last"], ["each z 3 @ last"]]
    same = document("trace", "--config", "file.toml")["provenance"]["options"]
    flags = "movers = z 1.2 @ last; z 2.0-1 @ last | by the subject = resid_post 0-1 @ 2"
    common = ["trace", "--model", "tiny", *PAIR, "--components", "none", "--spot-checks", "0", "--growing", "movers"]
    for spelled in ("sets.toml", flags):
        assert document(*common, "--sets", spelled)["provenance"]["options"] == same
    assert same["sets"] == sites


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("layer = [0]", "asked.toml: There is no option 'layer'. Did you mean 'layers'"),
        ("modl = 'x'", "asked.toml: There is no option 'modl'. Did you mean 'model'"),
        ("draws = 3", "asked.toml: There is no option 'draws'"),
        ("progress = false", "asked.toml: There is no option 'progress'"),
        ("layers = 3", r"asked.toml, layers: It must be a list of layers, such as \[0, 1\]; it is 3"),
        ("layers = '0-x'", "asked.toml, layers: .*'0-x' is neither a layer nor a range"),
        ("seed = 'a'", "asked.toml, seed: It must be a whole number; it is 'a'"),
        ("seed = -1", "asked.toml, seed: seed= must be a whole number of at least 0"),
        ("engine = 'warp'", "asked.toml, engine: There is no engine 'warp'"),
        ("components = ['mlp']", "asked.toml, components: There is no component 'mlp'. Did you mean 'mlp_out'"),
        ("noise = {scal = 3}", "asked.toml, noise: There is no 'scal' in it. Did you mean 'scale'"),
        ("write = {kind = 'mean'}", "asked.toml, write: write='mean' needs prompts="),
        ("write = {kind = 'mean', prompts = 'none.txt'}", "asked.toml, write: --reference none.txt cannot be read"),
        ("write = {kind = 'given', tensors = 'none'}", "asked.toml, write: .*none cannot be read as safetensors"),
        ("chat = 1", "asked.toml, chat: It must be true or false; it is 1"),
        ("out = 1", "asked.toml, out: It must be a path; it is 1"),
        ("dtype = 32", "asked.toml, dtype: It must be a text; it is 32"),
        ("layers = [0", "asked.toml is no TOML: "),
        ("sets = ['z 1.2 @ last']", r"asked.toml, sets: It must be a table of lists of sites, such as \{movers = "),
        ("sets = {a = 'z 1.2 @ last'}", "asked.toml, sets: It must be a table of lists of sites"),
        ("sets = {a = ['z1.2']}", "asked.toml, sets: 'z1.2' is no site"),
        ("sets = {a = []}", "asked.toml, sets: The set 'a' has no sites"),
        ("sets = 'none.toml'", "asked.toml, sets: --sets .*none.toml cannot be read"),
        ("growing = 1", "asked.toml, growing: It must be"),
        ("interactions = 'z 1.2'", "asked.toml, interactions: 'z 1.2' is no site"),
        ("interactions = [1]", "asked.toml, interactions: It must be true, a list of sites, or two of them"),
    ],
)
def test_what_a_file_cannot_say(line, said):
    Path("asked.toml").write_text(HEAD + line + "\n")
    with pytest.raises(InvalidOption, match=said):
        ask("trace", "--config", "asked.toml")


def test_what_is_missing_is_said():
    with pytest.raises(InvalidOption, match=r"--config none.toml cannot be read"):
        ask("trace", "--config", "none.toml")
    Path("asked.toml").write_text(f'clean = "{CLEAN}"\n')
    with pytest.raises(InvalidOption, match=r"--model missing. Give it here, or in the file of --config"):
        ask("trace", "--config", "asked.toml")
    with pytest.raises(InvalidOption, match=r"--model missing. Give it here, or in the file of --config"):
        ask("attribute", "--config", "asked.toml")


def test_attribute_takes_a_file_too():
    few = 'method = "ig"\nsteps = 2\nverify = 2\nsample = 3\ncomponents = ["mlp_out"]\n'
    Path("asked.toml").write_text(HEAD.replace("spot_checks = 0\n", "") + few)
    found = document("attribute", "--config", "asked.toml", "--sample", "4")
    assert {name: found["provenance"]["estimates"][name] for name in ("method", "steps", "verify", "sample")} == {
        "method": "ig", "steps": 2, "verify": 2, "sample": 4,
    }  # fmt: skip
    Path("asked.toml").write_text(HEAD + 'keep = "all"\n')
    with pytest.raises(InvalidOption, match="There is no option 'keep'"):
        ask("attribute", "--config", "asked.toml")


def test_the_help_is_in_groups():
    shown = CliRunner().invoke(app, ["trace", "--help"], env={"COLUMNS": "100"}).stdout
    groups = ["The pair", "What is patched", "Noise and ablation", "Many pairs", "Model and engine", "Output"]
    places = [shown.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    assert places[1] < shown.index("--neuron-positions") < places[2] < shown.index("--draw-seed") < places[3]
    assert places[3] < shown.index("--shard") < places[4] < shown.index("--spot-checks") < places[5]


def test_a_shell_completes_flags_and_names():
    """As bash asks for it, in a process of its own."""
    code = "import sys; sys.argv = ['causal-tracing']; from causal_tracing.cli.app import main; main()"

    def completed(words: str) -> list[str]:
        asked = {"_CAUSAL_TRACING_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
        )
        return done.stdout.split()

    assert completed("causal-tracing trace --neuron") == ["--neurons", "--neuron-positions"]
    assert completed("causal-tracing trace --engine pa") == ["packed"]
    assert completed("causal-tracing attribute --metric log") == ["logit_diff", "log_prob", "logit"]


def test_a_file_may_begin_with_a_byte_order_mark():
    Path("asked.toml").write_bytes(b"\xef\xbb\xbf" + (HEAD + "layers = [0]\n").replace("\n", "\r\n").encode())
    assert document("trace", "--config", "asked.toml")["provenance"]["options"]["layers"] == [0]
