"""What an effect says depends on what was done: patched, noised, ablated, or keys hidden; of one pair and of many."""

from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.report.hub_card import card
from joint import CLEAN, CORRUPT, PAIR, tiny

ALONE = ct.Pair(clean=CLEAN, answer=" w7", foil=" w8")
DIFFERENCE = "An effect says that a site carries the difference between the two prompts"
HIDDEN = "where a query cannot see these keys, not that they carry the difference between two prompts"
TAKEN = "does worse (or better) without what is at this site"
NOISED = "carries what the noise takes away"
QUIET: dict[str, Any] = {"progress": False, "spot_checks": 0}


def not_shown(trace: ct.Trace) -> str:
    return trace.summary().partition("What this does not show")[2]


def test_a_knockout_says_nothing_of_a_corrupt_prompt() -> None:
    alone = not_shown(ct.knockout(tiny(), ALONE, layers=[1], **QUIET))
    assert "One prompt is an anecdote" in alone
    for pair in (ALONE, PAIR):
        said = not_shown(ct.knockout(tiny(), pair, layers=[1], **QUIET))
        assert HIDDEN in said
        assert "The corrupt prompt decides" not in said
        assert "carries the difference between these two prompts" not in said


def test_beside_blocks_the_corrupt_prompt_decides_still() -> None:
    said = not_shown(ct.trace(tiny(), PAIR, components=["mlp_out"], layers=[1], knockout=True, **QUIET))
    assert "The corrupt prompt decides" in said
    assert "One pair of prompts is an anecdote" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, DIFFERENCE),
        ({"noise": ct.Noise(draws=2)}, NOISED),
        ({"write": ct.Write("zero")}, TAKEN),
        ({"components": [], "knockout": True}, HIDDEN),
    ],
    ids=["patched", "noised", "ablated", "hidden"],
)
def test_of_many_pairs_an_effect_says_what_was_done(options: dict[str, Any], says: str) -> None:
    corrupt = None if "noise" in options else CORRUPT
    asked: dict[str, Any] = {"corrupt": corrupt, "answer": " w7", "foil": " w8", "subject": " w12 w13"}
    pairs = [ct.Pair(clean=f" w11 w12 w13 w14 w{n} w16", **asked) for n in (20, 21, 22)]
    trace = ct.trace(tiny(), pairs, **({"components": ["mlp_out"], "layers": [1]} | options), **QUIET)
    for said in (not_shown(trace), " ".join(card(trace.measurements).split())):
        assert [text in said for text in (DIFFERENCE, NOISED, TAKEN, HIDDEN)].count(True) == 1
        assert says in said
