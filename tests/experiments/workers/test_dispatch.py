"""Chunks to workers that die: every chunk once, whatever happens. The workers here are made up, and cost nothing."""

import os
import signal
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tracing import Pair
from causal_tracing.errors import InvalidResults, MachineError
from causal_tracing.experiments.workers.dispatch import (
    TRIES,
    Died,
    Event,
    Finished,
    Measured,
    Moved,
    Raised,
    Ready,
    Task,
    dispatched,
)
from causal_tracing.results.storage.run_folder import FAILED, OK, Row

FACTS = {"model": {"fingerprint": "abc"}, "threads": 1}
RECORD = {"started": "now", "seconds": 1.0, "worlds": 2, "worlds_skipped": 0, "spot_checks": {}}
RECORD["spot_checks"] = {"cells": 1, "largest_difference": 0.0}


def tasks(chunks: int, size: int = 4) -> list[Task]:
    def pair(chunk: int, number: int) -> Pair:
        return Pair(clean="a", answer="b", id=f"{chunk}.{number}")

    return [Task(chunk=chunk, pairs=tuple(pair(chunk, number) for number in range(size))) for chunk in range(chunks)]


class Made:
    """A pool whose workers do at once what is asked, or die of it."""

    def __init__(self, dies: Callable[[Task], bool] = lambda _: False, facts: object = FACTS) -> None:
        self.dies, self.facts = dies, facts
        self.said: list[Event] = []
        self.began: list[int] = []
        self.given: list[Task] = []
        self.ended = False

    def start(self, worker: int) -> None:
        self.began.append(worker)
        self.said.append(Ready(worker=worker, facts=self.facts))  # pyright: ignore[reportArgumentType]

    def give(self, worker: int, task: Task) -> None:
        self.given.append(task)
        if self.dies(task):
            self.said.append(Died(worker=worker, how="ended by SIGKILL"))
        else:
            self.said.append(Moved(worker=worker, share=0.5))
            rows = [Row(pair=str(pair.id), status=OK) for pair in task.pairs]
            self.said.append(Finished(worker=worker, rows=rows, record=RECORD))

    def events(self, timeout: float) -> Sequence[Event]:
        said, self.said = self.said, []
        return said

    def end(self) -> None:
        self.ended = True


def rows(found: Sequence[Measured]) -> dict[str, str]:
    return {row.pair: row.status for chunk in found for row in chunk.rows}


def test_every_chunk_comes_back_once():
    pool = Made()
    found = list(dispatched(pool, 3, tasks(7), FACTS))
    assert sorted(chunk.chunk for chunk in found) == [*range(7)]
    assert len(rows(found)) == 7 * 4
    assert pool.began == [0, 1, 2]
    assert pool.ended


def test_there_are_no_more_workers_than_chunks():
    pool = Made()
    assert len(list(dispatched(pool, 8, tasks(2), FACTS))) == 2
    assert pool.began == [0, 1]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.lists(st.booleans(), max_size=60))
def test_whatever_dies_no_chunk_is_lost_and_none_comes_twice(workers, chunks, deaths):
    coming = iter(deaths)
    found = list(dispatched(Made(lambda _: next(coming, False)), workers, tasks(chunks), FACTS))
    assert sorted(chunk.chunk for chunk in found) == [*range(chunks)]
    assert sum(len(chunk.rows) for chunk in found) == len(rows(found)) == chunks * 4


def test_a_pair_that_kills_its_workers_is_marked_and_the_rest_is_done():
    pool = Made(lambda task: any(pair.id == "1.2" for pair in task.pairs))
    found = list(dispatched(pool, 2, tasks(3), FACTS))
    assert {pair for pair, status in rows(found).items() if status == FAILED} == {"1.2"}
    assert len(rows(found)) == 12
    deadly = [task for task in pool.given if any(pair.id == "1.2" for pair in task.pairs)]
    assert [len(task.pairs) for task in deadly] == [4] * TRIES + [1] * TRIES
    (chunk,) = (chunk for chunk in found if chunk.chunk == 1)
    (row,) = (row for row in chunk.rows if row.status == FAILED)
    assert row.reason == "the worker that measured it died 3 times (ended by SIGKILL)"
    assert chunk.record["worlds"] == 3 * 2  # of the three pairs that were measured alone


def test_half_of_a_chunk_is_never_handed_on():
    pool, found = Made(lambda task: len(task.pairs) > 1), []
    for chunk in dispatched(pool, 1, tasks(1), FACTS):
        found.append(chunk)
        assert len(chunk.rows) == 4
    assert len(found) == 1


def test_a_worker_that_found_something_else_is_refused_before_a_chunk_is_handed_out():
    pool = Made(facts={"model": {"fingerprint": "other"}, "threads": 1})
    with pytest.raises(MachineError, match='begun with: model.fingerprint was "abc" and is now "other" there'):
        list(dispatched(pool, 2, tasks(2), FACTS))
    assert pool.given == []
    assert pool.ended


def test_workers_that_never_begin_end_the_run():
    class Stillborn(Made):
        def start(self, worker: int) -> None:
            self.said.append(Died(worker=worker, how="exit code 1"))

    with pytest.raises(MachineError, match=r"3 workers in a row ended before they could begin \(exit code 1\)"):
        list(dispatched(Stillborn(), 1, tasks(2), FACTS))


def test_a_worker_that_dies_while_it_waits_is_not_counted():
    pool = Made()
    pool.said += [Ready(worker=9, facts=FACTS), Died(worker=9, how="exit code 1")] * 5
    assert len(list(dispatched(pool, 1, tasks(3), FACTS))) == 3


def test_an_error_that_is_no_pairs_fault_ends_the_run():
    class Broken(Made):
        def give(self, worker: int, task: Task) -> None:
            self.said.append(Raised(worker=worker, error=InvalidResults("a tokenizer that is none")))

    pool = Broken()
    with pytest.raises(InvalidResults, match="a tokenizer that is none"):
        list(dispatched(pool, 2, tasks(2), FACTS))
    assert pool.ended


def test_how_much_is_done_is_told():
    told: list[dict[int, float]] = []

    class Slow(Made):
        def events(self, timeout: float) -> Sequence[Event]:
            return [self.said.pop(0)] if self.said else []

    list(dispatched(Slow(), 2, tasks(3), FACTS, lambda shares: told.append(dict(shares))))
    assert {0: 0.5, 1: 0.0} in told
    assert told[-1] == {}


def test_after_ctrl_c_nothing_new_is_begun_and_what_is_in_work_is_kept():
    before = signal.getsignal(signal.SIGINT)

    class Interrupted(Made):
        def give(self, worker: int, task: Task) -> None:
            super().give(worker, task)
            if task.chunk == 1:
                os.kill(os.getpid(), signal.SIGINT)

    pool, found = Interrupted(), []
    with pytest.raises(KeyboardInterrupt):
        found.extend(dispatched(pool, 2, tasks(9), FACTS))
    assert [task.chunk for task in pool.given] == [0, 1]
    assert pool.ended
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_it_at_once():
    class Stuck(Made):
        def give(self, worker: int, task: Task) -> None:
            os.kill(os.getpid(), signal.SIGINT)  # and nothing comes back

        def events(self, timeout: float) -> Sequence[Event]:
            if not self.said:
                os.kill(os.getpid(), signal.SIGINT)
            return super().events(timeout)

    pool = Stuck()
    with pytest.raises(KeyboardInterrupt):
        list(dispatched(pool, 1, tasks(2), FACTS))
    assert pool.ended
