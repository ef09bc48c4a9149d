"""A chunk of a run's pairs, measured: in this process or in another, the same rows come out of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from causal_tracing.errors import InputError, InvalidPair, OutOfMemory
from causal_tracing.experiments.filter import Kept, preferred_pairs
from causal_tracing.experiments.trace import measured
from causal_tracing.models.model import Model
from causal_tracing.patching.job import PER_PAIR, Job, plan_job
from causal_tracing.patching.options.trace import Progress, RunOptions
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results import devices
from causal_tracing.results.effects import NOT_FINITE
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.spot_checks import together
from causal_tracing.results.storage.run_folder import DROPPED, FAILED, OK, Row
from causal_tracing.results.storage.saved import to_parts

RECORDED = ("started", "seconds", "worlds", "worlds_skipped", "spot_checks", "devices")
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """What a run asks of a model: which of its pairs can be traced, how, and what fixes the last bits.

    `budget` is in bytes a batch, `threads` how many the model computes on, `call` how many tokens a call of a layer
    takes at most (None: as many as are fast there).
    """

    traceable: Kept
    options: RunOptions
    threads: int
    budget: int | None
    call: int | None = None

    def silent(self) -> "Order":
        """The same for another process, which has nobody to tell of its progress."""
        return replace(self, options=replace(self.options, progress=False))


class Chunks:
    """Measures some of the pairs of an order at a time; it is planned with all of them, as columns and roles want."""

    def __init__(self, model: Model, order: Order, job: Job | None = None) -> None:
        self.model = model
        self.order = order
        job = plan_job(model, order.traceable.pairs, order.options) if job is None else job
        self.job = job.within(order.budget, order.call)
        self.places = {pair.id: number for number, pair in enumerate(order.traceable.pairs)}

    def rows(self, pairs: Sequence[Pair], progress: Progress | None = None) -> tuple[list[Row], Record]:
        """A row of each of these pairs, measured or with the reason why not, and what is recorded of them together."""
        traceable, options = self.order.traceable, self.order.options
        there = [pair for pair in pairs if pair.id in self.places]
        kept = preferred_pairs(self.model, there, options, options.keep)
        rest = _left_out(pairs, {**traceable.failed, **kept.failed}, kept.dropped)
        rows, record = _measured(self.job, [self.places[pair.id] for pair in kept.pairs], progress)
        return [*rows, *rest], record


def planned(model: Model, kept: Kept, options: RunOptions) -> tuple[Kept, Job]:
    """The job of the pairs that can be traced, without those whose noise does not fit into memory alone."""
    if not kept.pairs and not kept.failed:
        raise InvalidPair("There is no pair to trace: the list is empty.")
    if not kept.pairs:
        reason = next(iter(kept.failed.values()), "")
        raise InvalidPair(f"None of the {len(kept.failed)} pairs can be traced. The first: {reason}")
    try:
        return kept, plan_job(model, kept.pairs, options)
    except OutOfMemory:
        too_large = {pair.id: said for pair in kept.pairs if (said := _too_large(model, pair, options))}
        if not too_large:
            raise
    rest = [pair for pair in kept.pairs if pair.id not in too_large]
    return planned(model, replace(kept, pairs=rest, failed={**kept.failed, **too_large}), options)


def _too_large(model: Model, pair: Pair, options: RunOptions) -> str:
    """What is said where a pair alone does not fit; empty where it does, or where it is no job alone."""
    try:
        plan_job(model, [pair], options)
    except OutOfMemory as error:
        return str(error)
    # A pair alone may lack what all of them have together, such as a role: that is judged elsewhere.
    except InputError:
        pass
    return ""


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """So many threads, as the run was begun with: other numbers add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _left_out(pairs: Sequence[Pair], failed: Mapping[str, str], dropped: Mapping[str, str]) -> list[Row]:
    """The rows of those pairs of a chunk that are not measured, in order."""
    ids = [pair.id or "" for pair in pairs]
    return [
        Row(pair=id, status=FAILED if id in failed else DROPPED, reason=failed.get(id) or dropped[id])
        for id in ids
        if id in failed or id in dropped
    ]


def _measured(job: Job, numbers: Sequence[int], progress: Progress | None) -> tuple[list[Row], Record]:
    """A chunk's rows, and what is recorded of it. Where a world does not fit into memory, half of the pairs at once."""
    if not numbers:
        return [], {}
    part = job.part(numbers)
    try:
        found = measured(part, progress)
    except OutOfMemory as error:
        if len(numbers) == 1:
            return [Row(pair=part.pairs[0].id, status=FAILED, reason=str(error))], {}
        half = len(numbers) // 2
        apart = [_measured(job, part, None) for part in (numbers[:half], numbers[half:])]
        return [row for rows, _ in apart for row in rows], added([record for _, record in apart if record])
    rows = [_row(found, n) for n in range(len(numbers))]
    return rows, {name: found.provenance[name] for name in RECORDED}


def _row(found: Measurements, number: int) -> Row:
    """One pair of a chunk."""
    id = str(found.pairs.pair.values[number])
    one = found.of_pair(id)
    runs = ["clean", "corrupt"] if one.pairs.corrupt_prompt.item() else ["clean"]
    unedited = one.pairs[runs].sel(metric="log_prob").to_array()
    if not np.isfinite(unedited.values).all():
        return Row(pair=id, status=FAILED, reason=NOT_FINITE)
    tables, arrays = to_parts(one)
    noise = found.provenance["noise"]
    drawn = None if noise is None else {name: noise[name][number] for name in PER_PAIR}
    return Row(pair=id, status=OK, texts={"tables": tables, "noise": drawn}, arrays=arrays)


def added(records: Sequence[Record]) -> Record:
    """What is recorded of pairs that were measured alone, as one record."""
    if not records:
        return {}
    return {
        "started": records[0]["started"],
        **{name: sum(record[name] for record in records) for name in ("seconds", "worlds", "worlds_skipped")},
        "spot_checks": together([record["spot_checks"] for record in records]),
        "devices": devices.together(records),
    }
