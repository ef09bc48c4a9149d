"""Workers that are processes: killed at random, their driver too; the rows are those of one process, to the byte."""

import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import causal_tracing as ct
from causal_tracing.errors import InvalidOption, MachineError
from causal_tracing.experiments.chunks import Order
from causal_tracing.experiments.filter import traceable_pairs
from causal_tracing.experiments.workers import crew, processes
from causal_tracing.experiments.workers.dispatch import Event, Ready, Task
from causal_tracing.experiments.workers.processes import Processes
from causal_tracing.experiments.workers.work import Work, require_recipe
from causal_tracing.models.model import Model
from causal_tracing.patching.options.trace import RunOptions
from causal_tracing.results.storage.run_folder import FAILED, RESULTS, Store, read_manifest
from forked_driver import FORKS, command, drive
from tiny import tiny_folder

COUNT = 26  # chunks of eight: three whole ones, and two pairs
NOUNS = ("Rome", "Paris", "Mary", "John", "the", "city", "of", "is")
PAIRS = [
    ct.Pair(
        clean=f"the city of {NOUNS[n % 8]} {n}", corrupt=f"the city of {NOUNS[(n + 3) % 8]} {n}",
        answer=" Rome", foil=" Paris", id=f"p{n}",
    )
    for n in range(COUNT)
]  # fmt: skip
ASKED: dict[str, Any] = {
    "components": ["resid_post", "mlp_out"],
    "sets": {"two": ["mlp_out 1 @ last", "z 2.0-1 @ last"]},
    "growing": True,
    "interactions": ["mlp_out 1 @ last", "z 2.0 @ last"],
    "spot_checks": 2,
    "progress": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_folder(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return ct.load(folder, progress=False)


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    ct.run(model, PAIRS, run, **ASKED)
    return run


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forks of a process that has imported all they need: for tests of what follows, as importing takes
    most of a worker's time; how workers begin is tested without it."""
    monkeypatch.setattr(processes, "SPAWN", FORKS)


def arrays(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is in the rows, to the byte."""
    with sqlite3.connect(folder / RESULTS) as connection:
        found = connection.execute("SELECT pair, chunk, status, texts, arrays, sha256 FROM pairs").fetchall()
        assert connection.execute("SELECT count(*), count(DISTINCT chunk) FROM chunks").fetchone()[0] <= 4
    return {row[0]: tuple(row[1:]) for row in found}


def test_two_workers_give_what_one_process_gives(model: Model, whole: Path, tmp_path: Path):
    found = ct.run(model, PAIRS, tmp_path / "run", workers=2, **ASKED)
    assert arrays(tmp_path / "run") == arrays(whole)
    assert found.provenance["worlds"] == ct.open_trace(whole).provenance["worlds"]
    assert read_manifest(tmp_path / "run")["spec"] == read_manifest(whole)["spec"]


class Hunted(Processes):
    """Processes that are killed at random while they work, so often."""

    left = 0
    random = random.Random(5)

    def give(self, worker: int, task: Task) -> None:
        super().give(worker, task)
        process = self.running[worker][0]
        if Hunted.left:
            Hunted.left -= 1
            threading.Timer(Hunted.random.uniform(0, 0.05), process.kill).start()


@pytest.mark.usefixtures("forked")
def test_twenty_killed_workers_lose_nothing_and_double_nothing(model: Model, whole: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(crew, "Processes", Hunted)
    monkeypatch.setattr("causal_tracing.experiments.workers.dispatch.TRIES", 100)  # it is not the pairs' fault
    Hunted.left = 20
    ct.run(model, PAIRS, tmp_path / "run", workers=2, **ASKED)
    assert Hunted.left == 0
    assert arrays(tmp_path / "run") == arrays(whole)


class Poisoned(Processes):
    """Processes that a certain pair kills."""

    def give(self, worker: int, task: Task) -> None:
        super().give(worker, task)
        if any(pair.id == "p9" for pair in task.pairs):
            self.running[worker][0].kill()


@pytest.mark.usefixtures("forked")
def test_a_pair_that_kills_is_marked_the_rest_is_done_and_it_can_be_tried_again(
    model: Model, whole: Path, tmp_path: Path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(crew, "Processes", Poisoned)
        patched.setattr("causal_tracing.experiments.workers.dispatch.TRIES", 1)  # each more is another start
        found = ct.run(model, PAIRS, tmp_path / "run", workers=1, **ASKED)
    reason = "the worker that measured it died 1 times (ended by SIGKILL)"
    assert found.provenance["failed"] == {"p9": reason}
    assert found.effects.sizes["pair"] == COUNT - 1
    expected = ct.open_trace(whole).effects.restoration
    # Its fellows were measured alone: batches are cut otherwise, and the last bits differ.
    there = expected.sel(pair=found.effects.pair.values)
    assert abs(found.effects.restoration - there).max() < 1e-5
    again = ct.run(model, PAIRS, tmp_path / "run", **ASKED)
    assert again.provenance["failed"] == {"p9": reason}  # what failed is not tried unasked
    again = ct.run(model, PAIRS, tmp_path / "run", retry_failed=True, **ASKED)
    assert again.provenance["failed"] == {}
    assert again.effects.sizes["pair"] == COUNT
    assert abs(again.effects.restoration - expected).max() < 1e-5
    assert again.provenance["worlds"] == ct.open_trace(whole).provenance["worlds"]


def wait_for_chunks(run: Path, count: int, driver: Any) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and driver.is_alive():
        if (run / RESULTS).exists() and len(Store(run, read_manifest(run)["spec_sha256"]).chunks()) >= count:
            return
        time.sleep(0.02)


def children(pid: int | None) -> set[int]:
    import psutil

    return {each.pid for each in psutil.Process(pid).children(recursive=True)}


def kill_at_work(driver: Any, run: Path, chunks: int) -> set[int]:
    """Kills a driver when so many chunks are done, and gives the workers that it had then."""
    wait_for_chunks(run, chunks, driver)
    left = children(driver.pid) if driver.is_alive() else set()
    driver.kill()
    return left


def test_a_driver_that_is_killed_is_gone_on_with_and_leaves_no_worker_behind(folder: Path, whole: Path, tmp_path: Path):
    """Once while its workers begin, as they do for users; then at work, as forks, which need not import everything."""
    import psutil

    run, left = tmp_path / "run", set[int]()
    for chunks in (0, 1, 2):
        fork = FORKS.Process(target=drive, args=(folder, run, PAIRS, ASKED), kwargs={"forked": chunks > 0})
        fork.start()
        left |= kill_at_work(fork, run, chunks)
        fork.join()
        assert left
    fork = FORKS.Process(target=drive, args=(folder, run, PAIRS, ASKED), kwargs={"forked": True})
    fork.start()
    fork.join(300)
    assert fork.exitcode == 0
    assert arrays(run) == arrays(whole)
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in left if psutil.pid_exists(pid)], timeout=10)
    assert alive == []


def test_ctrl_c_keeps_what_is_in_work_and_says_how_to_go_on(folder: Path, tmp_path: Path):
    lines = "".join(  # enough that some are left, however late it is seen that a chunk is done
        f'{{"id": "{p.id}-{n}", "clean": "{p.clean}", "corrupt": "{p.corrupt}", "answer": " Rome", "foil": " Paris"}}\n'
        for n in range(8)
        for p in PAIRS
    )
    (tmp_path / "pairs.jsonl").write_text(lines)
    asked = ["trace", "--model", str(folder), "--pairs", "pairs.jsonl", "--components", "resid_post"]
    asked += ["--workers", "2", "--out", "run"]
    # How workers begin, and Ctrl-C while they do, are asked elsewhere: here they are at work.
    fork = FORKS.Process(target=command, args=(tmp_path, *asked), kwargs={"forked": True})
    fork.start()
    assert fork.pid is not None
    wait_for_chunks(tmp_path / "run", 1, fork)
    os.killpg(fork.pid, signal.SIGINT)  # as a terminal does: to the driver and to all its workers
    fork.join(120)
    err = (tmp_path / "stderr").read_text()
    assert fork.exitcode == 130, err
    assert "Interrupted. What is done is kept in run; go on with:\n" in err
    assert "Traceback" not in err
    done = Store(tmp_path / "run", read_manifest(tmp_path / "run")["spec_sha256"]).chunks()
    assert 1 <= len(done) < COUNT  # of eight pairs each, eight times over


def test_ctrl_c_while_a_worker_is_still_importing_does_not_reach_it(model: Model, capfd):
    options = RunOptions(**ASKED)
    order = Order(traceable=traceable_pairs(model, PAIRS, options), options=options, threads=1, budget=None)
    pool = Processes(Work(recipe=require_recipe(model), order=order))
    pool.start(0)
    process = pool.running[0][0]
    said: list[Event] = []
    until = time.monotonic() + 120
    while not said and time.monotonic() < until:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        said += pool.events(0.1)
    pool.end()
    assert [type(each) for each in said] == [Ready]
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_in_memory_is_refused_with_what_to_do(model: Model, tmp_path: Path):
    handed = ct.load(model.network, model.tokenizer)
    with pytest.raises(InvalidOption, match=r"is in this one's memory alone\. Save it .* and load\(folder\), or leave"):
        ct.run(handed, PAIRS, tmp_path / "run", workers=2, **ASKED)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("changed", ["weights", "hooks"])
def test_what_was_changed_after_loading_is_refused(folder: Path, tmp_path: Path, changed: str):
    model = ct.load(folder, progress=False)
    if changed == "weights":
        with torch.no_grad():
            model.network.lm_head.weight[5] += 1.0
    else:
        model.layers[1].register_forward_hook(lambda *_: None)
    said = {"weights": "model.fingerprint was", "hooks": "hooks was 1 and is now 0 there"}[changed]
    with pytest.raises(MachineError, match=f"A worker does not have what this run was begun with: .*{said}"):
        ct.run(model, PAIRS, tmp_path / "run", workers=1, **ASKED)
    assert not (tmp_path / "run" / RESULTS).exists()


@pytest.mark.usefixtures("forked")
def test_an_error_of_a_workers_is_raised_here(folder: Path, tmp_path: Path):
    gone = Path(shutil.copytree(folder, tmp_path / "model"))
    model = ct.load(gone, progress=False)
    shutil.rmtree(gone)
    with pytest.raises(ct.errors.ModelNotFound, match="There is no folder or file"):
        ct.run(model, PAIRS, tmp_path / "run", workers=1, **ASKED)


@pytest.mark.parametrize("workers", [0, -1, True, "rays", "ray:0", "2"])
def test_what_is_no_number_of_workers(model: Model, tmp_path: Path, workers: Any):
    with pytest.raises(InvalidOption, match="workers= is a number of processes"):
        ct.run(model, PAIRS, tmp_path / "run", workers=workers)


def test_threads_of_a_new_run_are_shared_out(model: Model):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert [crew.crew_of(count).threads for count in (None, 1, 2, 3, 9)] == [4, 4, 2, 1, 1]
    finally:
        torch.set_num_threads(before)
    assert FAILED == "failed"
