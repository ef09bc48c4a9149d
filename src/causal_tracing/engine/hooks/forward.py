"""One batch of runs of equal length, in one whole forward of the model. Plain, and the oracle of all that is faster.

1. Every place that an edit writes at, or that is wanted, gets a hook.
2. At each, the rows' edits are applied to the current value, in computation order.
3. What is wanted is copied; the logits of the last `keep` positions come back.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.backend import Place
from causal_tracing.engine.final_norm import scale_shown
from causal_tracing.engine.hooks.apply import Donors, Write, narrowed, rewritten
from causal_tracing.engine.hooks.attending import attended, require_sight, visible
from causal_tracing.engine.hooks.attention import SEEN, Asked, attention_shown
from causal_tracing.engine.hooks.modules import attached
from causal_tracing.engine.indices import indices
from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.edits import Attending, Edit, Run
from causal_tracing.interventions.sites import ATTENTION, COMPONENTS, FINAL_SCALE
from causal_tracing.models.calling import called, head_of, logits_in
from causal_tracing.models.model import Model

MANY = 6  # rows, from which on products of all rows at once were faster than one for each, of heads of 20 to 65 million


def forward(
    model: Model,
    runs: Sequence[Run],
    donors: Donors,
    *,
    keep: int,
    wanted: Collection[Place] = (),
    beside: int = 0,
) -> tuple[Float[Tensor, "run keep vocab"], Mapping[Place, Float[Tensor, "run token width"]]]:
    """The runs' logits at the last `keep` positions, and their activations at the wanted places [run, token, width].

    `donors` holds a recording of every run that an edit reads from, but for the first `beside` runs: these are
    unedited, and what they have at a place is read from their own rows (`in_the_batch` says where that is so).
    """
    if model.anatomy.alone and len(runs) > 1:
        assert not beside, "a run that is made alone has no other beside it"
        return _one_by_one(model, runs, donors, keep, wanted)
    captured: dict[Place, Tensor] = {}

    def capture(place: Place, value: Tensor) -> Tensor:
        captured[place] = value.clone()  # falcon adds to its MLP's output in place
        return value

    with model.at_rest():
        return watched(model, runs, donors, wanted, capture, keep=keep, beside=beside), captured


def _one_by_one(
    model: Model, runs: Sequence[Run], donors: Donors, keep: int, wanted: Collection[Place]
) -> tuple[Float[Tensor, "run keep vocab"], Mapping[Place, Float[Tensor, "run token width"]]]:
    """The same of runs of which each has a forward of its own."""
    found = [forward(model, [run], donors, keep=keep, wanted=wanted) for run in runs]
    seen = {place: torch.cat([captured[place] for _, captured in found]) for place in wanted}
    return torch.cat([logits for logits, _ in found]), seen


def watched(
    model: Model,
    runs: Sequence[Run],
    donors: Donors,
    wanted: Collection[Place],
    watch: Callable[[Place, Tensor], Tensor],
    *,
    keep: int,
    beside: int = 0,
) -> Float[Tensor, "run keep vocab"]:
    """The runs' logits; at each wanted place `watch` is given the value [run, token, width], and gives what flows on.

    Gradients are as they are where it is called.
    """
    length, edits = len(runs[0].tokens), _by_place(model, runs, wanted)
    few, rows = narrowed({place: _writes(made, length) for place, made in edits.items()}, wanted)

    def visit(component: str, layer: int, value: Tensor) -> Tensor:
        place = component, layer
        if place in edits:
            # Keys and values may be more than the tokens: compressed ones stand behind them.
            writes = few[place] if place in rows else _writes(edits[place], value.shape[1])
            value = _edited(model, place, value, writes, _with_rows(donors, runs[:beside], value))
        return watch(place, value) if place in wanted else value

    tokens = indices([run.tokens for run in runs], model.device)
    places = edits.keys() | set(wanted)
    # No module holds these two kinds: the attention function sees the one, and the final norm the other.
    inside = {place for place in places if place[0] in SEEN}
    behind = {place for place in places if place[0] == FINAL_SCALE}
    changed = {
        layer: partial(_attended, rows, donors) for (component, layer), rows in edits.items() if component == ATTENTION
    }
    with (
        attached(model, places - inside - behind, visit, batch=len(runs), rows=rows),
        attention_shown(model, inside, visit, changed),
        scale_shown(model, partial(visit, *behind.pop())) if behind else nullcontext(),
        _head_read_once(model, len(runs)),
    ):
        logits = logits_in(called(model.network, tokens, **_only_last(model, keep)))
    # A model that cannot be asked for few gives all.
    return logits[:, -keep:]


def _by_place(
    model: Model, runs: Sequence[Run], wanted: Collection[Place]
) -> Mapping[Place, Sequence[tuple[int, Edit]]]:
    """The edits of all runs where they are made, each with the row of its run. Raises InvalidEdit."""
    check_layers(model, (edit for run in runs for edit in run.edits))
    found: dict[Place, list[tuple[int, Edit]]] = defaultdict(list)
    for row, run in enumerate(runs):
        for edit in run.edits:
            # Asked before the run, since a layer would show the pattern that it had before its row was made again.
            _check_shown(edit, wanted)
            found[edit.site.component, edit.site.layer].append((row, edit))
    return found


def _writes(edits: Sequence[tuple[int, Edit]], length: int) -> list[Write]:
    """The edits of a batch with their rows where all of its runs, each of this length, lie one behind the other."""
    return [(row * length + edit.site.position, edit) for row, edit in edits]


def _attended(rows: Sequence[tuple[int, Edit]], donors: Donors, asked: Asked) -> tuple[Asked, Tensor]:
    """Attention in whole runs, where queries are told how to attend. Raises InvalidEdit."""
    if any(isinstance(edit.source, Attending) and edit.source.blocked for _, edit in rows):
        require_sight(visible(asked.full_mask), rows)
    return attended(asked, [(row, edit.site.position, edit) for row, edit in rows], donors)


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A donor that is a row of the batch itself, at the place that is passed now."""

    values: Float[Tensor, "token width"]

    def at(self, place: Place, position: int) -> Float[Tensor, " width"]:
        return self.values[position]


def _with_rows(donors: Donors, first: Sequence[Run], value: Float[Tensor, "run token width"]) -> Donors:
    """The donors, and with them the first runs of the batch."""
    return {**donors, **{run: _Row(value[row]) for row, run in enumerate(first)}} if first else donors


def in_the_batch(component: str) -> bool:
    """Whether a run of the same batch can be read there: every row's value is there before one is written to."""
    return component in (*COMPONENTS, "z", "neurons")


def _check_shown(edit: Edit, wanted: Collection[Place]) -> None:
    """Raises InvalidEdit where the pattern of a layer is wanted in which a query's row is made again behind it."""
    told = isinstance(edit.source, Attending) and edit.source.made_again
    if told and ("pattern", edit.site.layer) in wanted:
        raise InvalidEdit(
            f"The pattern of layer {edit.site.layer} cannot be read where {edit.site} is told otherwise than by "
            "blocked= keys: its row is made again, and has no pattern of its own."
        )


def _edited(model: Model, place: Place, value: Tensor, writes: Sequence[Write], donors: Donors) -> Tensor:
    """The value with the edits made."""
    parts, scale = model.parts(*place), scale_at(model, place)
    return rewritten(value.flatten(0, 1), writes, donors, parts=parts, scale=scale).view(value.shape)


def scale_at(model: Model, place: Place) -> float:
    """What the layer multiplies a place's value by before it is added to the stream."""
    component, layer = place
    # The stream is what was added up already, and heads and neurons lie before the module's output.
    if component not in ("attn_out", "mlp_out", "mixer_out"):
        return 1.0
    layout = model.layout(layer)
    return layout.mlp_scale if component == "mlp_out" else layout.attn_scale


def _head_read_once(model: Model, rows: int) -> AbstractContextManager[Any]:
    """Gives the head its states in one piece.

    Those of the last positions are a view of all of them, for which torch reads the whole head once for every row: a
    sweep of the demo model took a third longer. Of few rows a copy gains nothing.
    """
    head = head_of(model.network)
    if rows < MANY or not isinstance(head, nn.Module):
        return nullcontext()
    return head.register_forward_pre_hook(_in_one_piece)


def _in_one_piece(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in args)


def _only_last(model: Model, keep: int) -> dict[str, int]:
    """Asks for few logits where the model can: the rest would be most of the memory."""
    return {"logits_to_keep": keep} if model.anatomy.few_logits else {}


def check_layers(model: Model, edits: Iterable[Edit]) -> None:
    """Raises InvalidEdit where the model has no such layer."""
    count = model.num_layers
    for edit in edits:
        if not 0 <= edit.site.layer < count:
            raise InvalidEdit(f"An edit is at {edit.site}, but {model.name} has {count} layers: 0 to {count - 1}.")
