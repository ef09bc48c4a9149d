"""Which pairs of a file are traced: those that can be, and, if asked, those that the clean run gets right."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from causal_tracing.engine.choose import plain_backend
from causal_tracing.errors import InvalidOption, InvalidPair, OutOfMemory
from causal_tracing.interventions.write import checked_write
from causal_tracing.models.model import Model
from causal_tracing.patching.ablation import check_patterns, reference_runs, reference_tokens
from causal_tracing.patching.columns import resolved_columns
from causal_tracing.patching.contrast import of_clean
from causal_tracing.patching.grid import named_heads
from causal_tracing.patching.kinds.attending import knockout_grids
from causal_tracing.patching.kinds.attention_edges import edge_grids
from causal_tracing.patching.kinds.circuits import check_one_to_one
from causal_tracing.patching.metrics.scoring import preferences
from causal_tracing.patching.options.declare import values_of
from causal_tracing.patching.options.together import clean_alone, directions_of, noised
from causal_tracing.patching.options.trace import Options
from causal_tracing.patching.preview import check_length, log_probs
from causal_tracing.prompts.pairs import Pair, TokenPair, tokenize
from causal_tracing.prompts.token_texts import token_text

ASKED_AT_ONCE = 16  # pairs: each has a number for every token of the vocabulary, until its answer is looked up


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The pairs that are traced, in order; why others cannot be, and why others were left out, by id."""

    pairs: Sequence[Pair]
    failed: Mapping[str, str]
    dropped: Mapping[str, str]


def traceable_pairs(model: Model, pairs: Sequence[Pair], options: Options) -> Kept:
    """Which of the pairs (with ids) can be traced in this way. Nothing is run. Raises InvalidOption."""
    kept, failed = [], {}
    reference = reference_tokens(model, checked_write(options.write))
    for pair in pairs:
        try:
            _usable(model, pair, options, reference)
            kept.append(pair)
        except InvalidPair as error:
            failed[pair.id] = str(error)
    return Kept(pairs=kept, failed=failed, dropped={})


def preferred_pairs(model: Model, pairs: Sequence[Pair], options: Options, keep: str) -> Kept:
    """Those of some pairs that the clean run gets right, by `keep`; a pair that does not fit into memory fails.

    "first_choice": its most likely token is the answer's first. "preferred": the answer is likelier than the foil.
    """
    if keep == "all" or not pairs:
        return Kept(pairs=pairs, failed={}, dropped={})
    noise, alone = noised(values_of(options)), clean_alone(values_of(options))
    tokens = [tokenize(pair, model.tokenizer, align=options.align, noise=noise, alone=alone) for pair in pairs]
    try:
        dropped = _dropped(model, tokens, keep)
        return Kept(pairs=[pair for pair in pairs if pair.id not in dropped], failed={}, dropped=dropped)
    except OutOfMemory as error:
        if len(pairs) == 1:
            return Kept(pairs=(), failed={pairs[0].id or "": str(error)}, dropped={})
    # One by one, so that what does not fit is told from what does.
    return _together([preferred_pairs(model, [pair], options, keep) for pair in pairs])


def keep_pairs(model: Model, pairs: Sequence[Pair], options: Options, keep: str) -> Kept:
    """Which of the pairs (with ids) are traced: some at a time are asked about, so that little is held at once.

    `keep` looks at the clean run alone, never at an effect. Raises InvalidOption.
    """
    found = traceable_pairs(model, pairs, options)
    starts = range(0, len(found.pairs), ASKED_AT_ONCE)
    parts = [preferred_pairs(model, found.pairs[at : at + ASKED_AT_ONCE], options, keep) for at in starts]
    return _together([replace(found, pairs=()), *parts])


def _together(parts: Sequence[Kept]) -> Kept:
    """The parts in order, as one."""
    return Kept(
        pairs=[pair for part in parts for pair in part.pairs],
        failed={id: reason for part in parts for id, reason in part.failed.items()},
        dropped={id: reason for part in parts for id, reason in part.dropped.items()},
    )


def _usable(model: Model, pair: Pair, options: Options, reference: Sequence[tuple[int, ...]]) -> None:
    """Raises InvalidPair where the pair cannot be traced in this way, whatever the others are."""
    noise, alone = noised(values_of(options)), clean_alone(values_of(options))
    found = tokenize(pair, model.tokenizer, align=options.align, noise=noise, alone=alone)
    check_length(model, found)
    write = checked_write(options.write)
    reference_runs(reference, found, write)
    if options.circuit:
        check_one_to_one(found)
    if "pattern" in named_heads(options.heads):
        check_patterns(write, found)
    parts = options.head_positions, options.neuron_positions, options.expert_positions
    for positions in (options.positions, *parts):
        with suppress(InvalidOption):  # a role that this pair lacks, and others may have
            resolved_columns([found], positions)
    with suppress(InvalidOption):
        knockout_grids(model, [found], options)
    with suppress(InvalidOption):
        list(edge_grids(model, [found], options, directions_of(options)))


def _dropped(model: Model, pairs: Sequence[TokenPair], keep: str) -> dict[str, str]:
    backend = plain_backend(model)
    expected = log_probs(backend, [of_clean(pair) for pair in pairs])
    if keep == "first_choice":
        first = {pair.id: int(each.argmax()) for pair, each in zip(pairs, expected, strict=True)}
        return {
            pair.id: f"the clean run's first choice is {token_text(first[pair.id], model.tokenizer)!r}, not the answer"
            for pair in pairs
            if first[pair.id] not in {tokens[0] for tokens in pair.answers}
        }
    margins = preferences(backend, pairs, expected)
    return {
        pair.id: "the clean run does not prefer the answer" if pair.foils else "there is no foil"
        for pair, margin in zip(pairs, margins, strict=True)
        if not margin > 0  # NaN without a foil
    }
