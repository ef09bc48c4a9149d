"""The prompts that all models get: random words, a short pair and one that is longer than every window and block."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from causal_tracing.testing import ToyTokenizer
from model_types.recipes import FIRST_MARKER, VOCABULARY

FIRST_WORD = 4  # after padding, beginning, end
ANSWER, FOIL = 20, 30
TOKENIZER = ToyTokenizer([f"w{number}" for number in range(VOCABULARY)])


@dataclass(frozen=True)
class Prompts:
    """A clean and a corrupt prompt that differ at some positions, as token ids.

    Whole components are compared at these positions (none: at all), heads and neurons at so many random sites.
    """

    name: str
    length: int
    different: tuple[int, ...]
    positions: tuple[int, ...] = ()
    sites: int = 12

    @cached_property
    def clean(self) -> tuple[int, ...]:
        return random_prompt(self.length, seed=self.length)

    @cached_property
    def corrupt(self) -> tuple[int, ...]:
        words = list(self.clean)
        for position in self.different:
            words[position] = FIRST_WORD + (words[position] - FIRST_WORD + 7) % (FIRST_MARKER - FIRST_WORD)
        return tuple(words)


# The long one differs near its end too: a last token that sees windows of 4 alone has to see a difference.
SHORT = Prompts("short", 6, (1, 3))
LONG = Prompts("long", 20, (2, 9, 17), positions=(0, 2, 9, 17, 18, 19))
BOTH = (SHORT, LONG)
FEW = Prompts("few", 10, (2, 7), positions=(2, 8, 9), sites=3)  # for the default tests


def random_prompt(length: int, *, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(FIRST_WORD, FIRST_MARKER, size=length).tolist())


def text(tokens: tuple[int, ...]) -> str:
    return " ".join(TOKENIZER.words[token] for token in tokens)
