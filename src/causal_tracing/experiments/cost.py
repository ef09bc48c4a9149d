"""What a trace would take, before it is run: worlds, token-layers, memory, and a guess at the time."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.memory import default_budget
from causal_tracing.engine.packed.schedule import groups
from causal_tracing.engine.prune import plan
from causal_tracing.interventions.edits import Run, World
from causal_tracing.models.model import Model
from causal_tracing.patching.cells import cells
from causal_tracing.patching.job import Job
from causal_tracing.prompts.pairs import TokenPair

TIMED_TOKENS = 512  # of the forward that is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A token-layer is one token in one layer: a naive loop computes every one of every world.

    `memory` is in bytes above the loaded model; `seconds` is a guess from one timed forward.
    """

    engine: str
    worlds: int
    worlds_skipped: int
    token_layers: int
    naive_token_layers: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        less = self.naive_token_layers / max(1, self.token_layers)
        return (
            f"engine        {self.engine}\n"
            f"worlds        {self.worlds:,}, of which {self.worlds_skipped:,} need not be run\n"
            f"token-layers  {self.token_layers:,}; a loop of whole forwards takes {self.naive_token_layers:,} "
            f"({less:.1f} times as many)\n"
            f"memory        about {self.memory / 2**20:,.0f} MB above the model\n"
            f"time          about {self.seconds:,.0f} s on this machine, guessed from one forward"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def estimate_job(job: Job) -> Estimate:
    """What a job would take on its engine. Runs two forwards to time one."""
    model, pairs, choice = job.model, job.pairs, job.choice
    worlds = worlds_run = token_layers = naive = 0
    for number, pair in enumerate(pairs):
        question = job.question(number)
        asked = [*question.unedited, *(cell.world for grid in job.grids for cell in cells(question, grid))]
        planned = plan(model, asked).worlds
        length = len(pair.clean.tokens)
        worlds += len(asked)
        worlds_run += len(planned)
        naive += len(asked) * length * model.num_layers
        token_layers += _computed(model, planned) if choice.engine == "packed" else len(planned) * length
    if choice.engine == "replay":
        token_layers *= model.num_layers
    return Estimate(
        engine=choice.engine,
        worlds=worlds,
        worlds_skipped=worlds - worlds_run,
        token_layers=token_layers,
        naive_token_layers=naive,
        memory=(job.options.budget or default_budget(model)) + _recordings(job),
        seconds=(token_layers + worlds_run * _head_in_layers(model)) * _seconds_a_token_layer(model, pairs[0]),
    )


def _computed(model: Model, worlds: Sequence[World]) -> int:
    """The token-layers of a wave, its recorded base runs included."""
    tapes = {run: len(run.tokens) for run in dict.fromkeys(world.base for world in worlds)}
    planned = groups(worlds, range(len(worlds)), tapes, model.num_layers)
    last = model.num_layers - 1
    wave = sum(group.rows(layer, last) for group in planned for layer in range(model.num_layers))
    return wave + sum(tapes.values()) * model.num_layers


def _recordings(job: Job) -> int:
    """Bytes that the recorded runs of one pair take: the stream, keys and values, and what donors are read at."""
    model, runs = job.model, 1 + max(len(contrast.corrupt) + len(contrast.reference) for contrast in job.contrasts)
    longest = max(len(pair.clean.tokens) for pair in job.pairs)
    size = torch.finfo(getattr(torch, model.dtype)).bits // 8
    return runs * longest * model.num_layers * 6 * model.config.hidden_size * size


def _head_in_layers(model: Model) -> float:
    """The head's work on one token, in layers."""
    layer = sum(parameter.numel() for parameter in model.layers[0].parameters())
    head = model.network.get_output_embeddings()
    return head.weight.numel() / max(1, layer) if head is not None else 0.0


def _seconds_a_token_layer(model: Model, pair: TokenPair) -> float:
    run = Run(pair.clean.tokens)
    rows = max(1, TIMED_TOKENS // len(run.tokens))
    forward(model, [run], {}, keep=1)
    started = time.perf_counter()
    forward(model, [run] * rows, {}, keep=1)
    return (time.perf_counter() - started) / (rows * len(run.tokens) * (model.num_layers + _head_in_layers(model)))
