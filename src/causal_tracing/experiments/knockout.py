"""Attention knockout: which keys a query needs. A trace whose cells hide keys, instead of patching activations."""

from collections.abc import Sequence

from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.trace import measured
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model
from causal_tracing.patching.job import plan_job
from causal_tracing.patching.options.declare import values_of
from causal_tracing.patching.options.knockout import KnockoutOptions, as_of_a_trace
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import Pair


@Keywords(KnockoutOptions)
def knockout(model: Model, pairs: Pair | Sequence[Pair], options: KnockoutOptions) -> Trace:
    """How much of each pair's behaviour is lost when a query cannot see keys, by layer (or window) and keys.

    In the clean run the keys are hidden from the query, and the softmax is over the others, as if the attention mask
    had hidden them (Geva et al. 2023, arXiv 2304.14767). `trace.effects.disruption` holds what is lost, in units of the
    metric (positive: seeing these keys supports the clean behaviour), over [metric, pair, component, layer, position],
    where `position` is the key or the set of keys; single heads are in the map `knockout_heads`. Geva's relative change
    of the probability is −disruption / clean by the metric prob. Keys behind the query are structural zeros.

    model: from `load`.
    pairs: a Pair or several. A corrupt prompt says what the shares are of; without one there are no shares, and
        all else is the same.

    Raises InputError (pairs, options; a query that would see nothing), ModelError, MachineError.

    Example:
        pair = ct.Pair(clean="The Colosseum is located in the city of", answer=" Rome", subject="The Colosseum")
        found = ct.knockout(model, pair, preset="geva")
        found.effects.disruption.sel(metric="prob", position="subject")
    """
    asked = Options(**as_of_a_trace(values_of(options)))
    with telling(options.progress) as progress:
        return Trace(measured(plan_job(model, pairs, asked), progress))
