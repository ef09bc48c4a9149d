"""Workers that are Ray's actors, one of them killed at work. In a process of its own: Ray begins some more."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from causal_tracing.errors import InvalidOption, MachineError
from causal_tracing.experiments.chunks import Order
from causal_tracing.experiments.filter import Kept
from causal_tracing.experiments.workers import on_ray
from causal_tracing.experiments.workers.work import Work
from causal_tracing.models.recipe import Recipe
from causal_tracing.patching.options.trace import RunOptions
from forked_driver import executed

DRIVER = """
import os, sys
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/experiments/workers"]
from pathlib import Path
import torch
import causal_tracing as ct
import test_processes as here
from causal_tracing.experiments.workers import on_ray
from tiny import tiny_folder

work = Path(sys.argv[1])
os.chdir(work)
tiny_folder(work / "model")
model = ct.load(work / "model", progress=False)
ct.run(model, here.PAIRS, work / "whole", **here.ASKED)

class Hunted(on_ray.Actors):
    kills = 1

    def give(self, worker, task):
        super().give(worker, task)
        if Hunted.kills and task.chunk == 1:
            Hunted.kills -= 1
            self.ray.kill(self.actors[worker])

real, on_ray.Actors = on_ray.Actors, Hunted
found = ct.run(model, here.PAIRS, work / "run", workers="ray:2", **here.ASKED)
assert Hunted.kills == 0
assert here.arrays(work / "run") == here.arrays(work / "whole")
assert found.provenance["failed"] == {}

on_ray.Actors = real
with torch.no_grad():
    model.network.lm_head.weight[5] += 1.0
try:
    ct.run(model, here.PAIRS, work / "other", workers="ray:1", **here.ASKED)
except ct.errors.MachineError as error:
    assert "model.fingerprint was" in str(error), error
else:
    raise AssertionError("weights that were changed after loading were not refused")
import ray
ray.shutdown()
print("the same bytes")
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'causal-tracing[ray]'")
def test_two_actors_of_which_one_is_killed_give_what_one_process_gives(tmp_path: Path):
    done = executed(DRIVER, str(tmp_path), str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split("\n")[-2] == "the same bytes"


def test_where_ray_is_not_installed_it_is_said_with_the_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("causal_tracing.patching.options.checks.find_spec", lambda _: None)
    with pytest.raises(InvalidOption, match=r"workers='ray:2' needs Ray: pip install 'causal-tracing\[ray\]'"):
        RunOptions(workers="ray:2")


class OneSmallMachine:
    """A cluster as far as it is asked before the first actor."""

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]


def test_threads_that_no_machine_has_are_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(on_ray, "_ray", OneSmallMachine)
    order = Order(traceable=Kept(pairs=[], failed={}, dropped={}), options=RunOptions(), threads=4, budget=None)
    with pytest.raises(MachineError, match="on 4 threads a worker, .* no machine of the cluster has more than 2 CPUs"):
        on_ray.Actors(Work(recipe=Recipe(model="demo"), order=order))
