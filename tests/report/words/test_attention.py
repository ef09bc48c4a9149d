"""Knockouts in words, where the answer has no probability that a number could be a share of."""

import causal_tracing as ct
from joint import PAIR, tiny


def test_a_probability_of_zero_has_no_share() -> None:
    """A word some hundred logits behind the first choice has none that float32 could tell from 0."""
    found = ct.knockout(tiny(), PAIR, keys=[1], layers=[1], progress=False, spot_checks=0)
    pairs, cells = found.measurements.pairs, found.measurements.maps["knockout"]
    for numbers, run in ((pairs, "clean"), (cells, "disrupted")):
        numbers[run].loc[{"metric": "prob"}] = 0.0
    said = next(line for line in found.summary().split("\n") if line.startswith("Without token 1"))
    assert said.endswith("; the answer's probability goes from 0.00 to 0.00.")
