"""Whether a metric's function can be used: one number a world, of that world's row alone. Tried before the work."""

import torch
from torch import Tensor

from causal_tracing.errors import InvalidOption
from causal_tracing.patching.metrics.built_in import BUILT_IN
from causal_tracing.patching.metrics.metric import LOG_PROBS, Metric
from causal_tracing.prompts.pairs import TokenPair

WORLDS = 3  # that are made up, and measured together and alone
APART = 1e-4  # in shares of the largest number: rounding is less
# In float64 such differences are off by about STEP squared, which is far below BESIDE.
STEP, BESIDE = 1e-5, 1e-3  # of central differences, and in what share they and a gradient may differ
NO_GRADIENT = (
    "Estimates follow gradients: let the function be torch all the way from its logits (no numpy, item or detach, no "
    "ranks or counts), or use trace(), which needs none."
)


def check_measure(metric: Metric, pair: TokenPair, vocabulary: int | None) -> None:
    """Raises InvalidOption where a metric's function does not make one number a world of made-up logits."""
    if metric is BUILT_IN.get(metric.name):
        return
    given = _made_up(metric, pair, vocabulary)
    whole = _measured(metric, *given)
    alone = torch.cat([_measured(metric, *(each[n : n + 1] for each in given)) for n in range(WORLDS)])
    apart = (whole - alone).abs().max().item()
    if apart > APART * max(1.0, whole.abs().max().item()):
        raise InvalidOption(
            f"metric {metric.name}: a world's number depends on the worlds beside it (by {apart:.2g} on made-up "
            "logits). Reduce over the last axis alone: dim=-1."
        )


def _made_up(metric: Metric, pair: TokenPair, vocabulary: int | None) -> list[Tensor]:
    """Logits, answers, foils, and the clean run's log-probabilities, of a few worlds."""
    words = vocabulary or 1 + max(token for text in (*pair.answers, *pair.foils) for token in text)
    logits, clean = torch.randn(2, WORLDS, words, generator=torch.Generator().manual_seed(0)).unbind()
    answers = torch.tensor([[tokens[0] for tokens in pair.answers]]).expand(WORLDS, -1)
    made_up = [0] if metric.needs_foil else []  # it is not asked where there is no foil
    foils = torch.tensor([[tokens[0] for tokens in pair.foils] or made_up], dtype=torch.long).expand(WORLDS, -1)
    return [logits, answers, foils, clean.log_softmax(-1)]


def check_gradient(metric: Metric, pair: TokenPair, vocabulary: int | None) -> None:
    """Raises InvalidOption where a metric's function has no gradient, or another one than its numbers have.

    Made-up logits are moved a little each way (central differences, in float64).
    """
    if metric is BUILT_IN.get(metric.name):
        return
    logits, *others = (
        each.double() if each.is_floating_point() else each for each in _made_up(metric, pair, vocabulary)
    )
    moved = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # The caller may be in inference mode, where nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        given = logits.clone().requires_grad_()
        try:
            values = _measured(metric, given, *others)
            (slope,) = torch.autograd.grad(values.sum(), given) if values.requires_grad else (torch.zeros_like(given),)
        except (InvalidOption, RuntimeError) as error:
            raise InvalidOption(f"metric {metric.name} has no gradient: {error} {NO_GRADIENT}") from error
    if not slope.isfinite().all() or not slope.any():
        what = "zero" if not slope.any() else "not finite"
        raise InvalidOption(f"metric {metric.name} has no gradient: of made-up logits it is {what}. {NO_GRADIENT}")
    up, down = (_measured(metric, logits + sign * STEP * moved, *others) for sign in (1, -1))
    expected, found = (up - down) / (2 * STEP), (slope * moved).sum(-1)
    if (expected - found).abs().max() > BESIDE * max(1e-9, expected.abs().max().item(), found.abs().max().item()):
        raise InvalidOption(
            f"metric {metric.name}: its numbers move by {expected[0]:.3g} where its gradient says {found[0]:.3g}: some "
            f"of it is cut off from its logits (detach, item). {NO_GRADIENT}"
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
    # A metric may be undefined of made-up logits: NaN is then equal to itself, as it is in results.
    return values.double().nan_to_num()
