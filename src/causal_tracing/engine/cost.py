"""What worlds would take on an engine, before they are run: token-layers, memory, and a guess at the time."""

import time
from collections.abc import Sequence

import torch

from causal_tracing.engine.backend import Cost
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.wiring import rewired_in, rows_of
from causal_tracing.engine.memory import too_large
from causal_tracing.engine.packed.donors import behind_bases
from causal_tracing.engine.packed.schedule import donor_groups, groups
from causal_tracing.engine.routed import silent_experts
from causal_tracing.interventions.donors import read_by
from causal_tracing.interventions.edits import Run, World, donors_of
from causal_tracing.interventions.known import plan
from causal_tracing.models.calling import head_of
from causal_tracing.models.memory import in_parts
from causal_tracing.models.model import Model

TIMED_TOKENS = 512  # of the forward that is timed


def cost_of(model: Model, worlds: Sequence[World], engine: str, budget: int, seconds: float) -> Cost:
    """The cost of worlds that are evaluated together, where one token-layer takes so many `seconds`."""
    planned = plan(worlds, model.rules, silent=silent_experts(model, worlds)).worlds
    rewired = [world for world in planned if rewired_in(world)]
    others = [world for world in planned if not rewired_in(world)]
    whole = sum(len(world.base.tokens) for world in others) * model.num_layers
    token_layers = _packed(model, others) if engine == "packed" and others else whole
    # A rewired world is a forward of several rows on either engine.
    token_layers += sum(rows_of(model, world) * len(world.base.tokens) for world in rewired) * model.num_layers
    return Cost(
        worlds_run=len(planned),
        token_layers=token_layers,
        naive_token_layers=sum(len(world.base.tokens) for world in worlds) * model.num_layers,
        memory=budget + _recordings(model, worlds),
        seconds=(token_layers + len(planned) * _head_in_layers(model)) * seconds,
    )


def seconds_a_token_layer(model: Model, run: Run) -> float:
    """Seconds that one token takes in one layer, by the second of two forwards of the run without its edits."""
    # Without its edits, whose donors would have to be recorded first. Of a short prompt several rows: a call of few
    # tokens is mostly overhead, and would make the guess far too long.
    plain, rows = Run(run.tokens), max(1, TIMED_TOKENS // len(run.tokens))
    # The first one pays for what is made once, such as memory and kernels.
    _forwards(model, [plain])
    started = time.perf_counter()
    _forwards(model, [plain] * rows)
    return (time.perf_counter() - started) / (rows * len(run.tokens) * (model.num_layers + _head_in_layers(model)))


def _forwards(model: Model, runs: Sequence[Run]) -> None:
    for _ in in_parts(runs, lambda part: forward(model, part, {}, keep=1), too_large(model, len(runs[0].tokens))):
        pass


def _packed(model: Model, worlds: Sequence[World]) -> int:
    """The token-layers of a wave, its recorded base runs and their edited donors included."""
    tapes = {run: len(run.tokens) for run in dict.fromkeys(world.base for world in worlds)}
    planned = groups(worlds, range(len(worlds)), tapes, model.num_layers, model.anatomy.added_from)
    last = model.num_layers - 1
    wave = sum(group.rows(layer, last) for group in planned for layer in range(model.num_layers))
    read = read_by(world.run for world in worlds)
    behind = behind_bases(tapes, read)
    kept = {number: read[run] for number, run in enumerate(behind)}
    donors = donor_groups([*behind.values()], kept, tapes, model.num_layers, model.anatomy.added_from)
    return wave + sum(group.kept_rows() for group in donors) + sum(tapes.values()) * model.num_layers


def _recordings(model: Model, worlds: Sequence[World]) -> int:
    """Bytes that the recorded runs take: the stream, keys and values, and what donors are read at."""
    donors = (donor.run for world in worlds for edit in world.edits for donor in donors_of(edit.source))
    runs = dict.fromkeys((*(world.base for world in worlds), *donors))
    size = torch.finfo(getattr(torch, model.dtype)).bits // 8
    return sum(len(run.tokens) for run in runs) * model.num_layers * 9 * model.width * size


def _head_in_layers(model: Model) -> float:
    """The head's work on one token, in layers."""
    layer = sum(parameter.numel() for parameter in model.layer(0).parameters())
    head = head_of(model.network)
    return head.weight.numel() / max(1, layer) if head is not None else 0.0
