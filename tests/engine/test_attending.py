"""The laws of attention that is told otherwise: keys hidden, weights taken away, other runs' keys and values.

On every family, on both engines, with `prune=False` wherever pruning would answer without running. What is expected is
made without the engine: by the model's own forward with a mask, or by hooks before the last projection of attention,
with weights from an attention that is written out. "To the bit" is tested in whole forwards of one run; the packed
engine computes fewer tokens, and differs in the last bits.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor

from attending import (
    BASE,
    ENGINES,
    EVERYWHERE,
    LAST,
    LAYERS,
    LENGTH,
    LONGER,
    REAL,
    TOLERANCE,
    WINDOWS,
    asked_by,
    asked_engine,
    assert_moved,
    attending_model,
    difference,
    given,
    logits,
    told,
    unedited,
)
from attending_by_hand import Z, of_query_heads, projection, seen, with_z
from causal_tracing.engine.checks.check import prove
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.record import record
from causal_tracing.interventions.edits import Edit, From, Given, Run, World
from causal_tracing.interventions.known import Rules, plan
from causal_tracing.interventions.sites import ATTENTION, Site
from causal_tracing.models.model import Model
from loaded import SOME, ids, shared

LAST_BITS = 2e-6  # of the largest logit, for mixtures of experts where others are equal to the bit
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")

# For laws that say little of a family: grouped queries or not, windows, sinks, values of another kind.
FEW = [case for case in SOME if case[0].name in ("llama", "gpt2", "gemma3_text", "gpt_oss", "deepseek_v3")]
on_few = pytest.mark.parametrize("model", FEW, indirect=True, ids=ids(FEW))


@pytest.fixture(params=SOME, ids=ids(SOME))
def model(request: pytest.FixtureRequest) -> Model:
    return attending_model(*request.param)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return asked_engine(request)


def assert_unchanged(model: Model, engine: str, found: np.ndarray, before: np.ndarray) -> None:
    """Equal to the bit in whole forwards; not quite where fewer tokens are computed, or experts' batches vary."""
    if engine == "packed":
        assert difference(found, before) < TOLERANCE
    elif model.name in MIXTURES:
        assert difference(found, before) <= LAST_BITS
    else:
        assert_array_equal(found, before)


def zeros(*worlds: tuple[Edit, ...], readout: tuple[int, ...] = EVERYWHERE) -> tuple[bool, ...]:
    """Which worlds are known to be the base run, where attention is all that mixes tokens."""
    return plan([World(BASE, world, readout) for world in worlds], Rules(num_layers=len(LAYERS))).structural_zero


# Some of one head's keys at one query: in windows too, some that are seen, and not all of them.
Cell = tuple[int, int, int, tuple[int, ...]]  # layer, query, head, keys
CELLS: tuple[Cell, ...] = ((0, 8, 0, (6,)), (1, 5, 3, (3, 4)), (2, 8, 1, (0, 5, 7)), (3, 6, 2, (3, 6)), (1, 8, 2, (8,)))


def parts_of(model: Model, cell: Cell) -> tuple[Tensor, Tensor, Tensor]:
    """A head's output, what these keys give of it, and their weight together."""
    layer, query, head, keys = cell
    weights, values = seen(model)[layer].weights[head, query], seen(model)[layer].values[head]
    named = list(keys)
    return weights @ values, weights[named] @ values[named], weights[named].sum()


# K1: a key that a query does not see cannot be hidden from it, or given to it: to the bit, and without a run.


def told_each_way(*, layer: int, query: int, keys: tuple[int, ...], head: int | None = None) -> list[Edit]:
    hows = ({"blocked": keys}, {"zeroed": keys}, {"q": asked_by(query, keys)}, {"k": given(keys)}, {"v": given(keys)})
    return [told(layer, query, head, **how) for how in hows]


def test_later_keys_are_not_seen(model, engine):
    later = [*told_each_way(layer=1, query=4, keys=(5, 7)), *told_each_way(layer=0, query=3, keys=(4, 8), head=1)]
    for found in logits(model, engine, *((edit,) for edit in later), tuple(later[::5]), alone=True):
        assert_unchanged(model, engine, found, unedited(model))
    assert all(zeros(*((edit,) for edit in later), tuple(later[::5])))


@on_few
def test_beside_keys_that_are_seen_later_ones_change_nothing(model, engine):
    both, one = told(1, 4, blocked=(2, 5), zeroed=(3, 8)), told(1, 4, blocked=(2,), zeroed=(3,))
    found, expected = logits(model, engine, (both,), (one,), alone=True)
    assert_unchanged(model, engine, found, expected)
    assert difference(found, unedited(model)) > REAL
    every_kind = told_each_way(layer=1, query=4, keys=(2,))
    assert not any(zeros((both,), (one,), *((edit,) for edit in every_kind)))


@pytest.mark.parametrize("name", WINDOWS)
def test_keys_outside_a_window_are_not_seen(name, engine):
    model = shared(name)
    for layer in LAYERS:
        outside = told_each_way(layer=layer, query=LAST, keys=(1, 4))
        outside += told_each_way(layer=layer, query=LAST, keys=(4,), head=2)
        inside = told_each_way(layer=layer, query=LAST, keys=(5,))
        found = logits(model, engine, *((edit,) for edit in (*outside, *inside)), alone=True)
        assert_moved(model, found[len(outside) :])
        if layer not in WINDOWS[name]:
            assert_moved(model, found[: len(outside)])
            continue
        assert_unchanged(model, engine, found[0], unedited(model))  # hidden by the same mask
        for got in found[: len(outside)]:
            assert difference(got, unedited(model)) < TOLERANCE


# K2, by the model's own mask: a key hidden from all later queries in every layer.


def hidden_from_later(keys: tuple[int, ...]) -> tuple[Edit, ...]:
    queries = range(min(keys) + 1, LENGTH)
    return tuple(
        told(layer, query, blocked=tuple(key for key in keys if key < query)) for layer in LAYERS for query in queries
    )


def test_a_key_hidden_everywhere_is_the_models_own_mask(model, engine):
    if model.name == "falcon_h1":
        pytest.skip("its state space does not read a token that the mask hides")
    cases = ((0,), (3,), (7,), (2, 5))
    found = logits(model, engine, *map(hidden_from_later, cases), alone=True)
    for keys, got in zip(cases, found, strict=True):
        mask = torch.ones(1, LENGTH, dtype=torch.long)
        mask[0, list(keys)] = 0
        places = {"attention_mask": mask, "position_ids": torch.arange(LENGTH)[None]}
        with torch.no_grad():
            expected = model.network(input_ids=torch.tensor([BASE.tokens]), use_cache=False, **places).logits[0]
        others = [position for position in EVERYWHERE if position not in keys]  # the mask hides a token from itself too
        assert_unchanged(model, engine, got[others], expected[others].double().numpy())
        assert difference(got[LAST], unedited(model)[LAST]) > REAL


# K3: what is left of a head is what the other keys give, in shares of what is left of the weight.


def test_a_blocked_keys_weight_goes_to_the_others(model, engine):
    parts = [parts_of(model, cell) for cell in CELLS]
    rows = [(*cell[:3], (z - taken) / (1 - weight)) for cell, (z, taken, weight) in zip(CELLS, parts, strict=True)]
    found = logits(model, engine, *((told(*cell[:3], blocked=cell[3]),) for cell in CELLS))
    for got, expected, (_, _, weight) in zip(found, with_z(model, rows), parts, strict=True):
        assert difference(got, expected) < TOLERANCE / (1 - float(weight))
    assert_moved(model, found)


def test_a_zeroed_keys_weight_goes_nowhere(model, engine):
    rows: list[Z] = []
    for cell in CELLS:
        z, taken, _ = parts_of(model, cell)
        rows.append((*cell[:3], z - taken))
    nothing = torch.zeros_like(rows[0][3])
    rows += [(2, LAST, 3, nothing), (0, 4, 1, nothing)]
    worlds = [told(*cell[:3], zeroed=cell[3]) for cell in CELLS]
    worlds += [told(2, LAST, 3, zeroed=EVERYWHERE), told(0, 4, 1, zeroed=EVERYWHERE[:5])]
    found = logits(model, engine, *((edit,) for edit in worlds))
    for got, expected in zip(found, with_z(model, rows), strict=True):
        assert difference(got, expected) < TOLERANCE
    assert_moved(model, found)


# K4: of the only key that is left, a head gives the value.
def test_the_only_key_left_gives_its_value(model, engine):
    if model.name == "gpt_oss":
        pytest.skip("its sinks keep a share of the weight")
    cells = ((1, 5, 3, 4), (3, LAST, 0, 6), (2, LAST, 2, LAST))
    blocked = [tuple(each for each in EVERYWHERE if each != key) for *_, key in cells]
    rows = [(layer, query, head, seen(model)[layer].values[head, key]) for layer, query, head, key in cells]
    worlds = [(told(*cell[:3], blocked=keys),) for cell, keys in zip(cells, blocked, strict=True)]
    found = logits(model, engine, *worlds)
    for got, expected in zip(found, with_z(model, rows), strict=True):
        assert difference(got, expected) < TOLERANCE
    assert_moved(model, found)


# K5: nothing blocked is the base run.
def test_nothing_blocked_changes_nothing(model, engine):
    everywhere = tuple(told(layer, query) for layer in LAYERS for query in EVERYWHERE)
    heads = tuple(told(1, LAST, head) for head in range(model.parts("q")))
    for found in logits(model, engine, everywhere, heads, alone=True):
        assert_unchanged(model, engine, found, unedited(model))
    assert zeros(everywhere, heads) == (True, True)


# K6: in the last layer a query is read where it is, and nowhere else.
def test_in_the_last_layer_other_queries_are_not_read(model, engine):
    worlds = [(told(3, 5, blocked=(3, 4)),), (told(3, 7, zeroed=(6,), v=given((7,))),)]
    found = logits(model, engine, *worlds, alone=True)
    for (edit,), got in zip(worlds, found, strict=True):
        others = [position for position in EVERYWHERE if position != edit.site.position]
        assert_unchanged(model, engine, got[others], unedited(model)[others])
        assert difference(got, unedited(model)) > REAL
    assert zeros(*worlds, readout=(LAST,)) == (True, True)
    assert zeros(*worlds) == (False, False)
    assert zeros((told(2, 5, blocked=(3,)),), readout=(LAST,)) == (False,)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_that_attention_stays_with_its_query_is_proved(name):
    model, findings = prove(shared(name), (ATTENTION,))
    assert ATTENTION not in model.anatomy.mixing
    assert all(finding.holds for finding in findings)
    world = World(BASE, (told(3, 5, blocked=(3, 4)),), (LAST,))
    found = evaluate(model, [world], lambda each, _: each.flatten(1))
    assert found.structural_zero.all()


# K7: what is told at several places makes one whole, whoever comes first and wherever it is written.
@on_few
def test_blocks_compose(model, engine):
    early, late = ([told(layer, LAST, blocked=(2, 6)) for layer in half] for half in ((0, 1), (2, 3)))
    apart = [told(0, LAST, 2, blocked=(6,)), told(1, LAST, 3, blocked=(7,)), told(2, 6, 0, blocked=(4,))]
    for one, other in ((early, late), (apart[:1], apart[1:])):
        first_edits, then = tuple(one), tuple(other)
        at_once, turned, half = logits(model, engine, (*first_edits, *then), (*then, *first_edits), then, alone=True)
        on_top = logits(model, engine, then, base=Run(BASE.tokens, first_edits), alone=True)[0]
        assert_unchanged(model, engine, turned, at_once)
        assert_unchanged(model, engine, on_top, at_once)
        assert difference(half, at_once) > REAL


@on_few
def test_blocked_keys_are_a_set(model, engine):
    orders = [(told(1, LAST, blocked=keys),) for keys in ((5, 7), (7, 5), (5, 7, 5), (5,))]
    both, *others, one = logits(model, engine, *orders, alone=True)
    for other in others:
        assert_unchanged(model, engine, other, both)
    assert difference(one, both) > REAL


# K8: each head told for itself is the whole layer told.
def test_every_head_by_itself_is_the_layer(model, engine):
    hows: list[dict[str, Any]] = [
        {"blocked": (2, 6)},
        {"zeroed": (6,), "v": given((5, 7))},
        {"q": asked_by(LAST, (5, 6)), "k": given((6,)), "blocked": (7,)},
    ]
    whole = [(told(0, LAST, **how),) for how in hows]
    singly = [tuple(told(0, LAST, head, **how) for head in range(model.parts("q"))) for how in hows]
    found = logits(model, engine, *whole, *singly, *(edits[1:] for edits in singly))
    for one, other, without in zip(found[:3], found[3:6], found[6:], strict=True):
        assert difference(one, other) < TOLERANCE
        assert difference(without, other) > REAL


# K9: where a head gives a key no weight, there is nothing to hide.
@on_few
def test_a_key_without_weight_cannot_be_hidden(model, engine):
    layer, head, key = 0, 2, 6
    query = record(model, [BASE], [("q", layer)])[BASE].activations["q", layer][LAST].view(model.parts("q"), -1)[head]
    against = Given(-1e4 * query / query.norm())
    shared_head = head * model.parts("k") // model.parts("q")
    far = Edit(Site("k", layer, key, shared_head), against)
    hows: list[dict[str, Any]] = [{"blocked": (key,)}, {"zeroed": (key,)}, {"v": given((key,))}]
    same = [(far,), *((far, told(layer, LAST, head, **how)) for how in hows)]
    further = [(far, told(layer, LAST, head, blocked=keys)) for keys in ((5, 7), (5, key, 7))]
    with_weight = [(told(layer, LAST, head, **how),) for how in hows]
    alone, *found = logits(model, engine, *same, *further, *with_weight)
    for got in found[:3]:
        assert difference(got, alone) < TOLERANCE
    assert difference(found[3], found[4]) < TOLERANCE
    assert difference(found[3], alone) > REAL
    assert_moved(model, np.array(found[5:]))


# A1: what a key or a value does, it does by its edges to the queries that read it.
@pytest.mark.parametrize("component", ["k", "v"])
def test_a_node_is_all_its_edges(model, engine, component):
    layer, key = 1, 3
    readers = range(key, LENGTH)
    last_head, group = model.parts(component) - 1, model.parts("q") // model.parts(component)
    heads = range(last_head * group, (last_head + 1) * group)
    edge: dict[str, Any] = {component: given((key,))}
    back: dict[str, Any] = {component: given((key,), BASE)}
    node = Edit(Site(component, layer, key), From(LONGER, key))
    of_one = Edit(Site(component, layer, key, last_head), From(LONGER, key))
    nodes = [(node,), (of_one,), (node, told(layer, 5, **back))]
    edges = [
        tuple(told(layer, query, **edge) for query in readers),
        tuple(told(layer, query, head, **edge) for query in readers for head in heads),
        tuple(told(layer, query, **edge) for query in readers if query != 5),
    ]
    found = logits(model, engine, *nodes, *edges)
    for one, other in zip(found[:3], found[3:], strict=True):
        assert difference(one, other) < TOLERANCE
    assert_moved(model, found[:3])
    assert difference(found[0], found[2]) > REAL


# A2: a query that another run asks, of that run's keys, and that gets that run's values, is that run's head.
@pytest.mark.parametrize("donor", [LONGER, Run(LONGER.tokens, (told(0, 6, blocked=(4, 5)),))], ids=["plain", "told"])
def test_all_edges_into_a_query_are_the_donors_head(model, engine, donor):
    edges, heads = [], []
    for layer, query, head in ((0, 5, 0), (1, LAST, 2), (2, LAST, None), (3, 7, None)):
        keys = range(query + 1)
        whole: dict[str, Any] = {"q": asked_by(query, keys, donor), "k": given(keys, donor), "v": given(keys, donor)}
        edges.append((told(layer, query, head, **whole),))
        heads.append((Edit(Site("z", layer, query, head), From(donor, query)),))
    found = logits(model, engine, *edges, *heads)
    for one, other in zip(found[:4], found[4:], strict=True):
        assert difference(one, other) < TOLERANCE
    assert_moved(model, found[:4])


@on_few
def test_a_run_that_attends_otherwise_is_a_donor(model, engine):
    hows: list[dict[str, Any]] = [{"blocked": (6,)}, {"zeroed": (6, 8)}, {"q": asked_by(LAST, (6,))}]
    edits = [told(0, LAST, 2, **how) for how in hows]
    heads = [Edit(Site("z", 0, LAST, 2), From(Run(BASE.tokens, (edit,)), LAST)) for edit in edits]
    found = logits(model, engine, *((edit,) for edit in (*edits, *heads)))
    for one, other in zip(found[:3], found[3:], strict=True):
        assert difference(one, other) < TOLERANCE
    assert_moved(model, found[:3])


# A3: values add up in the head that reads them.
def test_values_add_up(model, engine):
    layer, head = 1, 1
    edits = [told(layer, LAST, head, v=given((key,))) for key in EVERYWHERE]
    at_once = told(layer, LAST, head, v=given(EVERYWHERE))
    read: list[Tensor] = []
    handle = projection(model, layer).register_forward_pre_hook(lambda _, args: read.append(args[0].clone()))
    logits(model, "replay", (), *((edit,) for edit in edits), (at_once,))
    handle.remove()
    z = read[-1].reshape(len(edits) + 2, LENGTH, model.parts("q"), -1)  # the donor was recorded before
    base, singly, together = z[0], z[1:-1], z[-1]
    summed = base + (singly - base).sum(0)
    assert (summed - together).abs().max() < TOLERANCE * together.abs().max()
    moved = (together - base).abs().amax(-1) > REAL * base.abs().max()
    assert moved.nonzero().tolist() == [[LAST, head]]
    expected = with_z(model, [(layer, LAST, head, summed[LAST, head])])[0]
    assert difference(logits(model, engine, (at_once,))[0], expected) < TOLERANCE


@on_few
def test_a_value_comes_with_its_keys_weight(model, engine):
    layer, query, head, keys = 2, LAST, 3, (5, 7)
    donor = Run(LONGER.tokens[:LENGTH])
    values = record(model, [donor], [("v", layer)])[donor].activations["v", layer].view(LENGTH, model.parts("v"), -1)
    there = of_query_heads(values.transpose(0, 1), model.parts("q"))[head]
    here, at = seen(model)[layer], list(keys)
    weights = here.weights[head, query]
    z = weights @ here.values[head] + weights[at] @ (there[at] - here.values[head, at])
    found = logits(model, engine, (told(layer, query, head, v=given(keys)),))[0]
    assert difference(found, with_z(model, [(layer, query, head, z)])[0]) < TOLERANCE
