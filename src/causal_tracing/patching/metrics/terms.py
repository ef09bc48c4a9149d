"""What a metric is made of for gradients: one prediction behind the prompt, or what scores texts of several tokens."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Differentiable
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import Run
from causal_tracing.patching.metrics.built_in import BUILT_IN
from causal_tracing.patching.metrics.metric import LOG_PROBS, Metric
from causal_tracing.patching.preview import MASKED
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.scored import Behind, behind
from causal_tracing.results.effects import OF_LOGITS
from causal_tracing.results.units import NEED_FOIL

PROBABILITIES = ("prob", "prob_diff")  # that add up over the texts of a set


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """A part of the metric: a text behind the prompt, whose tokens are read, and how much it counts."""

    behind: tuple[int, ...]
    keep: int
    weight: float
    measure: Differentiable

    def longer(self, run: Run) -> Run:
        """The run with the text behind it."""
        return Run((*run.tokens, *self.behind), run.edits)


def terms_of(pair: TokenPair, metric: Metric, clean: Float[Tensor, " vocab"]) -> list[Term]:
    """What the metric is the sum of: one prediction after the prompt, or what scores answers and foils behind it."""
    name = metric.name
    if not pair.several_tokens:
        firsts = tuple([tokens[0] for tokens in texts] for texts in (pair.answers, pair.foils))
        _check_said(pair, name, clean)
        measure = partial(_one_token, name, *firsts)
        if metric is not BUILT_IN.get(name):
            measure = partial(_by_function, metric, clean, *firsts)
        return [Term(behind=(), keep=1, weight=1.0, measure=measure)]
    texts = {1.0: pair.answers} | ({-1.0: pair.foils} if name in NEED_FOIL else {})
    return [
        Term(
            behind=each.tokens,
            keep=len(each.tokens) + 1,
            weight=weight,
            measure=partial(_whole_text, name in PROBABILITIES, each),
        )
        for weight, side in texts.items()
        for each in behind(side)
    ]


def _check_said(pair: TokenPair, name: str, clean: Float[Tensor, " vocab"]) -> None:
    """Raises InvalidOption for a metric that a masked word does not have: its gradient would be of the other one."""
    sides = {"answer": pair.answers, "foil": pair.foils if name in NEED_FOIL else ()}
    for what, texts in sides.items() if name in OF_LOGITS else ():
        if texts and all(clean[tokens[0]] <= MASKED for tokens in texts):
            raise InvalidOption(
                f"pair {pair.id!r} has no estimate of {name}: the model masks its {what}, which it never says. Name "
                "another, or use metric='prob'."
            )


def _one_token(
    metric: str, answers: list[int], foils: list[int], logits: Float[Tensor, "run 1 vocab"]
) -> Float[Tensor, " run"]:
    """The metric of answers of one token, so that gradients pass."""
    logits = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
    values = logits if metric in ("logit_diff", "logit") else logits.log_softmax(-1)
    answer, foil = values[:, answers].logsumexp(-1), values[:, foils].logsumexp(-1)
    match metric:
        case "logit_diff":
            return answer - foil
        case "logit" | "log_prob":
            return answer
        case "prob":
            return answer.exp()
        case _:  # prob_diff, which alone is left of those that have a gradient
            return answer.exp() - foil.exp()


def _by_function(
    metric: Metric,
    clean: Float[Tensor, " vocab"],
    answers: list[int],
    foils: list[int],
    logits: Float[Tensor, "run 1 vocab"],
) -> Float[Tensor, " run"]:
    """A metric of the user's own, so that gradients pass its function."""
    logits = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
    tokens = (torch.tensor([each], dtype=torch.long, device=logits.device) for each in (answers, foils))
    mine, theirs = (each.expand(len(logits), -1) for each in tokens)
    values = logits.log_softmax(-1) if metric.takes == LOG_PROBS else logits
    return metric.measure(values, clean[None].to(logits), mine, theirs)


def _whole_text(probability: bool, text: Behind, logits: Float[Tensor, "run token vocab"]) -> Float[Tensor, " run"]:
    """The log-probability of what stands behind the prompt and any of what may come next, or its probability."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens = torch.tensor(text.tokens, dtype=torch.long, device=logits.device).expand(len(logits), -1)
    log_probs = logits.log_softmax(-1)
    given = log_probs[:, :-1].gather(-1, tokens[..., None]).squeeze(-1).sum(-1)
    total = given + log_probs[:, -1, list(text.lasts)].logsumexp(-1)
    return total.exp() if probability else total
