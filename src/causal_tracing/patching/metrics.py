"""Logits to one number a run. More always means cleaner (except `entropy`, which is shown raw).

The functions are plain torch, to the annotations: a backend elsewhere is sent their source, and has nothing else of
this package.
"""

import torch
from torch import Tensor

from causal_tracing.results.units import METRICS

ROWS = 16  # at once: what more of them take is fetched from the system anew each time
NO_TOKEN = -1


def measure_readouts(
    logits: Tensor, answers: Tensor, foils: Tensor, clean_log_probs: Tensor, behind: Tensor, lasts: Tensor
) -> Tensor:
    """Every metric of METRICS of worlds whose logits [world, readout, vocab] were read, [world, metric].

    `behind` [world, readout − 1] are the tokens that stand behind a world's prompt, each predicted at its readout;
    `lasts` [world, most] are those of which any may come next, all NO_TOKEN for worlds that are read after the prompt
    alone. All but the logits may lie elsewhere. The other arguments are as `measure_logits` has them.
    """
    here = logits.device
    values = measure_logits(logits[:, 0], answers.to(here), foils.to(here), clean_log_probs.to(here))
    continued = (lasts[:, 0] != NO_TOKEN).nonzero().squeeze(-1)
    if len(continued):  # known without asking the device
        there = continued.to(here)
        tokens = behind[continued].to(here), lasts[continued].to(here)
        values[there] = _of_text(values[there], logits[there], *tokens)
    return values


def measure_logits(logits: Tensor, answers: Tensor, foils: Tensor, clean_log_probs: Tensor) -> Tensor:
    """Every metric of METRICS, in that order, from the same logits [world, vocab], as float64 [world, metric].

    Computed in float32 at least. `answers` and `foils` are tokens [world, most], NO_TOKEN behind the last one; all are
    NO_TOKEN where there is no foil: what needs one is then NaN. Those of a set count as one: the logarithm of the sum
    of their exponentials. `clean_log_probs` [one or world, vocab] are those of the worlds' clean runs, one row where
    they have the same. `neg_kl` is −KL(clean ‖ run) in nats. `neg_rank` is minus the number of tokens whose logit is
    larger than that of the likeliest answer: 0 is the first choice.
    """
    parts = [rows.split(ROWS) for rows in (logits, answers, foils)]
    clean = clean_log_probs.split(ROWS) if len(clean_log_probs) > 1 else [clean_log_probs] * len(parts[0])
    return torch.cat([_measured(*part) for part in zip(*parts, clean, strict=True)])


def _measured(logits: Tensor, answers: Tensor, foils: Tensor, clean_log_probs: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.log_softmax(-1)
    clean = clean_log_probs.to(log_probs)
    each = _each(logits, answers)
    answer_logit, answer_log_prob = each.logsumexp(-1), _each(log_probs, answers).logsumexp(-1)
    foil_logit, foil_log_prob = (_each(values, foils).logsumexp(-1) for values in (logits, log_probs))
    has_foil = foils[:, 0] >= 0
    values = {
        "logit_diff": (answer_logit - foil_logit).where(has_foil, torch.nan),
        "log_prob": answer_log_prob,
        "logit": answer_logit,
        "prob": answer_log_prob.exp(),
        "prob_diff": (answer_log_prob.exp() - foil_log_prob.exp()).where(has_foil, torch.nan),
        "neg_kl": -_expected(clean.exp(), clean - log_probs),
        "neg_rank": -(logits > each.amax(-1, keepdim=True)).sum(-1).to(logits.dtype),
        "entropy": -_expected(log_probs.exp(), log_probs),
    }
    return torch.stack([values[name].double() for name in METRICS], -1)


def _each(values: Tensor, tokens: Tensor) -> Tensor:
    """The values [world, vocab] of each token [world, most]; −∞ for NO_TOKEN, which so adds nothing to a sum of exp."""
    return values.gather(-1, tokens.clamp(min=0)).where(tokens >= 0, -torch.inf)


def _expected(probs: Tensor, values: Tensor) -> Tensor:
    """The sum of probabilities times values; what has probability 0 adds nothing, even where its value is infinite."""
    found = (probs * values).sum(-1)
    if found.isnan().any():  # seldom: looking for zeros each time would take as long as all the rest
        found = torch.where(probs > 0, probs * values, 0).sum(-1)
    return found


def _of_text(values: Tensor, logits: Tensor, behind: Tensor, lasts: Tensor) -> Tensor:
    """The numbers [world, metric] with those of a text of several tokens in the place of its first token's."""
    expected = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    given = expected[:, :-1].gather(-1, behind[..., None]).squeeze(-1)
    last = _each(expected[:, -1], lasts).logsumexp(-1, keepdim=True)
    log_prob = torch.cat([given, last], -1).double().sum(-1)
    values = values.clone()
    values[:, METRICS.index("log_prob")], values[:, METRICS.index("prob")] = log_prob, log_prob.exp()
    values[:, [METRICS.index("logit_diff"), METRICS.index("prob_diff")]] = torch.nan
    if logits.shape[1] > 1:
        values[:, [METRICS.index("logit"), METRICS.index("neg_rank")]] = torch.nan
    return values
