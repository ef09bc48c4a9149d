"""Pairs of sites: their interaction, by hooks, by gates, chains and sums whose interaction is known."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.engine.choose import open_backend
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import FINAL_SCALE, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.options.sets import check_interactions
from causal_tracing.testing import (
    Copy,
    FakeBackend,
    LinearToy,
    Neuron,
    Neurons,
    ToyLayer,
    ToyNetwork,
    circuit,
    fake_model,
    toy_model,
)
from families import FAMILIES, build
from joint import CLEAN, CORRUPT, LAST, PAIR, WORDS, ByHand, others, tiny

DIRECTIONS = ("restoration", "disruption")
SITES = ["z 1.2 @ last", "z 3.3 @ -2", "mlp_out 0 @ 2", "neurons 2.10-40 @ last"]
PLACES: dict[str, Any] = {
    SITES[0]: [("z", 1, 2, LAST)],
    SITES[1]: [("z", 3, 3, 4)],
    SITES[2]: [("mlp_out", 0, None, 2)],
    SITES[3]: [("neurons", 2, part, LAST) for part in range(10, 41)],
}


def traced(pairs: Any = PAIR, *, on: Model | None = None, **options: Any) -> ct.Trace:
    asked = {"components": [], "spot_checks": 0, "progress": False}
    return ct.trace(tiny() if on is None else on, pairs, **asked | options)


def of(trace: ct.Trace, metric: str = "logit_diff") -> xr.Dataset:
    return trace.of("interactions").sel(metric=metric).squeeze(["pair", "component"], drop=True)


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_interaction_is_what_hooks_at_both_sites_give(family: str, engine: str) -> None:
    """I(A,B) = e(AB) − e(A) − e(B), and the margins are what each does alone."""
    found, hand = of(traced(on=tiny(family), interactions=SITES, engine=engine)), ByHand(family)
    for n, one in enumerate(SITES):
        alone = hand.effects(PLACES[one])
        for m, direction in enumerate(DIRECTIONS):
            margins = [found[direction].sel(site=one, partner="alone"), found[direction].sel(site="alone", partner=one)]
            assert_allclose(margins, alone[m], atol=1e-5)
        for other in SITES[n + 1 :]:
            joint, second = hand.effects([*PLACES[one], *PLACES[other]]), hand.effects(PLACES[other])
            cell = found.sel(site=one, partner=other)
            for m, direction in enumerate(DIRECTIONS):
                expected = [joint[m], alone[m] + second[m], joint[m] - alone[m] - second[m]]
                names = [f"{direction}{end}" for end in ("", "_of_members", "_beyond_sum")]
                assert_allclose([cell[name].item() for name in names], expected, atol=2e-5, err_msg=f"{one} {other}")
    assert (abs(found.restoration_beyond_sum) > 1e-3).any()


def test_an_interaction_is_symmetric() -> None:
    """Law S1: in a map of one list to the bit, and of two lists whichever comes first."""
    found = of(traced(interactions=SITES))
    for name in [f"{direction}{end}" for direction in DIRECTIONS for end in ("", "_of_members", "_beyond_sum")]:
        assert_array_equal(found[name].values, found[name].values.T, err_msg=name)
    one, other = SITES[0], SITES[3]
    a, b = (of(traced(interactions=lists)) for lists in ([[one], [other]], [[other], [one]]))
    for direction in DIRECTIONS:
        beyond = f"{direction}_beyond_sum"
        first, second = a[beyond].sel(site=one, partner=other).item(), b[beyond].sel(site=other, partner=one).item()
        assert first == second
        assert_allclose(first, found[beyond].sel(site=one, partner=other).item(), atol=1e-6)
        assert abs(first) > 1e-3


def beyond(found: xr.Dataset, direction: str, one: str, other: str) -> float:
    return found[f"{direction}_beyond_sum"].sel(site=one, partner=other).item()


def both_alone(found: xr.Dataset, direction: str, *sites: str) -> list[float]:
    return [found[direction].sel(site=site, partner="alone").item() for site in sites]


def test_two_sites_of_an_affine_model_do_not_interact() -> None:
    """Law S2: side by side nothing, to the bit; one behind the other, minus what goes through both."""
    names = ["the", "old", "cat", "dog", "ran", "home"]
    toy = LinearToy(len(names), 3)
    model = fake_model(names, FakeBackend(toy, activations=toy.activations, num_layers=3))
    pair = ct.Pair(clean="the old cat ran home", corrupt="the old dog ran home", answer=" cat", foil=" dog")
    sites = ["mlp_out 0 @ 2", "mlp_out 0 @ 3", "attn_out 1 @ 3", "mlp_out 1 @ 3", "mlp_out 1 @ last"]
    found = of(traced(pair, on=model, interactions=sites))
    for direction in DIRECTIONS:
        assert min(both_alone(found, direction, *sites)) > 0
        for one, other in ((0, 1), (1, 2), (3, 4)):
            assert beyond(found, direction, sites[one], sites[other]) == 0
        # One way leads from the first through the second (a step in layer 1, a step in layer 2, whose MLP doubles it),
        # for the answer as for the foil.
        assert beyond(found, direction, sites[0], sites[3]) == -4


GATES = {  # of the value that is restored, of the value that is disrupted
    "or": (-1, 1),
    "and": (1, -1),
    "sum": (0, 0),
}
A, B = "mlp_out 0 @ last", "mlp_out 1 @ last"
toys = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # they attend by themselves


@toys
@pytest.mark.parametrize("name", GATES)
def test_gates_have_the_interactions_of_their_truth_tables(name: str) -> None:
    """Law S3: disruption OR +1, AND −1; restoration OR −1, AND +1."""
    model, pair = circuit(name)
    found = of(traced(pair, on=model, interactions=[A, B]))
    assert [beyond(found, direction, A, B) for direction in DIRECTIONS] == [*GATES[name]]
    assert found.restoration.sel(site=A, partner=B).item() == 1
    said = traced(pair, on=model, interactions=[A, B]).summary()
    expected = {
        "or": "(backup, OR-like)",
        "and": "each needs the other (AND-like)",
        "sum": "no pair of sites interacts",
    }
    assert expected[name] in said


@toys
def test_a_chain_has_minus_its_effect() -> None:
    """Law S5: A is read by B alone, and B by the answer: e(AB) = e(A) = e(B), I = −e."""
    words = ["the", "on", "off", "true", "false"]
    of_a, of_b, value = 5, 6, 7
    links = [(1, of_a), (of_a, of_b), (of_b, value)]
    head = torch.zeros(8, 5)
    head[value, 3] = 1
    network = ToyNetwork(
        embedding=torch.eye(5, 8),
        layers=[ToyLayer(Copy(8), Neurons(8, [Neuron(reads={here: 1}, writes={there: 1})])) for here, there in links],
        head=head,
        bias=torch.tensor([-1.0, -1, -1, 0, 0]),
    )
    pair = ct.Pair(clean="the on", corrupt="the off", answer=" true", foil=" false")
    found = of(traced(pair, on=toy_model(network, words, "chain"), interactions=[A, B]))
    for direction in DIRECTIONS:
        assert [*both_alone(found, direction, A, B), found[direction].sel(site=A, partner=B).item()] == [1, 1, 1]
        assert beyond(found, direction, A, B) == -1


@pytest.mark.parametrize("frozen", [True, False], ids=["without norm", "with its norm"])
def test_heads_of_a_last_layer_add_up_where_nothing_follows(frozen: bool) -> None:
    """Law S8: no MLP behind them and no norm, and they do not interact; a live norm alone makes them."""
    network: Any = build(next(family for family in FAMILIES if family.name == "llama"))
    with torch.no_grad():
        network.model.layers[3].mlp.down_proj.weight.zero_()
    if frozen:
        network.model.norm = nn.Identity()
    found = of(traced(on=accept(network, WORDS, name="bare"), interactions=["each z 3 @ last"]))
    apart = found.status == "ok"
    for direction in DIRECTIONS:
        interaction = abs(found[f"{direction}_beyond_sum"].where(apart))
        assert (abs(found[direction].where(apart)) > 1e-2).any()
        assert (interaction.max() < 1e-5) == frozen
        assert frozen or interaction.max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_heads_of_a_last_layer_add_up_where_mlp_and_norm_are_held(family: str) -> None:
    """Law S8 on whole models, the MLP and the final norm frozen: I = 0, but for rounding, which float64 makes small.

    Not where the heads' sum passes a norm of its own (olmo2), nor with either of the two live.
    """
    network = build(next(each for each in FAMILIES if each.name == family), dtype=torch.float64)
    model = accept(network, WORDS, name=family)
    backend = open_backend(model, ["z", "mlp_out", FINAL_SCALE], "replay", None, length=LAST + 1)
    base, donor = (Run(tuple(WORDS(text)["input_ids"])) for text in (CLEAN, CORRUPT))
    heads = [Edit(Site("z", 3, LAST, part), From(donor, LAST)) for part in (0, 2)]
    held = {part: Edit(Site(part, 3, LAST), From(base, LAST)) for part in ("mlp_out", FINAL_SCALE)}
    answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))

    def interaction(*kept: str) -> tuple[float, float]:
        """I(A, B) of the two heads, and the size of the larger of their effects."""
        sets = ((), heads[:1], heads[1:], heads)
        worlds = [World(base, (*some, *(held[part] for part in kept)), (LAST,)) for some in sets]
        found = backend.evaluate(worlds, lambda logits, _: logits[:, 0, [answer]] - logits[:, 0, [foil]]).values[:, 0]
        lost = found[0] - found
        return abs(lost[3] - lost[1] - lost[2]), abs(lost[1:3]).max()

    beyond, size = interaction("mlp_out", FINAL_SCALE)
    assert size > 1e-3
    if family == "olmo2":
        assert beyond > 1e-6
        return
    rounding = 1e-6 if family == "llama" else 1e-12  # its norm computes in float32 whatever the type
    assert beyond < rounding
    for part in ("mlp_out", FINAL_SCALE):
        assert interaction(part)[0] > 10 * rounding


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("resid_post 1 @ last", "resid_pre 2 @ 5"),
        ("z 1.2 @ last", "z 0-1.1-3 @ all"),
        ("z 1.2 @ last", "z 1.2 @ -1"),
        ("mlp_out 1 @ subject", "mlp_out 1 @ subject_last"),
    ],
)
def test_a_site_has_no_interaction_with_itself(one: str, other: str) -> None:
    """Law S9: nor with one that holds a part of it. Undefined, and not zero."""
    trace = traced(interactions=[one, other])
    found = of(trace)
    for at in ((one, one), (other, other), (one, other), (other, one)):
        cell = found.sel(site=at[0], partner=at[1])
        assert cell.status.item() == "given"
        for name in ("restoration", "disruption", "restoration_beyond_sum", "disruption_beyond_sum"):
            assert np.isnan(cell[name].item())
    assert (found.status.sel(partner="alone", site=[one, other]) == "ok").all()
    assert found.restoration.sel(partner="alone", site=[one, other]).notnull().all()


def test_places_that_only_look_alike_are_apart() -> None:
    found = of(traced(interactions=["resid_post 1 @ last", "resid_pre 1 @ last", "resid_pre 2 @ 4", "z 1.2 @ 4"]))
    apart = found.status.values == "ok"
    assert apart.sum() == 4 * 3 + 2 * 4  # all but the diagonal, and neither with neither


def test_two_lists_are_each_with_each() -> None:
    first, second = ["z 1.2 @ last", "mlp_out 0 @ 2"], ["each z 2.0-1 @ last", "z 1.2 @ last"]
    found = of(traced(interactions=[first, second]))
    assert found.site.values.tolist() == [*first, "alone"]
    assert found.partner.values.tolist() == ["z 2.0 @ last", "z 2.1 @ last", "z 1.2 @ last", "alone"]
    assert found.site_layer.values.tolist() == [1, 0, -1]
    assert found.partner_layer.values.tolist() == [2, 2, 1, -1]
    assert found.status.sel(site="z 1.2 @ last", partner="z 1.2 @ last").item() == "given"
    assert found.status.sel(site="alone", partner="alone").item() == "unpaired"
    whole = of(traced(interactions=["z 1.2 @ last", "mlp_out 0 @ 2", "z 2.0 @ last", "z 2.1 @ last"]))
    for one, other in ((first[0], "z 2.1 @ last"), (first[1], first[0])):
        for direction in DIRECTIONS:
            assert_allclose(beyond(found, direction, one, other), beyond(whole, direction, one, other), atol=1e-6)


def test_all_heads_are_asked_for_by_true() -> None:
    found = of(traced(interactions=True))
    assert found.site.values.tolist() == [
        *(f"z {layer}.{head} @ last" for layer in range(4) for head in range(4)),
        "alone",
    ]
    heads = ct.trace(tiny(), PAIR, components=[], heads=["z"], head_positions=["last"], progress=False).of("heads")
    single = heads.restoration.sel(metric="logit_diff", position="last").squeeze(drop=True)
    alone = found.restoration.sel(partner="alone").values[:-1]
    assert_allclose(alone, single.transpose("layer", "head").values.ravel(), atol=1e-6)


def test_what_is_given_interacts_with_nothing() -> None:
    found = of(traced(interactions=SITES, given=[SITES[0]]))
    assert (found.status.sel(site=SITES[0]) == "given").all()
    assert found.status.sel(site=SITES[1], partner=SITES[2]).item() == "ok"
    assert found.restoration.sel(site=SITES[0]).isnull().all()


def test_the_strongest_pairs_are_told_once() -> None:
    trace = traced(interactions=SITES)
    told = trace.top(20, of="interactions")
    assert len(told) == 6  # of 4 sites; single ones are no pairs
    assert len({frozenset(row) for row in told[["part", "partner"]].values.tolist()}) == 6
    sizes = told.restoration_beyond_sum.abs().dropna().values
    assert (np.diff(sizes) <= 0).all()


def test_many_pairs_have_means_and_compare() -> None:
    asked: dict[str, Any] = {"interactions": ["each z 2.0-2 @ last"]}
    trace, behind = (traced(others(9), given=given, **asked) for given in ([], ["z 1.2 @ last"]))
    found = trace.evidence("interactions")
    measured = trace.of("interactions").sel(metric="logit_diff")
    for name in ("restoration_beyond_sum", "disruption_beyond_sum", "restoration"):
        assert_allclose(found.cells[name].values, measured[name].mean("pair").values, atol=1e-9)
    assert found.shown == "restoration_beyond_sum"
    assert np.isnan(found.cells.restoration.sel(site="z 2.0 @ last", partner="z 2.0 @ last").item())
    compared = ct.compare(behind, trace, of="interactions")
    for name in ("disruption", "restoration_beyond_sum"):
        apart = behind.of("interactions")[name].sel(metric="logit_diff") - measured[name]
        assert_allclose(compared.cells[name].values, apart.mean("pair").values, atol=1e-9)
    assert (abs(compared.cells.disruption) > 1e-4).any()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([["z 1.2 @ last"]] * 3, "interactions= takes one list of sites or two; it got 3"),
        (["z 1.2 @ last"], "interactions= has no pair to measure: name two sites"),
        ([[], ["z 1.2 @ last"]], "has no pair to measure"),
        ([["z 1.2 @ last"], []], "has no pair to measure"),
        (["z 1.2 @ last"] * 2, "The site 'z 1.2 @ last' is asked for twice"),
        (["z 1.2 @ last", "each z 1 @ last"], "The site 'z 1.2 @ last' is asked for twice"),
        ([[f"each neurons @ {n}" for n in (2, 3)]] * 2, "names 512 sites with 512: a map of more than 200,000 cells"),
    ],
    ids=str,
)
def test_pairs_that_are_none(lists: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        traced(interactions=lists)


@pytest.mark.parametrize("value", ["z 1.2 @ last", 3])
def test_what_is_no_list_is_said(value: Any) -> None:
    with pytest.raises(InvalidOption, match=r"interactions= is a list of sites, such as .*, or two of them; it is"):
        check_interactions(value)
