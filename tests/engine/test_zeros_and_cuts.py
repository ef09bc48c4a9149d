"""What cannot reach the logits, and what all of the difference must pass: structural zeros, pruning and cuts.

Laws of patching (method, section 8: patch algebra), on every family; on three with each attention.
"""

from functools import cache
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.known import is_cut, plan
from causal_tracing.interventions.sites import RESIDUAL, Site
from causal_tracing.models.model import Model
from laws import (
    BASE,
    DIFFERING,
    DONOR,
    EVERYWHERE,
    LAST,
    LAYERS,
    REAL,
    SOME_LAYERS,
    SOME_POSITIONS,
    TOLERANCE,
    assert_unchanged,
    difference,
    edit,
    edits,
    logits,
    places,
    run,
    unedited,
)
from loaded import SOME, ids, shared


@pytest.fixture(params=SOME, ids=ids(SOME))
def model(request: pytest.FixtureRequest) -> Model:
    family, attention = request.param
    return shared(family.name, attention)


@cache
def single_sites(model: Model) -> dict[Site, np.ndarray]:
    """[position, vocab] of the base run with the donor's activation at one site: batches of one."""
    cells = product(model.anatomy.components, SOME_LAYERS, SOME_POSITIONS)
    sites = [Site(component, layer, position) for component, layer, position in cells]
    found = logits(model, *((Edit(site, From(DONOR, site.position)),) for site in sites), rows=1)
    return dict(zip(sites, found, strict=True))


# Law 13: logits before the edited position do not change.
def test_logits_before_an_edit_do_not_change(model):
    base = unedited(model)[0]
    for site, found in single_sites(model).items():
        assert_unchanged(model, found[: site.position], base[: site.position])


# Law 15, by hand: what must be a structural zero for a readout at one position.
def must_be_zero(site: Site, readout: int) -> bool:
    before_the_difference = site.position < DIFFERING[0]
    equal_embedding = site.component == "resid_pre" and site.layer == 0 and site.position not in DIFFERING
    last_layer = site.layer == LAYERS[-1] and site.component != "resid_pre" and site.position != readout
    return before_the_difference or equal_embedding or last_layer or site.position > readout


def every_cell(model: Model, readout: int) -> dict[Site, World]:
    sites = [Site(*place, position) for place, position in product(places(model), EVERYWHERE)]
    return {site: World(BASE, (Edit(site, From(DONOR, site.position)),), (readout,)) for site in sites}


# Law 15: what is declared a structural zero is exactly 0 when it is run, to the bit (batches of one, `prune=False`).
@pytest.mark.parametrize("readout", [LAST, 5, 4, 2])
def test_structural_zeros_are_exactly_zero(model, readout):
    cells = every_cell(model, readout)
    declared = dict(zip(cells, plan(list(cells.values()), model.rules).structural_zero, strict=True))
    assert declared == {site: must_be_zero(site, readout) for site in cells}
    for site, found in single_sites(model).items():
        if declared[site]:
            assert_unchanged(model, found[readout], unedited(model)[0][readout])


# Law 15, the other way round: pruning gives exactly 0.0 there, and every other cell what it is without pruning.
@pytest.mark.parametrize("readout", [LAST, 4])
def test_pruning_changes_no_number(model, readout):
    worlds = [World(BASE, (), (readout,)), *every_cell(model, readout).values()]
    pruned, whole = run(model, worlds, prune=True), run(model, worlds)
    zero = pruned.structural_zero
    assert pruned.worlds_run == (~zero).sum()
    assert whole.worlds_run == len(worlds)
    effects = pruned.values - pruned.values[0]
    assert_array_equal(effects[zero], np.zeros_like(effects[zero]))
    assert difference(pruned.values, whole.values) < TOLERANCE


def test_pruning_keeps_edits_that_only_seem_to_write_what_is_there(model):
    # The second edit of each world puts back what the first one changed upstream.
    back_later = (edit("resid_pre", 1, 3), edit("resid_post", 2, LAST, donor=BASE))
    back_here = (edit("resid_pre", 1, 3), edit("resid_post", 1, 3, donor=BASE))
    moved = (Edit(Site("resid_post", 1, 2), From(DONOR, 1)),)
    edited_donor = (edit("resid_post", 2, 2, donor=Run(DONOR.tokens, moved)),)
    other_base = World(Run(BASE.tokens, moved), (edit("resid_post", 2, 2),), (LAST,))
    worlds = [*(World(BASE, world, (LAST,)) for world in (back_later, back_here, moved, edited_donor)), other_base]
    pruned, whole = run(model, worlds, prune=True, rows=1), run(model, worlds, rows=1)
    assert_array_equal(pruned.values, whole.values)
    assert not pruned.structural_zero.any()


# Laws 3 and 4: every world that is called a cut gives the donor's logits at its readout.
@pytest.mark.parametrize("readout", [LAST, 5])
def test_what_is_called_a_cut_gives_the_donors_logits(model, readout):
    spans = [(3, 4, 5, 6, 7, 8), (3, 5), (3, 4, 5), (readout,)]
    worlds = [World(BASE, edits(*place, span), (readout,)) for place, span in product(places(model), spans)]
    assert [is_cut(world, model.rules) for world in worlds] == [must_be_a_cut(world, readout) for world in worlds]
    cuts = [world for world in worlds if is_cut(world, model.rules)]
    for values in run(model, cuts).values:
        assert difference(values, unedited(model)[1][readout]) < TOLERANCE


# By hand: the positions of the stream that everything which differs must pass.
def must_be_a_cut(world: World, readout: int) -> bool:
    site, patched = world.edits[0].site, {one.site.position for one in world.edits}
    if site.component not in RESIDUAL:
        return False
    if site.layer == LAYERS[-1] and site.component != "resid_pre":
        return readout in patched
    if site.layer == 0 and site.component == "resid_pre":
        return set(DIFFERING) <= patched
    return set(range(DIFFERING[0], readout + 1)) <= patched


# The control of the test above: close to a cut is not one.
def test_what_leaves_a_way_round_is_no_cut(model):
    donor = unedited(model)[1][LAST]
    for component, layer, positions in (("resid_post", 1, DIFFERING), ("resid_pre", 0, (3,)), ("resid_pre", 3, (8,))):
        world = World(BASE, edits(component, layer, positions), (LAST,))
        assert not is_cut(world, model.rules)
        assert difference(run(model, [world]).values[0], donor) > REAL
    half = World(BASE, tuple(edit("resid_post", 1, p, alpha=0.5) for p in EVERYWHERE), (LAST,))
    assert not is_cut(half, model.rules)
    assert difference(run(model, [half]).values[0], donor) > REAL
