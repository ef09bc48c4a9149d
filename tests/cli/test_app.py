"""The command line on a tiny model: what goes to stdout, what to stderr, messages and exit codes."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import causal_tracing
import causal_tracing as ct
from causal_tracing.patching.options import texts
from command_line import CLEAN, CORRUPT, NOISE, NOISED, PAIR, TRACE, load_tiny, run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return load_tiny(monkeypatch)


def test_the_result_goes_to_stdout_and_the_notes_to_stderr(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, *TRACE, "--subject", "w13")
    assert code == 0
    assert out.startswith(f"{CLEAN} → w7   against   {CORRUPT} → w8\ntotal effect ")
    for section in ("strongest sites", "What this does not show", "resid_post: restoration", "mlp_out: restoration"):
        assert section in out
    assert "w13 | w43" in out
    assert "5 tokens   w11| w12| w13| w14| w15" in err
    assert "differ  at position 2 ( w13/ w43)" in err
    assert "tracing, 100 %" in err
    assert "9 cells run again on whole forwards differ by at most" in err
    assert "tracing," not in out


def test_a_metric_that_needs_a_foil_is_refused_without_one(monkeypatch, capsys):
    arguments = ["trace", "--model", "tiny", "--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7"]
    code, out, err = run(monkeypatch, capsys, *arguments, "--json", "--metric", "logit_diff")
    assert (code, out) == (2, "")
    assert "InvalidOption: metric='logit_diff' is undefined for every pair (pair-0): it needs a foil. Give foil=" in err


def test_a_folder_and_its_page_and_the_page_again(monkeypatch, capsys, tmp_path: Path):
    folder = tmp_path / "run"
    code, _, err = run(monkeypatch, capsys, *TRACE, "--out", str(folder))
    assert code == 0
    assert "report.html" in err
    page = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    code, out, _ = run(monkeypatch, capsys, "report", str(folder))
    assert (code, out.strip()) == (0, str(folder / "report.html"))
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    code, _, err = run(monkeypatch, capsys, *TRACE, "--out", str(folder))
    assert code == 2
    assert "exists already" in err
    assert run(monkeypatch, capsys, *TRACE, "--out", str(folder), "--overwrite")[0] == 0


def test_noise_on_the_command_line(monkeypatch, capsys, tmp_path: Path):
    folder = tmp_path / "run"
    code, out, err = run(monkeypatch, capsys, *NOISED, *NOISE, "--out", str(folder))
    assert code == 0
    assert out.startswith(f"{CLEAN} → w7   against   the same with noise on its subject (foil w8)\ntotal effect ")
    assert "added to the embeddings of ' w12', ' w13': means of 3 draws, the same for every cell" in out
    assert "noise   at positions 1 ( w12), 2 ( w13)" in err
    assert "corrupt" not in err
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<strong>with noise</strong>" in page
    assert "<strong>corrupt</strong>" not in page
    assert "The corrupt prompt decides" not in page
    assert run(monkeypatch, capsys, "report", str(folder))[0] == 0


def test_a_number_is_the_noises_own_strength(monkeypatch, capsys):
    shown = json.loads(run(monkeypatch, capsys, *NOISED, "--noise", "0.7", "--draws", "2", "--json")[1])
    assert (shown["provenance"]["noise"]["scale"], shown["provenance"]["noise"]["sigmas"]) == (1.0, [0.7])
    said = run(monkeypatch, capsys, *NOISED, "--noise", "0.7", "--draws", "2")[1]
    assert "Gaussian noise of standard deviation 0.70 added to the embeddings" in said
    same = run(monkeypatch, capsys, *NOISED, "--noise", "3sigma", "--preset", "rome", "--components", "mlp_out")
    assert (same[0], "By the conventions of ROME's code" in same[1]) == (0, True)


def test_several_pairs_from_a_file(monkeypatch, capsys, tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    row = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " w7", "foil": " w8"}
    path.write_text("\n".join(json.dumps(row | {"id": name}) for name in ("one", "two")))
    code, out, _ = run(monkeypatch, capsys, "trace", "--model", "tiny", "--pairs", str(path))
    assert code == 0
    assert "2 pairs" in out
    assert "two: total effect" in out
    folder = tmp_path / "run"
    run(monkeypatch, capsys, "trace", "--model", "tiny", "--pairs", str(path), "--out", str(folder))
    assert [json.loads(line)["id"] for line in (folder / "pairs.jsonl").read_text().splitlines()] == ["one", "two"]


def test_options_reach_the_loader(monkeypatch, capsys, tiny):
    arguments = ["--dtype", "float64", "--device", "cpu", "--revision", "abc", "--trust-remote-code"]
    run(monkeypatch, capsys, "check", "--model", "org/name", *arguments)
    assert tiny == {
        "name": "org/name", "dtype": "float64", "device": "cpu", "device_map": None, "revision": "abc",
        "trust_remote_code": True,
    }  # fmt: skip


def test_check_prints_what_holds_with_the_measured_differences(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "check", "--model", "parallel")
    assert code == 5  # something is refused
    assert "4 layers of gpt_neox, at gpt_neox.layers" in out
    assert "refused     resid_mid: its attention and MLP read the same stream" in out
    assert "resid_mid is not offered on this model" in err
    assert "FAILS" not in out
    assert out.count("holds") > 12
    code, out, _ = run(monkeypatch, capsys, "check", "--model", "parallel", "--json")
    assert code == 5
    document = json.loads(out)
    assert document["components"] == ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    assert all(finding["holds"] for finding in document["findings"])
    code, out, _ = run(monkeypatch, capsys, "check", "--model", "tiny")
    assert (code, "refused" in out) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trace", "--model", "none", *PAIR], 4, "ModelNotFound: There is no model 'none'."),
        (["trace", "--model", "tiny", "--clean", CLEAN], 2, "--answer missing"),
        ([*TRACE, "--pairs", "x.jsonl"], 2, "--pairs holds whole pairs; leave out --clean, --corrupt"),
        ([*TRACE[:-2], "--foil", " w7"], 2, "answer and foil are the same token"),
        ([*TRACE, "--layers", "0-x"], 2, "'0-x' is neither a layer nor a range"),
        ([*TRACE, "--budget", "much"], 2, "'much' is not a size"),
        ([*TRACE, "--components", "mlp"], 2, "no component 'mlp'. Did you mean 'mlp_out'"),
        ([*TRACE, "--positions", "subject_last"], 2, "Give the pairs a subject="),
        (["trace", "--model", "tiny", "--pairs", "none.jsonl"], 2, "none.jsonl is not there"),
        (["report", "none"], 2, "none is not there"),
        (["trace"], 2, "--model"),
        (["trcae"], 2, "trcae"),
        ([*NOISED, "--noise", "3 sigmas"], 2, "--noise '3 sigmas' is no strength. Write such as 3sigma"),
        ([*NOISED, "--draws", "3"], 2, "say how noise or a reference is drawn. Give --noise too"),
        ([*NOISED, "--preset", "rome", "--draw-seed", "1"], 2, "say how noise or a reference is drawn"),
        ([*NOISED, *NOISE, "--preset", "rome"], 2, "leave out noise= or the preset"),
        ([*NOISED, *NOISE, "--directions", "disruption"], 2, "With noise only restoration is measured"),
        ([*NOISED, *NOISE, "--window", "mlp_out"], 2, "'mlp_out' is no width. Write such as 10"),
        ([*NOISED, *NOISE, "--window", "5"], 2, "the model has 4 layers. Use 1 to 4"),
        ([*NOISED, *NOISE, "--sever", "neurons"], 2, "no part to sever 'neurons'"),
        ([*TRACE, "--subject", "w13", *NOISE], 2, "has a corrupt prompt, and noise was asked for"),
        ([*NOISED[:5], "--answer", " w7", *NOISE], 2, "Noise is added to the subject's tokens: give subject="),
        (NOISED, 2, "has no corrupt prompt"),
        (["trace", "--model", "parallel", *PAIR, "--components", "resid_mid"], 4, "resid_mid is not offered"),
    ],
)
def test_what_is_wrong_gets_one_message_and_its_exit_code(monkeypatch, capsys, arguments, code, message):
    found, out, err = run(monkeypatch, capsys, *arguments)
    assert found == code
    assert message in err
    assert out == ""
    assert "Traceback" not in err


def test_an_interruption_says_so(monkeypatch, capsys):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(causal_tracing, "trace", interrupted)
    code, out, err = run(monkeypatch, capsys, *TRACE)
    assert (code, out) == (130, "")
    assert "Interrupted. Nothing was written." in err


def test_an_interruption_says_what_was_written(monkeypatch, capsys, tmp_path):
    """Ctrl-C while the page is drawn: the trace is there already."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "kept"
    with monkeypatch.context() as patched:
        patched.setattr(causal_tracing.Trace, "to_html", interrupted)
        code, _, err = run(monkeypatch, capsys, *TRACE, "--out", str(folder))
    assert code == 130
    assert f"Interrupted. Written before: {folder}." in err
    assert (folder / "trace.json").is_file()
    with monkeypatch.context() as patched:
        patched.setattr("causal_tracing.results.storage.merge.merge", interrupted)
        code, _, err = run(monkeypatch, capsys, "merge", str(tmp_path / "all"), str(tmp_path / "shard"))
    assert (code, "may hold a part of the shards" in err) == (130, True)
    with monkeypatch.context() as patched:
        patched.setattr(causal_tracing.Trace, "to_html", interrupted)
        code, _, err = run(monkeypatch, capsys, "report", str(folder))
    assert (code, "Nothing was written" in err) == (130, True)  # by this command


@pytest.mark.parametrize(
    ("text", "size"), [("512MB", 512 * 2**20), ("2GB", 2**31), ("1.5 kb", 1536), ("100", 100), ("7B", 7)]
)
def test_sizes(text: str, size: int):
    assert texts.size(text) == size


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version")[:2] == (0, causal_tracing.__version__ + "\n")


def test_a_dry_run_says_what_it_would_take_and_stops(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, *TRACE, "--dry-run")
    assert code == 0
    assert "worlds" in out
    assert "token-layers" in out
    assert "MB above the model" in out
    assert "tracing" not in err
    code, out, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json", "--engine", "replay")
    found = json.loads(out)
    assert found["engine"] == "replay"
    assert found["token_layers"] < found["naive_token_layers"]


def test_an_engine_that_is_not_used_is_said_once(monkeypatch, capsys):
    only = ["--components", "resid_post", "--layers", "1", "--json"]
    code, out, err = run(monkeypatch, capsys, "trace", "--model", "bloom", *PAIR, *only)
    assert code == 0
    assert json.loads(out)["engine"] == "replay"
    assert err.count("The packed engine is not used on bloom") == 1
    code, _, err = run(monkeypatch, capsys, "trace", "--model", "bloom", *PAIR, *only, "--engine", "packed")
    assert code == 4
    assert "CannotPack: The packed engine does not run bloom: layer 0 does not attend by" in err


def test_heads_and_neurons_are_asked_for_and_said(monkeypatch, capsys, tmp_path):
    units = ("--heads", "z,k", "--neurons", "1,2:14+60", "--neuron-positions", "2,last")
    code, out, _ = run(monkeypatch, capsys, *TRACE, *units, "--json", "--out", str(tmp_path / "run"))
    assert code == 0
    found = json.loads(out)
    restored = found["heads"]["effects"]["restoration"]["z"]
    assert np.shape(restored) == (1, 4, 4, 5)  # pair, layer, head, position
    assert found["heads"]["readers"]["k"] == ["0, 1", "2, 3", "", ""]
    neurons = np.array(found["neurons"]["effects"]["disruption"]["neurons"], dtype=float)
    assert neurons.shape == (1, 2, 64, 2)
    assert (~np.isnan(neurons)).sum(axis=(0, 2, 3)).tolist() == [2 * 64, 2 * 2]
    again = shlex.split(found["provenance"]["command"])
    _, repeated, _ = run(monkeypatch, capsys, *again[1:], "--json")
    assert json.loads(repeated)["heads"] == found["heads"]
    assert json.loads(repeated)["neurons"] == found["neurons"]


def test_a_dry_run_counts_neurons(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json")
    _, more, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json", "--neurons", "all", "--heads", "z")
    assert json.loads(more)["worlds"] - json.loads(out)["worlds"] == 2 * 4 * 64 + 2 * 4 * 4 * 5


@pytest.mark.parametrize("text", ["x", "3:", "3:a", "2:1+", "-1"])
def test_bad_neurons_are_said(monkeypatch, capsys, text):
    code, out, err = run(monkeypatch, capsys, *TRACE, f"--neurons={text}")
    assert (code, out) == (2, "")
    assert "names no neurons. Write all, or such as 5,20:14+1035" in err


def test_neurons_that_a_model_does_not_have_are_said(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, *TRACE, "--neurons", "1:64")
    assert code == 2
    assert "There is no neuron 64: layer 1 of tiny has neurons 0 to 63." in err


def test_a_dry_run_counts_what_is_patched_together(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json")
    _, more, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json", "--sets", "a = z 1.2 @ last; z 2.0 @ last")
    assert json.loads(more)["worlds"] - json.loads(out)["worlds"] == 2 * (1 + 2)
    _, more, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json", "--interactions", "each z 2 @ last")
    assert json.loads(more)["worlds"] - json.loads(out)["worlds"] == 2 * (4 * 3 / 2 + 4)


def test_estimates_of_a_file_of_pairs_go_into_a_folder(monkeypatch, capsys, tmp_path):
    rows = [{"clean": CLEAN, "corrupt": CORRUPT, "answer": " w7", "foil": foil} for foil in (" w8", " w9")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = ["--components", "mlp_out", "--verify", "3", "--sample", "4", "--out", str(tmp_path / "saved")]
    asked = ["attribute", "--model", "tiny", "--pairs", str(tmp_path / "pairs.jsonl"), *few]
    code, out, err = run(monkeypatch, capsys, *asked)
    assert code == 0
    assert "2 pairs, each with estimates of its own" in out
    assert f"wrote {tmp_path / 'saved'}" in err
    assert ct.open_trace(tmp_path / "saved").summary() == out.rstrip("\n")
    assert run(monkeypatch, capsys, *asked)[0] == 2  # it is there already
    assert run(monkeypatch, capsys, *asked, "--overwrite")[0] == 0
