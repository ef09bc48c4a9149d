"""The command line on a tiny model: what goes to stdout, what to stderr, the JSON document, exit codes."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import causal_tracing
import causal_tracing as ct
from causal_tracing.cli import app as cli
from causal_tracing.errors import ModelNotFound
from causal_tracing.patching.options import texts
from loaded import shared
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15", " w11 w12 w43 w14 w15"
PAIR = ["--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7", "--foil", " w8"]
TRACE = ["trace", "--model", "tiny", *PAIR]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`load` gives a tiny model, whatever it is asked for, and remembers how it was asked."""
    asked: dict[str, Any] = {}

    def load(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        if name == "none":
            raise ModelNotFound("There is no model 'none'.")
        family = {"parallel": "gpt_neox", "bloom": "bloom"}.get(name, "llama")
        return replace(shared(family), tokenizer=WORDS, name=name, source={"kind": "folder"})

    monkeypatch.setattr(causal_tracing, "load", load)
    return asked


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["causal-tracing", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    shown = capsys.readouterr()
    return code, shown.out, shown.err


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


def test_json_is_exactly_one_document(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, *TRACE, "--json", "--layers", "0-1,3", "--components", "resid_post,mlp_out")
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0
    assert document["schema"] == 1
    assert {name: document[name] for name in ("model", "engine", "dtype", "metric")} == {
        "model": "tiny", "engine": "packed", "dtype": "float32", "metric": "logit_diff",
    }  # fmt: skip
    (pair,) = document["pairs"]
    assert pair["clean_tokens"] == [" w11", " w12", " w13", " w14", " w15"]
    assert pair["corrupt_tokens"][2] == " w43"
    assert (pair["id"], pair["answer"], pair["foil"]) == ("pair-0", " w7", " w8")
    assert pair["total_effect"] == pytest.approx(pair["clean"] - pair["corrupt"])
    assert document["components"] == ["resid_post", "mlp_out"]
    assert document["layers"] == [0, 1, 3]
    for direction in ("restoration", "disruption"):
        for component in ("resid_post", "mlp_out"):
            (layers,) = document["effects"][direction][component]
            assert [len(positions) for positions in layers] == [5, 5, 5]
    assert document["effects"]["restoration"]["resid_post"][0][2][4] == pytest.approx(pair["total_effect"], abs=1e-5)
    assert document["status"]["resid_post"][0][2][4] == "cut"
    assert document["status"]["resid_post"][0][0] == ["structural_zero", "structural_zero", None, None, None]
    assert document["effects"]["restoration"]["resid_post"][0][0][0] == 0
    assert document["spot_checks"]["cells"] == 9
    assert document["worlds"] == 2 + 2 * 2 * 3 * 5
    assert "all_metrics" not in document


def test_json_says_null_where_a_number_is_undefined(monkeypatch, capsys):
    arguments = ["trace", "--model", "tiny", "--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7"]
    _, out, _ = run(monkeypatch, capsys, *arguments, "--json", "--all-metrics", "--spot-checks", "0")
    document = json.loads(out)
    assert document["metric"] == "log_prob"
    assert document["pairs"][0]["foil"] is None
    assert document["spot_checks"] == {"cells": 0, "largest_difference": None}
    assert document["all_metrics"]["logit_diff"]["restoration"]["mlp_out"][0][0][4] is None
    assert document["all_metrics"]["prob"]["restoration"]["mlp_out"][0][0][4] is not None


def test_numbers_that_are_not_finite_are_null_with_their_reason(monkeypatch, capsys):
    """A model whose logits overflow: nothing is known, and the document says so."""
    from causal_tracing.patching.metrics import built_in as metrics

    real = metrics.measure_logits

    def overflowing(*given: Any) -> Any:
        return real(*given) * float("nan")

    monkeypatch.setattr(metrics, "measure_logits", overflowing)
    code, out, err = run(monkeypatch, capsys, *TRACE, "--json")
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0
    assert document["pairs"][0]["total_effect"] is None
    assert document["pairs"][0]["reason"] == "an unedited run's logits are not finite"
    reason = "9 of 9 cells run again gave numbers that are not finite"
    checked = document["spot_checks"]
    assert (checked["cells"], checked["largest_difference"], checked["reason"]) == (9, None, reason)
    assert f"note: {reason}" in err


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


def test_the_provenances_command_makes_the_same_document_again(monkeypatch, capsys):
    import shlex

    options = [
        "--metric",
        "log_prob",
        "--positions",
        "last,2",
        "--directions",
        "disruption",
        "--budget",
        "2MB",
        "--seed",
        "3",
    ]
    first = json.loads(run(monkeypatch, capsys, *TRACE, *options, "--json")[1])
    words = shlex.split(first["provenance"]["command"])
    assert words[0] == "causal-tracing"
    again = json.loads(run(monkeypatch, capsys, *words[1:], "--json")[1])
    for document in (first, again):
        del document["seconds"], document["provenance"]["seconds"], document["provenance"]["started"]
    assert again == first


NOISED = ["trace", "--model", "tiny", "--prompt", CLEAN, "--subject", "w12 w13", "--answer", " w7", "--foil", " w8"]
NOISE = ["--noise", "3sigma", "--draws", "3"]


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


def test_noise_windows_and_severed_parts_are_in_the_document(monkeypatch, capsys):
    more = ["--window", "mlp_out=2", "--sever", "mlp_out,attn_out", "--json"]
    document = json.loads(run(monkeypatch, capsys, *NOISED, *NOISE, *more)[1])
    assert set(document["effects"]) == {
        "restoration", "restoration_sum", "restoration_deviation", "severed_attn_out", "severed_mlp_out",
    }  # fmt: skip
    assert document["windows"] == {
        "resid_post": [[0, 0], [1, 1], [2, 2], [3, 3]],
        "attn_out": [[0, 0], [1, 1], [2, 2], [3, 3]],
        "mlp_out": [[0, 1], [1, 2], [2, 3], None],
    }
    sums, severed = (document["effects"][name] for name in ("restoration_sum", "severed_mlp_out"))
    assert sums["mlp_out"][0][1][4] is not None
    assert sums["mlp_out"][0][3][4] is None
    assert sums["resid_post"][0][1][4] is None
    assert severed["resid_post"][0][1][4] is not None
    assert severed["mlp_out"][0][1][4] is None
    assert document["status"]["mlp_out"][0][3][4] == "no_window"
    assert document["pairs"][0]["total_effect_deviation"] > 0
    assert document["provenance"]["noise"]["positions"] == [[1, 2]]
    plain = json.loads(run(monkeypatch, capsys, *TRACE, "--json")[1])
    assert "windows" not in plain
    assert set(plain["effects"]) == {"restoration", "disruption"}
    assert "total_effect_deviation" not in plain["pairs"][0]


@pytest.mark.parametrize(
    "options",
    [
        [*NOISE, "--draw-seed", "4", "--window", "2", "--sever", "mlp_out"],
        ["--noise", "0.7", "--draws", "2", "--window", "attn_out=3", "--no-window-sums"],
        ["--noise", "0.7", "--draws", "2", "--heads", "z", "--direct", "true", "--direct-norm", "frozen"],
        ["--preset", "rome", "--components", "mlp_out", "--layers", "1", "--positions", "2,last", "--spot-checks", "2"],
    ],
)
def test_the_provenances_command_makes_the_same_noise_again(monkeypatch, capsys, options):
    import shlex

    first = json.loads(run(monkeypatch, capsys, *NOISED, *options, "--json")[1])
    again = json.loads(run(monkeypatch, capsys, *shlex.split(first["provenance"]["command"])[1:], "--json")[1])
    for document in (first, again):
        del document["seconds"], document["provenance"]["seconds"], document["provenance"]["started"]
    assert again == first


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


JOINT = [
    ["--sets", "a b = z 1.2 @ last; mlp_out 0-1 @ 2 | c = resid_post 1 @ 2", "--growing", "a b"],
    ["--sets", "a = z 1.2 @ -1; z 2.0 @ last", "--growing", "true", "--interactions", "each z 2 @ last"],
    ["--interactions", "z 1.2 @ last; mlp_out 0 @ 2 | each neurons 3.1-2 @ last"],
]


@pytest.mark.parametrize("options", JOINT, ids=str)
def test_what_is_patched_together_is_a_document_whose_command_makes_it_again(monkeypatch, capsys, options):
    asked = [*TRACE, "--components", "none", *options, "--json"]
    first, again = (run(monkeypatch, capsys, *asked)[1], None)
    found = json.loads(first, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = json.loads(run(monkeypatch, capsys, *shlex.split(found["provenance"]["command"])[1:], "--json")[1])
    for document in (found, again):
        del document["seconds"], document["provenance"]["seconds"], document["provenance"]["started"]
    assert again == found


def test_maps_of_what_is_patched_together_are_in_the_document(monkeypatch, capsys):
    asked = [*TRACE, "--components", "none", *JOINT[1], "--json"]
    found = json.loads(run(monkeypatch, capsys, *asked)[1])
    assert found["sets"] == ["a"]
    for name in ("restoration", "disruption_of_members", "disruption_beyond_sum"):
        assert len(found["effects"][name]["set"][0]) == 1
    growing, pairs = found["growing"], found["interactions"]
    assert (growing["sets"], growing["sizes"]) == (["a"], [1, 2])
    assert pairs["sites"] == pairs["partners"] == [*(f"z 2.{head} @ last" for head in range(4)), "alone"]
    beyond = pairs["effects"]["restoration_beyond_sum"]["pair_of_sites"][0]
    assert beyond[0][0] is None  # a site with itself
    assert beyond[0][1] == beyond[1][0] != 0
    assert pairs["status"]["pair_of_sites"][0][0][0] == "given"


def test_a_dry_run_counts_what_is_patched_together(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json")
    _, more, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json", "--sets", "a = z 1.2 @ last; z 2.0 @ last")
    assert json.loads(more)["worlds"] - json.loads(out)["worlds"] == 2 * (1 + 2)
    _, more, _ = run(monkeypatch, capsys, *TRACE, "--dry-run", "--json", "--interactions", "each z 2 @ last")
    assert json.loads(more)["worlds"] - json.loads(out)["worlds"] == 2 * (4 * 3 / 2 + 4)


def test_the_command_of_estimates_makes_them_again(monkeypatch, capsys):
    few = ["--components", "mlp_out,z", "--verify", "3", "--sample", "4", "--spot-checks", "0", "--json"]
    asked = ["attribute", "--model", "tiny", *PAIR, "--subject", "w13", "--corrupt-subject", "w43", "--align", "spans"]
    code, first, _ = run(monkeypatch, capsys, *asked, *few)
    assert code == 0
    first = json.loads(first)
    assert len(first["verified"]) == 14
    command = shlex.split(first["provenance"]["command"])
    assert command[:2] == ["causal-tracing", "attribute"]
    again = json.loads(run(monkeypatch, capsys, *command[1:], "--json")[1])
    for name in ("estimates", "verified", "agreement"):
        assert again[name] == first[name]


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
