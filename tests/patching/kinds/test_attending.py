"""Knockouts and edges of attention as maps: against masks written by hand, and what is refused."""

from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import ComponentNotOffered, InvalidOption, InvalidPair
from causal_tracing.models.model import Model
from causal_tracing.patching.kinds.attending import columns_named
from causal_tracing.prompts.pairs import tokenize
from families import FAMILIES, build
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w25 w16"
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7", foil=" w8", subject=" w12 w13", corrupt_subject=" w12 w43")
LAYERS, HEADS, LENGTH, LAST = 4, 4, 6, 5
SUBJECT = (1, 2)


@pytest.fixture(scope="module")
def network() -> Any:
    return build(next(family for family in FAMILIES if family.name == "llama"), attention="eager")


@pytest.fixture(scope="module")
def model(network: Any) -> Model:
    return accept(network, WORDS, name="tiny")


def metric(network: Any, text: str) -> float:
    with torch.no_grad():
        logits = network(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1]
    answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))
    return (logits[answer] - logits[foil]).item()


def hide(keys: tuple[int, ...], query: int, heads: slice, _: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A hook that writes into the mask that a layer's attention is called with."""
    mask = kwargs["attention_mask"].expand(-1, HEADS, -1, -1).clone()
    mask[:, heads, query, list(keys)] = torch.finfo(mask.dtype).min
    return args, kwargs | {"attention_mask": mask}


def knocked_out(
    network: Any, layers: list[int], keys: tuple[int, ...], *, query: int = LAST, heads: slice = slice(None)
) -> float:
    """The metric of the clean prompt with keys hidden by hand."""
    hook = partial(hide, keys, query, heads)
    handles = [
        network.model.layers[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers
    ]
    try:
        return metric(network, CLEAN)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_knockout_is_a_mask_written_by_hand(network: Any, model: Model, engine: str) -> None:
    found = ct.knockout(model, PAIR, heads=True, engine=engine, progress=False)
    clean = metric(network, CLEAN)
    whole = found.effects.disruption.sel(metric="logit_diff", pair="pair-0", component="attention")
    expected = [[clean - knocked_out(network, [layer], (key,)) for key in range(LENGTH)] for layer in range(LAYERS)]
    assert_allclose(whole.transpose("layer", "position").values, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-2  # something moves
    single = found.measurements.numbers("knockout_heads")
    drop = (single.clean - single.disrupted).sel(metric="logit_diff", pair="pair-0", component="attention")
    for layer, head, key in ((0, 1, 2), (2, 3, 0), (3, 0, 4)):
        by_hand = clean - knocked_out(network, [layer], (key,), heads=slice(head, head + 1))
        assert_allclose(drop.sel(layer=layer, head=head, position=key).item(), by_hand, atol=1e-5)


def test_sets_of_keys_are_hidden_together_and_windows_are_gevas(network: Any, model: Model) -> None:
    found = ct.knockout(
        model, PAIR, keys=["subject", "non_subject", "first", "last"], window=3, cut=True, progress=False
    )
    clean = metric(network, CLEAN)
    drop = found.effects.disruption.sel(metric="logit_diff", pair="pair-0", component="attention")
    sets = {"subject": SUBJECT, "non_subject": (0, 3, 4), "first": (0,), "last": (LAST,)}
    for name, keys in sets.items():
        for layer in range(LAYERS):
            window = list(range(max(0, layer - 1), min(LAYERS, layer + 2)))
            by_hand = clean - knocked_out(network, window, keys)
            assert_allclose(drop.sel(layer=layer, position=name).item(), by_hand, atol=1e-5)
    joint = drop.sel(layer=1, position="subject").item()
    alone = sum(clean - knocked_out(network, [0, 1, 2], (key,)) for key in SUBJECT)
    assert abs(joint - alone) > 1e-3  # or the mean over keys would pass too


def test_other_queries(network: Any, model: Model) -> None:
    found = ct.knockout(model, PAIR, query="subject_last", progress=False)
    drop = found.effects.sel(metric="logit_diff", pair="pair-0", component="attention")
    clean = metric(network, CLEAN)
    for key in (0, 1):
        by_hand = clean - knocked_out(network, [1], (key,), query=2)
        assert_allclose(drop.disruption.sel(layer=1, position=key).item(), by_hand, atol=1e-5)
    behind = drop.sel(position=[3, 4, 5])  # keys that this query does not see
    assert (behind.status == "structural_zero").all()
    assert (behind.disruption == 0).all()
    assert (drop.status.sel(layer=LAYERS - 1) == "structural_zero").all()  # nobody reads it any more


def test_weight_taken_away_is_given_to_no_other(network: Any, model: Model) -> None:
    """z' = z − Σ A v: by a hook on the input of the last projection, from weights and values of a bare run."""
    found = ct.knockout(model, PAIR, by="zeroed", layers=[2], progress=False)
    attention, seen = network.model.layers[2].self_attn, {}
    handle = attention.v_proj.register_forward_hook(lambda *given: seen.update(v=given[2]))
    with torch.no_grad():
        weights = network(torch.tensor([WORDS(CLEAN)["input_ids"]]), output_attentions=True).attentions[2][0, :, LAST]
    handle.remove()
    size = seen["v"].shape[-1] // network.config.num_key_value_heads
    values = seen["v"][0].unflatten(-1, (-1, size)).repeat_interleave(HEADS // network.config.num_key_value_heads, 1)

    def without(key: int, _: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[0, LAST] -= (weights[:, key, None] * values[key]).flatten()
        return (changed,)

    for key in range(LENGTH):
        handle = attention.o_proj.register_forward_pre_hook(partial(without, key))
        expected = metric(network, CLEAN)
        handle.remove()
        measured = found.effects.disruption.sel(metric="logit_diff", pair="pair-0", component="attention", layer=2)
        assert_allclose(measured.sel(position=key).item(), metric(network, CLEAN) - expected, atol=1e-5)


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_edges_are_zero_where_nothing_differs_and_move_where_it_does(model: Model, engine: str) -> None:
    trace = ct.trace(model, PAIR, components=[], edges=["v", "k", "q"], engine=engine, progress=False)
    numbers = trace.measurements.numbers("edges").sel(metric="logit_diff", pair="pair-0")
    assert numbers.sizes["head"] == HEADS
    same = numbers.sel(position=[0, 1])  # keys before the first difference: v and k are there already
    for part in ("v_edge", "k_edge"):
        assert (same.structural_zero.sel(component=part)).all()
        assert (same.restored.sel(component=part) == numbers.corrupt).all()
    moved = abs(numbers.restored - numbers.corrupt).max("position")
    assert (moved.sel(component="v_edge") > 1e-6).any()
    assert (moved.sel(component="q_edge").sel(layer=[1, 2, 3]) > 1e-6).any()


def test_knockout_of_many_pairs_in_a_folder(model: Model, tmp_path: Path) -> None:
    pairs = [
        ct.Pair(clean=CLEAN, corrupt=f" w11 w12 w{n} w14 w25 w16", answer=" w7", foil=" w8") for n in range(20, 24)
    ]
    options: dict[str, Any] = {"components": [], "knockout": ["layers", "heads"], "knockout_window": 2}
    run = ct.run(model, pairs, tmp_path / "run", **options, progress=False)
    direct = ct.trace(model, pairs, **options, progress=False)
    for of in ("knockout", "knockout_heads"):
        found, expected = (each.measurements.numbers(of).disrupted for each in (run, direct))
        assert_allclose(found.values, expected.values, atol=1e-5)
    assert run.evidence(of="knockout").cells.disruption.notnull().any()
    assert "hiding it takes away" in run.summary()
    assert ct.open_trace(tmp_path / "run").summary() == run.summary()
    run.to_html(tmp_path / "page.html")
    assert set(run.to_dataframe("knockout").component) == {"attention"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": 0}, "the query at position 0 sees no other keys than 0"),
        ({"query": 17}, "has no token 17 that could attend"),
        ({"keys": ["nobody"]}, "There is no position 'nobody'"),
        ({"keys": [9]}, "There is no position 9: the longest prompt has 6 tokens"),
        ({"keys": [-9]}, "There is no position -9: the longest prompt has 6 tokens"),
        ({"keys": ["last", 5, -1]}, "name one place twice"),
        ({"window": 9}, "A window of 9 layers"),
        ({"preset": "geva", "window": 3}, 'preset="geva" sets window by itself'),
        ({"by": "removed"}, "removed"),
        ({"query": True}, "is one position, role or span"),
    ],
)
def test_what_cannot_be_hidden_is_said(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidOption, InvalidPair), match=message.replace("(", r"\(")):
        ct.knockout(model, PAIR, **options, progress=False)


@pytest.mark.parametrize(
    "options", [{"knockout": True, "knockout_keys": [-2]}, {"edges": True, "edge_keys": [-2]},
                {"edges": True, "edge_query": [-2, "last"]}]
)  # fmt: skip
def test_positions_from_the_right_are_none_that_prompts_of_several_lengths_share(
    model: Model, options: dict[str, Any]
) -> None:
    shorter = ct.Pair(clean=" w11 w12 w14", corrupt=" w11 w43 w14", answer=" w7", foil=" w8")
    with pytest.raises(InvalidOption, match=r"There is no position -2: .* lengths share no positions from the right"):
        ct.trace(model, [PAIR, shorter], components=[], **options, progress=False)


def test_keys_may_be_numbers_of_numpy() -> None:
    named = unwrap(columns_named)  # the tests' own type checker would speak first
    for keys in (np.arange(3), [*np.arange(3)]):
        assert named([tokenize(PAIR, WORDS)], keys) == (0, 1, 2)


def test_nothing_asked_for_and_edges_of_ablations_are_refused(model: Model) -> None:
    with pytest.raises(InvalidOption, match="No component was asked for"):
        ct.trace(model, PAIR, components=[])
    with pytest.raises(InvalidOption, match="leave write= out, or edges="):
        ct.trace(model, PAIR, edges=True, write="zero")


def test_models_without_replaceable_attention_refuse_it() -> None:
    model = accept(build(next(family for family in FAMILIES if family.name == "bloom")), WORDS, name="bloom")
    with pytest.raises(ComponentNotOffered, match="attention is not offered"):
        ct.knockout(model, PAIR, progress=False)


def test_words_say_what_was_hidden(model: Model) -> None:
    found = ct.knockout(model, PAIR, preset="geva", window=9, progress=False)
    said = found.summary()
    assert "Without the keys 'subject' in layers" in said
    assert "At the edges of the model windows are cut" in found.to_html()
    assert "the answer's probability goes from" in said
    assert "keys stand in for one another" in said
    assert found.measurements.directions == ("disruption",)
    read = found.to_html()
    assert "Attention knockout: in the clean run the last token cannot see" in read
    assert "Restoration: the clean activation" not in read
