"""The laws of patching (method, section 8: patch algebra), on every family; on three with each attention.

Everything goes through the engine's seam, with `prune=False` wherever pruning would answer without running. "To the
bit" is tested in batches of one run: batches of other sizes differ in the last bits. In a mixture of experts every
token changes the size of its experts' batches, so there a token that comes later may move the last bits too.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from causal_tracing.engine.backend import Evaluation, Recording
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.record import record
from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.edits import Edit, From, Given, Run, World
from causal_tracing.interventions.known import is_cut, plan
from causal_tracing.interventions.sites import ORDER, RESIDUAL, Site
from causal_tracing.models.model import Model
from causal_tracing.testing.fake import TWO_PARTS
from loaded import SOME, ids, shared

BASE = Run((5, 17, 42, 11, 60, 33, 8, 71, 90))
DONOR = Run((5, 17, 42, 13, 60, 29, 8, 71, 90))
LENGTH, DIFFERING, LAST = 9, (3, 5), 8
EVERYWHERE = tuple(range(LENGTH))
LAYERS = range(4)
# Before the first difference, between the two, at the second; the first, an inner, and the last layer.
SOME_POSITIONS, SOME_LAYERS = (1, 4, 5), (0, 2, 3)
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next")
TOLERANCE = 1e-5  # of the largest logit
LAST_BITS = 2e-6  # the same, for mixtures of experts where others are equal to the bit
REAL = 1e-3  # of the largest logit: what differs by more is no rounding


@pytest.fixture(params=SOME, ids=ids(SOME))
def model(request: pytest.FixtureRequest) -> Model:
    family, attention = request.param
    return shared(family.name, attention)


def edit(component: str, layer: int, position: int, *, donor: Run = DONOR, alpha: float = 1.0) -> Edit:
    return Edit(Site(component, layer, position), From(donor, position), alpha)


def edits(component: str, layer: int, positions: Sequence[int], donor: Run = DONOR) -> tuple[Edit, ...]:
    return tuple(edit(component, layer, position, donor=donor) for position in positions)


def run(model: Model, worlds: Sequence[World], *, prune: bool = False, rows: int | None = None) -> Evaluation:
    """All the logits at the readout, as metrics."""
    return evaluate(model, worlds, lambda logits, _: logits.flatten(1), prune=prune, rows=rows)


def logits(model: Model, *worlds: tuple[Edit, ...], base: Run = BASE, rows: int | None = None) -> np.ndarray:
    """[world, position, vocab] of the base run with each world's edits, every one of them run."""
    found = run(model, [World(base, world, EVERYWHERE) for world in worlds], rows=rows)
    return found.values.reshape(len(worlds), LENGTH, -1)


@cache
def unedited(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """[position, vocab] of the base run and of the donor, each in a batch of one."""
    return logits(model, (), rows=1)[0], logits(model, (), base=DONOR, rows=1)[0]


@cache
def recordings(model: Model) -> dict[Run, Recording]:
    """Every place of both runs, each recorded in a batch of one."""
    return record(model, [BASE], places(model)) | record(model, [DONOR], places(model))


@cache
def single_sites(model: Model) -> dict[Site, np.ndarray]:
    """[position, vocab] of the base run with the donor's activation at one site: batches of one."""
    cells = product(model.anatomy.components, SOME_LAYERS, SOME_POSITIONS)
    sites = [Site(component, layer, position) for component, layer, position in cells]
    found = logits(model, *((Edit(site, From(DONOR, site.position)),) for site in sites), rows=1)
    return dict(zip(sites, found, strict=True))


def places(model: Model) -> list[tuple[str, int]]:
    return list(product(model.anatomy.components, LAYERS))


def residual(model: Model) -> list[str]:
    return [component for component in model.anatomy.components if component in RESIDUAL]


def assert_unchanged(model: Model, found: np.ndarray, before: np.ndarray) -> None:
    """Equal to the bit; for mixtures of experts to the last bits."""
    if model.anatomy.family in MIXTURES:
        assert np.abs(found - before).max(initial=0) <= LAST_BITS * np.abs(before).max(initial=1)
    else:
        assert_array_equal(found, before)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, in shares of the largest logit."""
    return float(np.abs(one - other).max() / np.abs(other).max())


# Law 1: patching a run's own activation changes nothing, to the bit.
def test_a_runs_own_activations_change_nothing(model):
    some_places = [(component, layer) for component, layer in places(model) if layer in SOME_LAYERS]
    everywhere = [edits(component, layer, EVERYWHERE, BASE) for component, layer in some_places]
    one_site = [edits(component, 1, [5], BASE) for component in model.anatomy.components]
    for found in logits(model, *everywhere, *one_site, rows=1):
        assert_array_equal(found, unedited(model)[0])


# Law 2: no edit is the base run, to the bit.
def test_no_edit_is_the_base_run(model):
    with torch.no_grad():
        bare = model.network(input_ids=torch.tensor([BASE.tokens]), use_cache=False).logits[0]
    assert_array_equal(unedited(model)[0], bare.double().numpy())
    pruned = run(model, [World(BASE, (), EVERYWHERE)], prune=True, rows=1)
    assert_array_equal(pruned.values.reshape(LENGTH, -1), bare.double().numpy())
    assert not pruned.structural_zero.any()
    assert_array_equal(record(model, [BASE], keep=LENGTH)[BASE].logits.numpy(), bare.numpy())


# The two runs differ enough for the other laws to say something, and not before the first differing token.
def test_the_two_prompts_differ(model):
    base, donor = unedited(model)
    assert difference(base[LAST], donor[LAST]) > 0.1
    assert_unchanged(model, base[: DIFFERING[0]], donor[: DIFFERING[0]])


# Law 3: a whole layer of the stream gives the donor's logits.
def test_a_whole_layer_of_the_stream_gives_the_donors_logits(model):
    cuts = [edits(component, layer, EVERYWHERE) for component in residual(model) for layer in LAYERS]
    for cut, found in zip(cuts, logits(model, *cuts), strict=True):
        assert difference(found, unedited(model)[1]) < TOLERANCE
        assert is_cut(World(BASE, cut, (LAST,)), model.rules)


# Law 4: the last layer's output at the readout gives the donor's logits there, and nowhere else.
def test_the_last_layers_output_gives_the_donors_logits_at_its_own_position(model):
    base, donor = unedited(model)
    worlds = [edits("resid_post", LAYERS[-1], [position]) for position in EVERYWHERE]
    for position, found in zip(EVERYWHERE, logits(model, *worlds), strict=True):
        expected = base.copy()
        expected[position] = donor[position]
        assert difference(found, expected) < TOLERANCE
        assert is_cut(World(BASE, worlds[position], (position,)), model.rules)


# Law 5: the output of a layer is the input of the next.
def test_resid_post_is_resid_pre_of_the_next_layer(model):
    at = list(product(LAYERS[:-1], DIFFERING))
    outputs = logits(model, *(edits("resid_post", layer, [position]) for layer, position in at))
    inputs = logits(model, *(edits("resid_pre", layer + 1, [position]) for layer, position in at))
    for output, following in zip(outputs, inputs, strict=True):
        assert_array_equal(output, following)


# Law 6: the input, attention and the MLP of a layer together are its output, at all positions or at the last one. At
# an inner one they are not: later tokens read keys and values that this layer makes of its input.
def test_a_layers_parts_together_are_its_output(model):
    if not {"attn_out", "mlp_out"} <= {*model.anatomy.components}:
        assert model.anatomy.family == "mamba"
        pytest.skip("its layers have one part each")
    if model.anatomy.family == "falcon_h1":
        pytest.skip("its layers have a state space beside attention")
    cases = list(product(LAYERS, (EVERYWHERE, (LAST,))))
    together = logits(model, *(parts(*case) for case in cases))
    outputs = logits(model, *(edits("resid_post", *case) for case in cases))
    for found, output in zip(together, outputs, strict=True):
        assert difference(found, output) < TOLERANCE


def test_at_an_inner_position_a_layers_parts_are_more_than_its_output(model):
    if not {"attn_out", "mlp_out"} <= {*model.anatomy.components}:
        pytest.skip("its layers have one part each")
    if model.anatomy.family == "falcon_h1":
        pytest.skip("its layers have a state space beside attention")
    together, output = logits(model, parts(1, [5]), edits("resid_post", 1, [5]))
    assert difference(together[5], output[5]) < TOLERANCE
    assert difference(together[6:], output[6:]) > REAL


def parts(layer: int, positions: Sequence[int]) -> tuple[Edit, ...]:
    components = ("resid_pre", "attn_out", "mlp_out")
    return tuple(one for component in components for one in edits(component, layer, positions))


# Law 11: the patched site holds the donor's value.
def test_the_patched_site_holds_the_donors_value(model):
    patched = {place: Run(BASE.tokens, edits(*place, [5])) for place in places(model)}
    found = record(model, list(patched.values()), places(model))
    for place, run in patched.items():
        value = found[run].activations[place][5]
        assert_close(value, recordings(model)[DONOR].activations[place][5], rtol=0, atol=0)


def test_a_given_tensor_is_what_the_stream_receives(model):
    given = torch.linspace(-3, 3, model.config.hidden_size)
    patched = {place: Run(BASE.tokens, (Edit(Site(*place, 4), Given(given)),)) for place in places(model)}
    found = record(model, list(patched.values()), places(model))
    for (component, layer), run in patched.items():
        layout = model.layout(layer)
        scale = {"attn_out": layout.attn_scale, "mlp_out": layout.mlp_scale}.get(component, 1.0)
        value = found[run].activations[component, layer][4]
        assert_close(value * scale, given, rtol=1e-6, atol=0)


# Law 11, the positive control: a large random write changes the logits, at every place.
def test_a_large_random_write_changes_the_logits(model):
    noise = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    seen = recordings(model)[BASE].activations
    given = {place: Given(3 * noise * seen["resid_post", place[1]].abs().max()) for place in places(model)}
    found = logits(model, *((Edit(Site(*place, 4), given[place]),) for place in places(model)))
    for values in found:
        assert difference(values[4], unedited(model)[0][4]) > 10 * REAL


# Law 12: nothing upstream of the site changes, and nothing at earlier positions.
def test_nothing_upstream_of_an_edit_changes(model):
    base, layer = recordings(model)[BASE].activations, 2
    for component in model.anatomy.components:
        patched = Run(BASE.tokens, edits(component, layer, [5]))
        found = record(model, [patched], places(model))[patched].activations
        for place in places(model):
            upstream = (place[1], ORDER.index(place[0])) < (layer, ORDER.index(component))
            unchanged = slice(None) if upstream else slice(0, 5)
            assert_unchanged(model, found[place][unchanged].numpy(), base[place][unchanged].numpy())


# Law 13: logits before the edited position do not change.
def test_logits_before_an_edit_do_not_change(model):
    base = unedited(model)[0]
    for site, found in single_sites(model).items():
        assert_unchanged(model, found[: site.position], base[: site.position])


# Law 14: edits at different sites commute.
def test_edits_at_different_sites_commute(model):
    mixed = [edit(component, layer, 3 + (n % 6)) for n, (component, layer) in enumerate(places(model)) if n % 3 == 0]
    mixed += edits("resid_post", 1, [2, 7])
    mixed = list({one.site.place: one for one in mixed}.values())
    orders = [tuple(mixed), tuple(reversed(mixed)), (*mixed[1::2], *mixed[::2])]
    first, *others = logits(model, *orders, rows=1)
    assert difference(first[LAST], unedited(model)[0][LAST]) > REAL
    for other in others:
        assert_array_equal(other, first)


# Law 14: of edits at one token in one layer, the later component acts on what the earlier ones left.
def test_edits_at_one_token_apply_in_computation_order(model):
    layer, position = 1, 5
    noise = torch.randn(len(TWO_PARTS), model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    inside = [component for component in model.anatomy.components if component in ("attn_out", "resid_mid", "mlp_out")]
    dominated = [Edit(Site(name, layer, position), Given(noise[n])) for n, name in enumerate(inside)]
    output = edit("resid_post", layer, position)
    together, backwards, alone = logits(model, (*dominated, output), (output, *dominated[::-1]), (output,), rows=1)
    assert_unchanged(model, together, alone)
    assert_unchanged(model, backwards, alone)


def test_the_mlp_adds_to_a_middle_that_was_edited(model):
    if "resid_mid" not in model.anatomy.components:
        pytest.skip("its layers have no stream between attention and MLP")
    if model.layout(1).mid_out:
        pytest.skip("its layers norm the sum")
    layer, position = 1, LAST
    middle = recordings(model)[DONOR].activations["resid_mid", layer][position]
    given = torch.linspace(-1, 1, len(middle))
    parts = (edit("resid_mid", layer, position), Edit(Site("mlp_out", layer, position), Given(given)))
    sum_of_both = (Edit(Site("resid_post", layer, position), Given(middle + given)),)
    found, backwards, expected = logits(model, parts, parts[::-1], sum_of_both)
    assert difference(found, expected) < TOLERANCE
    assert difference(backwards, expected) < TOLERANCE


def test_a_partial_edit_acts_on_what_earlier_edits_left(model):
    place = ("resid_post", 2)
    upstream = edits("resid_pre", 1, DIFFERING)
    half = edit(*place, LAST, alpha=0.5)
    left = record(model, [Run(BASE.tokens, upstream)], [place])[Run(BASE.tokens, upstream)].activations[place][LAST]
    expected = 0.5 * left + 0.5 * recordings(model)[DONOR].activations[place][LAST]
    given = Edit(Site(*place, LAST), Given(expected))
    for order in ((*upstream, half), (half, *upstream)):
        found, wanted = logits(model, order, (*upstream, given))
        assert difference(found, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (edit("attn_out", 1, 3), edit("attn_out", 1, 3, donor=BASE)),
        (edit("resid_post", 1, 3), edit("resid_pre", 2, 3)),
        (edit("resid_pre", 2, 3, alpha=0.5), edit("resid_post", 1, 3)),
    ],
)
def test_the_same_site_twice_is_an_error(one, other):
    message = "Two edits of one run write at the same site: .* of layer . at position 3"
    with pytest.raises(InvalidEdit, match=message):
        World(BASE, (one, other), (LAST,))
    with pytest.raises(InvalidEdit, match=message):
        World(Run(BASE.tokens, (one,)), (other,), (LAST,))
    with pytest.raises(InvalidEdit, match=message):
        Run(BASE.tokens, (other, one))


def test_the_same_place_at_two_positions_is_no_error():
    world = World(BASE, (edit("resid_post", 1, 3), edit("resid_pre", 2, 4)), (LAST,))
    assert len(world.run.edits) == 2


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


# Law 16: alpha = 0 is the base run and alpha = 1 the patch, to the bit; one half lies between.
def test_alpha_0_is_the_base_run_and_alpha_1_the_patch(model):
    for component in model.anatomy.components:
        none, half, whole = partial_edits(component)
        found = logits(model, none, half, whole, edits(component, 2, DIFFERING), rows=1)
        assert_array_equal(found[0], unedited(model)[0])
        assert_array_equal(found[2], found[3])
        assert difference(found[1], found[0]) > REAL
        assert difference(found[1], found[2]) > REAL


def test_alpha_mixes_what_is_there_with_the_donors_value(model):
    base, donor = (recordings(model)[run].activations for run in (BASE, DONOR))
    for component in model.anatomy.components:
        place = component, 2
        runs = [Run(BASE.tokens, mixed) for mixed in partial_edits(component)]
        found = record(model, runs, [place])
        for run, alpha in zip(runs, (0.0, 0.5, 1.0), strict=True):
            expected = (1 - alpha) * base[place] + alpha * donor[place]
            assert_close(found[run].activations[place][3], expected[3], rtol=1e-5, atol=1e-5)


def partial_edits(component: str) -> list[tuple[Edit, ...]]:
    return [tuple(edit(component, 2, position, alpha=alpha) for position in DIFFERING) for alpha in (0.0, 0.5, 1.0)]


# Law 18: edits at several positions, one after the other or at once, are one edit of them all.
def test_a_union_of_positions_is_one_edit_of_them_all(model):
    for component in model.anatomy.components:
        first, second = edits(component, 2, [3, 6]), edits(component, 2, [5, 8])
        one_by_one = run(model, [World(Run(BASE.tokens, first), second, EVERYWHERE)], rows=1).values
        at_once = run(model, [World(BASE, edits(component, 2, [3, 5, 6, 8]), EVERYWHERE)], rows=1).values
        assert_array_equal(one_by_one, at_once)
