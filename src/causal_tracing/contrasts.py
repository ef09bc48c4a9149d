"""The two kinds of runs that a pair compares: a clean one, and corrupt ones."""

from dataclasses import dataclass

from causal_tracing.edits import Run
from causal_tracing.prompts import TokenPair


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contrast:
    """A pair's clean run, and its corrupt runs: one, or one a draw where noise corrupts."""

    clean: Run
    corrupt: tuple[Run, ...]


def of_prompts(pair: TokenPair) -> Contrast:
    """The runs of the pair's own two prompts."""
    return Contrast(clean=Run(pair.clean.tokens), corrupt=(Run(pair.corrupt.tokens),))
