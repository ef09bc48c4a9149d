"""Logits to one number a run. More always means cleaner (except `entropy`, which is shown raw)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_tracing.results.units import METRICS

ROWS = 16  # at once: what more of them take is fetched from the system anew each time


def measure_logits(
    logits: Float[Tensor, "world vocab"],
    answer: Int[Tensor, " world"],
    foil: Int[Tensor, " world"],
    clean_log_probs: Float[Tensor, "one_or_world vocab"],
) -> Float[Tensor, "world metric"]:
    """Every metric of METRICS, in that order, from the same logits, as float64 (computed in float32 at least).

    `clean_log_probs` are those of the worlds' clean runs, one row where they have the same.
    `foil` is −1 where there is none: `logit_diff` is then NaN. `neg_kl` is −KL(clean ‖ run) in nats.
    `neg_rank` is minus the number of tokens whose logit is larger than the answer's: 0 is the first choice.
    """
    parts = [rows.split(ROWS) for rows in (logits, answer, foil)]
    clean = clean_log_probs.split(ROWS) if len(clean_log_probs) > 1 else [clean_log_probs] * len(parts[0])
    return torch.cat([_measured(*part) for part in zip(*parts, clean, strict=True)])


def _measured(
    logits: Float[Tensor, "world vocab"],
    answer: Int[Tensor, " world"],
    foil: Int[Tensor, " world"],
    clean_log_probs: Float[Tensor, "one_or_world vocab"],
) -> Float[Tensor, "world metric"]:
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


def _expected(probs: Float[Tensor, "row vocab"], values: Float[Tensor, "world vocab"]) -> Float[Tensor, " world"]:
    """The sum of probabilities times values; what has probability 0 adds nothing, even where its value is infinite."""
    found = (probs * values).sum(-1)
    if found.isnan().any():  # seldom: looking for zeros each time would take as long as all the rest
        found = torch.where(probs > 0, probs * values, 0).sum(-1)
    return found
