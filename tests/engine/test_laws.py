"""The laws of patching (method, section 8: patch algebra), on every family; on three with each attention.

Everything goes through the engine's seam, with `prune=False` wherever pruning would answer without running. "To the
bit" is tested in batches of one run: batches of other sizes differ in the last bits. In a mixture of experts every
token changes the size of its experts' batches, so there a token that comes later may move the last bits too.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest
import torch
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from causal_tracing.engine.backend import Recording
from causal_tracing.engine.hooks.record import record
from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.edits import Edit, Given, Run, World
from causal_tracing.interventions.known import is_cut
from causal_tracing.interventions.sites import ORDER, RESIDUAL, Site
from causal_tracing.models.model import Model
from causal_tracing.testing.fake import TWO_PARTS
from laws import (
    BASE,
    DIFFERING,
    DONOR,
    EVERYWHERE,
    LAST,
    LAYERS,
    LENGTH,
    REAL,
    SOME_LAYERS,
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
def recordings(model: Model) -> dict[Run, Recording]:
    """Every place of both runs, each recorded in a batch of one."""
    return record(model, [BASE], places(model)) | record(model, [DONOR], places(model))


def residual(model: Model) -> list[str]:
    return [component for component in model.anatomy.components if component in RESIDUAL]


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
    for place, each in patched.items():
        value = found[each].activations[place][5]
        assert_close(value, recordings(model)[DONOR].activations[place][5], rtol=0, atol=0)


def test_a_given_tensor_is_what_the_stream_receives(model):
    given = torch.linspace(-3, 3, model.config.hidden_size)
    patched = {place: Run(BASE.tokens, (Edit(Site(*place, 4), Given(given)),)) for place in places(model)}
    found = record(model, list(patched.values()), places(model))
    for (component, layer), each in patched.items():
        layout = model.layout(layer)
        scale = {"attn_out": layout.attn_scale, "mlp_out": layout.mlp_scale}.get(component, 1.0)
        value = found[each].activations[component, layer][4]
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
    base, donor = (recordings(model)[each].activations for each in (BASE, DONOR))
    for component in model.anatomy.components:
        place = component, 2
        runs = [Run(BASE.tokens, mixed) for mixed in partial_edits(component)]
        found = record(model, runs, [place])
        for each, alpha in zip(runs, (0.0, 0.5, 1.0), strict=True):
            expected = (1 - alpha) * base[place] + alpha * donor[place]
            assert_close(found[each].activations[place][3], expected[3], rtol=1e-5, atol=1e-5)


def partial_edits(component: str) -> list[tuple[Edit, ...]]:
    return [tuple(edit(component, 2, position, alpha=alpha) for position in DIFFERING) for alpha in (0.0, 0.5, 1.0)]


# Law 18: edits at several positions, one after the other or at once, are one edit of them all.
def test_a_union_of_positions_is_one_edit_of_them_all(model):
    for component in model.anatomy.components:
        first, second = edits(component, 2, [3, 6]), edits(component, 2, [5, 8])
        one_by_one = run(model, [World(Run(BASE.tokens, first), second, EVERYWHERE)], rows=1).values
        at_once = run(model, [World(BASE, edits(component, 2, [3, 5, 6, 8]), EVERYWHERE)], rows=1).values
        assert_array_equal(one_by_one, at_once)
