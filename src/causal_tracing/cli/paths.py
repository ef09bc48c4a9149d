"""What the command `paths` does before it traces: where no senders are named, all of the model's are found."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from causal_tracing.models.model import Model
    from causal_tracing.prompts.pairs import Pair


def finished(model: "Model", pairs: "list[Pair]", options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the trace. Raises ComponentNotOffered."""
    from causal_tracing.patching.kinds.nodes import each_sender
    from causal_tracing.patching.options.follow import as_paths_of_a_trace

    return as_paths_of_a_trace(options, each_sender(model, options.get("at", "last")))
