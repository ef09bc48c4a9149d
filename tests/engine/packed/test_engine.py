"""The packed engine: equal to bare hooks on every family, thrifty, and used where it agrees."""

from contextlib import ExitStack
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor, nn

from bare_hooks import PATHS, Bare, Paths
from causal_tracing.engine.checks.agreement import choose
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.memory import sizes
from causal_tracing.engine.packed import engine as packed
from causal_tracing.engine.packed.schedule import groups
from causal_tracing.errors import CannotPack, OutOfMemory
from causal_tracing.interventions.edits import Edit, From, Given, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from families import Family
from loaded import CASES, SOME, fresh, ids, shared

LAYERS = 4
TOLERANCE = 1e-4  # logits, float32
MIXES_ELSEWHERE = ("falcon_h1",)  # attention is replaceable, but a state space mixes tokens beside it
PACKED = [case for case in CASES if case[0].packed and case[0].name not in MIXES_ELSEWHERE]
SOME_PACKED = [case for case in PACKED if case in SOME]
OTHERS_PACKED = [case for case in PACKED if case not in SOME]


def llama() -> Model:
    return shared("llama")


def prompts(length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two prompts that differ at the second token, in the middle, and near the end, within the shortest window."""
    one = torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    other = list(one)
    for position in {1, length // 2, max(1, length - 3)}:
        other[position] = 3 + (one[position] + 6) % 94
    return tuple(one), tuple(other)


def flat(logits: Tensor, _: Any) -> Tensor:
    return logits.flatten(1)


def single(base: tuple[int, ...], donor: tuple[int, ...], site: Site, readout: tuple[int, ...]) -> World:
    return World(Run(base), (Edit(site, From(Run(donor), site.position)),), readout)


# Law 31: packed ≡ replay ≡ bare hooks.


# The longest behind every window, and behind the 16 positions that gpt_oss's were stretched from.
@pytest.mark.parametrize("length", [2, 9, 24])
@pytest.mark.parametrize(("family", "attention"), SOME_PACKED, ids=ids(SOME_PACKED))
def test_packed_equals_bare_hooks(family, attention, length):
    assert_packed_equals_bare_hooks(family, attention, length)


# Each attention of the other families once, longer than the windows.
@pytest.mark.parametrize(("family", "attention"), OTHERS_PACKED, ids=ids(OTHERS_PACKED))
def test_packed_equals_bare_hooks_with_other_attention(family, attention):
    assert_packed_equals_bare_hooks(family, attention, 9)


def assert_packed_equals_bare_hooks(family: Family, attention: str, length: int) -> None:
    model = shared(family.name, attention)
    bare = Bare(model.network, PATHS.get(family.name, Paths()))
    clean, corrupt = prompts(length)
    largest = 0.0
    ways = ((corrupt, clean), (clean, corrupt))
    for base, donor in ways if length == 9 else ways[:1]:  # which prompt is whose donor has no part in lengths
        places = list(product(model.anatomy.components, range(LAYERS)))
        worlds = [single(base, donor, Site(*place, p), (length - 1,)) for place in places for p in range(length)]
        found = evaluate(model, worlds, flat, engine="packed").values.reshape(len(places), length, -1)
        plain = bare.run(base)[0, -1]
        for (component, layer), values in zip(places, found, strict=True):
            by_hand = bare.patched(base, bare.donor(donor, component, layer), component, layer)[:, -1]
            assert_allclose(values, by_hand, rtol=0, atol=TOLERANCE)
            largest = max(largest, np.abs(by_hand - plain).max())
    assert largest > 0.1


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "gpt_neox", "gpt_oss", "mixtral"])
def test_every_readout_is_right(name):
    model, (clean, corrupt) = shared(name), prompts(9)
    bare = Bare(model.network, PATHS.get(name, Paths()))
    places = list(product(model.anatomy.components, (0, 2, 3)))
    by_hand = [bare.patched(corrupt, bare.donor(clean, *place), *place) for place in places]
    for readout in ((8,), (3, 7), (2, 4, 5, 8), tuple(range(9))):
        worlds = [single(corrupt, clean, Site(*place, p), readout) for place in places for p in range(9)]
        found = evaluate(model, worlds, flat, engine="packed", prune=False).values
        for values, expected in zip(found.reshape(len(places), 9, len(readout), -1), by_hand, strict=True):
            assert_allclose(values, expected[:, list(readout)], rtol=0, atol=TOLERANCE)


COMPONENTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
TOKENS = [prompts(9)[0], prompts(9)[1], prompts(12)[0], prompts(5)[1]]
SITES = st.tuples(st.sampled_from(COMPONENTS), st.integers(0, LAYERS - 1), st.integers(0, 4))
SOURCES = st.tuples(st.sampled_from(TOKENS), st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0]))
EDITS = st.dictionaries(SITES, SOURCES, max_size=5)
WORLDS = st.tuples(st.sampled_from(TOKENS), EDITS, EDITS, st.sampled_from([(4,), (1, 4), (0, 2, 3)]))


def make_world(tokens: tuple[int, ...], before: Any, after: Any, readout: tuple[int, ...]) -> World:
    """A world whose base run has edits too; of two edits at one place the later one is made."""
    made: dict[Site, tuple[bool, Edit]] = {}
    for own, edits in ((False, before), (True, after)):
        for site, (donor, position, alpha) in edits.items():
            made[Site(*site).place] = own, Edit(Site(*site), From(Run(donor), position), alpha)
    base = Run(tokens, tuple(edit for own, edit in made.values() if not own))
    return World(base, tuple(edit for own, edit in made.values() if own), readout)


# Many worlds at once: a batch of one takes as long as one of twenty.
@settings(derandomize=True, max_examples=15, deadline=None)
@given(described=st.lists(WORLDS, min_size=12, max_size=30), prune=st.booleans(), rows=st.sampled_from([None, 2, 5]))
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_packed_equals_replay_on_random_worlds(name, described, prune, rows):
    model, worlds = shared(name), [make_world(*world) for world in described]

    def padded(logits: Tensor, _: Any) -> Tensor:
        return nn.functional.pad(logits.flatten(1), (0, (3 - logits.shape[1]) * logits.shape[2]))

    replayed = evaluate(model, worlds, padded, engine="replay", prune=False).values
    found = evaluate(model, worlds, padded, engine="packed", prune=prune, rows=rows, budget=None if prune else 1)
    assert_allclose(found.values, replayed, rtol=0, atol=TOLERANCE)


def test_given_tensors_and_layers_scales():
    model, (clean, _) = shared("granite"), prompts(9)
    given_tensor = Given(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    worlds = [
        World(Run(clean), (Edit(Site(component, layer, 3), given_tensor, 0.5),), (8,))
        for component, layer in product(model.anatomy.components, range(LAYERS))
    ]
    replayed = evaluate(model, worlds, flat, engine="replay").values
    assert_allclose(evaluate(model, worlds, flat, engine="packed").values, replayed, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3), (torch.float64, 1e-13)], ids=str
)
def test_other_types_of_numbers(dtype, bound):
    model = fresh("llama", dtype=dtype)
    assert choose(model, COMPONENTS).engine == "packed"
    clean, corrupt = prompts(9)
    worlds = [single(corrupt, clean, Site(c, layer, p), (8,)) for c, layer, p in product(COMPONENTS, range(4), (1, 4))]
    replayed = evaluate(model, worlds, flat, engine="replay").values
    found = evaluate(model, worlds, flat, engine="packed").values
    assert np.abs(found - replayed).max() <= bound * np.abs(replayed).max()


# Never compute what a patch cannot change.


def tokens_by_layer(model: Model, worlds: list[World]) -> list[int]:
    """How many tokens each layer's MLP works on; recorded runs, and those by which memory is measured, left out."""
    seen = [0] * LAYERS
    known = sizes(model, 2**26)
    handles = [
        model.part(number, "mlp").register_forward_hook(
            lambda _, args, __, number=number: seen.__setitem__(number, seen[number] + args[0].shape[:-1].numel())
        )
        for number in range(LAYERS)
    ]
    with patch("causal_tracing.engine.packed.engine.sizes", lambda *_: known):
        evaluate(model, worlds, flat, engine="packed")
    for handle in handles:
        handle.remove()
    recorded = len(dict.fromkeys(run for world in worlds for run in (world.base, *donors(world))))
    return [count - recorded * len(worlds[0].base.tokens) for count in seen]


def donors(world: World) -> list[Run]:
    return [edit.source.run for edit in world.edits if isinstance(edit.source, From)]


def test_only_what_can_change_is_computed():
    clean, corrupt = prompts(9)  # they differ from position 1 on: 8 positions, with 8, 7, ... 1 tokens behind them
    stream = [single(corrupt, clean, Site("resid_post", layer, p), (8,)) for layer in range(4) for p in range(9)]
    # Layer l computes the worlds of the layers before it, 36 tokens each; the last one what is read: a token a world.
    assert tokens_by_layer(llama(), stream) == [0, 36, 72, 3 * 8]
    inside = [single(corrupt, clean, Site("mlp_out", layer, p), (8,)) for layer in range(4) for p in range(9)]
    # Besides, each layer computes the token that is edited in it; in the last layer only the one that is read.
    assert tokens_by_layer(llama(), inside) == [8, 36 + 8, 72 + 8, 3 * 8 + 1]
    readout = [single(corrupt, clean, Site("resid_pre", 1, 3), (5,))]
    assert tokens_by_layer(llama(), readout) == [0, 3, 3, 1]


def test_the_plan_counts_what_is_computed():
    clean, corrupt = prompts(9)
    worlds = [
        single(corrupt, clean, Site(component, layer, p), readout)
        for component, layer, p, readout in product(COMPONENTS, range(4), (2, 4, 7), ((8,), (5, 8)))
        if p != 7 or layer < 3  # else it is pruned
    ]
    planned = groups(worlds, range(len(worlds)), {Run(corrupt): 0}, LAYERS, 0)
    counted = [sum(group.rows(layer, LAYERS - 1) for group in planned) for layer in range(LAYERS)]
    known = sizes(llama(), 2**26)
    seen = [0] * LAYERS
    handles = [
        llama()
        .part(number, "mlp")
        .register_forward_hook(
            lambda _, args, __, number=number: seen.__setitem__(number, seen[number] + args[0].shape[:-1].numel())
        )
        for number in range(LAYERS)
    ]
    with patch("causal_tracing.engine.packed.engine.sizes", lambda *_: known):
        evaluate(llama(), worlds, flat_first, engine="packed", prune=False)
    for handle in handles:
        handle.remove()
    assert [count - 2 * 9 for count in seen] == counted


def flat_first(logits: Tensor, _: Any) -> Tensor:
    return logits[:, 0]


# Memory that runs out.


def test_a_wave_that_does_not_fit_is_halved(monkeypatch):
    clean, corrupt = prompts(9)
    worlds = [single(corrupt, clean, Site("resid_post", layer, p), (8,)) for layer in range(3) for p in range(1, 9)]
    expected = evaluate(llama(), worlds, flat, engine="packed").values
    sizes, whole = [], packed.groups  # pyright: ignore[reportPrivateImportUsage]

    def limited(*args: Any) -> Any:
        sizes.append(len(args[1]))
        if len(args[1]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return whole(*args)

    monkeypatch.setattr(packed, "groups", limited)
    found = evaluate(llama(), worlds, flat, engine="packed").values
    assert sizes[:3] == [24, 12, 6]
    assert sum(size for size in sizes if size <= 5) == 24
    assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_one_world_that_does_not_fit_is_an_error(monkeypatch):
    def never(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(packed, "groups", never)
    clean, corrupt = prompts(9)
    with pytest.raises(OutOfMemory, match="A single run of 9 tokens does not fit"):
        evaluate(llama(), [single(corrupt, clean, Site("resid_post", 0, 3), (8,))] * 2, flat, engine="packed")


# The check that decides.


@pytest.mark.parametrize(("family", "attention"), CASES, ids=ids(CASES))
def test_the_engine_is_chosen_by_what_it_gives(family, attention):
    model = shared(family.name, attention)
    choice = choose(model, model.anatomy.components)
    assert choice.engine == ("packed" if (family, attention) in PACKED else "replay")
    assert (choice.note is None) == (choice.engine == "packed")


def test_a_model_that_mixes_tokens_elsewhere_ends_on_replay_with_the_difference():
    model = shared("falcon_h1")
    note = choose(model, ["resid_post"]).note or ""
    assert "its logits differ from replay's by" in note
    assert "Replay is, which is slower." in note
    with pytest.raises(CannotPack, match=r"does not run falcon_h1: on a prompt of 6 tokens .* Use engine='replay'"):
        choose(model, ["resid_post"], "packed")
    assert choose(model, ["resid_post"], "replay").note is None


def test_own_attention_is_said():
    note = choose(shared("bloom"), ["resid_post"]).note or ""
    assert "layer 0 does not attend by transformers' replaceable attention function." in note


def test_a_hook_that_knows_positions_is_noticed():
    model = fresh("llama")
    assert choose(model, ["resid_post"]).engine == "packed"

    def third_token(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, 2] += 1
        return changed

    handle = model.layers[1].register_forward_hook(third_token)
    assert choose(model, ["resid_post"]).engine == "replay"
    handle.remove()
    assert choose(model, ["resid_post"]).engine == "packed"


def test_another_attention_implementation_is_used_where_the_user_sets_it():
    model = fresh("llama")
    model.network.set_attn_implementation("eager")
    assert choose(model, ["resid_post"]).engine == "packed"
    clean, corrupt = prompts(9)
    worlds = [single(corrupt, clean, Site("resid_post", 1, p), (8,)) for p in range(1, 9)]
    replayed = evaluate(model, worlds, flat, engine="replay").values
    assert_allclose(evaluate(model, worlds, flat, engine="packed").values, replayed, rtol=0, atol=TOLERANCE)
    assert model.network.config._attn_implementation == "eager"


# What a GPU would wait for.


WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")


def test_nothing_waits_for_the_device_in_the_layers_of_a_wave():
    """The processor asks for no number while it hands out work: what a sweep patches is known without."""
    clean, corrupt = prompts(9)
    where = product(("resid_post", "mlp_out", "k", "z"), range(LAYERS), range(1, 9), ((8,), (5, 8)))
    worlds = [
        single(corrupt, clean, Site(name, layer, p, 1 if name in ("k", "z") else None), read)
        for name, layer, p, read in where
    ]
    worlds += [World(Run(corrupt), (Edit(Site("resid_post", 1, 3), Given(torch.ones(32))),), (8,))]
    run, waits = packed.Packed(llama(), worlds, 2**26), []
    through = packed.Wave.run

    def counted(name: str) -> Any:
        real = getattr(Tensor, name)

        def asked(self: Tensor, *given: Any, **options: Any) -> Any:
            waits.append(name)
            return real(self, *given, **options)

        return asked

    def watched(wave: packed.Wave, tick: Any) -> Any:
        with ExitStack() as stack:
            for name in WAITS:
                stack.enter_context(patch.object(Tensor, name, counted(name)))
            found = list(through(wave, tick))
            assert waits == []
            assert torch.ones(1).item() == 1.0  # it counts
        return iter(found)

    with patch.object(packed.Wave, "run", watched):
        found = [numbers for batch in run.batches() for numbers, _ in run.logits(batch)]
    assert sorted(number for numbers in found for number in numbers) == [*range(len(worlds))]
    assert waits == ["item"] * len([*run.batches()])
