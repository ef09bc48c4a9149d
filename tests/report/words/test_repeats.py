"""What is there twice, and what differs in nothing, in words: neither is taken for evidence."""

from typing import Any

import pytest

import causal_tracing as ct
from joint import PAIR, tiny
from made import pair

ASKED: dict[str, Any] = {"components": ["mlp_out"], "layers": [1], "progress": False}
REPEATED = "Some pairs ask the same as others"


def told(pairs: list[ct.Pair]) -> str:
    return ct.trace(tiny(), pairs, **ASKED).summary()


def test_pairs_that_are_there_twice_are_said() -> None:
    twice = [pair(0), pair(1, id="b"), pair(2), pair(1, id="b again", labels={"file": 2}), pair(0)]
    assert f"Warning: {REPEATED} (2, such as b again as b), and each counts as evidence of its own" in told(twice)
    assert REPEATED in ct.trace(tiny(), twice, **ASKED).to_html()


def test_those_of_one_cluster_count_once_and_others_are_others() -> None:
    assert REPEATED not in told([pair(0, cluster="a"), pair(0, cluster="a"), pair(1)])
    assert REPEATED in told([pair(0, cluster="a"), pair(0, cluster="b"), pair(1)])
    assert REPEATED not in told([pair(0), pair(1), pair(0, foil=" w9")])


@pytest.mark.parametrize("options", [{}, {"write": "zero"}])
def test_prompts_that_differ_in_nothing(options: dict[str, Any]) -> None:
    same = ct.Pair(clean=PAIR.clean, corrupt=PAIR.clean, answer=PAIR.answer, foil=PAIR.foil)
    trace, nothing = ct.trace(tiny(), same, **ASKED | options), "No site can have an effect here"
    if options:  # what is ablated has effects, whatever the other prompt is
        assert nothing not in trace.summary()
        assert abs(trace.effects.disruption.sel(metric="logit_diff")).max() > 0.01
    else:
        assert nothing in trace.summary()
        assert nothing in trace.to_html()
    (warning,) = (each for each in ct.preview(tiny(), same)[0].warnings if "same tokens" in each)
    assert warning.endswith("what is patched between them changes nothing.")
