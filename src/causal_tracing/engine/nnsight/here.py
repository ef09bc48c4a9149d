"""Traces that nnsight runs in this process: as they are, or as a server would run them."""

from typing import Any

from causal_tracing.engine.nnsight.asked import Asked, traced
from causal_tracing.models.at_rest import at_rest


class Here:
    """Traces in this process. "local": sent and received first, with this package hidden as on a server."""

    def __init__(self, model: Any, remote: bool | str) -> None:
        self.model, self.remote = model, remote

    @property
    def name(self) -> str:
        """What the engine is called in results."""
        return "nnsight (local)" if self.remote else "nnsight"

    def answer(self, asked: Asked) -> Any:
        """What the function gives inside the trace."""
        with at_rest(self.model._module):
            return traced(self.model, asked, remote=self.remote)
