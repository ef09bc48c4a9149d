"""Donors that are a base run with edits: what the waves keep of them is what whole forwards give."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from causal_tracing.engine.cost import cost_of
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.record import record
from causal_tracing.engine.network import NetworkBackend
from causal_tracing.engine.packed.base_runs import Tapes
from causal_tracing.engine.packed.donors import Changed, behind_bases
from causal_tracing.engine.packed.engine import Packed
from causal_tracing.interventions.donors import in_levels, read_by
from causal_tracing.interventions.edits import Edit, From, Given, Run, World, Zero
from causal_tracing.interventions.sites import Site
from loaded import shared

BASE, OTHER = Run((5, 17, 42, 11, 60, 33)), Run((5, 17, 42, 13, 60, 29))
LAST = 5


def logits(values: torch.Tensor, _: object) -> torch.Tensor:
    return values[:, -1]


def both(name: str, worlds: list[World]) -> tuple[np.ndarray, np.ndarray]:
    model = shared(name)
    packed, replay = (evaluate(model, worlds, logits, engine=engine).values for engine in ("packed", "replay"))
    return packed, replay


def held_from(layer: int, position: int, num_layers: int = 4) -> tuple[Edit, ...]:
    parts = product(("attn_out", "mlp_out"), range(layer, num_layers))
    return tuple(Edit(Site(part, later, position), From(BASE, position)) for part, later in parts)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma2", "opt-350m", "granite"])
def test_what_is_kept_of_donors_is_what_whole_forwards_give(name: str):
    live = Run(BASE.tokens, (Edit(Site("attn_out", 1, 3), From(OTHER, 3)),))
    held = Run(BASE.tokens, (Edit(Site("attn_out", 1, 3), From(OTHER, 3)), *held_from(2, 3)))
    stream = Run(BASE.tokens, (Edit(Site("resid_pre", 1, 2), From(OTHER, 2)), Edit(Site("mlp_out", 3, LAST), Zero())))
    nested = Run(BASE.tokens, (Edit(Site("mlp_out", 2, LAST), From(held, 3)),))
    places = [("attn_out", 0), ("mlp_out", 1), ("attn_out", 2), ("mlp_out", 2), ("attn_out", 3), ("mlp_out", 3)]
    worlds = [
        World(BASE, (Edit(Site(*place, position), From(donor, position)),), (LAST,))
        for donor, place, position in product((live, held, stream, nested), places, (1, 3, LAST))
    ]
    packed, replay = both(name, worlds)
    assert_allclose(packed, replay, atol=2e-5 * max(1.0, float(np.abs(replay).max())))
    assert np.abs(replay - replay[0]).max() > 1e-2


def test_donors_of_a_base_run_are_recorded_in_waves_and_others_are_not():
    model = shared("llama")
    edited = Run(BASE.tokens, (Edit(Site("attn_out", 1, 3), Zero()),))
    elsewhere = Run(OTHER.tokens, (Edit(Site("attn_out", 1, 3), Zero()),))
    noised = Run(BASE.tokens, (Edit(Site("embed", 0, 3), Given(torch.ones(model.width))),))
    worlds = [
        World(BASE, (Edit(Site("attn_out", 2, 3), From(donor, 3)),), (LAST,))
        for donor in (edited, elsewhere, noised, OTHER)
    ]
    behind = behind_bases([BASE], read_by(world.run for world in worlds))
    assert [*behind] == [edited]
    made = Packed(model, worlds, 2**24, Tapes(model))
    kinds = {run: type(found) is Changed for run, found in made.donors.items()}
    assert [run for run, changed in kinds.items() if changed] == [edited]
    assert OTHER in kinds


def test_what_donors_take_is_counted():
    """A donor that is held costs its own token, once in the layer of its sender and once where it is read."""
    model = shared("llama")
    donor = Run(BASE.tokens, (Edit(Site("attn_out", 0, LAST), From(OTHER, LAST)), *held_from(1, LAST)))
    read = World(BASE, (Edit(Site("attn_out", 3, LAST), From(donor, LAST)),), (LAST,))
    plain = World(BASE, (Edit(Site("attn_out", 3, LAST), From(OTHER, LAST)),), (LAST,))
    takes = [cost_of(model, [world], "packed", 2**24, 1.0).token_layers for world in (read, plain)]
    assert takes[0] - takes[1] == 2


def test_donors_come_behind_those_that_they_read():
    first = Run(BASE.tokens, (Edit(Site("attn_out", 1, 3), From(OTHER, 3)),))
    second = Run(BASE.tokens, (Edit(Site("attn_out", 2, 3), From(first, 3)),))
    third = Run(
        BASE.tokens, (Edit(Site("attn_out", 3, 3), From(second, 3)), Edit(Site("mlp_out", 3, 3), From(OTHER, 3)))
    )
    found = read_by([World(BASE, third.edits, (LAST,)).run])
    assert [*found] == [OTHER, first, second]
    assert found[OTHER] == {("mlp_out", 3, 3): None, ("attn_out", 1, 3): None}
    assert in_levels(found) == [[OTHER], [first], [second]]


def test_runs_that_read_from_runs_are_compared_in_no_time():
    """Two chains that are equal and were made apart: every way through them would be 2 to the power of 60."""
    from causal_tracing.interventions.edits import one_run

    def chain() -> Run:
        run = BASE
        for layer in range(60):
            edits = tuple(Edit(Site(part, layer, 3), From(run, 3)) for part in ("attn_out", "mlp_out"))
            run = one_run(BASE.tokens, edits)
        return run

    assert chain() == chain()
    assert chain() is chain()


@pytest.mark.parametrize(
    ("written", "asked", "mlp"),
    [("q", ("z", 2, 3), False), ("k", ("z", 2, LAST), False), ("attn_out", ("mlp_out", 2, 3), True)],
)
def test_a_layer_that_is_asked_for_what_is_kept_alone_is_left_with_it(
    written: str, asked: tuple[str, int, int], mlp: bool
):
    model = shared("llama")
    backend = NetworkBackend(model, "packed")
    run = Run(BASE.tokens, (Edit(Site(written, 2, 3), From(OTHER, 3)),))
    passed: list[int] = []
    hook = model.part(2, "mlp").register_forward_hook(lambda _, __, output: passed.append(output.shape[-2]))
    try:
        whole = record(model, [run], [asked[:2]])[run]
        recorded, passed[:] = len(passed), []
        found = backend.read(BASE, {run: [asked]})[run]
    finally:
        hook.remove()
    assert recorded
    expected = whole.at(asked[:2], asked[2])
    assert_allclose(found.at(asked[:2], asked[2]), expected, atol=2e-5 * max(1.0, float(expected.abs().max())))
    of_base = record(model, [BASE], [asked[:2]])[BASE]
    assert float((expected - of_base.at(asked[:2], asked[2])).abs().max()) > 1e-3
    assert (passed[-1] == 1) == mlp, "the last call was of one token, or of whole prompts alone"
