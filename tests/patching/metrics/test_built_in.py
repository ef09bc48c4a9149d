import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tracing.patching.metrics.built_in import BUILT_IN, measure_logits, measures_of
from causal_tracing.results.units import METRICS, UNITS


def measure(logits: torch.Tensor, answer: int, foil: int, clean: torch.Tensor | None = None) -> dict[str, float]:
    clean = logits if clean is None else clean
    given = (torch.tensor([[answer]]), torch.tensor([[foil]]), clean.log_softmax(-1)[None])
    found = measure_logits(logits[None], measures_of([*BUILT_IN.values()]), *given)
    return dict(zip(METRICS, found[0].tolist(), strict=True))


def test_values_worked_by_hand():
    logits = torch.tensor([math.log(4.0), math.log(3.0), math.log(1.0)])  # probabilities 1/2, 3/8, 1/8
    found = measure(logits, answer=1, foil=2, clean=torch.zeros(3))
    assert found["logit_diff"] == pytest.approx(math.log(3))
    assert found["logit"] == pytest.approx(math.log(3))
    assert found["prob"] == pytest.approx(3 / 8)
    assert found["log_prob"] == pytest.approx(math.log(3 / 8))
    assert found["prob_diff"] == pytest.approx(3 / 8 - 1 / 8)
    assert found["neg_rank"] == -1
    assert found["entropy"] == pytest.approx(-(0.5 * math.log(0.5) + 0.375 * math.log(0.375) + 0.125 * math.log(0.125)))
    uniform = 1 / 3
    assert found["neg_kl"] == pytest.approx(-sum(uniform * math.log(uniform / p) for p in (0.5, 0.375, 0.125)))


def test_every_metric_has_a_unit():
    assert set(UNITS) == set(METRICS)


def test_without_a_foil_logit_diff_is_undefined_and_the_rest_is_not():
    found = measure(torch.tensor([1.0, 2.0]), answer=0, foil=-1)
    assert math.isnan(found.pop("logit_diff"))
    assert math.isnan(found.pop("prob_diff"))
    assert all(math.isfinite(value) for value in found.values())


def test_low_precision_logits_are_measured_in_float32():
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = measure(logits, answer=3, foil=4)
    exact = logits.double().log_softmax(-1)[3].item()
    assert found["log_prob"] == pytest.approx(exact, abs=1e-5)  # bfloat16's own step here is 0.03


def test_a_token_of_probability_zero_adds_nothing():
    found = measure(torch.tensor([0.0, -math.inf, 0.0]), answer=0, foil=2)
    assert found["neg_kl"] == 0
    assert found["entropy"] == pytest.approx(math.log(2))


LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=12).map(torch.tensor)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(logits=LOGITS, clean=LOGITS, shift=st.floats(-10, 10))
def test_laws_34_and_of_metrics(logits: torch.Tensor, clean: torch.Tensor, shift: float):
    """logit_diff is antisymmetric and blind to a shift; 0 ≤ prob ≤ 1; KL ≥ 0, and 0 to itself."""
    clean = clean[torch.arange(len(logits)) % len(clean)]
    found = measure(logits, 0, 1, clean)
    assert found["logit_diff"] == -measure(logits, 1, 0, clean)["logit_diff"]
    assert measure(logits + shift, 0, 1, clean)["logit_diff"] == pytest.approx(found["logit_diff"], abs=1e-4)
    assert 0 <= found["prob"] <= 1 + 1e-6
    assert found["neg_kl"] <= 1e-5
    assert measure(logits, 0, 1, logits)["neg_kl"] == 0
    assert found["neg_rank"] == -sum(other > logits[0] for other in logits[1:].tolist())
