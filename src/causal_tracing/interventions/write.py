"""What is written at the sites, where it is not simply the other run's activation: ablations and other edits.

zero, mean and resample take away what is there: they go into the clean run, and have no restoration. The others go
either way: the other run's activation in part (alpha), a tensor of the user's, or the part inside a subspace.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption

KINDS = ("donor", "zero", "mean", "resample", "given", "subspace")
ABLATIONS = ("zero", "mean", "resample")
REFERENCED, TENSORED = ("mean", "resample"), ("given", "subspace")


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """What each patched site gets: (1 − alpha) · what is there + alpha · what `kind` says.

    "donor": the other run's activation (the default). "zero": zeros. "mean": the mean over the reference `prompts` at
    the same position. "resample": the activation of one reference prompt, in turn for so many `draws` (without
    repetition, chosen by `seed` and the pair's tokens); the cell is their mean. Reference prompts count where they
    have as many tokens as the pair. "given": `tensors`, a mapping from (component, layer) to a tensor [size], or
    [heads or neurons, size]. "subspace": h + P (h_donor − h), `tensors` holding what spans it, [rank, size].
    Raises InvalidOption.

    Example:
        ct.trace(model, pair, write="zero")
        ct.trace(model, pair, write=ct.Write("mean", prompts=["The Pantheon is located in the city of", ...]))
        ct.trace(model, pair, write=ct.Write("subspace", tensors={("resid_post", 12): basis}))  # [rank, size]
    """

    kind: str = "donor"
    alpha: float = 1.0
    prompts: Sequence[str] = ()
    draws: int = 10
    seed: int = 0
    tensors: Mapping[tuple[str, int], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validation.one_of("kind of write", self.kind, KINDS)
        # True counts as a number in Python, and is a slip here.
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, Real) or not math.isfinite(self.alpha):
            raise InvalidOption(f"alpha= must be a finite number (1 writes it whole); it is {self.alpha!r}.")
        validation.whole("The number of draws", self.draws, least=1)
        validation.whole("The seed of the draws", self.seed, least=0)
        validation.texts("prompts=", self.prompts)
        _check_tensors(self.kind, self.tensors)
        self._check_with("prompts", REFERENCED, given=len(self.prompts) > 0)
        self._check_with("tensors", TENSORED, given=len(self.tensors) > 0)

    def _check_with(self, name: str, kinds: Sequence[str], *, given: bool) -> None:
        if given and self.kind not in kinds:
            raise InvalidOption(
                f"{name}= goes with {' and '.join(kinds)}; what is written is {self.kind!r}. Ask for such a kind "
                f"(--write {kinds[0]}), or leave it out."
            )
        if self.kind in kinds and not given:
            flag = "--reference" if name == "prompts" else "--tensors"
            raise InvalidOption(
                f"write={self.kind!r} needs {name}=. Give it, as in Write({self.kind!r}, {name}=...); or {flag} FILE."
            )

    def to_dict(self) -> dict[str, Any]:
        """What is kept with a result; of tensors their sha256."""
        found: dict[str, Any] = {"kind": self.kind, "alpha": float(self.alpha)}
        if self.kind in REFERENCED:
            found["prompts"] = list(self.prompts)
        if self.kind == "resample":
            found |= {"draws": int(self.draws), "seed": int(self.seed)}
        if self.kind in TENSORED:
            found["tensors"] = {f"{name}.{layer}": _digest(each) for (name, layer), each in self.tensors.items()}
        return found


def _check_tensors(kind: str, tensors: Any) -> None:
    """Raises InvalidOption for what is no mapping from places to tensors, or a basis that spans less than it says."""
    if not isinstance(tensors, Mapping):
        raise InvalidOption(f"tensors= maps (component, layer) to tensors; it is {tensors!r}.")
    for place, tensor in tensors.items():
        if not (isinstance(place, tuple) and len(place) == 2 and isinstance(place[0], str)):
            raise InvalidOption(f"tensors= is by (component, layer), such as ('resid_post', 12); it has {place!r}.")
        _check_tensor(kind, place, tensor)


def _check_tensor(kind: str, place: tuple[str, int], tensor: Any) -> None:
    import torch  # takes seconds: only where there are tensors

    try:
        numbers = torch.as_tensor(tensor).double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidOption(f"tensors= has no numbers for {place}: {error}") from None
    if not numbers.ndim or not numbers.isfinite().all():
        raise InvalidOption(f"tensors= for {place} must be a tensor of finite numbers.")
    # Rows that depend on each other span less than their number says, and would be recorded as more.
    if kind == "subspace" and (numbers.ndim != 2 or torch.linalg.matrix_rank(numbers) < len(numbers)):
        raise InvalidOption(
            f"A subspace needs rows that are linearly independent, [rank, size]; those for {place} are "
            f"{list(numbers.shape)} and are not."
        )


def checked_write(write: Any) -> Write:
    """A kind by its name alone, or a Write as it is. Raises InvalidOption."""
    if isinstance(write, str):
        return Write(write)
    if not isinstance(write, Write):
        raise InvalidOption(f"write= is one of {', '.join(KINDS)}, or a Write; it is {write!r}.")
    return write


def _digest(tensor: Any) -> str:
    import hashlib

    import numpy as np
    import torch

    # In float64: the same numbers have one checksum in whatever type they are handed in.
    return hashlib.sha256(np.ascontiguousarray(torch.as_tensor(tensor).double().cpu().numpy()).tobytes()).hexdigest()
