"""Paths from senders to receivers: through what a site acts. A trace whose cells follow what it adds to the stream."""

from collections.abc import Sequence

from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.trace import measured
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.job import plan_job
from causal_tracing.patching.kinds.nodes import each_sender
from causal_tracing.patching.options.declare import values_of
from causal_tracing.patching.options.follow import FollowOptions, as_paths_of_a_trace
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import Pair


@Keywords(FollowOptions)
def paths(model: Model, pairs: Pair | Sequence[Pair], options: FollowOptions) -> Trace:
    """How much of each pair's behaviour goes from each sender to each receiver, through the residual stream alone.

    A sender (a head's output, an MLP's, the embedding) is patched, and all that adds to the stream between it and a
    receiver (a head's query, key or value, an MLP, the logits) is held as in the unedited run; what the receiver then
    makes is put into the unedited run, where everything behind it is live. MLPs are held, and the final norm is live:
    path patching as of Wang et al. 2022 (arXiv 2211.00593) with MLPs frozen. Several receivers under one name follow
    the live rule: each reads what the others make of it, and all of them together are the sender patched as ever (the
    receiver "every path"). A sender acts on its own token alone.

    The map is `trace.of("paths")`: effects over [metric, pair, component, sender, receiver], in units of the metric;
    positive where what is sent there supports the clean behaviour, in both directions. Receivers that are not behind a
    sender are structural zeros. Paths of one sender need not add up to what it does.

    model: from `load`.
    pairs: one Pair or several, with an answer (and a foil) of one token.

    Raises InputError (pairs, options), ModelError (layers that add more than attention and an MLP), MachineError.

    Example:
        found = ct.paths(model, pair, senders=["each z 20-29 @ last"], receivers=["each q", "logits"])
        found.of("paths").restoration.sel(metric="logit_diff", receiver="logits")
    """
    require_model(model)
    model.require_as_loaded()
    asked = Options(**as_paths_of_a_trace(values_of(options), each_sender(model, options.at)))
    with telling(options.progress) as progress:
        return Trace(measured(plan_job(model, pairs, asked), progress))
