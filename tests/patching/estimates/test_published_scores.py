"""Scores of edges as EAP-IG's code has them: by its formulas, on models written out by hand.

A score there is what a sender adds in the corrupt run rather than in the clean one, times the slope of a loss (minus
the metric) with what the reader reads: in the clean run (EAP); at points from the corrupt run's embeddings to those of
the clean run, of which the first counts and the last does not (EAP-IG, inputs); or in both runs (clean-corrupted).
Added up over tokens.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from numpy.testing import assert_allclose
from torch import Tensor

import causal_tracing as ct
from causal_tracing.patching.kinds.edge_graph import edge_graph
from loaded import shared
from written import ANSWER, FOIL, written

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
STEPS = 5


def ours(name: str, method: str, direction: str) -> Mapping[str, float]:
    clean, corrupt = (" ".join(f"w{token}" for token in tokens) for tokens in (CLEAN, CORRUPT))
    pair = ct.Pair(clean=clean, corrupt=corrupt, answer=f" w{ANSWER}", foil=f" w{FOIL}")
    few: dict[str, Any] = {"steps": STEPS, "verify": 1, "sample": 1, "spot_checks": 0, "progress": False}
    found = ct.attribute(shared(name), pair, method=method, at="all", direction=direction, **few)
    return found.edges().scores


class Theirs:
    """The two runs of one model, and scores by slopes."""

    def __init__(self, name: str) -> None:
        self.hand, self.names = written(name), edge_graph(shared(name)).names
        self.clean, self.corrupt = (self.hand.run(tokens)[1] for tokens in (CLEAN, CORRUPT))

    def scores(self, slopes: Mapping[str, Tensor]) -> dict[str, float]:
        """The change that each sender brings, times the slope of the loss at each reader."""
        edges = ((edge, *edge.split(" -> ")) for edge in self.names)
        return {
            edge: -((self.corrupt[sender] - self.clean[sender]) * slopes[reader]).sum().item()
            for edge, sender, reader in edges
        }

    def on_the_way(self) -> dict[str, Tensor]:
        start, end = (each["resid_pre 0"] for each in (self.corrupt, self.clean))
        points = [self.hand.slopes(CLEAN, start + step / STEPS * (end - start)) for step in range(STEPS)]
        return {reader: sum(each[reader] for each in points) / STEPS for reader in points[0]}  # type: ignore[misc]


def agree(mine: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    assert max(map(abs, theirs.values())) > 0.1
    assert_allclose([mine[edge] for edge in theirs], [*theirs.values()], atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_those_of_the_published_code(name: str) -> None:
    theirs = Theirs(name)
    at_clean, at_corrupt = (theirs.scores(theirs.hand.slopes(tokens)) for tokens in (CLEAN, CORRUPT))
    disruption, restoration = (ours(name, "eap", direction) for direction in ("disruption", "restoration"))
    agree(disruption, at_clean)
    agree(ours(name, "eap-ig", "restoration"), theirs.scores(theirs.on_the_way()))
    both = {edge: (at_clean[edge] + at_corrupt[edge]) / 2 for edge in theirs.names}
    agree({edge: (disruption[edge] + restoration[edge]) / 2 for edge in theirs.names}, both)
    apart = [abs(at_clean[edge] - at_corrupt[edge]) for edge in theirs.names]
    assert max(apart) > 0.1, "the ends are the same: nothing tells the three apart"
