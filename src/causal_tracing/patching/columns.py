"""What is patched together: a token position, a role, or all positions."""

from collections.abc import Iterable, Sequence

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, InvalidPair, nearest
from causal_tracing.prompts.alignment import Slot
from causal_tracing.prompts.pairs import Pair, TokenPair
from causal_tracing.prompts.tokens import ROLES, TOGETHER, Column, named_together

OF_SUBJECT = tuple(role for role in ROLES if role != "last")  # what no token is in a pair without a subject


def patched_together(pair: TokenPair, column: Column) -> list[tuple[Slot, ...]]:
    """The worlds of a column: for each, the slots that it patches. Empty where the pair has none.

    A column that is a position is one of the clean prompt's.
    """
    if column == TOGETHER:
        return [pair.slots]
    # A span may itself be called "... together".
    name = named_together(column) if column not in pair.clean.spans else ""
    positions = (column,) if isinstance(column, int) else pair.clean.named(name or column)
    slots = tuple(slot for slot in pair.slots if slot.clean in positions)
    return [slots] if name and slots else [(slot,) for slot in slots]


def resolved_columns(pairs: Sequence[TokenPair], positions: str | Sequence[Column]) -> tuple[Column, ...]:
    """The columns that `positions` asks for, as positions from the left, roles, or "together". Raises InvalidOption."""
    validation.columns("positions=", positions)
    if isinstance(positions, str) and positions == "each":
        return tuple(range(max(len(pair.clean.tokens) for pair in pairs)))
    asked = (positions,) if isinstance(positions, str) else positions
    named: tuple[Column, ...] = tuple(column if isinstance(column, str) else int(column) for column in asked)
    columns = named
    if not columns:
        raise InvalidOption('positions= is empty. Use "each", "together", token positions, or roles.')
    lengths = {len(pair.clean.tokens) for pair in pairs}
    if len(lengths) == 1:  # positions from the right mean the same token in every pair
        columns = tuple(from_the_left(column, min(lengths)) for column in columns)
    _check_once(named, columns)
    for name, column in zip(named, columns, strict=True):
        if isinstance(column, str):
            _check_role(pairs, column)
        elif not any(patched_together(pair, column) for pair in pairs):
            check_column(pairs, name, ())
    return columns


def check_columns(pairs: Sequence[Pair], positions: str | Sequence[Column]) -> None:
    """Raises InvalidOption for a name that no pair of these can have, before they are tokenised."""
    spans = [name for pair in pairs for name in pair.spans]
    for column in (positions,) if isinstance(positions, str) else positions:
        if isinstance(column, str):
            _check_name(column, spans)


def check_column(pairs: Sequence[TokenPair], column: Column, more: Sequence[str]) -> None:
    """Raises InvalidOption for a column that no pair has: a position, a role, a span, or one of `more` names."""
    if isinstance(column, int):
        lengths = {len(pair.clean.tokens) for pair in pairs}
        hint = ' Prompts of different lengths share no positions from the right but "last".' if len(lengths) > 1 else ""
        raise InvalidOption(f"There is no position {column}: the longest prompt has {max(lengths)} tokens.{hint}")
    names = (*ROLES, *more, *dict.fromkeys(name for pair in pairs for name in pair.clean.spans))
    if column not in names:
        raise InvalidOption(f"There is no position {column!r}. {nearest(column, names)}")
    hint = _why_no_role(pairs) if column in (*OF_SUBJECT, *more) else ""
    raise InvalidOption(f"No pair has a token in the role {column!r}.{hint}")


def _why_no_role(pairs: Sequence[TokenPair]) -> str:
    """Why no token has a role that goes by the subject."""
    subjects = [pair.clean for pair in pairs if pair.clean.subject]
    if not subjects:
        return " Give the pairs a subject=."
    first = subjects[0]
    roles = ", ".join(dict.fromkeys(first.roles))
    return (
        " A token has one role: a subject of one token is subject_last alone, and the last token of all is last. Those "
        f"of {first.text!r} are {roles}."
    )


def _check_name(column: str, spans: Iterable[str]) -> None:
    spans = [*spans]
    names = ("each", TOGETHER, *ROLES, *dict.fromkeys(spans))
    name = named_together(column) if column not in spans else ""
    if name and name not in (*ROLES, "subject", *spans):
        raise InvalidOption(f"There is no role or span {name!r}. {nearest(name, (*ROLES, 'subject', *spans))}")
    if not name and column not in names:
        raise InvalidOption(f"There is no position {column!r}. {nearest(column, names)}")


def from_the_left(column: Column, length: int) -> Column:
    """A position from the right as one from the left; anything else as it is."""
    return column + length if isinstance(column, int) and column < 0 else column


def _check_once(named: Sequence[Column], columns: Sequence[Column]) -> None:
    """Raises InvalidOption where two names mean one column. A span may be called by a number too."""
    by_label: dict[str, Column] = {}
    for name, column in zip(named, columns, strict=True):
        if str(column) in by_label:
            raise InvalidOption(
                f"positions= names one place twice: {by_label[str(column)]!r} and {name!r} are both {column}. Name "
                "each once."
            )
        by_label[str(column)] = name


def _check_role(pairs: Sequence[TokenPair], column: str) -> None:
    spans = [name for pair in pairs for name in pair.clean.spans]
    if column == TOGETHER:
        return
    _check_name(column, spans)
    column = column if column in spans else named_together(column) or column
    if column == "subject":
        if not any(pair.clean.subject for pair in pairs):
            raise InvalidOption("No pair has a subject. Give the pairs a subject=.")
        return
    if not any(pair.clean.positions(column) for pair in pairs):
        hint = _why_no_role(pairs) if column in OF_SUBJECT else ""
        raise InvalidOption(f"No pair has a token in the role {column!r}.{hint}")
    # A role at tokens that are not paired with each other would be a mean over something else in each direction.
    for pair in pairs:
        if not pair.corrupt.positions(column):
            continue
        here = tuple(slot.clean for slot in pair.slots if slot.corrupt in pair.corrupt.positions(column))
        there = tuple(slot.clean for slot in pair.slots if slot.clean in pair.clean.positions(column))
        if here != there:
            raise InvalidPair(
                f"pair {pair.id!r}: the role {column!r} is at {_listed(pair.clean.positions(column))} in the clean "
                f"prompt and at {_listed(pair.corrupt.positions(column))} in the corrupt one, and these tokens are "
                "not paired with each other. Ask for positions by number, or pair equal roles (align='spans')."
            )


def _listed(positions: tuple[int, ...]) -> str:
    return "position " + ", ".join(map(str, positions)) if positions else "no position"
