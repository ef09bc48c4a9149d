"""All tokens of a role or a span at once, beside the mean over them."""

import pytest
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.models.model import Model
from joint import tiny

PAIR = ct.Pair(
    clean=" w11 w12 w13 w14 w15 w16",
    corrupt=" w11 w42 w43 w14 w15 w16",
    answer=" w7",
    foil=" w8",
    subject="w12 w13",
    corrupt_subject="w42 w43",
    spans={"end": "w14 w15"},
    id="p",
)
COLUMNS = ["subject together", "end together", "end", "subject_last together", "subject_last"]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def test_it_is_the_set_of_its_tokens(model: Model):
    names = {"subject together": "subject", "end together": "end"}
    sets = {name: [f"attn_out 1 @ {tokens}"] for name, tokens in names.items()}
    trace = ct.trace(
        model, PAIR, components=["attn_out"], layers=[1], positions=COLUMNS, sets=sets, metrics="all", progress=False
    )
    for direction in ("restoration", "disruption"):
        cells = trace.effects[direction].squeeze(["pair", "component", "layer"])
        joint = trace.of("sets")[direction].squeeze(["pair", "component"])
        for name in names:
            assert_allclose(cells.sel(position=name), joint.sel(set=name), rtol=0, atol=1e-6)
        one = cells.sel(metric="logit_diff")
        assert one.sel(position="subject_last together").item() == pytest.approx(
            one.sel(position="subject_last").item()
        )
        assert abs(one.sel(position="end together").item() - one.sel(position="end").item()) > 1e-3


def test_it_is_told(model: Model):
    trace = ct.trace(model, PAIR, components=["attn_out"], positions=["subject together"], progress=False)
    assert "all tokens of the subject together" in trace.summary()
    assert "subject together" in trace.to_html()
    assert trace.to_dataframe().position.unique().tolist() == ["subject together"]


@pytest.mark.parametrize(
    ("position", "said"),
    [("sobject together", "There is no role or span 'sobject'"), ("subject", "There is no position 'subject'")],
)
def test_what_no_pair_has_is_refused(model: Model, position: str, said: str):
    with pytest.raises(InvalidOption, match=said):
        ct.trace(model, PAIR, positions=[position], progress=False)


def test_it_needs_a_subject(model: Model):
    bare = ct.Pair(clean=PAIR.clean, corrupt=PAIR.corrupt, answer=" w7", foil=" w8")
    with pytest.raises(InvalidOption, match="No pair has a subject"):
        ct.trace(model, bare, positions=["subject together"], progress=False)
