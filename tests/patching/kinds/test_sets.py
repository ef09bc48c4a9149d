"""Sets of sites as one cell, and sets that grow: against bare hooks, against single sites, and by their laws."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

import causal_tracing as ct
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.patching.cells import Question, cells
from causal_tracing.patching.job import plan_job
from causal_tracing.patching.options.sets import check_sets
from causal_tracing.patching.options.trace import Options
from joint import CLEAN, CORRUPT, LAST, PAIR, ByHand, Place, others, tiny

SETS = {
    "heads": ["z 1.2 @ last", "z 2.0-1 @ last", "z 3.3 @ -2"],
    "blocks": ["resid_post 0-1 @ subject", "mlp_out 2-3 @ last", "attn_out 1 @ 4"],
    "neurons": ["neurons 1.3-9 @ 4", "neurons 2-3.60-63 @ last", "mlp_out 0 @ 2"],
    "everywhere": ["z 0.1 @ all"],
}
PLACES: dict[str, list[list[Place]]] = {  # the same, written out: of each site its places
    "heads": [[("z", 1, 2, LAST)], [("z", 2, 0, LAST), ("z", 2, 1, LAST)], [("z", 3, 3, 4)]],
    "blocks": [
        [("resid_post", layer, None, position) for layer, position in product((0, 1), (1, 2))],
        [("mlp_out", 2, None, LAST), ("mlp_out", 3, None, LAST)],
        [("attn_out", 1, None, 4)],
    ],
    "neurons": [
        [("neurons", 1, part, 4) for part in range(3, 10)],
        [("neurons", layer, part, LAST) for layer, part in product((2, 3), range(60, 64))],
        [("mlp_out", 0, None, 2)],
    ],
    "everywhere": [[("z", 0, 1, position) for position in range(6)]],
}
SINGLE = {"single": ["z 1.2 @ last", "mlp_out 0 @ 2", "neurons 1.5 @ last", "mlp_out 3 @ last"]}
DIRECTIONS = ("restoration", "disruption")


def traced(pairs: Any = PAIR, family: str = "llama", **options: Any) -> ct.Trace:
    asked = {"components": [], "spot_checks": 0, "progress": False}
    return ct.trace(tiny(family), pairs, **asked | options)


def of(trace: ct.Trace, kind: str, metric: str = "logit_diff") -> xr.Dataset:
    return trace.of(kind).sel(metric=metric).squeeze(["pair", "component"], drop=True)


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # with queries that share keys, and without
def test_a_set_is_what_hooks_at_all_of_its_places_give(family: str, engine: str) -> None:
    trace, hand = traced(family=family, sets=SETS, engine=engine), ByHand(family)
    for name, metric in product(SETS, ("logit_diff", "log_prob")):
        cell = of(trace, "sets", metric).sel(set=name)
        joint = hand.effects([place for site in PLACES[name] for place in site], metric)
        alone = np.sum([hand.effects(site, metric) for site in PLACES[name]], axis=0)
        for n, direction in enumerate(DIRECTIONS):
            found = [cell[f"{direction}{end}"].item() for end in ("", "_of_members", "_beyond_sum")]
            assert_allclose(found, [joint[n], alone[n], joint[n] - alone[n]], atol=2e-5, err_msg=f"{name} {metric}")
            assert abs(joint[n]) > 1e-4  # something moves
    assert abs(of(trace, "sets").restoration_beyond_sum.sel(set="blocks").item()) > 1e-3


def test_members_are_the_sites_of_an_ordinary_trace_added_up() -> None:
    sets = of(traced(sets=SINGLE), "sets").sel(set="single")
    single = traced(components=["mlp_out"], heads=["z"], neurons={1: [5]})
    blocks, heads, neurons = (of(single, kind) for kind in ("blocks", "heads", "neurons"))
    for direction in DIRECTIONS:
        expected = (
            heads[direction].sel(layer=1, head=2, position=LAST).item()
            + blocks[direction].sel(layer=0, position=2).item()
            + neurons[direction].sel(layer=1, neuron=5, position="last").item()
            + blocks[direction].sel(layer=3, position=LAST).item()
        )
        assert_allclose(sets[f"{direction}_of_members"].item(), expected, atol=1e-5)
        beyond = sets[direction].item() - expected
        assert_allclose(sets[f"{direction}_beyond_sum"].item(), beyond, atol=1e-5)
        assert abs(beyond) > 1e-3


def test_a_set_of_one_site_is_that_site() -> None:
    """Beyond the sum of its only member there is nothing, to the bit."""
    one = of(traced(sets={"one": ["mlp_out 0 @ 2"]}), "sets").sel(set="one")
    cell = of(traced(components=["mlp_out"]), "blocks").sel(layer=0, position=2)
    for direction in DIRECTIONS:
        assert_allclose(one[direction].item(), cell[direction].item(), atol=1e-6)
        assert abs(cell[direction].item()) > 1e-3
        assert one[f"{direction}_beyond_sum"].item() == 0


def test_a_growing_set_telescopes_into_the_whole_set() -> None:
    """Law S7: each step is what that site does in the world of those before it; in any order they add up to the set."""
    sites = SINGLE["single"]
    trace = traced(sets={"one way": sites, "the other": sites[::-1]}, growing=["one way", "the other"])
    sets, growing = of(trace, "sets"), of(trace, "growing")
    assert growing.restoration.sizes == {"set": 2, "size": 4}
    for direction in DIRECTIONS:
        assert_array_equal(growing[direction].sel(size=4).values, sets[direction].values)
        ends = growing[direction].sel(size=4).values
        assert_allclose(ends[0], ends[1], atol=1e-5)
        assert_allclose(growing[f"{direction}_of_members"].sel(size=4), sets[f"{direction}_of_members"], atol=1e-6)
        assert abs(growing[direction].sel(size=2).diff("set").item()) > 1e-3  # on the way they differ
    for number, site in enumerate(sites):
        step = of(traced(sets={"this": [site]}, given=sites[:number]), "sets").sel(set="this")
        for direction in DIRECTIONS:
            grown = growing[direction].sel(set="one way").values
            assert_allclose(np.diff(grown, prepend=0)[number], step[direction].item(), atol=1e-5)


def test_sets_of_other_sizes_leave_what_they_do_not_have() -> None:
    trace = traced(sets=SETS, growing=True)
    growing = of(trace, "growing")
    assert growing.set.values.tolist() == [*SETS]
    assert (growing.status.sel(set="everywhere", size=[2, 3]) == "unpaired").all()
    assert growing.restoration.sel(set="everywhere", size=[2, 3]).isnull().all()
    assert (growing.status.sel(set="heads") == "ok").all()
    assert "Growing set everywhere" not in trace.summary()  # one step is the set


def test_other_maps_stay_as_they_are_to_the_bit() -> None:
    common: dict[str, Any] = {"components": ["mlp_out", "resid_post"], "heads": ["z"], "neurons": {1: [2]}}
    plain = traced(**common)
    beside = traced(**common, sets=SETS, growing=True, interactions=["each z 2-3 @ last"])
    assert plain.measurements.kinds == ("blocks", "heads", "neurons")
    assert beside.measurements.kinds == ("blocks", "heads", "neurons", "sets", "growing", "interactions")
    for kind in plain.measurements.kinds:
        assert plain.measurements.maps[kind].identical(beside.measurements.maps[kind]), kind
    nothing = traced(**common, sets={}, growing=False, interactions=[])  # law S4
    assert nothing.measurements.kinds == plain.measurements.kinds
    assert nothing.measurements.maps["blocks"].identical(plain.measurements.maps["blocks"])
    assert not {"sets", "growing", "interactions"} & {*nothing.provenance["options"]}


def test_what_comes_before_the_first_difference_is_a_structural_zero() -> None:
    sets = of(traced(sets={"before": ["z 1.2 @ 0", "mlp_out 0 @ 1"], "after": ["z 1.2 @ 0", "mlp_out 0 @ 2"]}), "sets")
    assert sets.status.values.tolist() == ["structural_zero", "ok"]
    assert sets.restoration.sel(set="before").item() == 0


def test_sets_in_an_edited_world() -> None:
    """What is given already is in no set: such a set is undefined, and not zero."""
    given, hand = ["z 1.2 @ last"], ByHand()
    sets = {"apart": ["mlp_out 2 @ last", "z 3.1 @ 4"], "in it": ["z 1.1-2 @ last"]}
    trace = traced(sets=sets, given=given)
    found = of(trace, "sets")
    assert found.status.values.tolist() == ["ok", "given"]
    assert np.isnan(found.restoration.sel(set="in it").item())
    before: list[Place] = [("z", 1, 2, LAST)]
    both: list[Place] = [*before, ("mlp_out", 2, None, LAST), ("z", 3, 1, 4)]
    joint = np.subtract(hand.effects(both), hand.effects(before))
    assert_allclose([found[name].sel(set="apart").item() for name in DIRECTIONS], joint, atol=2e-5)


@pytest.mark.parametrize("asked", ["zero", ct.Write("mean", prompts=[CLEAN, CORRUPT])], ids=["zero", "mean"])
def test_ablations_disrupt_alone(asked: Any) -> None:
    sites = ["mlp_out 1 @ last", "mlp_out 3 @ last"]
    trace = traced(sets={"both": sites}, growing=True, interactions=sites, write=asked)
    assert trace.measurements.directions == ("disruption",)
    found = of(trace, "sets").sel(set="both")
    assert "restoration" not in found
    single = of(traced(components=["mlp_out"], write=asked), "blocks").disruption
    members = single.sel(layer=1, position=LAST).item() + single.sel(layer=3, position=LAST).item()
    assert_allclose(found.disruption_of_members.item(), members, atol=1e-5)
    pair = of(trace, "interactions").sel(site=sites[0], partner=sites[1])
    assert_allclose(pair.disruption_beyond_sum.item(), found.disruption_beyond_sum.item(), atol=1e-5)
    assert abs(found.disruption_beyond_sum.item()) > 1e-3
    assert "disrupting all of it takes away" in trace.summary()


def test_noise_restores_alone_and_has_its_spread() -> None:
    told: dict[str, Any] = {"answer": " w7", "foil": " w8", "subject": " w12 w13"}
    sites = ["mlp_out 0 @ subject_last", "z 2.1 @ last"]
    noise = ct.Noise(draws=3)
    trace = traced(ct.Pair(clean=CLEAN, **told), sets={"both": sites}, growing=True, interactions=sites, noise=noise)
    assert trace.measurements.directions == ("restoration",)
    found = of(trace, "sets").sel(set="both")
    assert found.restoration_deviation.item() > 0
    single = traced(ct.Pair(clean=CLEAN, **told), components=["mlp_out"], heads=["z"], noise=noise)
    expected = (
        of(single, "blocks").restoration.sel(layer=0, position=2).item()
        + of(single, "heads").restoration.sel(layer=2, head=1, position=LAST).item()
    )
    assert_allclose(found.restoration_of_members.item(), expected, atol=1e-5)
    assert_allclose(of(trace, "growing").restoration.sel(set="both", size=2).item(), found.restoration.item())


def test_answers_of_several_tokens() -> None:
    pair = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7 w9", foil=" w8 w3", subject=" w12 w13",
                   corrupt_subject=" w12 w43")  # fmt: skip
    sites = ["mlp_out 0 @ subject_last", "z 2.1 @ last"]
    found = of(traced(pair, sets={"both": sites}), "sets", "log_prob").sel(set="both")
    single = traced(pair, components=["mlp_out"], heads=["z"], metrics="all")
    expected = (
        of(single, "blocks", "log_prob").restoration.sel(layer=0, position=2).item()
        + of(single, "heads", "log_prob").restoration.sel(layer=2, head=1, position=LAST).item()
    )
    assert_allclose(found.restoration_of_members.item(), expected, atol=1e-5)


def test_pairs_of_unequal_length_are_patched_where_they_are_paired() -> None:
    longer = ct.Pair(
        clean=" w11 w12 w13 w14 w16",
        corrupt=" w11 w30 w31 w43 w14 w16",
        answer=" w7",
        foil=" w8",
        subject=" w12 w13",
        corrupt_subject=" w30 w31 w43",
        id="longer",
    )
    sites = ["mlp_out 1 @ subject_last", "z 2.1 @ last"]
    found = of(traced(longer, sets={"both": sites}, align="spans"), "sets").sel(set="both")
    single = traced(longer, components=["mlp_out"], heads=["z"], align="spans")
    for direction in DIRECTIONS:
        expected = (
            of(single, "blocks")[direction].sel(layer=1, position=2).item()
            + of(single, "heads")[direction].sel(layer=2, head=1, position=4).item()
        )
        assert_allclose(found[f"{direction}_of_members"].item(), expected, atol=1e-5)
        assert abs(expected) > 1e-4


def test_worlds_are_counted_before_they_run() -> None:
    """A set has its own world and one for each member, in both directions; a growing set one more for each site."""
    asked: dict[str, Any] = {"sets": {"three": ["z 1.2 @ last", "z 2.0-1 @ last", "z 3.3 @ 4"]}, "growing": True}
    cost = ct.estimate(tiny(), PAIR, components=[], **asked)
    trace = traced(**asked)
    of_sets, of_growing = 2 * (1 + 3), 2 * (3 + 3)
    assert cost.worlds == trace.provenance["worlds"] == of_sets + of_growing + 2  # and the unedited runs
    pairs = traced(interactions=["each z 3 @ last"])
    assert pairs.provenance["worlds"] == 2 * (4 * 3 / 2 + 4) + 2
    assert ct.estimate(tiny(), PAIR, components=[], interactions=["each z 3 @ last"]).worlds >= 2 * (6 + 4) + 2


def test_progress_counts_the_worlds_that_there_are() -> None:
    sets = {name: SETS[name] for name in ("heads", "everywhere")}
    options = Options(components=[], sets=sets, growing=True, interactions=["each z 3 @ last"])
    job = plan_job(tiny(), PAIR, options)
    question = Question(number=0, pair=job.pairs[0], contrast=job.contrasts[0])
    counts = [grid.count(question.pair) for grid in job.grids]
    assert counts == [sum(1 for _ in cells(question, grid)) for grid in job.grids]
    assert counts == [2 * (1 + 3 + 1 + 1), 2 * (3 + 3 + 1 + 1), 2 * (6 + 4)]


A = ["z 1.2 @ last"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": {"a": A}, "growing": ["b"]}, r"growing= names a set 'b' that sets= has not. Valid: a\."),
        ({"growing": True, "components": ["mlp_out"]}, "growing=True counts beside sets= alone"),
        ({"growing": ["a"], "components": ["mlp_out"]}, "counts beside sets= alone"),
        ({"sets": {"a": A}, "growing": ["a", "a"]}, "growing set 'a' is asked for twice"),
        ({"sets": {"a": []}}, "The set 'a' has no sites: its effect is 0 and says nothing"),
        ({"sets": {"a": "z 1.2 @ last"}}, "The set 'a' is a list of sites"),
        *[
            ({"sets": {name: A}}, "A set's name must be one line without = ; | and outer spaces".replace("|", r"\|"))
            for name in ("a=b", "a;b", "a|b", "", " a", "a ", "a\nb")
        ],
        ({"sets": {"a": A * 2}}, "The site 'z 1.2 @ last' is asked for twice. Name each once"),
        ({"sets": {"a": [*A, "each z 1 @ last"]}}, "The site 'z 1.2 @ last' is asked for twice"),
    ],
    ids=str,
)
def test_sets_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        traced(**options)


@pytest.mark.parametrize("sets", [[A], 3, {3: A}], ids=str)
def test_what_no_type_checker_sees_is_said_too(sets: Any) -> None:
    with pytest.raises(InvalidOption, match="sets= maps names to lists of sites|A set's name must be one line"):
        check_sets(sets)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("z 1.2 @ last", "z 1.2 @ 5"),
        ("z 1.2 @ last", "z 1.1-3 @ all"),
        ("z 1.2 @ subject", "z 0-1.2 @ subject_last"),
        ("mlp_out 0-2 @ last", "mlp_out 2-3 @ last"),
        ("resid_post 0 @ last", "resid_pre 1 @ last"),
        ("resid_post 0-1 @ 2", "resid_pre 2-3 @ subject"),
    ],
)
def test_two_sites_of_a_set_that_are_one_place(one: str, other: str) -> None:
    message = f"pair 'pair-0': of the set 'a', '{one}' and '{other}' are one place, whole or in part"
    with pytest.raises(InvalidPair, match=message.replace(".", r"\.")):
        traced(sets={"a": [one, other]})


@pytest.mark.parametrize(
    "apart",
    [
        ["z 1.2 @ last", "z 1.2 @ 4"],
        ["z 1.2 @ last", "z 1.3 @ last"],
        ["z 1.2 @ last", "q 1.2 @ last"],
        ["resid_post 1 @ last", "resid_pre 1 @ last"],
        ["neurons 1.0-9 @ last", "neurons 1.10-19 @ last"],
    ],
)
def test_sites_that_lie_side_by_side_are_a_set(apart: list[str]) -> None:
    assert of(traced(sets={"a": apart}), "sets").status.item() == "ok"


def test_tensors_that_are_given_are_refused() -> None:
    write = ct.Write("given", tensors={("mlp_out", 1): torch.zeros(32)})
    asked: dict[str, Any]
    for asked in ({"sets": {"a": ["mlp_out 1 @ last"]}}, {"interactions": ["mlp_out 1 @ last", "mlp_out 2 @ last"]}):
        with pytest.raises(InvalidOption, match="sets= and interactions= cannot be patched with write="):
            traced(**asked, write=write)


def test_many_pairs_have_means_and_compare() -> None:
    pairs = others(9)
    sets = {"both": ["mlp_out 1 @ last", "z 2.1 @ last"], "one": ["mlp_out 2 @ subject"]}
    trace = traced(pairs, sets=sets, growing=True)
    behind = traced(pairs, sets=sets, growing=True, given=["z 1.2 @ last"])
    for kind in ("sets", "growing"):
        cells = trace.evidence(kind).cells
        measured = trace.of(kind).sel(metric="logit_diff")
        for name in ("restoration", "disruption", "restoration_beyond_sum", "disruption_beyond_sum"):
            assert_allclose(cells[name].values, measured[name].mean("pair").values, atol=1e-9)
            assert (cells[f"{name}_low"] <= cells[name]).where(cells[name].notnull(), other=True).all()
    gain = ct.compare(behind, trace, of="sets").cells.disruption
    apart = behind.of("sets").disruption.sel(metric="logit_diff") - trace.of("sets").disruption.sel(metric="logit_diff")
    assert_allclose(gain.values, apart.mean("pair").values, atol=1e-9)
    assert (abs(gain) > 1e-4).any()
    assert "Strongest set: " in trace.summary()
