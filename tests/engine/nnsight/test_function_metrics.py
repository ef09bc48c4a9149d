"""Metrics of the user's own through nnsight: what replay gives, to 1e-5. `as_on_a_server.py` has one sent along."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import causal_tracing as ct
from causal_tracing.models.model import Model
from tiny import tiny_model, tiny_tokenizer

pytest.importorskip("nnsight")
PAIR = ct.Pair(clean="the city of Rome is", corrupt="the city of Paris is", answer=" Rome", foil=" Paris")
OTHER = ct.Pair(clean="the city of Rome is", corrupt="the city of Paris is", answer=[" Rome", " the"], foil=" Paris")
SCALE, WEIGHTS = 2.0, torch.arange(3.0)


def scaled(values: Tensor) -> Tensor:
    return values * SCALE


def margin(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    return scaled(logits.gather(-1, answers).logsumexp(-1) - logits.gather(-1, foils).logsumexp(-1))


def distance(share: float) -> Callable[..., Tensor]:
    def measure(log_probs: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
        return share * (log_probs - clean).abs().sum(-1)

    return measure


METRICS = [
    ct.Metric("margin", "logits", margin, needs_foil=True),
    ct.Metric(
        "few", "logits", lambda logits, clean, answers, foils: logits.gather(-1, answers).logsumexp(-1), few=True
    ),
    ct.Metric("distance", "nats", distance(-0.5), takes="log_probs", reads_texts=False),
    ct.Metric("weighed", "logits", lambda logits, clean, answers, foils: (logits[:, :3] * WEIGHTS.to(logits)).sum(-1)),
]


@pytest.fixture(scope="module")
def plain() -> Model:
    return ct.load(tiny_model("llama"), tiny_tokenizer())


def test_they_are_what_replay_gives(plain: Model) -> None:
    through = ct.load(plain.network, tiny_tokenizer(), remote=False)
    options: dict[str, Any] = {"metric": METRICS, "components": ["mlp_out"], "heads": ["z"], "progress": False}
    one = ct.trace(plain, [PAIR, OTHER], engine="replay", **options)
    other = ct.trace(through, [PAIR, OTHER], **options)
    assert other.provenance["engine"] == "nnsight"
    for metric in METRICS:
        for found, expected in ((other.effects, one.effects), (other.heads, one.heads)):
            for name in ("restoration", "disruption"):
                mine, theirs = (each[name].sel(metric=metric.name) for each in (found, expected))
                assert abs(mine - theirs).max() < 1e-5
                assert abs(theirs).max() > 1e-3
    assert other.provenance["options"]["metric"] == [metric.record() for metric in METRICS]


def test_a_question_is_known_again_by_what_its_function_uses_too() -> None:
    from causal_tracing.engine.nnsight.asked import Asked

    def key(measure: Any) -> str:
        return Asked(inputs={}, function=margin, arguments=((measure, False, False), 1)).key()

    assert key(distance(-0.5)) == key(distance(-0.5))
    assert key(distance(-0.5)) != key(distance(-0.7))
    assert key(margin) != key(scaled)
