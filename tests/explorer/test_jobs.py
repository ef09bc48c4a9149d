"""One thread for all work: the order of jobs, errands in between, what stops, and what is told of an error."""

import json
import threading
from collections.abc import Iterator

import pytest

from causal_tracing.errors import InvalidPair
from causal_tracing.explorer.asked import of_field
from causal_tracing.explorer.jobs import MOST_KEPT, MOST_WAITING, Full, Job, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    worker.start()
    yield worker
    worker.close()


class Held:
    """Work that begins, says so, and goes on until it is let go or stopped."""

    def __init__(self, worker: Worker | None = None) -> None:
        self.worker = worker
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> None:
        self.begun.set()
        while not self.free.wait(0.002):
            job.check()
            if self.worker:
                self.worker.between()


def job(work=lambda job: None, **more) -> Job:
    return Job(work=work, about={"label": "a"}, **more)


def ended(one: Job) -> list[str]:
    deadline = threading.Event()
    for _ in range(2000):
        if one.ended:
            return [kind for kind, _ in one.events]
        deadline.wait(0.005)
    raise AssertionError("the job does not end")


def test_jobs_of_several_tabs_wait_for_one_another(worker: Worker):
    first, second, done = Held(), Held(), []
    one = worker.submit(job(first, tab="a"))
    assert first.begun.wait(5)
    two = worker.submit(job(second, tab="b"))
    three = worker.submit(job(done.append, tab="c"))
    assert [json.loads(each.events[0][1])["ahead"] for each in (one, two, three)] == [0, 1, 2]
    assert not second.begun.is_set()
    first.free.set()
    assert second.begun.wait(5)
    assert done == []
    second.free.set()
    assert ended(three) == ["queued", "started"]
    assert [one.state, two.state] == ["done", "done"]


def test_a_newer_job_of_a_tab_ends_its_older_ones(worker: Worker):
    running, waiting = Held(), Held()
    one = worker.submit(job(running, tab="a"))
    assert running.begun.wait(5)
    other = worker.submit(job(waiting, tab="b"))
    two = worker.submit(job(tab="b"))
    assert ended(other) == ["queued", "cancelled"]
    three = worker.submit(job(tab="a"))
    assert ended(one) == ["queued", "started", "cancelled"]
    assert (ended(two), ended(three)) == (["queued", "started"], ["queued", "started"])
    assert not waiting.begun.is_set()


def test_what_is_opened_of_a_trace_does_not_end_it_and_ends_with_the_next(worker: Worker):
    deeper = Held()
    first = worker.submit(job(tab="a"))
    ended(first)
    one = worker.submit(job(deeper, tab="a", lane="deeper"))
    assert deeper.begun.wait(5)
    two = worker.submit(job(tab="a"))
    assert ended(one)[-1] == "cancelled"
    ended(two)


def test_a_job_under_way_belongs_to_its_tab_and_what_nobody_asked_for_yields(worker: Worker):
    held, example = Held(), Held()
    shown = worker.submit(job(example, yields=True))
    assert example.begun.wait(5)
    one = worker.submit(job(held, tab="a", key="same"))
    assert ended(shown)[-1] == "cancelled"
    two = worker.submit(job(tab="b", key="same"))
    assert two is not one
    held.free.set()
    assert (ended(one)[-1], ended(two)[-1], one.state) == ("started", "started", "done")


def test_an_errand_runs_between_two_steps_of_a_job(worker: Worker):
    held = Held(worker)
    one = worker.submit(job(held))
    assert held.begun.wait(5)
    assert worker.errand(lambda: 7).result(5) == 7
    assert one.state == "running"
    held.free.set()
    ended(one)
    with pytest.raises(InvalidPair, match="wrong"):
        worker.errand(lambda: (_ for _ in ()).throw(InvalidPair("wrong"))).result(5)


def test_equal_jobs_share_one_result_but_not_a_failure(worker: Worker):
    one = worker.submit(job(key="same"))
    ended(one)
    assert worker.submit(job(key="same")) is one
    failed = worker.submit(job(lambda job: 1 / 0, key="bad"))
    ended(failed)
    assert worker.submit(job(key="bad")) is not failed


def test_more_than_some_are_not_taken(worker: Worker):
    held = Held()
    worker.submit(job(held))
    assert held.begun.wait(5)
    for _ in range(MOST_WAITING):
        worker.submit(job())
    with pytest.raises(Full):
        worker.submit(job())
    held.free.set()


def test_the_oldest_results_make_room(worker: Worker):
    jobs = [worker.submit(job()) for _ in range(1)]
    for _ in range(MOST_KEPT + 3):
        ended(jobs[-1])
        jobs.append(worker.submit(job()))
    assert len(worker.jobs) <= MOST_KEPT + 1
    assert jobs[0].id not in worker.jobs
    assert jobs[-1].id in worker.jobs


def test_an_error_is_told_with_its_field_and_its_exit_code(worker: Worker):
    def wrong(job: Job) -> None:
        with of_field("clean"):
            raise InvalidPair("no such word")

    one = worker.submit(job(wrong))
    assert ended(one)[-1] == "error"
    told = json.loads(one.events[-1][1])
    assert told == {"v": 1, "type": "InvalidPair", "message": "no such word", "exit": 2, "field": "clean"}


def test_a_fault_of_ours_is_told_and_stands_in_the_terminal(worker: Worker, capfd: pytest.CaptureFixture[str]):
    one = worker.submit(job(lambda job: 1 / 0))
    ended(one)
    told = json.loads(one.events[-1][1])
    assert told["exit"] == 1
    assert "ZeroDivisionError" in told["message"]
    assert "Traceback" in capfd.readouterr().err


def test_closing_stops_what_runs_and_what_waits():
    worker, held = Worker(), Held()
    worker.start()
    one, two = worker.submit(job(held)), worker.submit(job())
    assert held.begun.wait(5)
    worker.close()
    assert (one.state, two.state) == ("cancelled", "cancelled")
    assert not worker._thread.is_alive()


def test_what_will_be_wanted_is_done_while_nothing_is_asked_for():
    done, more = [], threading.Event()

    def spare() -> Iterator[None]:
        for number in range(3):
            done.append(number)
            more.wait(5 if number == 1 else 0)
            yield
        raise ZeroDivisionError  # nobody asked for it: the thread goes on

    worker = Worker(spare())
    held = worker.submit(job(lambda _: done.append("job")))
    worker.start()
    ended(held)
    for _ in range(2000):
        if done[-1] == 1:
            break
        threading.Event().wait(0.005)
    assert done == ["job", 0, 1]
    asked = worker.submit(job(lambda _: done.append("asked")))
    more.set()
    ended(asked)
    assert done[:4] == ["job", 0, 1, "asked"]
    for _ in range(2000):
        if done[-1] == 2:
            break
        threading.Event().wait(0.005)
    assert worker.errand(lambda: 7).result(5) == 7
    assert done == ["job", 0, 1, "asked", 2]
    worker.close()


def test_closing_does_not_wait_for_all_that_will_be_wanted():
    begun, steps = threading.Event(), []

    def spare() -> Iterator[None]:
        while True:
            begun.set()
            steps.append(len(steps))
            yield

    worker = Worker(spare())
    worker.start()
    assert begun.wait(5)
    worker.close()
    assert not worker._thread.is_alive()
