"""Which pairs of a file are traced: those that can be, and, if asked, those that the clean run gets right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from causal_tracing.engine.choose import plain_backend
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.write import checked_write
from causal_tracing.models.model import Model
from causal_tracing.patching.ablation import check_patterns, reference_runs, reference_tokens
from causal_tracing.patching.columns import resolved_columns
from causal_tracing.patching.contrast import of_clean
from causal_tracing.patching.grid import named_heads
from causal_tracing.patching.options import Options
from causal_tracing.patching.preview import check_length, log_probs
from causal_tracing.prompts.pairs import Pair, TokenPair, tokenize


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The pairs that are traced, in order; why others cannot be, and why others were left out, by id."""

    pairs: Sequence[Pair]
    failed: Mapping[str, str]
    dropped: Mapping[str, str]


def keep_pairs(model: Model, pairs: Sequence[Pair], options: Options, keep: str) -> Kept:
    """Which of the pairs (with ids) are traced. `keep` looks at the clean run alone, never at an effect.

    "first_choice": its most likely token is the answer's first. "preferred": the answer's logit is above the foil's.
    Raises InvalidOption.
    """
    tokens, failed = {}, {}
    reference = reference_tokens(model, checked_write(options.write))
    for pair in pairs:
        try:
            tokens[pair.id] = _usable(model, pair, options, reference)
        except InvalidPair as error:
            failed[pair.id] = str(error)
    dropped = {} if keep == "all" else _dropped(model, list(tokens.values()), keep)
    kept = [pair for pair in pairs if pair.id in tokens and pair.id not in dropped]
    return Kept(pairs=kept, failed=failed, dropped=dropped)


def _usable(model: Model, pair: Pair, options: Options, reference: Sequence[tuple[int, ...]]) -> TokenPair:
    """Raises InvalidPair where the pair cannot be traced in this way, whatever the others are."""
    noise = options.noise is not None or options.preset is not None
    found = tokenize(pair, model.tokenizer, align=options.align, noise=noise)
    check_length(model, found)
    write = checked_write(options.write)
    reference_runs(reference, found, write)
    if "pattern" in named_heads(options.heads):
        check_patterns(write, found)
    for positions in (options.positions, options.head_positions, options.neuron_positions):
        try:
            resolved_columns([found], positions)
        except InvalidOption:  # a role that this pair lacks, and others may have
            continue
    return found


def _dropped(model: Model, pairs: Sequence[TokenPair], keep: str) -> dict[str, str]:
    expected = log_probs(plain_backend(model), [of_clean(pair) for pair in pairs])
    found = {}
    for pair, each in zip(pairs, expected, strict=True):
        if keep == "first_choice" and int(each.argmax()) != pair.answer:
            first = model.tokenizer.decode([int(each.argmax())])
            found[pair.id] = f"the clean run's first choice is {first!r}, not the answer"
        if keep == "preferred" and (pair.foil is None or not each[pair.answer] > each[pair.foil]):
            found[pair.id] = "there is no foil" if pair.foil is None else "the clean run does not prefer the answer"
    return found
