"""Whether queries attend as they are told: held against patterns and heads' outputs, which are proved by themselves."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from causal_tracing.engine.checks.bounds import PATTERN
from causal_tracing.engine.checks.findings import Finding, bounded
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.record import donor_recordings, record
from causal_tracing.interventions.edits import Attending, Edit, From, Given, Run
from causal_tracing.interventions.sites import ATTENTION, Site
from causal_tracing.models.model import Model

HIDDEN = (1, 2)  # keys


def attention_proofs(model: Model, clean: Run, corrupt: Run) -> Iterator[Finding]:
    """Keys that are blocked and weights that are taken away give the pattern that follows; a donor's parts its head."""
    last, having = len(clean.tokens) - 1, model.having(ATTENTION)
    layers = sorted({having[0], having[-1]})
    patterns = record(model, [clean], [("pattern", layer) for layer in layers])[clean].activations

    def told(layer: int, **how: Any) -> tuple[Edit, ...]:
        return (Edit(Site(ATTENTION, layer, last), Attending(**how)),)

    def pattern(layer: int, *, anew: bool) -> tuple[tuple[Edit, ...], float]:
        heads = patterns["pattern", layer][last].view(model.parts("pattern", layer), -1).clone()
        taken = heads[:, list(HIDDEN)].sum(-1, keepdim=True)
        # A softmax over fewer keys is the same weights in the same proportion, with what was taken away shared out.
        heads[:, list(HIDDEN)] = 0
        left = 1 - taken
        given = Given((heads / left if anew else heads).flatten())
        return (Edit(Site("pattern", layer, last), given),), float(left.min()) if anew else 1.0

    for layer in layers:
        by_pattern, left = pattern(layer, anew=True)
        bound = PATTERN[model.dtype] / left  # what is left is divided by so little
        both = told(layer, blocked=HIDDEN), by_pattern
        yield _equal(model, clean, "blocked keys = the pattern without them", both, bound)
        both = told(layer, zeroed=HIDDEN), pattern(layer, anew=False)[0]
        yield _equal(model, clean, "zeroed keys = the pattern with zeros", both, PATTERN[model.dtype])
    if "z" in model.anatomy.mediators:
        for layer in layers:
            # A query that sees all of the donor's keys and values by the donor's query gives what the donor's heads
            # give there.
            at = [(key, From(corrupt, key)) for key in range(last + 1)]
            scores = tuple((key, From(corrupt, last)) for key in range(last + 1))
            both = told(layer, q=scores, k=tuple(at), v=tuple(at)), (Edit(Site("z", layer, last), From(corrupt, last)),)
            yield _equal(model, clean, "a donor's q, k and v of a query = its z", both, PATTERN[model.dtype])


def _equal(model: Model, base: Run, name: str, both: Sequence[tuple[Edit, ...]], bound: float) -> Finding:
    """Both ways to the same world give the same logits."""
    runs = [Run(base.tokens, edits) for edits in both]
    logits: Tensor = forward(model, runs, donor_recordings(model, runs), keep=1)[0]
    return bounded(name, (ATTENTION,), apart(logits[0], logits[1]).max().item() / largest(logits), bound)
