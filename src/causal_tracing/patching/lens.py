"""The logit lens: what the stream behind each layer would say, if the model's final norm and head read it there.

1. The unedited runs are recorded: what goes into the first layer, and the stream behind each layer.
2. A readout is a world that has such a stream behind the last layer, at the tokens that it reads. So whoever runs the
   model's worlds does to it all that the model does behind its layers (norm, head, scales, soft-caps), and no more.
3. Each readout's logits become a few numbers at once: the first choice, and what becomes of answer and foil.

It is no effect: nothing is patched. The lens is nostalgebraist's ("interpreting GPT: the logit lens", 2020).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Place
from causal_tracing.interventions.edits import Edit, Given, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.patching.job import Job
from causal_tracing.patching.metrics.built_in import BUILT_IN, NO_TOKEN, ROWS, measure_logits, measures_of
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.token_texts import token_text
from causal_tracing.results.lens import EMBEDDING, RUNS

AT_ONCE = 64  # tokens that one world reads: with a large vocabulary, some 50 MB of logits
MEASURED = tuple(BUILT_IN[name] for name in ("logit", "prob", "neg_rank"))
NAMES = ("top_id", "top_prob", *(f"{text}_{name}" for text in ("answer", "foil") for name in ("logit", "prob", "rank")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """A world of the lens and what it reads: of which run of a pair (in which draw), behind which layer."""

    world: World
    run: str
    draw: int
    layer: int


def places_read(model: Model) -> dict[int, Place]:
    """Where the stream is read, by layer; what goes into the first layer is called layer −1."""
    return {EMBEDDING: ("resid_pre", 0), **{layer: ("resid_post", layer) for layer in model.active}}


def readouts(job: Job, number: int, streams: Mapping[Run, Mapping[Place, Tensor]] | None = None) -> Iterator[Readout]:
    """The lens of one pair; without the streams, only as a cost is counted."""
    contrast, last = job.contrasts[number], job.model.active[-1]
    runs = [("clean", 0, contrast.clean), *(("corrupt", n, run) for n, run in enumerate(contrast.corrupt))]
    for name, draw, run in runs:
        base = Run(run.tokens)  # its own edits are in its streams
        for layer, place in places_read(job.model).items():
            stream = streams[run][place] if streams else [None] * len(run.tokens)
            for start in range(0, len(run.tokens), AT_ONCE):
                tokens = tuple(range(start, min(start + AT_ONCE, len(run.tokens))))
                edits = tuple(Edit(Site("resid_post", last, token), Given(stream[token])) for token in tokens)
                yield Readout(world=World(base, edits, tokens, number), run=name, draw=draw, layer=layer)


def lenses(job: Job, numbers: Sequence[int]) -> tuple[dict[int, xr.Dataset], int]:
    """Each of these pairs' lens (`results/lens.py` says what it holds), and how many worlds that took.

    Raises ComponentNotOffered, OutOfMemory.
    """
    runs = [run for number in numbers for run in (job.contrasts[number].clean, *job.contrasts[number].corrupt)]
    recorded = job.backend.record(runs, [*places_read(job.model).values()])
    streams = {run: each.activations for run, each in recorded.items()}
    read = [each for number in numbers for each in readouts(job, number, streams)]
    pairs = {number: job.pairs[number] for number in numbers}
    found = job.backend.evaluate([each.world for each in read], _Read(pairs)).values
    found = found.reshape(len(read), AT_ONCE, len(NAMES))
    return {number: _lens(job, number, read, found) for number in numbers}, len(read)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What is read of a readout's logits, by its pair's answer and foil. A `Portable` measure."""

    pairs: Mapping[int, TokenPair]

    @property
    def function(self) -> Any:
        return read_numbers

    def __call__(self, logits: Float[Tensor, "world readout vocab"], worlds: Sequence[World]) -> Tensor:
        return self.function(logits, *self.data(worlds))

    def data(self, worlds: Sequence[World]) -> tuple[Any, ...]:
        """What is measured, the first tokens of answers and foils, and how many places a world has room for."""
        pairs = [self.pairs[world.pair] for world in worlds]
        answers, foils = (_first_tokens([getattr(pair, name) for pair in pairs]) for name in ("answers", "foils"))
        return measures_of(MEASURED), answers, foils, AT_ONCE


def _first_tokens(texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """The distinct first tokens of each pair's texts, NO_TOKEN behind the last one."""
    # Two texts of a set may begin with one token, which would count twice in its sum.
    firsts = [[*dict.fromkeys(tokens[0] for tokens in each)] for each in texts]
    most = max(1, *map(len, firsts))
    return torch.tensor([[*each, *[NO_TOKEN] * (most - len(each))] for each in firsts])


def read_numbers(logits: Tensor, measures: tuple, answers: Tensor, foils: Tensor, room: int) -> Tensor:
    """The numbers of each place that is read, in the order of NAMES, side by side: [world, room · number].

    Of logits [world, readout, vocab] at `room` places at most; NaN behind the last one, and of foils where there are
    none. Answers and foils are tokens [world, most].
    """
    worlds, readout = logits.shape[:2]
    flat = logits.flatten(0, 1)
    parts = [_first_choices(some) for some in flat.split(ROWS)]
    numbers = [torch.cat(parts)]
    for tokens in (answers, foils):
        each = tokens.repeat_interleave(readout, 0)
        there = (each[:, 0] != NO_TOKEN).nonzero().squeeze(-1)
        found = torch.full((len(flat), len(measures)), torch.nan, dtype=torch.float64, device=logits.device)
        if len(there):
            none = torch.zeros(1, logits.shape[-1])  # no measure here looks at what the clean run expects
            here = there.to(logits.device)
            # A foil is measured as an answer is: none of these metrics needs the other one.
            found[here] = measure_logits(flat[here], measures, each[there], each[there][:, :0], none)
        found[:, -1] = -found[:, -1]  # a rank, and not minus one
        numbers.append(found)
    padded = torch.full((worlds, room, 2 + 2 * len(measures)), torch.nan, dtype=torch.float64, device=logits.device)
    padded[:, :readout] = torch.cat(numbers, -1).view(worlds, readout, -1)
    return padded.flatten(1)


def _first_choices(logits: Tensor) -> Tensor:
    """The likeliest token of each row, and its probability: [row, 2]."""
    best = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).max(-1)
    return torch.stack([best.indices.double(), best.values.double()], -1)


def _lens(job: Job, number: int, read: Sequence[Readout], found: np.ndarray) -> xr.Dataset:
    """One pair's lens: the mean over draws where there are several, which then have no one first choice."""
    pair, contrast, layers = job.pairs[number], job.contrasts[number], [*places_read(job.model)]
    runs = {"clean": (contrast.clean,), "corrupt": contrast.corrupt}
    longest = max(len(draws[0].tokens) for draws in runs.values())
    values = np.full((len(RUNS), len(layers), longest, len(NAMES)), np.nan)
    for n, name in enumerate(RUNS):
        # Zeros, to which the draws are added; what lies behind a prompt's end stays undefined.
        values[n, :, : len(runs[name][0].tokens)] = 0
    for each, numbers in zip(read, found, strict=True):
        tokens, draws = each.world.readout, len(runs[each.run])
        if each.world.pair == number:
            place = RUNS.index(each.run), layers.index(each.layer), slice(tokens[0], tokens[-1] + 1)
            values[place] += numbers[: len(tokens)] / draws
            if draws > 1:
                values[place][:, :2] = np.nan
    coordinates = {"pair": np.array([pair.id], object), "run": np.array(RUNS, object), "layer": layers}
    return xr.Dataset(_variables(values, job.model.tokenizer), coordinates)


def _variables(values: Float[np.ndarray, "run layer token number"], tokenizer: Any) -> dict[str, Any]:
    """The numbers by their names, with the first choices' texts, as small as they can be kept."""
    axes = ("pair", "run", "layer", "token")
    by_name = dict(zip(NAMES, np.moveaxis(values, -1, 0)[:, None], strict=True))
    ids = np.nan_to_num(by_name.pop("top_id"), nan=NO_TOKEN).astype(np.int32)
    known = {NO_TOKEN: ""} | {token: token_text(token, tokenizer) for token in {*ids.ravel().tolist()} - {NO_TOKEN}}
    top = np.array([known[token] for token in ids.ravel().tolist()], dtype=object).reshape(ids.shape)
    numbers = {name: (axes, each.astype(np.float32)) for name, each in by_name.items()}
    return {"top": (axes, top), "top_id": (axes, ids), **numbers}
