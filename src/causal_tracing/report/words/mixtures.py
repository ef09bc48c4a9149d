"""What the sites of a mixture of experts are, in words: which experts and how much, what they read, what each adds."""

from collections.abc import Iterator

from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import BLOCKS, SINGLE_EXPERTS

READ_ROUTED = {
    "router": "router: the weights of all experts are the other run's, so which of them are chosen and how much they "
    "count; what they read is the run's own.",
    "experts_in": "experts_in: what the experts read is the other run's; the router's weights, and what stands beside "
    "the experts, are the run's own.",
}
READ_EXPERTS = (
    "An expert: what it adds to the experts' sum (its weight times what it makes of the token) is exchanged; what all "
    "others add stays. An expert that the token goes to in neither run is a structural zero."
)
NOT_SHOWN_EXPERTS = (
    "How often an expert is chosen does not say what it does here; and an effect of one expert is its weight and what "
    "it makes of the token together: router and experts_in tell the two apart for all experts at once."
)


def mixture_read(measurements: Measurements) -> Iterator[str]:
    """What the numbers of routers and experts are, where there are any."""
    blocks = measurements.maps.get(BLOCKS.name)
    if blocks is not None:
        yield from (text for name, text in READ_ROUTED.items() if name in blocks.component)
    if SINGLE_EXPERTS.name in measurements.maps:
        yield READ_EXPERTS


def mixture_not_shown(measurements: Measurements) -> Iterator[str]:
    """What effects of experts do not say."""
    if SINGLE_EXPERTS.name in measurements.maps:
        yield NOT_SHOWN_EXPERTS
