"""The engine against bare torch hooks, in any batches, and when memory runs out."""

import random
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

from bare_hooks import PATHS, Bare, Paths
from causal_tracing.engine import network
from causal_tracing.engine.choose import plain_backend
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks import record as recording
from causal_tracing.engine.hooks import replay
from causal_tracing.engine.hooks.record import record
from causal_tracing.engine.packed import base_runs
from causal_tracing.errors import ComponentNotOffered, InvalidEdit, OutOfMemory
from causal_tracing.interventions.edits import Edit, From, Given, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from loaded import CASES, ids, shared
from single_edits import CLEAN, CORRUPT, LAYERS, LENGTH, TOLERANCE, all_logits, single

PLACE = ("resid_post", 1, 3)
PATCHED_BY_HAND = ("resid_post", "attn_out", "mlp_out")


def llama() -> Model:
    return shared("llama")


def gpt2() -> Model:
    return shared("gpt2")


@pytest.mark.parametrize(("family", "attention"), CASES, ids=ids(CASES))
def test_the_engine_agrees_with_bare_hooks(family, attention):
    model = shared(family.name, attention)
    expected: tuple[str, ...] = family.components
    assert model.anatomy.components == expected
    bare = Bare(model.network, PATHS.get(family.name, Paths()))
    for base, donor in ((CORRUPT, CLEAN), (CLEAN, CORRUPT)):
        cells = [(component, layer) for component in expected for layer in LAYERS]
        worlds = [single(base, donor, *cell, position) for cell in cells for position in range(LENGTH)]
        found = evaluate(model, worlds, all_logits, prune=False).values.reshape(-1, LENGTH, LENGTH, 97)
        for (component, layer), values in zip(cells, found, strict=True):
            by_hand = bare.patched(base, bare.donor(donor, component, layer), component, layer)
            assert_allclose(values, by_hand, rtol=0, atol=TOLERANCE * np.abs(by_hand).max())
    assert np.abs(bare.run(CLEAN) - bare.run(CORRUPT))[0, -1].max() > 0.5


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "opt", "falcon", "bloom"])
def test_what_is_recorded_is_what_bare_hooks_see(name):
    model = shared(name)
    bare, run = Bare(model.network, PATHS.get(name, Paths())), Run(CLEAN)
    places = list(product(model.anatomy.components, LAYERS))
    recording = record(model, [run], places, keep=LENGTH)[run]
    for place in places:
        assert_allclose(recording.activations[place], bare.donor(CLEAN, *place), rtol=0, atol=1e-6)
    assert_array_equal(recording.logits.double(), bare.run(CLEAN)[0])


# Law 31: a world's result does not depend on its neighbours, on order, or on the size of batches.

COMPONENTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
LONGER = (5, 17, 42, 13, 60, 29, 8, 71, 90, 3, 44)


SITES = st.tuples(st.sampled_from(COMPONENTS), st.integers(0, 3), st.integers(0, LENGTH - 1))
SOURCES = st.tuples(st.sampled_from([CLEAN, CORRUPT]), st.integers(0, LENGTH - 1), st.sampled_from([0.0, 0.5, 1.0]))
WORLDS = st.tuples(
    st.sampled_from([CLEAN, CORRUPT, LONGER]),
    st.dictionaries(SITES, SOURCES, max_size=4),
    st.sampled_from([(8,), (4,), (2, 8)]),
)


def make_world(tokens: tuple[int, ...], edits: dict[Any, Any], readout: tuple[int, ...]) -> World:
    """Of two edits at one place (resid_post is resid_pre of the next layer) the later one is made."""
    at = {
        Site(*site).place: Edit(Site(*site), From(Run(donor), position), alpha)
        for site, (donor, position, alpha) in edits.items()
    }
    return World(Run(tokens), tuple(at.values()), readout)


def at_first_readout(logits: Tensor, _: Any) -> Tensor:
    return logits[:, 0]


@pytest.mark.parametrize("engine", ["replay", "packed"])
@pytest.mark.parametrize("load_model", [llama, gpt2])
@settings(derandomize=True, max_examples=20, deadline=None)
@given(described=st.lists(WORLDS, min_size=1, max_size=12), prune=st.booleans(), seed=st.integers(0, 9))
def test_a_world_does_not_depend_on_its_neighbours(load_model, engine, described, prune, seed):
    model, worlds = load_model(), [make_world(*world) for world in described]
    alone = np.stack([evaluate(model, [world], at_first_readout, prune=False).values[0] for world in worlds])
    order = random.Random(seed).sample(range(len(worlds)), len(worlds))
    shuffled = [worlds[number] for number in order]
    bound = TOLERANCE * np.abs(alone).max()
    for rows, budget in ((1, None), (3, None), (7, None), (None, 1)):
        options = {"engine": engine, "prune": prune, "rows": rows, "budget": budget}
        found = evaluate(model, shuffled, at_first_readout, **options)
        assert_allclose(found.values, alone[order], rtol=0, atol=bound)
        assert prune or found.worlds_run == len(worlds)


def test_equal_worlds_are_run_once_and_all_get_their_numbers():
    world, other = single(CORRUPT, CLEAN, "resid_post", 1, 3), single(CORRUPT, CLEAN, "resid_post", 1, 5)
    found = evaluate(llama(), [world, other, world, world], all_logits)
    assert found.worlds_run == 2
    assert_array_equal(found.values[[2, 3]], found.values[[0, 0]])
    assert np.abs(found.values[0] - found.values[1]).max() > 0.1


def test_measure_is_told_which_worlds_it_measures():
    def measure(logits: Tensor, worlds: Any) -> Tensor:
        return torch.tensor([[float(world.pair), float(len(world.base.tokens))] for world in worlds])

    worlds = [World(Run(tokens), (), (4,), pair) for pair, tokens in enumerate((CLEAN, LONGER, CORRUPT, LONGER))]
    found = evaluate(llama(), worlds, measure, rows=2)
    assert found.values.tolist() == [[0, 9], [1, 11], [2, 9], [3, 11]]


@pytest.mark.parametrize("engine", ["replay", "packed"])
def test_progress_is_told_between_layers_and_batches_and_changes_nothing(engine):
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"engine": engine, "rows": 16}
    found = evaluate(llama(), sweep(), all_logits, progress=lambda *told: seen.append(told), **options)
    done, totals = zip(*seen, strict=True)
    assert {*totals} == {36 * len(LAYERS)}
    assert list(done) == sorted(done)
    assert done[-1] == 36 * len(LAYERS)
    for before, size in ((0, 16), (16, 16), (32, 4)):  # every layer of every batch
        assert {before * len(LAYERS) + size * layer for layer in LAYERS} <= {*done}
    assert_array_equal(found.values, evaluate(llama(), sweep(), all_logits, **options).values)


@pytest.mark.parametrize("engine", ["replay", "packed"])
def test_what_a_listener_raises_is_never_taken_for_a_lack_of_memory(engine):
    told: list[int] = []

    def full(done: int, total: int) -> None:
        told.append(done)
        if done > total // 3:
            raise MemoryError("of the listener's own")

    with pytest.raises(MemoryError, match="of the listener's own"):
        evaluate(llama(), sweep(), all_logits, engine=engine, progress=full)
    assert [done > 36 * len(LAYERS) // 3 for done in told].count(True) == 1


def test_progress_stands_still_where_a_batch_begins_again_in_halves():
    seen: list[int] = []
    unmeasured = torch.OutOfMemoryError("CUDA out of memory.")

    def measure(logits: Tensor, _: Any) -> Tensor:
        if len(logits) > 5:
            raise unmeasured
        return logits.flatten(1)

    evaluate(llama(), sweep(), measure, progress=lambda done, _: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 36 * len(LAYERS)
    assert max(seen.count(done) for done in seen) > len(LAYERS)


# Memory that runs out.


def sweep() -> list[World]:
    """36 worlds that cannot be pruned and are all different."""
    places = product(("resid_post", "attn_out", "mlp_out"), (0, 1, 2), (3, 5, 6, 8))
    return [single(CORRUPT, CLEAN, *place) for place in places]


def fails_above(rows: int, error: Exception, sizes: list[int]) -> Callable[..., Any]:
    forward = replay.forward  # pyright: ignore[reportPrivateImportUsage]

    def limited(model: Model, runs: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(runs))
        if len(runs) > rows:
            raise error
        return forward(model, runs, *args, **kwargs)

    return limited


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000 bytes."),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(monkeypatch, error):
    expected = evaluate(llama(), sweep(), all_logits)
    sizes: list[int] = []
    monkeypatch.setattr(replay, "forward", fails_above(5, error, sizes))
    found = evaluate(llama(), sweep(), all_logits)
    assert_allclose(found.values, expected.values, rtol=0, atol=TOLERANCE * np.abs(expected.values).max())
    assert sizes[:4] == [36, 18, 9, 4]
    assert sum(size for size in sizes if size <= 5) == 36


def test_one_world_that_does_not_fit_is_an_error(monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(replay, "forward", fails_above(0, torch.OutOfMemoryError("CUDA out of memory."), sizes))
    message = "A single run of 9 tokens does not fit into the memory of cpu. Use a shorter prompt"
    with pytest.raises(OutOfMemory, match=message):
        evaluate(llama(), sweep(), all_logits)
    assert sizes == [36, 18, 9, 4, 2, 1]


def other_bases(count: int) -> list[World]:
    """One world of each of so many base runs of equal length."""
    return [single((*CORRUPT[:3], 20 + n, *CORRUPT[4:]), CLEAN, *PLACE) for n in range(count)]


@pytest.mark.parametrize(("engine", "module"), [("replay", recording), ("packed", base_runs)])
def test_what_is_recorded_beforehand_is_halved_too(monkeypatch, engine, module):
    """Twelve runs do not fit at once into a recording, five do; the numbers are the same."""
    worlds = other_bases(11)
    if engine == "replay":  # which records donors only
        worlds = [single(CORRUPT, world.base.tokens, *PLACE) for world in other_bases(12)]
    expected = evaluate(llama(), worlds, all_logits, engine=engine)
    sizes: list[int] = []
    monkeypatch.setattr(module, "forward", fails_above(5, torch.OutOfMemoryError("CUDA out of memory."), sizes))
    found = evaluate(llama(), worlds, all_logits, engine=engine)
    assert sizes == [12, 6, 3, 3, 6, 3, 3]
    assert_allclose(found.values, expected.values, rtol=0, atol=TOLERANCE * np.abs(expected.values).max())
    for each in (module, replay):  # of fewer worlds replay records nothing beforehand
        monkeypatch.setattr(each, "forward", fails_above(0, MemoryError(), sizes))
    with pytest.raises(OutOfMemory, match="A single run of 9 tokens does not fit into the memory of cpu"):
        evaluate(llama(), worlds, all_logits, engine=engine)


def test_where_all_that_is_recorded_does_not_fit_fewer_worlds_run_at_once(monkeypatch):
    """Each run fits alone, but not what is kept of more than three (two base runs and the donor of both)."""
    worlds, told = other_bases(8), []
    expected = evaluate(llama(), worlds, all_logits, engine="packed")
    tapes, counts = base_runs.tapes, []

    def limited(model: Model, runs: Any, places: Any) -> Any:
        counts.append(len(runs))
        if len(runs) > 3:
            raise OutOfMemory("A single run does not fit.")
        return tapes(model, runs, places)

    monkeypatch.setattr(base_runs, "tapes", limited)
    found = evaluate(llama(), worlds, all_logits, engine="packed", progress=lambda done, _: told.append(done))
    assert counts == [9, 5, 3, 3, 5, 3, 3]
    assert told == sorted(told)
    assert told[-1] == 8 * len(LAYERS)
    assert_allclose(found.values, expected.values, rtol=0, atol=TOLERANCE * np.abs(expected.values).max())


def test_gradients_are_halved_too(monkeypatch):
    runs = [Run((*CORRUPT[:8], 20 + n)) for n in range(6)]
    backend, real, sizes = plain_backend(llama()), network.linearised, []  # pyright: ignore[reportPrivateImportUsage]

    def total(logits: Tensor) -> Tensor:
        return logits.sum(-1).sum(-1)

    (expected,) = backend.gradients(runs, [("mlp_out", 1)], total)

    def limited(model: Model, runs: Any, **options: Any) -> Any:
        sizes.append(len(runs))
        if len(runs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model, runs, **options)

    monkeypatch.setattr(network, "linearised", limited)
    found = torch.cat([part.gradients["mlp_out", 1] for part in backend.gradients(runs, [("mlp_out", 1)], total)])
    assert sizes == [6, 3, 3]
    torch.testing.assert_close(found, expected.gradients["mlp_out", 1])


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(replay, "forward", fails_above(0, RuntimeError("shapes cannot be multiplied"), sizes))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate(llama(), sweep(), all_logits)
    assert sizes == [36]


def test_what_a_measure_sees_has_no_gradient():
    def measure(logits: Tensor, _: Any) -> Tensor:
        assert not logits.requires_grad
        return logits.flatten(1)

    evaluate(llama(), sweep()[:2], measure)


# Edits that cannot be made.


def test_an_edit_of_a_layer_that_is_not_there_is_an_error():
    message = "An edit is at resid_post of layer 4 at position 3, but llama has 4 layers: 0 to 3."
    with pytest.raises(InvalidEdit, match=message):
        evaluate(llama(), [single(CORRUPT, CLEAN, "resid_post", 4, 3)], all_logits)


def test_a_tensor_of_the_wrong_size_is_an_error():
    edit = Edit(Site("mlp_out", 2, 3), Given(torch.zeros(31)))
    message = r"mlp_out of layer 2 at position 3 holds 32 numbers; the tensor given has shape \(31,\)\."
    with pytest.raises(InvalidEdit, match=message):
        evaluate(llama(), [World(Run(CLEAN), (edit,), (8,))], all_logits)


def test_a_component_that_the_model_does_not_have_is_an_error():
    with pytest.raises(ComponentNotOffered, match="resid_mid is not offered on this model"):
        evaluate(shared("gpt_neox"), [single(CORRUPT, CLEAN, "resid_mid", 1, 3)], all_logits)


# How few runs share a forward.


def forwards(monkeypatch, module: Any) -> list[int]:
    """How many rows each forward of this module has from now on."""
    sizes: list[int] = []
    monkeypatch.setattr(module, "forward", fails_above(1000, MemoryError(), sizes))
    return sizes


@pytest.mark.parametrize("component", ["resid_post", "attn_out", "mlp_out", "z", "neurons"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "granite"])
def test_donors_of_few_worlds_are_rows_beside_them(monkeypatch, name, component):
    """A single forward, and the numbers of bare hooks that write what another forward left behind."""
    model = shared(name)
    worlds = [single(CORRUPT, CLEAN, component, layer, 5) for layer in LAYERS]
    beside, recorded = forwards(monkeypatch, replay), forwards(monkeypatch, recording)
    found = evaluate(model, worlds, all_logits, prune=False).values
    assert (beside, recorded) == ([1 + len(LAYERS)], [])
    alone = np.concatenate([evaluate(model, [world], all_logits, prune=False).values for world in worlds])
    assert recorded == [1] * len(LAYERS)
    assert_allclose(found, alone, rtol=0, atol=TOLERANCE * np.abs(alone).max())
    if component in PATCHED_BY_HAND:
        bare = Bare(model.network, PATHS.get(name, Paths()))
        for layer, values in zip(LAYERS, found, strict=True):
            by_hand = bare.patched(CORRUPT, bare.donor(CLEAN, component, layer), component, layer)[5].ravel()
            assert_allclose(values, by_hand, rtol=0, atol=TOLERANCE * np.abs(by_hand).max())
    assert np.abs(found[0] - found[1]).max() > 1e-4


@pytest.mark.parametrize(
    "donor",
    [
        From(Run(CLEAN[:5]), 3),
        From(Run(CLEAN, (Edit(Site("resid_post", 0, 3), Given((0.5,) * 32)),)), 3),
    ],
    ids=["of another length", "with edits of its own"],
)
def test_other_donors_are_recorded_before(monkeypatch, donor):
    recorded = forwards(monkeypatch, recording)
    worlds = [World(Run(CORRUPT), (Edit(Site("resid_post", layer, 3), donor),), (8,)) for layer in (1, 2)]
    evaluate(llama(), worlds, all_logits, prune=False)
    assert recorded == [1]


def test_donors_inside_attention_are_recorded_before(monkeypatch):
    recorded = forwards(monkeypatch, recording)
    evaluate(llama(), [single(CORRUPT, CLEAN, "v", layer, 3) for layer in (1, 2)], all_logits, prune=False)
    assert recorded == [1]


def test_the_head_gets_the_states_of_many_rows_in_one_piece():
    """A view of all tokens' states would have the whole head read once for every row."""
    seen: dict[int, bool] = {}
    head = llama().network.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, args, __: seen.update({len(args[0]): args[0].is_contiguous()}))
    worlds = [World(world.base, world.edits, (8,)) for world in sweep()]
    try:
        for count in (3, 36):
            evaluate(llama(), worlds[:count], all_logits, prune=False)
    finally:
        handle.remove()
    assert seen[36]
    assert not seen[4]  # three, and their donor: here the view is faster
