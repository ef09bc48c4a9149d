"""The JSON document of a command, and the command in it that makes the same document again."""

import json
import shlex
from typing import Any

import pytest

from command_line import CLEAN, CORRUPT, NOISE, NOISED, PAIR, TRACE, load_tiny, run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return load_tiny(monkeypatch)


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
