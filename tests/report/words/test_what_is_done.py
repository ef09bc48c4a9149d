"""What an effect says depends on what was done: patched, noised, ablated, or keys hidden; of one pair and of many."""

import re
from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.report.hub_card import card
from joint import CLEAN, CORRUPT, PAIR, tiny
from made import measurements

ALONE = ct.Pair(clean=CLEAN, answer=" w7", foil=" w8")
DIFFERENCE = "An effect says that a site carries the difference between the two prompts"
HIDDEN = "where a query cannot see these keys, not that they carry the difference between two prompts"
SET = "f is of a set of nodes together, on these prompts. It does not say what any one of them does alone"
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
        ({"components": [], "circuit": ["mlp_out 1", "z 2.0"], "circuit_sizes": [1]}, SET),
        ({"components": [], "circuit": ["mlp_out 1"], "circuit_sizes": [1], "write": "zero"}, SET),
    ],
    ids=["patched", "noised", "ablated", "hidden", "kept", "kept, the rest zero"],
)
def test_of_many_pairs_an_effect_says_what_was_done(options: dict[str, Any], says: str) -> None:
    corrupt = None if "noise" in options else CORRUPT
    asked: dict[str, Any] = {"corrupt": corrupt, "answer": " w7", "foil": " w8", "subject": " w12 w13"}
    pairs = [ct.Pair(clean=f" w11 w12 w13 w14 w{n} w16", **asked) for n in (20, 21, 22)]
    trace = ct.trace(tiny(), pairs, **({"components": ["mlp_out"], "layers": [1]} | options), **QUIET)
    for said in (not_shown(trace), " ".join(card(trace.measurements).split())):
        assert [text in said for text in (DIFFERENCE, NOISED, TAKEN, HIDDEN, SET)].count(True) == 1
        assert says in said


@pytest.mark.parametrize("write", ["donor", "zero"])
@pytest.mark.parametrize("of", ["nodes", "edges"])
def test_a_result_of_circuits_alone_speaks_of_what_is_in_them(of: str, write: str) -> None:
    ranking = ["z 0.0", "mlp_out 1"] if of == "nodes" else ["resid_pre 0 -> logits", "z 0.0 -> mlp_out 1"]
    trace = ct.circuit(tiny(), PAIR, of=of, ranking=ranking, sizes=[1], write=write, **QUIET)
    page = re.sub("<[^>]+>", " ", trace.to_html().partition("<h2>How to read this</h2>")[2].partition("Provenance")[0])
    for said in (trace.summary(), page):
        assert f"f is of a set of {of} together" in said
        assert not re.search(r"\bsites?\b", said.replace("strongest sites", ""))


def test_where_nothing_has_an_effect_no_site_is_the_strongest() -> None:
    same = [[1.0, 1.0, 1.0]] * 2
    said = ct.Trace(measurements(same, same, clean=1.0, corrupt=1.0, spread=0.0)).summary()
    assert "No site of resid_post has any effect here." in said
    assert "Strongest" not in said
    assert "Fractions are undefined: the total effect is 0, and nothing is a share of that." in said
