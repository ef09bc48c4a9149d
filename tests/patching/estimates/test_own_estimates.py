"""Estimates of a metric of the user's own: its gradient by autograd through bare hooks; what has none is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from joint import CLEAN, CORRUPT, PAIR, WORDS, network, tiny


def margin(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    return (logits.gather(-1, answers) - 0.5 * logits.gather(-1, foils)).squeeze(-1).tanh()


def closeness(log_probs: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    return -((log_probs - clean) ** 2).sum(-1)


MARGIN = ct.Metric("margin", "squashed logits", margin, needs_foil=True)
CLOSENESS = ct.Metric("closeness", "square nats", closeness, takes="log_probs", reads_texts=False)


def bare(text: str, layer: int) -> tuple[Tensor, Tensor]:
    """Logits at the last token, and the output of a layer's MLP as a leaf of the graph behind it."""
    held: dict[str, Tensor] = {}

    def leaf(_: Any, __: Any, output: Tensor) -> Tensor:
        held["mlp"] = output.detach().clone().requires_grad_()
        return held["mlp"]

    handle = network().model.layers[layer].mlp.register_forward_hook(leaf)
    try:
        logits = network()(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1]
    finally:
        handle.remove()
    return logits, held["mlp"]


# At the clean run a distance from it is smallest, and its gradient is rounding alone: it has no disruption here.
@pytest.mark.parametrize(
    ("metric", "direction"), [(MARGIN, "restoration"), (MARGIN, "disruption"), (CLOSENESS, "restoration")]
)
def test_the_estimate_is_the_gradient_by_autograd(metric: ct.Metric, direction: str) -> None:
    found = ct.attribute(tiny(), PAIR, metric=metric, direction=direction, components=["mlp_out"], progress=False)
    assert found.estimates["mlp_out"].sizes["layer"] == 4
    answers, foils = (torch.tensor([WORDS(text)["input_ids"]]) for text in (" w7", " w8"))
    base, donor = (CORRUPT, CLEAN) if direction == "restoration" else (CLEAN, CORRUPT)
    clean = bare(CLEAN, 0)[0].detach().log_softmax(-1)[None]
    sizes = []
    for layer in range(4):
        logits, here = bare(base, layer)
        there = bare(donor, layer)[1].detach()
        given = logits.log_softmax(-1) if metric is CLOSENESS else logits
        metric.measure(given[None], clean, answers, foils).sum().backward()
        assert here.grad is not None
        expected = ((there - here.detach()) * here.grad).sum(-1)[0] * (1 if direction == "restoration" else -1)
        estimates = found.estimates["mlp_out"].sel(layer=layer).values.reshape(-1)
        assert_allclose(estimates, expected.numpy(), atol=2e-5 * max(1.0, expected.abs().max().item()))
        sizes.append(expected.abs().max().item())
    assert max(sizes) > 1e-3


def test_a_metric_of_a_built_in_ones_formula_has_its_estimates() -> None:
    mine = ct.Metric("mine", "logits", lambda logits, clean, answers, foils: (
        logits.gather(-1, answers).logsumexp(-1) - logits.gather(-1, foils).logsumexp(-1)
    ), needs_foil=True)  # fmt: skip
    options: dict[str, Any] = {"components": ["mlp_out", "z"], "method": "ig", "steps": 3, "progress": False}
    ours, theirs = (ct.attribute(tiny(), PAIR, metric=metric, **options) for metric in (mine, "logit_diff"))
    for name in ("mlp_out", "z"):
        assert_allclose(ours.estimates[name].values, theirs.estimates[name].values, atol=1e-5)
        assert np.abs(theirs.estimates[name].values).max() > 1e-2
    assert ours.agreement.loc["mlp_out", "pearson"] == pytest.approx(theirs.agreement.loc["mlp_out", "pearson"])
    assert ours.provenance["options"]["metric"] == mine.record()
    assert ours.provenance["command"] is None


def through_numpy(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    return torch.tensor(np.tanh(logits.numpy()[:, 0]))


def rank(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    return -(logits > logits.gather(-1, answers)).sum(-1).float()


def half_detached(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    return logits.gather(-1, answers).squeeze(-1) - logits.gather(-1, foils).squeeze(-1).detach()


def rounded(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    return (10 * logits.gather(-1, answers).squeeze(-1)).round()


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (through_numpy, r"metric m has no gradient: .*Can't call numpy\(\) on Tensor that requires grad"),
        (rank, "metric m has no gradient: of made-up logits it is zero"),
        (rounded, "metric m has no gradient: of made-up logits it is zero"),
        (half_detached, r"metric m: its numbers move by .* where its gradient says .* cut off from its logits"),
    ],
)
def test_what_has_no_gradient_is_refused_before_the_work(measure: Any, message: str) -> None:
    metric = ct.Metric("m", "logits", measure, needs_foil=measure is half_detached)
    with pytest.raises(InvalidOption, match=message) as error:
        ct.attribute(tiny(), PAIR, metric=metric, components=["mlp_out"], progress=False)
    assert "let the function be torch all the way" in str(error.value)
    assert "or use trace(), which needs none" in str(error.value)
    ct.trace(tiny(), PAIR, metric=metric, components=["mlp_out"], layers=[1], progress=False)


def test_what_is_no_metric_of_estimates_is_said() -> None:
    with pytest.raises(InvalidOption, match="There is no metric 'neg_rank' that has a gradient"):
        ct.attribute(tiny(), PAIR, metric="neg_rank")
    with pytest.raises(InvalidOption, match="There is a metric 'prob' already"):
        ct.attribute(tiny(), PAIR, metric=replace(MARGIN, name="prob"))
    several = replace(PAIR, answer=[" w7 w9"], foil=[" w8"])
    told = replace(MARGIN, of_texts=lambda answers, foils: answers - foils)
    with pytest.raises(InvalidOption, match="has texts of several tokens, and no estimate of margin"):
        ct.attribute(tiny(), several, metric=told, components=["mlp_out"], progress=False)
