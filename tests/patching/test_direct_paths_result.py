"""Direct paths as options and as results: what is refused, and that they go the way that all else goes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.results.effects import AMBIGUOUS
from loaded import shared

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
ANSWER, FOIL, LAST = 7, 20, 8
NAMES = ("direct_path_restoration", "direct_path_disruption")


def spelled(tokens: Any) -> str:
    return " ".join(f"w{token}" for token in tokens)


def pair(last: int = 91) -> ct.Pair:
    corrupt = (*CORRUPT[:-1], last)
    return ct.Pair(clean=spelled(CLEAN), corrupt=spelled(corrupt), answer=f" w{ANSWER}", foil=f" w{FOIL}")


@pytest.fixture(scope="module")
def many() -> ct.Trace:
    pairs = [pair(last) for last in range(60, 68)]
    options: dict[str, Any] = {
        "components": ["attn_out"],
        "heads": True,
        "positions": ["last"],
        "head_positions": ["last"],
    }
    return ct.trace(shared("llama"), pairs, direct=True, direct_norm="frozen", progress=False, **options)


def test_means_have_intervals_and_tests(many: ct.Trace):
    for of in ("blocks", "heads"):
        cells = many.evidence(of=of).cells
        for name in NAMES:
            assert_allclose(cells[name], many.of(of).sel(metric="logit_diff")[name].mean("pair"), atol=1e-6)
            assert (cells[f"{name}_low"] < cells[name]).all()
            assert (cells[f"{name}_p_adjusted"] <= 1).all()
    said = many.summary()
    assert "Strongest direct path of z: layer" in said
    assert "through the residual stream alone, the final norm frozen, it brings back" in said


def test_one_pair_is_told_with_its_norm(many: ct.Trace):
    said = many.summary(pair="pair-0")
    assert "Strongest direct path of attn_out site: layer" in said
    assert "the final norm frozen, it brings back" in said
    page = many.to_html()
    assert "direct_path_restoration" in page
    assert "divides by what it divides by in the unedited run" in page


def test_it_is_kept_and_opened_again(many: ct.Trace, tmp_path: Path):
    many.save(tmp_path / "kept")
    again = ct.open_trace(tmp_path / "kept")
    assert again.measurements.direct_norm == "frozen"
    assert again.effects.attrs["direct_norm"] == "frozen"
    assert_allclose(again.effects.direct_path_restoration, many.effects.direct_path_restoration)
    assert again.measurements.provenance["options"]["direct"] == ["mlps_frozen", "mlps_live"]
    frame = again.to_dataframe()
    assert {*NAMES} <= {*frame.effect}
    assert not frame.duplicated(["pair", "component", "layer", "position", "effect"]).any()


def test_the_bare_word_direct_is_answered_with_all_names(many: ct.Trace):
    with pytest.raises(InvalidOption) as raised:
        many.plot(effect="direct")
    assert str(raised.value) == AMBIGUOUS
    for name in NAMES:
        assert name in AMBIGUOUS


def test_a_run_folder_has_them(tmp_path: Path):
    pairs = [pair(last) for last in (60, 61)]
    trace = ct.run(
        shared("llama"), pairs, tmp_path / "run", components=["attn_out"], positions=["last"],
        direct=["mlps_frozen"], progress=False,
    )  # fmt: skip
    assert np.isfinite(trace.effects.direct_path_restoration.sel(metric="logit_diff")).all()


def test_layers_that_add_more_than_can_be_held_are_refused():
    with pytest.raises(ComponentNotOffered, match="layer 0 adds more to the stream than"):
        ct.trace(shared("falcon_h1"), pair(), components=["attn_out"], direct=True, progress=False)
    with pytest.raises(ComponentNotOffered, match="its layers have one part each"):
        ct.trace(shared("mamba"), pair(), components=["mixer_out"], direct=True, progress=False)
    with pytest.raises(ComponentNotOffered, match="neither an RMSNorm nor a LayerNorm"):
        ct.trace(shared("opt-350m"), pair(), direct=True, direct_norm="frozen", progress=False)


WRONG = [
    ({"direct": ["mlps"]}, "There is no direct path 'mlps'"),
    ({"direct": True, "direct_norm": "cold"}, "There is no final norm 'cold'"),
    ({"direct_norm": "frozen"}, "counts beside direct= alone"),
    ({"direct": True, "components": [], "knockout": True}, "follows patched components, heads, neurons or experts"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], said: str):
    with pytest.raises(InvalidOption, match=said):
        ct.trace(shared("llama"), pair(), progress=False, **options)


def test_answers_of_several_tokens_are_refused():
    several = ct.Pair(clean=spelled(CLEAN), corrupt=spelled(CORRUPT), answer=f" w{ANSWER} w9", foil=f" w{FOIL}")
    with pytest.raises(InvalidOption, match="of several tokens"):
        ct.trace(shared("llama"), several, direct=True, progress=False)


def test_given_sites_and_what_is_held_do_not_collide():
    found = ct.trace(
        shared("llama"), pair(), components=["attn_out"], given=["attn_out 2 @ last"], direct=True, progress=False
    )
    blocks = found.effects.sel(metric="logit_diff", pair="pair-0", component="attn_out", position=LAST)
    assert blocks.status.values.tolist() == ["ok", "ok", "given", "ok"]
    assert np.isfinite(blocks.direct_path_restoration.sel(layer=[0, 1, 3])).all()


def test_noise_and_ablations_have_paths_in_their_own_direction():
    model = shared("llama")
    zero = ct.trace(model, pair(), components=["attn_out"], write="zero", direct=True, progress=False).effects
    assert "direct_path_disruption" in zero
    assert "direct_path_restoration" not in zero
    alone = ct.Pair(clean=spelled(CLEAN), subject=spelled(CLEAN[2:5]), answer=f" w{ANSWER}", foil=f" w{FOIL}")
    noised = ct.trace(model, alone, components=["resid_post"], noise=ct.Noise(draws=2), direct=True, progress=False)
    cells = noised.effects.sel(metric="logit_diff", pair="pair-0", component="resid_post")
    assert_allclose(cells.direct_path_restoration.sel(layer=3, position=LAST), cells.total_effect, atol=1e-4)
