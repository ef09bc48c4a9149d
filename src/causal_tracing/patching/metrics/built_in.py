"""Logits to numbers: the built-in metrics, and how any metric is measured. More means cleaner (except for `entropy`).

The functions are plain torch, to the annotations: a backend elsewhere is sent their source, and has nothing else of
this package.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_tracing.patching.metrics.metric import LOG_PROBS, Asked, Metric, listed, name_of
from causal_tracing.results.units import METRICS, UNITS

ROWS = 16  # at once: what more of them take is fetched from the system anew each time
NUMBERS = 1 << 19  # as many logits may be at once where a row has few of them
NO_TOKEN = -1


def measure_readouts(
    logits: Tensor,
    measures: tuple,
    answers: Tensor,
    foils: Tensor,
    clean_log_probs: Tensor,
    behind: Tensor,
    lasts: Tensor,
) -> Tensor:
    """The numbers of worlds whose logits [world, readout, vocab] were read, [world, metric and one].

    Each metric's after the prompt (`measure_logits`); behind them the log-probability of the text that is scored, NaN
    where there is none. `behind` [world, readout − 1] are the tokens that stand behind a world's prompt, each predicted
    at its readout; `lasts` [world, most] are those of which any may come next, all NO_TOKEN for worlds that are read
    after the prompt alone. All but the logits may lie elsewhere.
    """
    here = logits.device
    values = measure_logits(logits[:, 0], measures, answers, foils, clean_log_probs)
    scored = torch.full((len(values), 1), torch.nan, dtype=torch.float64, device=here)
    continued = (lasts[:, 0] != NO_TOKEN).nonzero().squeeze(-1)
    if len(continued):  # known without asking the device
        there = continued.to(here)
        scored[there] = _of_text(logits[there], behind[continued].to(here), lasts[continued].to(here))
    return torch.cat([values, scored], -1)


def measure_logits(logits: Tensor, measures: tuple, answers: Tensor, foils: Tensor, clean_log_probs: Tensor) -> Tensor:
    """The numbers that measures make of the same logits [world, vocab], as float64 [world, measure].

    Each measure is (its function, whether it takes log-probabilities, whether it needs a foil). Computed in float32 at
    least. `answers` and `foils` are tokens [world, most], NO_TOKEN behind the last one: the functions get those of
    worlds with equally many of them together, so that no function meets NO_TOKEN. `clean_log_probs` [one or world,
    vocab] are those of the worlds' clean runs, one row where they have the same.
    """
    counts = torch.stack([(tokens != NO_TOKEN).sum(-1) for tokens in (answers, foils)], -1)
    values = torch.empty((len(logits), len(measures)), dtype=torch.float64, device=logits.device)
    at_once = max(ROWS, NUMBERS // logits.shape[-1])
    # One function call for all worlds with as many answers and foils, without padding.
    for count in counts.unique(dim=0).tolist():
        for rows in (counts == torch.tensor(count)).all(-1).nonzero().squeeze(-1).split(at_once):
            here = rows.to(logits.device)
            mine, theirs = (
                tokens[rows, :n].to(logits.device) for tokens, n in zip((answers, foils), count, strict=True)
            )
            clean = clean_log_probs if len(clean_log_probs) == 1 else clean_log_probs[rows.to(clean_log_probs.device)]
            values[here] = _measured(measures, logits[here], mine, theirs, clean.to(logits.device))
    return values


def _measured(measures: tuple, logits: Tensor, answers: Tensor, foils: Tensor, clean_log_probs: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Once for all metrics: over a large vocabulary it takes most of what they take.
    log_probs = logits.log_softmax(-1) if any(of_log_probs for _, of_log_probs, _ in measures) else logits
    clean = clean_log_probs.to(logits)
    undefined = torch.full((len(logits),), torch.nan, dtype=torch.float64, device=logits.device)
    each = [
        undefined
        if needs_foil and not foils.shape[1]
        else function(log_probs if of_log_probs else logits, clean, answers, foils).double()
        for function, of_log_probs, needs_foil in measures
    ]
    return torch.stack(each, -1)


def logit(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """Of an answer; of a set, the logarithm of the sum of exp(logit). Of log-probabilities so too.

    NaN where the model masks it, by −∞ or such as −1e9: what is patched would be lost in such a number.
    """
    found = logits.gather(-1, answers).logsumexp(-1)
    return found.where(found > -1e6, torch.nan)


def logit_diff(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """The answers' logit minus the foils'."""
    return logit(logits, clean, answers, foils) - logit(logits, clean, foils, answers)


def prob(log_probs: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """The sum of the answers' probabilities."""
    return log_probs.gather(-1, answers).logsumexp(-1).exp()


def prob_diff(log_probs: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """The answers' probability minus the foils'."""
    return prob(log_probs, clean, answers, foils) - prob(log_probs, clean, foils, answers)


def neg_kl(log_probs: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """−KL(clean ‖ run), in nats."""
    return -_expected(clean.exp(), clean - log_probs)


def neg_rank(logits: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """Minus the number of tokens whose logit is larger than that of the likeliest answer: 0 is the first choice."""
    return -(logits > logits.gather(-1, answers).amax(-1, keepdim=True)).sum(-1).to(logits.dtype)


def entropy(log_probs: Tensor, clean: Tensor, answers: Tensor, foils: Tensor) -> Tensor:
    """Of what the model expects, in nats."""
    return -_expected(log_probs.exp(), log_probs)


def _each(values: Tensor, tokens: Tensor) -> Tensor:
    """The values [world, vocab] of each token [world, most]; −∞ for NO_TOKEN, which so adds nothing to a sum of exp."""
    return values.gather(-1, tokens.clamp(min=0)).where(tokens >= 0, -torch.inf)


def _expected(probs: Tensor, values: Tensor) -> Tensor:
    """The sum of probabilities times values; what has probability 0 adds nothing, even where its value is infinite."""
    found = (probs * values).sum(-1)
    if found.isnan().any():  # seldom: looking for zeros each time would take as long as all the rest
        found = torch.where(probs > 0, probs * values, 0).sum(-1)
    return found


def _of_text(logits: Tensor, behind: Tensor, lasts: Tensor) -> Tensor:
    """The log-probability [world, 1] of what stands behind the prompt and any of what may come next."""
    expected = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    given = expected[:, :-1].gather(-1, behind[..., None]).squeeze(-1)
    last = _each(expected[:, -1], lasts).logsumexp(-1, keepdim=True)
    return torch.cat([given, last], -1).double().sum(-1, keepdim=True)


def _built_in(name: str, measure: Any, **options: Any) -> Metric:
    return Metric(name, UNITS[name], measure, **options)


OF_PROBABILITIES: dict[str, Any] = {"takes": LOG_PROBS}
WITH_FOIL: dict[str, Any] = {"needs_foil": True}
OF_ALL: dict[str, Any] = {"takes": LOG_PROBS, "reads_texts": False}
_ALL = (
    _built_in("logit_diff", logit_diff, **WITH_FOIL, few=True, of_texts=lambda answers, foils: answers - foils),
    _built_in("log_prob", logit, **OF_PROBABILITIES, of_texts=lambda answers, foils: answers),
    _built_in("logit", logit, few=True),
    _built_in("prob", prob, **OF_PROBABILITIES, of_texts=lambda answers, foils: np.exp(answers)),
    _built_in(
        "prob_diff",
        prob_diff,
        **OF_PROBABILITIES,
        **WITH_FOIL,
        of_texts=lambda answers, foils: np.exp(answers) - np.exp(foils),
    ),
    _built_in("neg_kl", neg_kl, **OF_ALL),
    _built_in("neg_rank", neg_rank),
    _built_in("entropy", entropy, **OF_ALL),
)
BUILT_IN = {metric.name: metric for metric in _ALL}


def measured_metrics(asked: Asked | Sequence[Asked] | None, others: Sequence[str] = METRICS) -> tuple[Metric, ...]:
    """Those asked for in their order, and others of the built-in ones behind them."""
    first = [BUILT_IN[each] if isinstance(each, str) else each for each in listed(asked)]
    named = {*map(name_of, first)}
    return (*first, *(BUILT_IN[name] for name in METRICS if name in others and name not in named))


def measures_of(metrics: Sequence[Metric]) -> tuple[tuple[Any, bool, bool], ...]:
    """What `measure_readouts` needs to know of metrics."""
    return tuple((metric.measure, metric.takes == LOG_PROBS, metric.needs_foil) for metric in metrics)
