"""Attention in which single queries attend otherwise: keys hidden from them, or seen as another run has them.

1. Blocked keys are hidden by the mask, as the model hides later ones: its own attention does the rest (`_hidden`).
2. Where weights are taken away behind the softmax, or a query, key or value is another run's, the query's row is made
   again by the model's eager attention from what that query is to see (`_row`), and takes the place of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from causal_tracing.engine.hooks.apply import Donors
from causal_tracing.engine.hooks.attention import Asked
from causal_tracing.engine.indices import indices
from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.edits import Attending, Edit, From

Write = tuple[int, int, Edit]  # which row of the batch, which of the queries that came along, and the edit there
ROWS = 64  # made again at once: each has keys and values of its own


class _Told(NamedTuple):
    """An edit of attention at a query of the batch."""

    row: int
    query: int
    head: int | None
    how: Attending


def _told(row: int, query: int, edit: Edit) -> _Told:
    """The edit, with the keys that its query can see."""
    assert isinstance(edit.source, Attending)
    return _Told(row, query, edit.site.part, edit.source.up_to(edit.site.position))


def require_sight(mask: Bool[np.ndarray, "run head query key"], told: Iterable[tuple[int, Edit]]) -> None:
    """Raises InvalidEdit where a query of a run would see no key at all. `mask` says what it sees unless told."""
    for run, edit in told:
        site, how = edit.site, edit.source
        if isinstance(how, Attending) and how.blocked:
            # One mask may be shared by all runs, and by all heads.
            seen = mask[min(run, len(mask) - 1), :, site.position]
            seen = seen if site.part is None or len(seen) == 1 else seen[[site.part]]
            kept = np.ones(seen.shape[-1], dtype=bool)
            kept[list(how.up_to(site.position).blocked)] = False
            if not (seen & kept).any(-1).all():
                raise InvalidEdit(
                    f"{site}: every key that this query can see is blocked. Leave it one, or use zeroed=."
                )


def visible(mask: Tensor) -> Bool[np.ndarray, "run head query key"]:
    """What a mask lets be seen. Waits for the device."""
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    return seen.cpu().numpy()


def attended(
    asked: Asked, writes: Sequence[Write], donors: Donors
) -> tuple[Asked, Float[Tensor, "batch token head size"]]:
    """What the model's attention gives where these queries attend as they are told; the others as they do.

    With it comes what was asked, hidden keys and all: patterns are made of that. Keys are those of whole prompts, from
    position 0; that each query keeps one was looked at before (`require_sight`). Raises CannotPack for masks in which
    nothing can be hidden.
    """
    told = [_told(*write) for write in writes]
    hiding = [one for one in told if one.how.blocked]
    if hiding:
        asked = replace(asked, mask=_hidden(asked, hiding))
    output, _ = asked.answer()
    anew = [one for one in told if one.how.made_again]
    if not anew:
        return asked, output
    output = output.clone()
    for start in range(0, len(anew), ROWS):
        part = anew[start : start + ROWS]
        for one, row in zip(part, _rows(asked, part, donors), strict=True):
            heads = slice(None) if one.head is None else slice(one.head, one.head + 1)
            output[one.row, one.query, heads] = row[heads]
    return asked, output


def _hidden(asked: Asked, told: Sequence[_Told]) -> Tensor:
    """The mask with the keys that are blocked hidden."""
    mask = asked.full_mask
    # A mask of its own for each head is large, and is made only where single heads are told.
    single = any(one.head is not None for one in told)
    heads = asked.query.shape[1] if single else mask.shape[1]
    rows, _, tokens, keys = len(asked.query), *asked.query.shape[1:3], mask.shape[-1]
    mask = mask.expand(rows, heads, tokens, keys).clone()
    # The smallest number, as the models' own masks have it: a row of −inf would come out of the softmax as NaN.
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    for single in (True, False):
        some = [one for one in told if (one.head is not None) == single]
        named = [(one.row, one.head or 0, one.query, key) for one in some for key in one.how.blocked]
        if named:
            row, head, query, key = indices(named, mask.device).T
            mask[row, head if single else slice(None), query, key] = hidden
    return mask


def _rows(asked: Asked, told: Sequence[_Told], donors: Donors) -> Float[Tensor, "row head size"]:
    """Each query's output of every head, as it is told to attend."""
    row, query = indices([(one.row, one.query) for one in told], asked.query.device).T
    mask = asked.full_mask.expand(len(asked.query), -1, -1, -1)[row, :, query]
    seen = _Seen(asked.query[row, :, query], asked.key[row], asked.value[row], asked.layer, donors)
    # A given score is one coordinate more beside the product, so that the model's own scale, cap and sinks act on it.
    if any(one.how.q for one in told):
        seen.widen()
    for number, one in enumerate(told):
        seen.change(number, one)
    again = mask.repeat_interleave(seen.times, 0)[:, :, None]
    alone = replace(asked, query=seen.query[:, :, None], key=seen.keys, value=seen.values, mask=again)
    weights = alone.pattern()[:, :, 0].unflatten(0, (-1, seen.times)).clone()
    for number, one in enumerate(told):
        weights[number, ..., list(one.how.zeroed)] = 0
    values = seen.values.repeat_interleave(seen.group, 1).unflatten(0, (-1, seen.times))
    made = (weights[..., None, :] @ values)[..., 0, :]
    heads = torch.arange(made.shape[2], device=made.device)
    # Of each head the copy of the keys in which its own scores stand.
    return made[:, heads % seen.times, heads]


class _Seen:
    """What each of some queries sees: itself [row, head, size], and keys and values [row, kv_head, key, size].

    Where scores are given, each row is there as many `times` as query heads share a key: the nth time, the keys have
    what the nth of those heads is given.
    """

    def __init__(self, query: Tensor, keys: Tensor, values: Tensor, layer: int, donors: Donors) -> None:
        self.query, self.keys, self.values = query, keys, values
        self.layer, self.donors = layer, donors
        self.group = query.shape[1] // keys.shape[1]
        self.size, self.times = query.shape[-1], 1

    def widen(self) -> None:
        """One number more in queries (1) and in keys (0): what a score gets beside its product."""
        self.times = self.group
        query, keys, self.values = (
            each.repeat_interleave(self.times, 0) for each in (self.query, self.keys, self.values)
        )
        self.query, self.keys = nn.functional.pad(query, (0, 1), value=1.0), nn.functional.pad(keys, (0, 1))

    def change(self, number: int, one: _Told) -> None:
        """Makes one query see what it is told to; a score by another query is of the key that is then there."""
        mine = slice(number * self.times, (number + 1) * self.times)
        for key, donor in one.how.k:
            self.keys[mine, :, key, : self.size] = self._of("k", donor, self.size)
        for key, donor in one.how.v:
            self.values[mine, :, key] = self._of("v", donor, self.values.shape[-1])
        for key, donor in one.how.q:
            apart = self._of("q", donor, self.size) - self.query[mine.start, :, : self.size]
            # What the donor's query scores there, less what the product with this query will bring by itself.
            scores = (apart.unflatten(0, (-1, self.group)) * self.keys[mine.start, :, None, key, : self.size]).sum(-1)
            self.keys[mine, :, key, self.size] = scores.T

    def _of(self, component: str, donor: From, size: int) -> Float[Tensor, "head size"]:
        """What another run has there."""
        return self.donors[donor.run].at((component, self.layer), donor.position).to(self.keys).view(-1, size)
