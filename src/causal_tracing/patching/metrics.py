"""Logits to one number a run. More always means cleaner (except `entropy`, which is shown raw).

The functions are plain torch, to the annotations: a backend elsewhere is sent their source, and has nothing else of
this package.
"""

import torch
from torch import Tensor

from causal_tracing.results.units import METRICS

ROWS = 16  # at once: what more of them take is fetched from the system anew each time
NO_TOKEN = -1


def measure_readouts(logits: Tensor, answer: Tensor, foil: Tensor, clean_log_probs: Tensor, texts: Tensor) -> Tensor:
    """Every metric of METRICS of worlds whose logits [world, readout, vocab] were read, [world, metric].

    `texts` [world, readout] are the tokens of an answer or a foil that stands behind the prompt, each predicted at its
    readout, NO_TOKEN for worlds that have none there. All but the logits may lie elsewhere. The other arguments are as
    `measure_logits` has them.
    """
    here = logits.device
    values = measure_logits(logits[:, 0], answer.to(here), foil.to(here), clean_log_probs.to(here))
    continued = (texts[:, 0] != NO_TOKEN).nonzero().squeeze(-1)
    if len(continued):  # known without asking the device
        there = continued.to(here)
        values[there] = _of_text(values[there], logits[there], texts[continued].to(here))
    return values


def measure_logits(logits: Tensor, answer: Tensor, foil: Tensor, clean_log_probs: Tensor) -> Tensor:
    """Every metric of METRICS, in that order, from the same logits [world, vocab], as float64 [world, metric].

    Computed in float32 at least. `answer` and `foil` are tokens [world]; `foil` is NO_TOKEN where there is none:
    `logit_diff` is then NaN. `clean_log_probs` [one or world, vocab] are those of the worlds' clean runs, one row where
    they have the same. `neg_kl` is −KL(clean ‖ run) in nats. `neg_rank` is minus the number of tokens whose logit is
    larger than the answer's: 0 is the first choice.
    """
    parts = [rows.split(ROWS) for rows in (logits, answer, foil)]
    clean = clean_log_probs.split(ROWS) if len(clean_log_probs) > 1 else [clean_log_probs] * len(parts[0])
    return torch.cat([_measured(*part) for part in zip(*parts, clean, strict=True)])


def _measured(logits: Tensor, answer: Tensor, foil: Tensor, clean_log_probs: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.log_softmax(-1)
    clean = clean_log_probs.to(log_probs)
    answer_logit = logits.gather(-1, answer[:, None]).squeeze(-1)
    foil_logit = logits.gather(-1, foil.clamp(min=0)[:, None]).squeeze(-1)
    answer_log_prob = log_probs.gather(-1, answer[:, None]).squeeze(-1)
    values = {
        "logit_diff": (answer_logit - foil_logit).where(foil >= 0, torch.nan),
        "log_prob": answer_log_prob,
        "logit": answer_logit,
        "prob": answer_log_prob.exp(),
        "neg_kl": -_expected(clean.exp(), clean - log_probs),
        "neg_rank": -(logits > answer_logit[:, None]).sum(-1).to(logits.dtype),
        "entropy": -_expected(log_probs.exp(), log_probs),
    }
    return torch.stack([values[name].double() for name in METRICS], -1)


def _expected(probs: Tensor, values: Tensor) -> Tensor:
    """The sum of probabilities times values; what has probability 0 adds nothing, even where its value is infinite."""
    found = (probs * values).sum(-1)
    if found.isnan().any():  # seldom: looking for zeros each time would take as long as all the rest
        found = torch.where(probs > 0, probs * values, 0).sum(-1)
    return found


def _of_text(values: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """The numbers [world, metric] with those of a text of several tokens in the place of its first token's."""
    expected = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    log_prob = expected.gather(-1, tokens[..., None]).squeeze(-1).double().sum(-1)
    values = values.clone()
    values[:, METRICS.index("log_prob")], values[:, METRICS.index("prob")] = log_prob, log_prob.exp()
    values[:, METRICS.index("logit_diff")] = torch.nan
    if tokens.shape[1] > 1:
        values[:, [METRICS.index("logit"), METRICS.index("neg_rank")]] = torch.nan
    return values
