"""The fake backend: a trace through it says what algebra says, and it is asked for no more than that takes."""

import doctest
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.errors import ComponentNotOffered, InvalidEdit, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Given, Mean, Plus, Run, Source, Subspace, World, Zero
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.testing import Copy, FakeBackend, LinearToy, ToyLayer, ToyNetwork, fake, fake_model, toy_model
from causal_tracing.testing.fake import TWO_PARTS

WORDS = ["the", "old", "cat", "dog", "ran", "home"]
PAIR = ct.Pair(clean="the old cat ran home", corrupt="the old dog ran home", answer=" cat", foil=" dog", id="p")
LAYERS, LAST, DIFFERS = 3, 4, 2


def linear(layers: int = LAYERS, **offered: Any) -> Model:
    toy = LinearToy(len(WORDS), layers)
    return fake_model(WORDS, FakeBackend(toy, activations=toy.activations, num_layers=layers, **offered))


def share(component: str, layer: int, position: int) -> float:
    """Of the total effect, by algebra: all ways from the differing token to the last one, and those through the site.

    Each layer moves the stream by one token or by none, so that C counts ways; the MLP adds half of a layer's output.
    """
    if position < DIFFERS:
        return 0.0
    behind = comb(LAYERS - 1 - layer, LAST - position)
    moved = position - DIFFERS
    before = {
        "resid_post": comb(layer + 1, moved),
        "mlp_out": comb(layer + 1, moved) / 2,
        "attn_out": comb(layer, moved - 1) if moved else 0,
    }[component]
    return before * behind / comb(LAYERS, LAST - DIFFERS)


def test_a_trace_through_the_fake_has_the_effects_of_algebra():
    found = ct.trace(linear(), PAIR).effects.sel(metric="logit_diff", pair="p")
    assert found.total_effect.item() == 2 * 2**LAYERS * comb(LAYERS, LAST - DIFFERS)
    for component in ("resid_post", "attn_out", "mlp_out"):
        expected = [[share(component, layer, position) for position in range(5)] for layer in range(LAYERS)]
        for fraction in ("restored_fraction", "lost_fraction"):
            values = found[fraction].sel(component=component).transpose("layer", "position").values
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6, err_msg=component)
    assert found.sel(component="resid_post", layer=LAYERS - 1).status.values.tolist()[-1] == "cut"


def test_structural_zeros_are_not_run():
    model = linear()
    trace = ct.trace(model, PAIR, spot_checks=0)
    ran = [edit.site for world in model.backend.evaluated for edit in world.edits]
    assert ran
    assert all(site.position >= DIFFERS for site in ran)
    assert all(site.position == LAST for site in ran if site.layer == LAYERS - 1)
    zero = trace.effects.status.sel(metric="logit_diff", pair="p") == "structural_zero"
    assert zero.isel(position=slice(DIFFERS)).all()
    repeats = 2 * len({LAYERS * n // 3 for n in range(3)})  # of the two unedited runs
    assert len(model.backend.evaluated) == trace.provenance["worlds"] - trace.provenance["worlds_skipped"] + repeats
    assert Run((0, 1, 2, 4, 5)) in model.backend.recorded


def test_the_record_names_the_backend():
    record = ct.trace(linear(name="mine"), PAIR).provenance
    assert (record["engine"], record["engine_note"], record["layers"], record["family"]) == ("mine", None, 3, "mine")
    assert record["spot_checks"] == {"cells": 8, "largest_difference": 0.0, "bound": None}
    cost = ct.estimate(linear(), PAIR)
    assert (cost.engine, cost.worlds, cost.worlds_skipped) == ("fake", record["worlds"], record["worlds_skipped"])
    assert cost.naive_token_layers == cost.worlds * 5 * LAYERS


def test_the_linear_toy_is_what_a_network_of_the_same_algebra_gives():
    """Every component and kind of source, against the engine on the same model in torch."""
    width = len(WORDS)

    class Twice(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    layers = [ToyLayer(Copy(width, {n: n for n in range(width)}, back=1), Twice()) for _ in range(2)]
    network = ToyNetwork(embedding=torch.eye(width), layers=layers, head=torch.eye(width), bias=torch.zeros(width))
    model, toy = toy_model(network, WORDS, "the same"), LinearToy(width, 2)
    fake_one = FakeBackend(toy, activations=toy.activations)
    base, donor = Run((0, 1, 2, 4)), Run((0, 3, 3, 5))
    vector = torch.arange(width).float()
    sources: list[tuple[Source, float]] = [
        (From(donor, 1), 1.0),
        (From(donor, 2), 0.25),
        (Mean((From(donor, 1), From(donor, 3))), 1.0),
        (Zero(), 1.0),
        (Given(vector), 1.0),
        (Plus(vector), 1.0),
        (Subspace(torch.eye(width)[[2, 3]], From(donor, 2)), 1.0),
    ]
    sites = [Site(component, layer, 2) for component in TWO_PARTS for layer in range(2)]
    worlds = [World(base, (Edit(site, source, alpha),), (2, 3)) for site in sites for source, alpha in sources]
    noised = Run(base.tokens, (Edit(Site("embed", 0, 1), Plus(vector)),))
    worlds.append(World(noised, (Edit(Site("mlp_out", 0, 2), From(base, 2)),), (2, 3)))
    ours, theirs = (
        run(worlds, lambda logits, _: logits.flatten(1)).values
        for run in (fake_one.evaluate, lambda *args: evaluate(model, *args))
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert len(np.unique(ours.round(3), axis=0)) > 30


def test_logits_are_asked_for_where_a_run_is_read():
    asked: list[Run] = []

    def answers(run: Run) -> list[float]:
        asked.append(run)
        return [float(len(run.tokens)), float(len(run.edits))]

    base, edits = Run((0, 1, 0)), tuple(Edit(Site("attn_out", 0, p), Zero()) for p in (0, 2))
    found = FakeBackend(answers).evaluate([World(base, edits, (1, 2))], lambda logits, _: logits.flatten(1))
    assert found.values.tolist() == [[2, 1, 3, 2]]
    assert asked == [Run((0, 1), edits[:1]), Run((0, 1, 0), edits)]
    recorded = FakeBackend(answers).record([base, base], keep=2)
    assert recorded[base].logits.tolist() == [[2, 0], [3, 0]]


def test_the_fake_tells_how_far_it_is_and_is_stopped_by_its_listener():
    model, told = linear(), []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    worlds = [World(Run((0, 1)), (Edit(Site("attn_out", 0, 1), Given([n] * 6)),), (1,)) for n in range(5)]
    with pytest.raises(KeyboardInterrupt):
        model.backend.evaluate(worlds, lambda logits, _: logits.flatten(1), progress=stop)
    assert told == [(1, 5), (2, 5), (3, 5)]
    assert len(model.backend.evaluated) == 3
    with pytest.raises(InvalidEdit, match="no world to evaluate"):
        model.backend.evaluate([], lambda logits, _: logits.flatten(1))


@pytest.mark.parametrize("name", ["z", "neurons"])
def test_heads_that_the_backend_does_not_offer_are_refused_by_name(name: str):
    message = rf"{name} is not offered on this model \(mine\): the backend 'mine' has none\. Offered: resid_pre, attn"
    options: dict[str, Any] = {"heads": True} if name == "z" else {"neurons": True}
    with pytest.raises(ComponentNotOffered, match=message):
        ct.trace(linear(name="mine"), PAIR, **options)


def test_heads_that_the_backend_offers_are_traced():
    """Head 1 of layer 0 carries the whole difference at the differing token; nothing else does anything."""

    def answers(run: Run) -> list[float]:
        word = run.tokens[DIFFERS] if len(run.tokens) > DIFFERS else 0
        for edit in run.edits:
            if edit.site == Site("z", 0, DIFFERS, 1) and isinstance(edit.source, From):
                word = edit.source.run.tokens[edit.source.position]
        return [float(n == word) for n in range(len(WORDS))]

    backend = FakeBackend(answers, components=["attn_out", "z"], counts={"z": 2})
    found = ct.trace(fake_model(WORDS, backend), PAIR, components=["attn_out"], heads=True).heads
    restored = found.restored_fraction.sel(metric="logit_diff", pair="p", component="z").transpose(..., "layer", "head")
    expected = np.zeros((5, 2, 2))
    expected[DIFFERS, 0, 1] = 1
    assert restored.transpose("position", "layer", "head").values.tolist() == expected.tolist()


def test_what_the_fake_has_not_is_said():
    bare = fake_model(WORDS, FakeBackend(lambda run: [0.0] * len(WORDS)))
    with pytest.raises(ComponentNotOffered, match=r"Estimates need gradients, and the backend of fake \('fake'\) has"):
        ct.attribute(bare, PAIR)
    with pytest.raises(ComponentNotOffered, match="Gradients are not offered by the backend 'fake'"):
        bare.backend.gradients([Run((0,))], [("attn_out", 0)], lambda logits: logits[:, 0, 0])
    noised = ct.Pair(clean=PAIR.clean, answer=" cat", foil=" dog", subject="cat")
    with pytest.raises(ComponentNotOffered, match=r"backend 'fake' has no activations: give activations=\."):
        ct.trace(bare, noised, noise=ct.Noise(draws=2))
    with pytest.raises(InvalidOption, match=r"fake is run by a backend of its own. Use control='shuffled-pairs'"):
        ct.trace(bare, PAIR, control="random-weights")
    world = World(Run((0, 1)), (Edit(Site("z", 0, 1, 0), Zero()),), (1,))
    with pytest.raises(ComponentNotOffered, match="z is not offered by the backend 'fake'"):
        bare.backend.evaluate([world], lambda logits, _: logits.flatten(1))


def test_noise_and_previews_need_no_network():
    noised = ct.Pair(clean=PAIR.clean, answer=" cat", foil=" dog", subject="cat", id="n")
    found = ct.trace(linear(), noised, noise=ct.Noise(draws=3)).effects.sel(metric="logit_diff", pair="n")
    assert found.total_effect.item() != 0
    last = found.restoration.sel(component="resid_post", layer=LAYERS - 1).isel(position=LAST)
    assert last.item() == pytest.approx(found.total_effect.item(), abs=1e-5)
    (shown,) = ct.preview(linear(), PAIR)
    first, second = shown.clean_top[:2]
    assert {first.token, second.token} == {"cat", "ran"}  # three ways each: C(3, 2) and C(3, 1)
    assert first.prob == second.prob


def test_many_pairs_through_the_fake_go_into_a_folder(tmp_path: Path):
    pairs = [PAIR, ct.Pair(clean="the cat ran", corrupt="the dog ran", answer=" cat", foil=" dog", id="q")]
    kept = ct.run(linear(), pairs, tmp_path / "run", keep="preferred", positions=["last"])
    assert kept.effects.pair.values.tolist() == ["p", "q"]
    again = ct.run(linear(), pairs, tmp_path / "run", keep="preferred", positions=["last"])
    assert again.effects.restoration.equals(kept.effects.restoration)
    with pytest.raises(ct.CausalTracingError, match="was begun with something else"):
        ct.run(linear(name="other"), pairs, tmp_path / "run", keep="preferred", positions=["last"])


def test_the_examples_run():
    failed, attempted = doctest.testmod(fake)
    assert attempted >= 10
    assert failed == 0
