"""What-ifs as values: made once, and checked as they are made."""

import pytest

from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site


def test_a_world_makes_its_patched_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of thousands of worlds are made for a map: checking one makes the run that is run."""
    base, donor = Run((5, 17, 42, 11)), Run((5, 23, 42, 11))
    made: list[Run] = []
    check = Run.__post_init__

    def counted(run: Run) -> None:
        check(run)
        made.append(run)

    monkeypatch.setattr(Run, "__post_init__", counted)
    world = World(base, (Edit(Site("resid_post", 1, 2), From(donor, 2)),), (3,))
    assert [each is world.run for each in made] == [True]
    assert world.run is world.run
    assert World(base, (), (3,)).run is base
    assert len(made) == 1
