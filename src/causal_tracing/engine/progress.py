"""How far the work is, in layers of worlds: told between the layers of a batch, and between batches."""

from collections.abc import Callable

from causal_tracing.engine.backend import Progress

Tick = Callable[[int], None]  # which layer a batch has reached; what it raises stops the work


def never(layer: int) -> None:
    """Nobody listens."""


class Steps:
    """What a listener is told: it never goes down, and what a listener raises stops the work."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.reached = self.before = 0
        self.stopped_by: BaseException | None = None

    def reach(self, steps: int) -> None:
        """So many steps are done, of whole batches."""
        self.before = steps
        self._tell(steps)

    def layers(self, size: int) -> Tick:
        """What a batch of so many worlds tells of its layers."""
        return lambda layer: self._tell(self.before + size * layer)

    def _tell(self, steps: int) -> None:
        # Work that is done again in halves is counted anew, and a bar must not run backwards.
        self.reached = max(self.reached, steps)
        try:
            self.progress(self.reached, self.total)
        except BaseException as error:
            self.stopped_by = error  # it ends the work, even where it looks like a lack of memory
            raise
