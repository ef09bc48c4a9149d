"""The pair that is traced before anybody has typed."""

from collections.abc import Iterator
from typing import Any

from causal_tracing.errors import CausalTracingError
from causal_tracing.explorer.asked import TEXTS
from causal_tracing.prompts.datasets import rows
from causal_tracing.prompts.example import EXAMPLE
from causal_tracing.prompts.pairs import Pair, tokenize

TRIED = 40  # pairs of the built-in facts


def example_for(tokenizer: Any) -> Pair | None:
    """The first pair whose prompts this tokenizer cuts into equally many tokens; None where there is none."""
    for pair in _candidates():
        try:
            tokens = tokenize(pair, tokenizer)
        except CausalTracingError:  # other prompts fit: that these do not is no fault
            continue
        if not tokens.same_tokens:
            return pair
    return None


def _candidates() -> Iterator[Pair]:
    yield Pair(**EXAMPLE)
    for row in rows("facts")[:TRIED]:
        fields: dict[str, Any] = {name: row[name] for name in TEXTS if row.get(name)}
        yield Pair(**fields)
