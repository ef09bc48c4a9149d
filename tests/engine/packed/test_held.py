"""Worlds whose layers are held: not computed, and the same numbers as where they are."""

from collections.abc import Sequence

import numpy as np
import pytest

from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.packed.schedule import groups, joining
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from families import FAMILIES
from loaded import BY_NAME, shared

BASE, DONOR = Run((5, 17, 42, 11, 60, 33, 8, 71, 90)), Run((5, 17, 42, 13, 60, 29, 8, 71, 91))
LAST, LAYERS = 8, 4
PACKED = [family.name for family in FAMILIES if family.packed and family.name != "falcon_h1"]
BOUND = 1e-5  # of the largest logit: a sum may be made in another order


def own(part: str, layer: int, position: int = LAST) -> Edit:
    return Edit(Site(part, layer, position), From(BASE, position))


def donor(component: str, layer: int, position: int = LAST) -> Edit:
    return Edit(Site(component, layer, position), From(DONOR, position))


def held(name: str, first: Edit, layers: Sequence[int], positions: Sequence[int] = (LAST,)) -> World:
    """This edit, and what comes behind it as in the base run."""
    parts = BY_NAME[name].parts
    edits = [own(part, layer, position) for part in parts for layer in layers for position in positions]
    return World(BASE, (first, *(edit for edit in edits if edit.site != first.site)), (LAST,))


def worlds(name: str) -> list[World]:
    """Single parts and the stream, at one token and with two tokens on the way."""
    part = BY_NAME[name].parts[0]
    return [
        held(name, donor(part, 1), range(2, LAYERS)),
        held(name, donor("resid_pre", 0), range(LAYERS)),
        held(name, donor("resid_pre", 2, 7), range(2, LAYERS), (7, LAST)),
        held(name, donor("resid_post", 2), range(3, LAYERS)),
        held(name, donor("resid_pre", 3), range(3, LAYERS)),
    ]


@pytest.mark.parametrize("name", PACKED)
def test_held_layers_give_the_numbers_that_computing_gives(name: str):
    model = shared(name)
    # Without pruning, so that the base run's own values are written and not left out.
    added = [joining(world, n, LAYERS, model.anatomy.added_from).held for n, world in enumerate(worlds(name))]
    assert all(added) == (name != "opt-350m")
    found = [
        evaluate(model, worlds(name), lambda logits, _: logits.flatten(1), engine=engine, prune=False).values
        for engine in ("packed", "replay")
    ]
    assert np.abs(found[0] - found[1]).max() <= BOUND * np.abs(found[1]).max()
    assert np.abs(found[0][0] - found[0][2]).max() > 1e-3 * np.abs(found[1]).max()


def test_held_layers_are_not_computed():
    model, calls = shared("llama"), [0] * LAYERS

    def called_for(world: World) -> list[int]:
        before = list(calls)
        evaluate(model, [world], lambda logits, _: logits.flatten(1), engine="packed")
        return [now - then - 1 for now, then in zip(calls, before, strict=True)]  # one records both runs

    handles = [
        layer.mlp.register_forward_hook(lambda *_, n=n: calls.__setitem__(n, calls[n] + 1))  # type: ignore
        for n, layer in enumerate(model.layers)
    ]
    try:
        called_for(worlds("llama")[0])  # what fits into memory is measured once
        assert called_for(worlds("llama")[0]) == [0, 1, 0, 0]  # its own layer alone, at the token that is written
        assert called_for(World(BASE, (donor("attn_out", 1),), (LAST,))) == [0, 1, 1, 1]
    finally:
        for handle in handles:
            handle.remove()


NOT_HELD = {
    "one part left live": [own("attn_out", 2), own("attn_out", 3), own("mlp_out", 3)],
    "a layer left out": [own("attn_out", 3), own("mlp_out", 3)],
    "another run's": [own("attn_out", 2), own("mlp_out", 2), own("attn_out", 3), donor("mlp_out", 3)],
    "written in part": [
        own("attn_out", 2),
        own("mlp_out", 2),
        own("attn_out", 3),
        Edit(Site("mlp_out", 3, LAST), From(BASE, LAST), 0.5),
    ],
    "from another token": [
        own("attn_out", 2),
        own("mlp_out", 2),
        own("attn_out", 3),
        Edit(Site("mlp_out", 3, LAST), From(BASE, 7)),
    ],
    "edited between": [
        *(own(part, layer) for part in ("attn_out", "mlp_out") for layer in (2, 3)),
        donor("resid_mid", 2),
    ],
}


@pytest.mark.parametrize("edits", NOT_HELD.values(), ids=NOT_HELD)
def test_what_is_not_held_at_every_token_in_every_layer_is_computed(edits: list[Edit]):
    world = World(BASE, (donor("attn_out", 1), *edits), (LAST,))
    assert not joining(world, 0, LAYERS, 0).held
    found = [
        evaluate(shared("llama"), [world], lambda logits, _: logits.flatten(1), engine=engine, prune=False).values
        for engine in ("packed", "replay")
    ]
    assert np.abs(found[0] - found[1]).max() <= BOUND * np.abs(found[1]).max()


def test_an_earlier_token_on_the_way_must_be_held_too():
    early = World(BASE, held("llama", donor("resid_pre", 2, 7), range(2, LAYERS)).edits, (LAST,))
    assert not joining(early, 0, LAYERS, 0).held


def test_held_worlds_and_others_do_not_share_a_group():
    mixed = [worlds("llama")[0], World(BASE, (donor("attn_out", 1),), (LAST,))]
    planned = groups(mixed, range(2), {BASE: 0}, LAYERS, 0)
    assert sorted(group.held for group in planned) == [False, True]
    assert [group.rows(3, LAYERS - 1) for group in planned if group.held] == [0]
