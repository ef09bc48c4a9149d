"""Workers as actors of Ray's: on the machines of a cluster that runs, or on this one alone."""

import os
import time
from collections.abc import Sequence
from typing import Any

from causal_tracing.errors import MachineError
from causal_tracing.experiments.chunks import Record
from causal_tracing.experiments.workers.dispatch import Died, Event, Finished, Raised, Ready, Task
from causal_tracing.experiments.workers.work import Work, Worker
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.storage.run_folder import Row

PAUSE = 0.5  # seconds before an actor that could not be reached is asked again


def joined(asked: int) -> tuple[int, int]:
    """How many actors, and the threads of each: as asked, else one for each GPU of the cluster, or each machine.

    Joins the cluster that runs (RAY_ADDRESS, or one begun on this machine), or begins one here.
    """
    ray = _ray()
    if not ray.is_initialized():
        silent = {"log_to_driver": False, "configure_logging": False}
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **silent)
        except ConnectionError:
            ray.init(include_dashboard=False, **silent)
    cluster, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    count = asked or int(cluster.get("GPU", 0)) or nodes
    return count, max(1, int(cluster.get("CPU", 1)) // max(count, nodes))


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


class _Actor:
    """A worker in a process of Ray's. Its model is loaded when it is asked for its first word, and not before."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.worker: Worker | None = None

    def facts(self) -> Any:
        """Loads the model, and says what it found."""
        self.worker = Worker(self.work)
        return self.worker.facts

    def measured(self, pairs: Sequence[Pair]) -> tuple[list[Row], Record, tuple[str, ...]]:
        """What a worker gives of these pairs."""
        assert self.worker is not None
        return self.worker.measured(pairs)


class Actors:
    """A pool of actors for some work. Ray neither restarts them nor repeats what they did: the dispatcher counts.

    Raises MachineError where no machine has as many CPUs as the run has threads: Ray would wait for one for ever.
    """

    def __init__(self, work: Work) -> None:
        self.ray, self.work = _ray(), work
        self.actors: dict[int, Any] = {}
        self.asked: dict[Any, tuple[int, Task | None]] = {}  # by what is waited for; None: the first word
        most = max(int(node["Resources"].get("CPU", 0)) for node in self.ray.nodes() if node["Alive"])
        if work.order.threads > most:
            raise MachineError(
                f"This run computes on {work.order.threads} threads a worker, which its numbers depend on, and no "
                f"machine of the cluster has more than {most} CPUs. Go on on a larger machine, or begin another run."
            )
        gpus = self.ray.cluster_resources().get("GPU", 0) and work.recipe.device != "cpu"
        self.kind = self.ray.remote(_Actor).options(
            num_cpus=work.order.threads, num_gpus=1 if gpus else 0, max_restarts=0, max_task_retries=0
        )

    def start(self, worker: int) -> None:
        """Begins an actor; with a GPU of its own it is the first that the actor sees."""
        self.actors[worker] = self.kind.remote(self.work)
        self._ask(worker, None)

    def give(self, worker: int, task: Task) -> None:
        """Hands a task to an actor."""
        self._ask(worker, task)

    def _ask(self, worker: int, task: Task | None) -> None:
        actor = self.actors[worker]
        self.asked[actor.facts.remote() if task is None else actor.measured.remote(task.pairs)] = worker, task

    def events(self, timeout: float) -> Sequence[Event]:
        """What actors gave since."""
        if not self.asked:
            time.sleep(timeout)
            return []
        ready, _ = self.ray.wait([*self.asked], num_returns=1, timeout=timeout)
        return [event for each in ready for event in self._heard(each)]

    def _heard(self, ready: Any) -> Sequence[Event]:
        worker, task = self.asked.pop(ready)
        errors = self.ray.exceptions
        try:
            found = self.ray.get(ready)
        except errors.ActorUnavailableError:  # not dead: what it was asked may be lost all the same
            time.sleep(PAUSE)
            self._ask(worker, task)
            return []
        except errors.RayActorError as error:
            return [Died(worker=worker, how=str(error).splitlines()[0])]
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else MachineError(str(error))
            return [Raised(worker=worker, error=cause)]
        if task is None:
            return [Ready(worker=worker, facts=found)]
        rows, record, notes = found
        return [Finished(worker=worker, rows=rows, record=record, notes=notes)]

    def end(self) -> None:
        """Ends all actors. Ray itself goes on, for the next run, until this process ends."""
        for actor in self.actors.values():
            self.ray.kill(actor)
        self.actors, self.asked = {}, {}
