"""How cells are screened by estimates, and how far such work is."""

from dataclasses import dataclass

from causal_tracing.patching.measure import STEPS
from causal_tracing.patching.options.trace import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """How cells are estimated, and how many are patched of each component: the strongest, and random others."""

    method: str
    steps: int
    verify: int
    sample: int


def share(progress: Progress | None, part: int, parts: int) -> Progress:
    """Progress of one of several parts of the work, told as progress of the whole."""

    def report(done: int, total: int) -> None:
        if progress:
            progress(round(STEPS * (part + done / max(1, total)) / parts), STEPS)

    return report
