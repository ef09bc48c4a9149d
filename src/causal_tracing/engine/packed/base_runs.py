"""Runs recorded whole: all that a world with the same base run needs of it.

For every layer what it was called with, the stream before it, and the keys, values and mask of its attention; and the
activations that donors are read at. Runs of equal length share a tape, one row each.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from causal_tracing.engine.backend import Place, Recording
from causal_tracing.engine.hooks.attention import Asked, attention_by, causal_rows
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.modules import first_tensor
from causal_tracing.engine.hooks.record import donor_recordings
from causal_tracing.engine.memory import by_length
from causal_tracing.errors import CannotPack
from causal_tracing.interventions.edits import Run
from causal_tracing.models.model import Model

AS_WIDE = ("q", "k", "v", "z")  # parts of a layer that hold no more than its stream does


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attended:
    """What one layer's attention saw. The mask is [1 or run, 1 or head, token, token], in the model's own form."""

    keys: Float[Tensor, "run kv_head token d_key"]
    values: Float[Tensor, "run kv_head token d_value"]
    mask: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """What one layer was called with beside the stream, and whether it returned a tuple."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: bool  # the stream comes as `hidden_states=`
    tuples: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tape:
    """Recorded runs of one length. `streams[l]` is the stream before layer l; the last is behind the last layer."""

    rows: Mapping[Run, int]
    length: int
    streams: Sequence[Float[Tensor, "run token d_model"]]
    calls: Sequence[Call]
    attended: Sequence[Attended]
    recordings: Mapping[Run, Recording]


class Tapes:
    """The tapes of the runs that were asked for last: one record serves what is seen before patching, and all waves.

    Whole components are recorded in every layer, so that whatever is patched of them finds its donors there.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        # The stream is on every tape, before each layer and behind the last.
        inside = [name for name in model.anatomy.components if name not in ("resid_pre", "resid_post")]
        self.places: set[Place] = {(name, layer) for name in inside for layer in model.having(name)}
        self.recorded: set[Place] = set()
        self.known: dict[Run, Tape] = {}

    def of(self, runs: Collection[Run], places: Collection[Place] = ()) -> dict[Run, Tape]:
        """Each run's tape, with its activations at the places. Raises CannotPack."""
        wanted = {place for place in places if place[0] not in ("resid_pre", "resid_post")}
        if not (self.known.keys() >= {*runs} and wanted <= self.recorded):
            self.known = {}  # before others are recorded, so that they are not held together
            heads = {name for name, _ in wanted} & {*AS_WIDE}  # of some layers: batches that follow are of others
            self.recorded = self.places | wanted | {(name, n) for name in heads for n in self.model.having(name)}
            self.known = tapes(self.model, runs, self.recorded)
        return {run: self.known[run] for run in runs}


def tapes(model: Model, runs: Collection[Run], places: Collection[Place]) -> dict[Run, Tape]:
    """Each run's tape, with its activations at the places (the stream's are always there).

    Raises CannotPack where the layers do not attend by the replaceable function, OutOfMemory where one run alone does
    not fit.
    """
    if model.anatomy.alone:
        raise CannotPack("what it makes of a run depends on what is run beside it.")
    if model.anatomy.idle or model.anatomy.lanes:
        turned = model.anatomy.lanes == "turned"
        form = "its stream is [token, row, width]" if turned else "its stream has several lanes"
        what = "some of its layers are skipped" if model.anatomy.idle else form
        raise CannotPack(f"{what}, which cannot be packed.")
    donors = donor_recordings(model, runs)
    made = by_length(model, runs, partial(_tape, model, donors=donors, places=places))
    return {run: tape for tape in made for run in tape.rows}


def _tape(model: Model, runs: Sequence[Run], *, donors: Mapping[Run, Recording], places: Collection[Place]) -> Tape:
    last = model.num_layers - 1
    streams = [("resid_pre", layer) for layer in range(model.num_layers)] + [("resid_post", last)]
    inside = {place for place in places if place[0] not in ("resid_pre", "resid_post")}
    length = len(runs[0].tokens)
    listener = _Listener(length, eager=model.attention == "eager")
    with attention_by(model, listener.attend), listener.listening(model.layers):
        logits, seen = forward(model, runs, donors, keep=1, wanted=[*streams, *inside])
    for number in range(model.num_layers):
        if number not in listener.attended:
            raise CannotPack(f"layer {number} does not attend by transformers' replaceable attention function.")
    # A layer's output is the next one's input: recorded once, known under both names.
    activations = dict(seen) | {("resid_post", layer): seen[streams[layer + 1]] for layer in range(model.num_layers)}
    return Tape(
        rows={run: row for row, run in enumerate(runs)},
        length=length,
        streams=[seen[place] for place in streams],
        calls=[listener.calls[number] for number in range(model.num_layers)],
        attended=[listener.attended[number] for number in range(model.num_layers)],
        recordings={
            run: Recording(
                activations={place: values[row] for place, values in activations.items()}, logits=logits[row]
            )
            for row, run in enumerate(runs)
        },
    )


@dataclass(slots=True, eq=False)
class _Listener:
    """Notes what passes while the runs are recorded."""

    length: int
    eager: bool
    attended: dict[int, Attended] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    causal: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)

    def attend(self, asked: Asked) -> tuple[Tensor, Any]:
        layer, keys, values = asked.layer, asked.key, asked.value
        if layer in self.attended:
            raise CannotPack(f"layer {layer} attends more than once.")
        # With more keys than tokens (memory, compressed keys) it cannot be told which key is whose.
        if keys.shape[2] != self.length or values.shape[2] != self.length:
            raise CannotPack(f"layer {layer} attends to {keys.shape[2]} keys in a prompt of {self.length} tokens.")
        self.attended[layer] = Attended(keys=keys, values=values, mask=self._mask(layer, asked.query, asked.mask))
        return asked.answer()

    def _mask(self, layer: int, query: Tensor, mask: Any) -> Tensor:
        if mask is None:
            kind = query.device, query.dtype
            if kind not in self.causal:
                self.causal[kind] = causal_rows(self.length, query, eager=self.eager)
            return self.causal[kind]
        if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-2:] != (self.length, self.length):
            raise CannotPack(f"layer {layer} has an attention mask of a form that cannot be divided by tokens.")
        # One for all where they agree: nothing need then be gathered for each world.
        return mask[:1] if all(torch.equal(row, mask[0]) for row in mask[1:]) else mask

    def listening(self, layers: Iterable[nn.Module]) -> ExitStack:
        """Hooks on the layers that note their calls, until the stack is closed."""
        stack = ExitStack()
        for number, layer in enumerate(layers):
            handle = layer.register_forward_hook(partial(self._note, number), with_kwargs=True)
            stack.callback(handle.remove)
        return stack

    def _note(self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if number in self.calls:
            raise CannotPack(f"layer {number} is called more than once.")
        if not isinstance(output, (Tensor, tuple, list)):
            raise CannotPack(f"layer {number} gives its stream in a {type(output).__name__}.")
        stream = first_tensor(output)
        # Of a model on several devices, what all layers are given (positions, rotations) lies on the first of them.
        move = partial(_moved, None if stream is None else stream.device)
        self.calls[number] = Call(
            # The stream, which comes first or by name, is the one thing that each wave brings itself.
            args=tree_map(move, args[1:]),
            kwargs={name: tree_map(move, value) for name, value in kwargs.items() if name != "hidden_states"},
            named=not args,
            tuples=isinstance(output, (tuple, list)),
        )


def _moved(device: torch.device | None, value: Any) -> Any:
    """A tensor on this device, anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) and device is not None else value
