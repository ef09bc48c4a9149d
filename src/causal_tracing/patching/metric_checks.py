"""Whether a metric's function can be used: one number a world, of that world's row alone. Tried before the work."""

import torch
from torch import Tensor

from causal_tracing.errors import InvalidOption
from causal_tracing.patching.metric import LOG_PROBS, Metric
from causal_tracing.patching.metrics import BUILT_IN
from causal_tracing.prompts.pairs import TokenPair

WORLDS = 3  # that are made up, and measured together and alone
APART = 1e-4  # in shares of the largest number: rounding is less


def check_measure(metric: Metric, pair: TokenPair, vocabulary: int | None) -> None:
    """Raises InvalidOption where a metric's function does not make one number a world of made-up logits."""
    if metric is BUILT_IN.get(metric.name):
        return
    words = vocabulary or 1 + max(token for text in (*pair.answers, *pair.foils) for token in text)
    logits, clean = torch.randn(2, WORLDS, words, generator=torch.Generator().manual_seed(0)).unbind()
    answers = torch.tensor([[tokens[0] for tokens in pair.answers]]).expand(WORLDS, -1)
    made_up = [0] if metric.needs_foil else []  # it is not asked where there is no foil
    foils = torch.tensor([[tokens[0] for tokens in pair.foils] or made_up], dtype=torch.long).expand(WORLDS, -1)
    given = [logits, answers, foils, clean.log_softmax(-1)]
    whole = _measured(metric, *given)
    alone = torch.cat([_measured(metric, *(each[n : n + 1] for each in given)) for n in range(WORLDS)])
    apart = (whole - alone).abs().max().item()
    if apart > APART * max(1.0, whole.abs().max().item()):
        raise InvalidOption(
            f"metric {metric.name}: a world's number depends on the worlds beside it (by {apart:.2g} on made-up "
            "logits). Reduce over the last axis alone: dim=-1."
        )


def _measured(metric: Metric, logits: Tensor, answers: Tensor, foils: Tensor, clean: Tensor) -> Tensor:
    """The metric's numbers of made-up logits. Raises InvalidOption."""
    try:
        values = metric.measure(logits.log_softmax(-1) if metric.takes == LOG_PROBS else logits, clean, answers, foils)
    except Exception as error:
        raise InvalidOption(
            f"metric {metric.name}: its function fails on logits {[*logits.shape]}, clean {[*clean.shape]}, answers "
            f"{[*answers.shape]} and foils {[*foils.shape]}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        found = f"a tensor {[*values.shape]}" if isinstance(values, Tensor) else repr(values)[:80]
        raise InvalidOption(
            f"metric {metric.name}: its function must give one number a world, a tensor [{len(logits)}] of logits "
            f"{[*logits.shape]}; it gave {found}."
        )
    return values.double().nan_to_num()
