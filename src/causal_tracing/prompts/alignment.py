"""Which token of the clean prompt is patched for which of the corrupt one.

strict   token by token: both prompts have equally many.
suffix   the right part that both prompts share, token for token; what comes before is not patched.
spans    tokens of equal roles; where a role has other numbers of tokens, its last ones.

A special token is paired with the same special token or with none. What is not paired is not patched, and is listed;
so is what stands at another position in the other prompt.
"""

from collections.abc import Sequence
from typing import NamedTuple

from causal_tracing.errors import MisalignedPair
from causal_tracing.prompts.token_texts import printable
from causal_tracing.prompts.tokens import ROLES, TokenPrompt

ALIGNMENTS = ("strict", "suffix", "spans")
OTHERWISE = "Or pair what they share: align='suffix' (the same end) or 'spans' (equal roles)."
BY_ROLES = "align='spans' pairs tokens by their roles"
BOTH_SUBJECTS = "Give subject= and corrupt_subject=."


class Slot(NamedTuple):
    """A position of the clean prompt, and the position of the corrupt one that it is paired with."""

    clean: int
    corrupt: int


def aligned(align: str, clean: TokenPrompt, corrupt: TokenPrompt, id: str) -> tuple[Slot, ...]:
    """The paired positions, one to one, from left to right. Raises MisalignedPair."""
    if align == "strict":
        return _strict(clean, corrupt, id)
    slots = _suffix(clean, corrupt) if align == "suffix" else _spans(clean, corrupt, id)
    if not slots:
        shared = (
            "no right part that both prompts share" if align == "suffix" else "no token in the same role as another"
        )
        raise MisalignedPair(f"pair {id!r}: there is {shared}, so that nothing is paired.\n{_both(clean, corrupt)}")
    return tuple(sorted(slots))


def remarks(slots: Sequence[Slot], clean: TokenPrompt, corrupt: TokenPrompt) -> tuple[str, ...]:
    """What is not paired, and what moves: empty where every token is paired with the one at its own position."""
    found = []
    left_out = (
        ("clean", _unpaired(clean, {slot.clean for slot in slots})),
        ("corrupt", _unpaired(corrupt, {slot.corrupt for slot in slots})),
    )
    skipped = [f"{name} {shown}" for name, shown in left_out if shown]
    if skipped:
        found.append(f"tokens that are not paired, and so not patched: {'; '.join(skipped)}")
    moved = sum(slot.clean != slot.corrupt for slot in slots)
    if moved:
        found.append(
            f"{moved} of {len(slots)} paired tokens stand at another position in the other prompt: an activation that "
            "is moved carries its old position with it"
        )
    return tuple(found)


def _strict(clean: TokenPrompt, corrupt: TokenPrompt, id: str) -> tuple[Slot, ...]:
    length = len(clean.tokens)
    if length == len(corrupt.tokens):
        return tuple(Slot(position, position) for position in range(length))
    both = zip(clean.tokens, corrupt.tokens, strict=False)
    part = next((position for position, (a, b) in enumerate(both) if a != b), min(length, len(corrupt.tokens)))
    raise MisalignedPair(
        f"pair {id!r} cannot be patched position by position.\n{_both(clean, corrupt)}\n"
        f"They part at position {part}. Use prompts that have equally many tokens: choose another subject, or word the "
        f"corrupt prompt otherwise. {OTHERWISE}"
    )


def _suffix(clean: TokenPrompt, corrupt: TokenPrompt) -> list[Slot]:
    slots = []
    for back in range(1, min(len(clean.tokens), len(corrupt.tokens)) + 1):
        if clean.tokens[-back] != corrupt.tokens[-back]:
            break
        slots.append(Slot(len(clean.tokens) - back, len(corrupt.tokens) - back))
    return slots


def _spans(clean: TokenPrompt, corrupt: TokenPrompt, id: str) -> list[Slot]:
    for name, prompt in (("clean", clean), ("corrupt", corrupt)):
        if not prompt.subject:
            raise MisalignedPair(f"pair {id!r}: {BY_ROLES}, and the {name} prompt has no subject. {BOTH_SUBJECTS}")
    first = _leading(clean, corrupt)
    slots = [Slot(position, position) for position in range(first)]
    for role in ROLES:
        here, there = (
            [position for position, name in enumerate(prompt.roles) if name == role and position >= first]
            for prompt in (clean, corrupt)
        )
        # From the right: a role's last token is the one that has read the others.
        slots += [Slot(*both) for both in zip(reversed(here), reversed(there), strict=False)]
    return [slot for slot in slots if _may_meet(slot, clean, corrupt)]


def _leading(clean: TokenPrompt, corrupt: TokenPrompt) -> int:
    """How many special tokens both prompts begin with."""
    # But for the last token of either: that is paired with the other's last one, wherever it stands.
    count = 0
    for a, b, special in zip(clean.tokens[:-1], corrupt.tokens[:-1], clean.special, strict=False):
        if not special or a != b:
            break
        count += 1
    return count


def _may_meet(slot: Slot, clean: TokenPrompt, corrupt: TokenPrompt) -> bool:
    """A special token never stands for content."""
    special = clean.special[slot.clean] or corrupt.special[slot.corrupt]
    return not special or clean.tokens[slot.clean] == corrupt.tokens[slot.corrupt]


def _unpaired(prompt: TokenPrompt, paired: set[int]) -> str:
    """The tokens that are paired with none, as they are listed."""
    left = [f"{n} ({printable(text)})" for n, text in enumerate(prompt.strings) if n not in paired]
    return ", ".join(left)


def _both(clean: TokenPrompt, corrupt: TokenPrompt) -> str:
    return "\n".join(
        f"  {name:9}{len(prompt.tokens)} tokens: {'|'.join(map(printable, prompt.strings))}"
        for name, prompt in (("clean", clean), ("corrupt", corrupt))
    )
