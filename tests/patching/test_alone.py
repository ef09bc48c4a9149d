"""Knockouts of pairs that have no corrupt prompt: what is lost is the same to the bit, and shares have a reason."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import causal_tracing
import causal_tracing as ct
from causal_tracing.cli import app as cli
from causal_tracing.errors import InvalidPair, InvalidResults
from joint import CLEAN, PAIR, others, tiny

ALONE = replace(PAIR, corrupt=None, corrupt_subject=None)
GEVA: dict[str, Any] = {"preset": "geva", "layers": [1, 2], "heads": True, "progress": False}
KINDS = ("knockout", "knockout_heads")
REASON = "there is no corrupt prompt, and so no total effect that it could be a share of"


def without(pairs: list[ct.Pair]) -> list[ct.Pair]:
    """Other clean prompts for each, for pairs that differ in their corrupt ones alone would be one pair."""
    return [replace(pair, clean=pair.corrupt, subject=None, corrupt=None, corrupt_subject=None) for pair in pairs]


# To the bit where both run in forwards of their own; in one batch the corrupt run changes its shape, and the last bits.
@pytest.mark.parametrize(("engine", "apart"), [("replay", 0.0), ("packed", 1e-6)])
def test_all_but_shares_is_the_same(engine: str, apart: float) -> None:
    alone_in_a_batch: dict[str, Any] = {"budget": 1} if engine == "replay" else {}
    asked: dict[str, Any] = GEVA | {"window": 9, "engine": engine} | alone_in_a_batch
    both, alone = (ct.knockout(tiny(), pair, **asked) for pair in (PAIR, ALONE))
    for kind in KINDS:
        first, second = both.of(kind), alone.of(kind)
        for name in ("clean", "disruption"):
            of_kl = [each.sel(metric="neg_kl")[name].values for each in (second, first)]
            assert_allclose(*of_kl, rtol=0, atol=1e-6)  # against the clean run as it was recorded beside the other
            one, other = (each.sel(metric=first.metric != "neg_kl")[name].values for each in (second, first))
            assert_allclose(one, other, rtol=0, atol=apart)
        for name in ("status", "reason"):
            assert_array_equal(second[name].values, first[name].values)
        assert np.isfinite(second.disruption.values).any()
        assert np.isfinite(first.lost_fraction.values).any()
        for name in ("corrupt", "total_effect", "lost_fraction", "bypass"):
            assert np.isnan(second[name].values).all()
        logits = second.sel(metric=["logit_diff", "log_prob", "prob"])
        assert (logits.fraction_reason == REASON).all()
    assert (alone.of("knockout").sel(metric="logit_diff").reason == "").all()


def test_means_over_pairs_are_the_same() -> None:
    pairs = [replace(pair, corrupt=CLEAN) for pair in without(others(9))]
    asked: dict[str, Any] = {"keys": [1, 3], "engine": "replay", "budget": 1, "progress": False}
    both, alone = (ct.knockout(tiny(), some, **asked) for some in (pairs, without(others(9))))
    for metric in ("logit_diff", "prob"):
        first, second = both.evidence(metric=metric), alone.evidence(metric=metric)
        for name in ("disruption", "disruption_low", "disruption_high", "disruption_p_adjusted", "status", "clusters"):
            assert_array_equal(second.cells[name].values, first.cells[name].values)
        assert np.isfinite(first.cells.disruption_low.values).any()
        assert np.isnan(second.cells.lost_fraction.values).all()
        assert np.isnan(second.total.estimate)
    words = alone.summary()
    assert "there are no corrupt prompts, and so no total effect" in words
    assert "hiding it takes away" in words
    assert "nan" not in words


def test_some_pairs_may_have_one() -> None:
    pairs = without(others(4))
    mixed = [replace(pairs[0], corrupt=CLEAN), *pairs[1:]]
    found = ct.knockout(tiny(), mixed, keys=[1, 3], progress=False)
    alone = ct.knockout(tiny(), pairs, keys=[1, 3], progress=False)
    one, other = (each.evidence().cells for each in (found, alone))
    np.testing.assert_allclose(one.disruption, other.disruption, atol=1e-6)
    whole = found.effects.sel(metric="logit_diff", pair="pair-0")
    share = whole.disruption / whole.total_effect
    np.testing.assert_allclose(one.lost_fraction.values, share.where(one.status == "ok", one.lost_fraction).values)


def test_words_pages_and_files_say_that_there_is_none(tmp_path: Path) -> None:
    found = ct.knockout(tiny(), ALONE, **GEVA)
    said = found.summary()
    assert "against   the same with keys hidden (foil w8)" in said
    assert "(there is no corrupt prompt, and so no total effect)" in said
    assert f"Fractions are undefined: {REASON}." in said
    assert "%" not in said.split("Warning")[0].partition("the answer's probability goes")[0]
    page = found.to_html(tmp_path / "page.html")
    assert "the same with keys hidden" in page
    assert "have the same tokens" not in page
    table = found.to_dataframe()
    assert table[table.effect == "disruption"].logit_diff.notna().any()
    again = ct.open_trace(found.save(tmp_path / "saved"))
    assert again.summary() == said
    assert found.scalars()["attention/disruption"] != 0
    assert "total_effect" not in found.scalars()
    assert found.plot("knockout").axes


def test_many_pairs_in_a_folder_need_none(tmp_path: Path) -> None:
    pairs = [*without(others(3)), replace(others(1)[0], id="unlike", corrupt=" w1 w2", corrupt_subject=None)]
    options: dict[str, Any] = {"components": [], "knockout": True, "knockout_keys": [1, 3], "progress": False}
    run = ct.run(tiny(), pairs, tmp_path / "run", **options)
    assert "2 tokens" in run.provenance["failed"]["unlike"]
    kept = run.measurements.pairs.pair.values
    direct = ct.trace(tiny(), without(others(3)), **options)
    for id in kept.tolist():
        np.testing.assert_allclose(
            run.effects.disruption.sel(pair=id), direct.effects.disruption.sel(pair=id), atol=1e-6
        )
    assert kept.tolist() == ["pair-0", "pair-1", "pair-2"]
    with pytest.raises(InvalidResults, match="the clean run's first choice is"):  # asked of each by itself
        ct.run(tiny(), without(others(3)), tmp_path / "kept", keep="first_choice", **options)


def test_what_compares_two_prompts_still_needs_one() -> None:
    asked: list[dict[str, Any]] = [
        {"components": ["mlp_out"]},
        {"components": [], "edges": ["v"]},
        {"components": [], "lens": True},
    ]
    for options in asked:
        with pytest.raises(InvalidPair, match=r"has no corrupt prompt\. .* Attention knockout alone needs none"):
            ct.trace(tiny(), ALONE, knockout=True, **options, progress=False)


def test_the_command_line_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named = replace(tiny(), source={"kind": "folder"})
    monkeypatch.setattr(causal_tracing, "load", lambda name, **options: named)

    def ask(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["causal-tracing", *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            shown = capsys.readouterr()
            return int(stop.code or 0), shown.out, shown.err
        shown = capsys.readouterr()
        return 0, shown.out, shown.err

    one = ["--clean", CLEAN, "--answer", " w7", "--foil", " w8", "--keys", "1,3"]
    code, out, err = ask("knockout", "--model", "tiny", *one, "--json", "--out", "kept")
    assert code == 0, err
    assert "the two prompts" not in err
    document = json.loads(out)
    assert document["pairs"][0]["corrupt"] is None
    assert document["pairs"][0]["total_effect"] is None
    found = np.array(document["effects"]["disruption"]["attention"], dtype=float)
    expected = ct.knockout(tiny(), ALONE, keys=[1, 3], progress=False).effects.disruption.sel(metric="logit_diff")
    assert_array_equal(found[0], expected.values[0, 0])
    code, again, err = ask("trace", "--config", "kept/config.toml", "--model", "tiny", "--json")
    assert code == 0, err
    assert json.loads(again)["effects"] == document["effects"]
    code, out, err = ask("knockout", "--model", "tiny", *one, "--dry-run")
    assert code == 0, err
    assert "worlds        9, of which" in out  # the clean run, and two keys in four layers
    rows = [{"clean": pair.clean, "answer": " w7", "foil": " w8"} for pair in without(others(3))]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = ask(
        "knockout", "--model", "tiny", "--pairs", "pairs.jsonl", "--keys", "1", "--out", "run", "--json"
    )
    assert code == 0, err
    assert len(json.loads(out)["pairs"]) == 3
    code, _, err = ask("trace", "--model", "tiny", *one[:-2], "--components", "mlp_out")
    assert code == 2
    assert "has no corrupt prompt" in err
