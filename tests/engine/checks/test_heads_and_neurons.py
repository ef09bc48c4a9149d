"""Heads and neurons: equal to bare hooks, equal to the components that they are parts of, on either engine."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn

from bare_hooks import Change, attention_written_out
from causal_tracing.engine.checks.agreement import choose
from causal_tracing.engine.checks.check import check, prove
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.record import record
from causal_tracing.engine.memory import sizes
from causal_tracing.errors import ComponentNotOffered, InvalidEdit, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Given, Mean, Plus, Run, Source, Subspace, World, Zero
from causal_tracing.interventions.sites import ATTENTION, MEDIATORS, Site
from causal_tracing.models.model import Model
from loaded import SOME, examined, fresh, ids, shared

LAYERS, LENGTH, D_HEAD = 4, 7, 8
CLEAN = (5, 17, 42, 11, 60, 33, 8)
CORRUPT = (5, 23, 42, 11, 71, 33, 8)  # differs at 1 and 4
TOLERANCE = 1e-4  # logits, float32
# Without heads' outputs that go into one projection; without an MLP that is known, or with experts in its place.
NO_Z = ("qwen3_next", "mamba")
HYBRIDS = ("qwen3_next",)  # of which some layers attend
NO_NEURONS = (*NO_Z, "deepseek_v3", "mixtral", "qwen3_moe", "gpt_oss")


def flat(logits: Tensor, _: Any) -> Tensor:
    return logits.flatten(1)


def values(model: Model, worlds: list[World], engine: str) -> np.ndarray:
    return evaluate(model, worlds, flat, engine=engine, prune=False).values


def world(site: Site, source: Source | None = None, readout: tuple[int, ...] = (LENGTH - 1,)) -> World:
    return World(Run(CORRUPT), (Edit(site, source or From(Run(CLEAN), site.position)),), readout)


# Laws 7 to 9 on every family: heads are the attention, neurons the MLP, queries and keys the pattern; both engines.


@pytest.mark.parametrize(("family", "attention"), SOME, ids=ids(SOME))
def test_heads_and_neurons_are_what_they_are_parts_of(family, attention):
    found = examined(family.name, attention)
    asked = found.model.anatomy.asked_for
    model, proved = prove(found.model, (*asked, ATTENTION) if "pattern" in asked else asked)
    offered, findings = set(model.anatomy.mediators), (*found.findings, *proved)
    own_attention = not family.packed and family.name not in HYBRIDS
    expected = set(MEDIATORS)
    expected -= {"q", "k", "v", "pattern"} if own_attention else set()
    expected -= {"z"} if family.name in NO_Z else set()
    expected -= {"neurons"} if family.name in NO_NEURONS else set()
    assert offered == expected
    failed = {finding.name for finding in findings if not finding.holds} - {"packed = replay"}
    assert failed == ({"pattern and v = z"} if family.name in HYBRIDS else set())  # a gate stands behind its heads
    names = {finding.name for finding in findings}
    assert ("q and k = pattern" in names) == ("pattern" in offered)
    assert ("pattern and v = z" in names - failed) == ({"pattern", "z"} <= offered)
    if family.name not in HYBRIDS:
        assert ("z = attn_out" in names) == ({"z", "attn_out"} <= {*offered, *model.anatomy.components})
    assert ("neurons = mlp_out" in names) == ("neurons" in offered)


# Bare hooks, written here: nothing of the package patches.

PROJECTIONS = {
    "llama": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
    "gemma2": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "falcon": ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
}


@cache
def input_of(network: nn.Module, path: str, tokens: tuple[int, ...]) -> Tensor:
    seen: list[Tensor] = []
    handle = network.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        network(input_ids=torch.tensor([tokens]), use_cache=False)
    handle.remove()
    return seen[0].reshape(len(tokens), -1)


def with_input(network: nn.Module, path: str, position: int, columns: slice, donor: Tensor) -> np.ndarray:
    def write(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = args[0].reshape(LENGTH, -1).clone()
        changed[position, columns] = donor[position, columns]
        return (changed.reshape(args[0].shape), *args[1:])

    handle = network.get_submodule(path).register_forward_pre_hook(write)
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([CORRUPT]), use_cache=False).logits
    handle.remove()
    return logits[0, -1].double().numpy()


@cache
def with_unit(network: nn.Module, path: str, position: int, unit: int, width: int) -> np.ndarray:
    """The clean run's head or neuron in the corrupt run: the same for both engines."""
    columns = slice(unit * width, (unit + 1) * width)
    return with_input(network, path, position, columns, input_of(network, path, CLEAN))


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("component", ["z", "neurons"])
def test_heads_and_neurons_equal_bare_hooks(name, component, engine):
    if name == "falcon" and engine == "packed":
        pytest.skip("falcon's attention is its own: it is not packed")
    model = shared(name)
    path = PROJECTIONS[name][1 if component == "z" else 2]
    width = 1 if component == "neurons" else D_HEAD
    chosen = range(0, model.parts(component), 1 if component == "z" else 13)
    sites = [Site(component, layer, p, unit) for layer, p, unit in product(range(LAYERS), (1, 3, 6), chosen)]
    found = values(model, [world(site) for site in sites], engine)
    largest = 0.0
    for site, got in zip(sites, found, strict=True):
        full = f"{PROJECTIONS[name][0]}.{site.layer}.{path}"
        by_hand = with_unit(model.network, full, site.position, site.part or 0, width)
        assert_allclose(got, by_hand, rtol=0, atol=TOLERANCE)
        largest = max(largest, np.abs(by_hand - found[0]).max())
    assert largest > 0.01


def inside(network: Any, tokens: tuple[int, ...], change: Change) -> np.ndarray:
    with attention_written_out(network, change), torch.no_grad():
        return network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double().numpy()


@cache
def attended_by_hand(name: str, component: str) -> dict[Site, np.ndarray]:
    """What the corrupt run gives with each of the clean run's heads by hand: the same for both engines."""
    model = shared(name)
    donors: dict[int, Tensor] = {}

    def look(layer: int, name: str, seen: Tensor) -> Tensor:
        if name == component:
            donors[layer] = seen[0].clone()
        return seen

    inside(model.network, CLEAN, look)
    found = {}
    for layer, p, unit in product(range(LAYERS), (1, 4, 6), range(model.parts(component))):

        def patch(at: int, name: str, seen: Tensor, layer: int = layer, p: int = p, unit: int = unit) -> Tensor:
            if (at, name) != (layer, component):
                return seen
            changed = seen.clone()
            changed[0, unit, p] = donors[layer][unit, p]
            return changed

        found[Site(component, layer, p, unit)] = inside(model.network, CORRUPT, patch)
    return found


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gpt_neox", "phi"])
@pytest.mark.parametrize("component", ["q", "k", "v", "pattern"])
def test_what_attention_sees_equals_an_attention_by_hand(name, component, engine):
    expected = attended_by_hand(name, component)
    found = values(shared(name), [world(site) for site in expected], engine)
    for got, by_hand in zip(found, expected.values(), strict=True):
        assert_allclose(got, by_hand, rtol=0, atol=TOLERANCE)
    assert np.ptp(found, axis=0).max() > 0.01


# Law 10: a key or value head that several query heads share reaches those, and no others.


@pytest.mark.parametrize("component", ["k", "v"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_a_shared_head_reaches_its_own_query_heads(name, component):
    model = shared(name)
    assert (model.parts("q"), model.parts(component)) == (4, 2)
    plain = record(model, [Run(CORRUPT)], [("z", 1)])[Run(CORRUPT)].activations["z", 1]
    for unit in range(2):
        edits = tuple(Edit(Site(component, 1, p, unit), From(Run(CLEAN), p)) for p in range(LENGTH))
        run = Run(CORRUPT, edits)
        z = record(model, [run], [("z", 1)])[run].activations["z", 1]
        moved = (z - plain).abs().amax(0).view(4, -1).amax(-1) > 1e-4
        assert moved.tolist() == [unit == 0, unit == 0, unit == 1, unit == 1]


# The other sources, in the stream and in heads, against bare hooks.


def sources() -> dict[str, tuple[Source, Callable[[Tensor, Callable[[tuple[int, ...]], Tensor]], Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    tensor, basis = torch.randn(D_HEAD, generator=generator), torch.randn(2, D_HEAD, generator=generator)
    others = (CLEAN, CORRUPT[::-1])

    def within(here: Tensor, donor: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        solved = torch.linalg.lstsq(basis.T, donor(CLEAN) - here).solution  # the part that the basis can express
        return here + basis.T @ solved

    return {
        "zero": (Zero(), lambda here, _: torch.zeros_like(here)),
        "mean": (
            Mean(tuple(From(Run(tokens), 4) for tokens in others)),
            lambda _, donor: (donor(others[0]) + donor(others[1])) / 2,
        ),
        "given": (Given(tensor), lambda _, __: tensor),
        "plus": (Plus(tensor), lambda here, _: here + tensor),
        "subspace": (Subspace(basis, From(Run(CLEAN), 4)), within),
        "resampled": (From(Run(others[1]), 4), lambda _, donor: donor(others[1])),
    }


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("kind", sources())
def test_every_source_equals_bare_hooks(kind, alpha, engine):
    source, by_hand = sources()[kind]
    model, path, head = shared("llama"), "model.layers.2.self_attn.o_proj", slice(D_HEAD, 2 * D_HEAD)
    here = input_of(model.network, path, CORRUPT)[4, head]
    wanted = by_hand(here, lambda tokens: input_of(model.network, path, tokens)[4, head])
    donor = torch.zeros(LENGTH, 4 * D_HEAD)
    donor[4, head] = (1 - alpha) * here + alpha * wanted
    expected = with_input(model.network, path, 4, head, donor)
    made = World(Run(CORRUPT), (Edit(Site("z", 2, 4, 1), source, alpha),), (LENGTH - 1,))
    assert_allclose(values(model, [made], engine)[0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_noise_in_the_embedding_equals_bare_hooks(name, engine):
    model = shared(name)
    noise = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    noised = Run(CLEAN, tuple(Edit(Site("embed", 0, p), Plus(noise[n])) for n, p in enumerate((2, 3))))
    worlds = [World(noised, (), (LENGTH - 1,))]
    worlds += [
        World(noised, (Edit(Site("resid_post", layer, p), From(Run(CLEAN), p)),), (LENGTH - 1,))
        for layer, p in product(range(LAYERS), range(LENGTH))
    ]
    found = values(model, worlds, engine)

    def add(_: Any, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[0, 2:4] += noise
        return changed

    layers: Any = model.network.get_submodule("transformer.h" if name == "gpt2" else "model.layers")
    clean = {}
    for layer in range(LAYERS):
        handle = layers[layer].register_forward_hook(
            lambda _, __, out, layer=layer: clean.__setitem__(
                layer, (out[0] if isinstance(out, tuple) else out).clone()
            )
        )
        with torch.no_grad():
            model.network(input_ids=torch.tensor([CLEAN]), use_cache=False)
        handle.remove()
    expected = []
    for layer, p in [(None, None), *product(range(LAYERS), range(LENGTH))]:
        handles = [model.network.get_input_embeddings().register_forward_hook(add)]
        if layer is not None:

            def restore(_: Any, __: Any, out: Any, layer: int = layer, p: int = p) -> Any:
                changed = (out[0] if isinstance(out, tuple) else out).clone()
                changed[:, p] = clean[layer][:, p]
                return (changed, *out[1:]) if isinstance(out, tuple) else changed

            handles.append(layers[layer].register_forward_hook(restore))
        with torch.no_grad():
            expected.append(model.network(input_ids=torch.tensor([CLEAN]), use_cache=False).logits[0, -1].numpy())
        for handle in handles:
            handle.remove()
    assert_allclose(found, np.array(expected), rtol=0, atol=TOLERANCE)
    assert np.abs(found - found[0]).max() > 0.1


# What cannot matter is dropped, and is zero where it is run.


def test_pruned_mediators_are_zero_where_they_are_run():
    model, _ = prove(shared("llama"), MEDIATORS)
    layers = {"q": (3,), "pattern": (3,), "z": (3,), "neurons": (3,), "k": (), "v": ()}
    dropped = [Site(name, layer, 4, 1) for name, which in layers.items() for layer in which]  # away from the readout
    dropped += [Site(name, 0, 3, 1) for name in ("q", "k", "v")]  # tokens that are equal
    dropped += [Site(name, 2, 0, 1) for name in MEDIATORS]  # before the first difference
    kept = [Site("k", 3, 4, 1), Site("v", 3, 4, 1), Site("z", 3, 6, 1), Site("q", 0, 4, 1), Site("z", 0, 3, 1)]
    worlds = [World(Run(CORRUPT), (), (LENGTH - 1,)), *map(world, (*dropped, *kept))]
    found = evaluate(model, worlds, flat, engine="packed")
    assert found.structural_zero.tolist() == [False, *[True] * len(dropped), *[False] * len(kept)]
    for engine in ("packed", "replay"):
        ran = values(model, worlds, engine)
        assert_allclose(ran[1 : len(dropped) + 1], np.repeat(ran[:1], len(dropped), 0), rtol=0, atol=1e-5)
        assert (np.abs(ran[len(dropped) + 1 :] - ran[0]).max(1) > 1e-3).all()


def test_a_neuron_costs_its_own_token():
    model, seen = shared("llama"), []
    worlds = [world(Site("neurons", 2, 4, unit)) for unit in range(model.parts("neurons"))]
    known = sizes(model, 2**26)  # measured by runs of its own
    handle = model.part(2, "mlp").register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1].numel()))
    with patch("causal_tracing.engine.packed.engine.sizes", lambda *_: known):
        evaluate(model, worlds, flat, engine="packed")
    handle.remove()
    assert sum(seen) == 2 * LENGTH + len(worlds)  # both recorded runs, then a token a world


def test_its_own_activations_change_nothing_to_the_bit():
    model, run = shared("llama"), Run(CLEAN)
    sites = [Site(name, 2, 4, 1) for name in MEDIATORS]
    worlds = [
        World(run, (), (LENGTH - 1,)),
        *(World(run, (Edit(site, From(run, 4)),), (LENGTH - 1,)) for site in sites),
    ]
    found = evaluate(model, worlds, flat, engine="replay", prune=False).values
    assert_array_equal(found, np.repeat(found[:1], len(found), 0))


# What is not possible is said.


def test_what_cannot_be_edited_is_said():
    donor = From(Run(CLEAN), 2)
    with pytest.raises(InvalidEdit, match=r"Two edits of one run write at the same site: z \(head 1\) of layer 0"):
        Run(CORRUPT, (Edit(Site("z", 0, 2), donor), Edit(Site("z", 0, 2, 1), donor)))
    with pytest.raises(InvalidOption, match="resid_pre has no heads, neurons or experts: leave part=3 out"):
        Site("resid_pre", 0, 2, 3)
    with pytest.raises(InvalidEdit, match="noise belongs to its base run"):
        World(Run(CORRUPT), (Edit(Site("embed", 0, 2), Zero()),), (6,))
    with pytest.raises(InvalidEdit, match="A mean needs at least one donor"):
        Mean(())
    with pytest.raises(ComponentNotOffered, match="neurons is not offered on this model .*mixture of experts"):
        evaluate(shared("mixtral"), [world(Site("neurons", 0, 1, 0))], flat)
    with pytest.raises(ComponentNotOffered, match="q is not offered .* replaceable attention function"):
        evaluate(shared("bloom"), [world(Site("q", 0, 1, 0))], flat)
    longer = From(Run((*CLEAN, 9)), 2)
    with pytest.raises(InvalidEdit, match="patterns can be exchanged between prompts of equally many tokens only"):
        evaluate(shared("llama"), [world(Site("pattern", 0, 2, 0), longer)], flat, engine="packed")
    assert choose(shared("llama"), ["z"]).engine == "packed"


def test_a_projection_of_zeros_in_one_layer_takes_the_others_heads_and_neurons_from_nobody():
    model = fresh("llama")
    with torch.no_grad():
        for path in ("mlp.down_proj.weight", "self_attn.o_proj.weight"):
            model.layers[2].get_parameter(path).zero_()
    found = {each.component: each for each in check(model).findings if "random write" in each.name}
    assert found["z"].holds
    assert found["neurons"].holds
