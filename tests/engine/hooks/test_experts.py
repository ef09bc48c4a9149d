"""Experts of mixtures, recorded and patched, against bare hooks that call the model's own experts by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from causal_tracing.engine.checks.check import accept, prove
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.gradients import gradients
from causal_tracing.engine.hooks.record import record
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Given, Mean, Plus, Run, Source, World, Zero
from causal_tracing.interventions.sites import MIXTURE, Site
from causal_tracing.models.model import Model
from loaded import BY_NAME, WORDS, shared
from model_types.recipes import build

CLEAN = (5, 17, 42, 11, 20, 33, 8)
CORRUPT = (5, 23, 42, 11, 31, 33, 8)  # differs at 1 and 4
AT, EXPERTS = 4, 4
# By type: the layers, and in a layer the MLP and the experts in it. Most of the first ones have no experts.
USUAL = ("model.layers", "mlp", "mlp.experts")
WHERE = {
    "mixtral": USUAL,
    "qwen3_moe": USUAL,
    "gpt_oss": USUAL,
    "deepseek_v3": USUAL,
    "qwen2_moe": USUAL,
    "olmoe": USUAL,
    "phimoe": USUAL,
    "glm4_moe": USUAL,
    "deepseek_v2": USUAL,
    "dbrx": ("transformer.blocks", "ffn", "ffn.experts"),
    "granitemoe": ("model.layers", "block_sparse_moe", "block_sparse_moe.experts"),
    "jamba": ("model.layers", "feed_forward", "feed_forward.experts"),
}
BESIDE = ("deepseek_v3", "qwen2_moe", "glm4_moe", "deepseek_v2")  # with experts that every token passes
FEW = ("mixtral", "deepseek_v3", "dbrx")


@cache
def model_of(name: str) -> Model:
    return shared(name) if name in BY_NAME else accept(build(name), WORDS, name=name)


def layer_of(name: str) -> int:
    """The last layer with experts that is not the last."""
    return {"jamba": 1}.get(name, 2)


# Bare hooks. `change(hidden, index, weights)` is what a layer's experts are called with; `add` changes what they give.

Calls = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@contextmanager
def experts_called(name: str, layer: int, change: Calls | None = None, add: Any = None) -> Iterator[Any]:
    layers, _, path = WHERE[name]
    module = model_of(name).network.get_submodule(f"{layers}.{layer}.{path}")
    seen: dict[str, Any] = {"module": module}

    def before(_: Any, args: Any) -> Any:
        args = change(*args) if change else args
        seen["call"] = tuple(each.detach().clone() for each in args)
        return args

    def after(_: Any, __: Any, output: Tensor) -> Tensor | None:
        seen["output"] = output.detach().clone()
        return add(output) if add else None

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def logits(name: str, tokens: tuple[int, ...], layer: int, **hooks: Any) -> tuple[Tensor, Any]:
    with experts_called(name, layer, **hooks) as seen, torch.no_grad():
        found = model_of(name).network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return found, seen


def part(seen: Any, expert: int) -> Tensor:
    """What one expert adds, at every token: the module called once more, with all other weights zero."""
    hidden, index, weights = seen["call"]
    with torch.no_grad():
        found = seen["module"].forward(hidden, index, weights * (index == expert))
    return found.reshape(len(CLEAN), -1)


def parts(seen: Any) -> Tensor:
    """[token, expert, d_model]"""
    return torch.stack([part(seen, expert) for expert in range(EXPERTS)], 1)


def added(change: Tensor) -> Callable[[Tensor], Tensor]:
    """Adds to what experts give at the patched token."""

    def add(output: Tensor) -> Tensor:
        flat = output.reshape(len(CLEAN), -1).clone()
        flat[AT] += change
        return flat.view(output.shape)

    return add


def put(where: int, value: Tensor) -> Calls:
    """One of the three arguments of experts, at the patched token, from elsewhere."""

    def change(*call: Tensor) -> tuple[Tensor, ...]:
        flat = [each.reshape(len(CLEAN), -1).clone() for each in call]
        flat[where][AT] = value.reshape(len(CLEAN), -1)[AT]
        return tuple(each.view(before.shape) for each, before in zip(flat, call, strict=True))

    return change  # pyright: ignore[reportReturnType]


def routed(donor: Any) -> Calls:
    """The donor's experts and their weights at the patched token."""
    _, index, weights = donor["call"]
    return lambda *call: put(2, weights)(*put(1, index)(*call))


# What the package makes of it.


def engines(name: str) -> list[str]:
    reason = model_of(name).agreement
    return ["replay"] if reason is None or reason.reason else ["replay", "packed"]


def evaluated(name: str, *edits: Edit, engine: str = "replay", prune: bool = False) -> Tensor:
    world = World(Run(CORRUPT), edits, tuple(range(len(CLEAN))))
    found = evaluate(model_of(name), [world], lambda each, _: each.flatten(1), engine=engine, prune=prune)
    return torch.tensor(found.values).view(len(CLEAN), -1).float()


def edit(component: str, layer: int, source: Source | None = None, expert: int | None = None) -> Edit:
    return Edit(Site(component, layer, AT, expert), source or From(Run(CLEAN), AT))


def agree(one: Tensor, other: Tensor) -> None:
    assert_close(one, other, atol=1e-4 * other.abs().max().item(), rtol=0)


@pytest.mark.parametrize("name", WHERE)
def test_parts_are_recorded_and_add_up_with_what_stands_beside_them(name):
    layer, model = layer_of(name), model_of(name)
    recorded = record(model, [Run(CLEAN)], [(each, layer) for each in MIXTURE])[Run(CLEAN)].activations
    _, seen = logits(name, CLEAN, layer)
    agree(recorded["experts", layer].view(len(CLEAN), EXPERTS, -1), parts(seen))
    agree(recorded["experts_in", layer], seen["call"][0].reshape(len(CLEAN), -1))
    for token, (index, weights) in enumerate(zip(*seen["call"][1:], strict=True)):
        expected = torch.zeros(EXPERTS).index_add(0, index.long(), weights.float())
        assert_close(recorded["router", layer][token].float(), expected)
    layers, mlp, _ = WHERE[name]
    outputs: list[Tensor] = []
    handle = model.network.get_submodule(f"{layers}.{layer}.{mlp}").register_forward_hook(
        lambda _, __, output: outputs.append((output[0] if isinstance(output, tuple) else output)[0])
    )
    logits(name, CLEAN, layer)
    logits(name, CLEAN, layer, change=lambda *call: (*call[:2], call[2] * 0))
    handle.remove()
    with_experts, without = (each.reshape(len(CLEAN), -1) for each in outputs)
    agree(parts(seen).sum(1) + without, with_experts)
    assert (without.abs().max() > 0.01) == (name in BESIDE)


@pytest.mark.parametrize("name", WHERE)
def test_an_expert_of_the_donor_is_what_bare_hooks_give(name):
    layer = layer_of(name)
    (_, base), (_, donor) = logits(name, CORRUPT, layer), logits(name, CLEAN, layer)
    changed = 0
    for expert in range(EXPERTS):
        change = part(donor, expert)[AT] - part(base, expert)[AT]
        expected, _ = logits(name, CORRUPT, layer, add=added(change))
        for engine in engines(name):
            agree(evaluated(name, edit("experts", layer, expert=expert), engine=engine), expected)
        changed += not torch.equal(expected, logits(name, CORRUPT, layer)[0])
    assert changed >= 2  # each token goes to two


@pytest.mark.parametrize("name", WHERE)
def test_routers_and_what_experts_read_are_what_bare_hooks_give(name):
    layer = layer_of(name)
    (unedited, _), (_, donor) = logits(name, CORRUPT, layer), logits(name, CLEAN, layer)
    router, _ = logits(name, CORRUPT, layer, change=routed(donor))
    read, _ = logits(name, CORRUPT, layer, change=put(0, donor["call"][0]))
    whole = put(0, donor["call"][0])
    both, _ = logits(name, CORRUPT, layer, change=lambda *call: routed(donor)(*whole(*call)))
    for engine in engines(name):
        agree(evaluated(name, edit("router", layer), engine=engine), router)
        agree(evaluated(name, edit("experts_in", layer), engine=engine), read)
        agree(evaluated(name, edit("experts", layer), engine=engine), both)
        agree(evaluated(name, edit("router", layer), edit("experts_in", layer), engine=engine), both)
        if name not in BESIDE and "mlp_out" in model_of(name).anatomy.components:
            agree(evaluated(name, edit("mlp_out", layer), engine=engine), both)
    sizes = [(each - unedited).abs().max() for each in (router, read, both, router - read)]
    assert min(sizes) > 1e-3 * unedited.abs().max()


@pytest.mark.parametrize("name", FEW)
def test_other_sources_are_written_into_parts(name):
    layer = layer_of(name)
    (_, base), (_, donor) = logits(name, CORRUPT, layer), logits(name, CLEAN, layer)
    expert = int(base["call"][1].reshape(len(CLEAN), -1)[AT][0])
    here, there = part(base, expert)[AT], part(donor, expert)[AT]
    given = torch.linspace(-1, 1, len(here))
    sources: dict[Source, Tensor] = {
        Zero(): -here,
        Given(given): given - here,
        Plus(given): given,
        Mean((From(Run(CLEAN), AT), From(Run(CORRUPT), AT))): (there - here) / 2,
    }
    for source, change in sources.items():
        expected, _ = logits(name, CORRUPT, layer, add=added(change))
        for engine in engines(name):
            agree(evaluated(name, edit("experts", layer, source, expert), engine=engine), expected)


@pytest.mark.parametrize("name", FEW)
def test_weights_of_more_experts_than_are_chosen_count_as_they_are(name):
    layer = layer_of(name)
    weights = torch.tensor([0.5, -0.25, 1.5, 0.125])

    def change(hidden: Tensor, index: Tensor, old: Tensor) -> tuple[Tensor, ...]:
        """All experts at the patched token; elsewhere those that were chosen, and others that count nothing."""
        count = len(CLEAN)
        every = torch.zeros(count, EXPERTS).scatter(1, index.reshape(count, -1).long(), old.reshape(count, -1).float())
        every[AT] = weights
        return hidden, torch.arange(EXPERTS).expand(count, -1).to(index), every.to(old)

    expected, _ = logits(name, CORRUPT, layer, change=change)
    for engine in engines(name):
        agree(evaluated(name, edit("router", layer, Given(weights)), engine=engine), expected)


def test_two_experts_and_a_layer_behind_are_patched_in_one_world():
    one, other = (edit("experts", 1, expert=expert) for expert in (0, 1))
    behind = Edit(Site("experts", 3, AT), From(Run(CLEAN), AT))
    replayed = evaluated("mixtral", one, other, behind)
    agree(evaluated("mixtral", one, other, behind, engine="packed"), replayed)
    (_, base), (_, donor) = logits("mixtral", CORRUPT, 1), logits("mixtral", CLEAN, 1)
    change = (parts(donor) - parts(base))[AT, :2].sum(0)
    expected, _ = logits("mixtral", CORRUPT, 1, add=added(change))
    agree(evaluated("mixtral", one, other), expected)
    assert (replayed - expected).abs().max() > 0.01


# Laws that hold by what experts are.


@pytest.mark.parametrize("name", WHERE)
def test_all_checks_of_mixtures_hold(name):
    model, found = prove(model_of(name), MIXTURE)
    assert model.anatomy.mixture == MIXTURE
    assert all(finding.holds for finding in found)
    names = {finding.name for finding in found}
    assert ("packed = replay" in names) == ("packed" in engines(name))
    assert "router and experts_in = experts" in names
    assert any(each.startswith("experts = ") for each in names) == (name not in BESIDE)


def test_layers_without_experts_are_named():
    model = model_of("deepseek_v2")
    assert model.having("experts") == (1, 2, 3)
    assert model.having("mlp_out") == (0, 1, 2, 3)
    with pytest.raises(ComponentNotOffered, match=r"not there in layer 0 .*no experts.*1, 2, 3"):
        evaluated("deepseek_v2", Edit(Site("experts", 0, AT), Zero()))


def test_models_without_experts_say_so():
    assert shared("llama").anatomy.mixture == ()
    with pytest.raises(ComponentNotOffered, match=r"experts is not offered .* called with what a router chose"):
        evaluate(shared("llama"), [World(Run(CORRUPT), (edit("experts", 1),), (6,))], lambda each, _: each.flatten(1))
    with pytest.raises(InvalidOption, match="router has no heads, neurons or experts"):
        Site("router", 1, 0, 2)


# Gradients, against bare autograd: what experts are called with, or what they give, is made a leaf.


def leaf_gradient(name: str, layer: int, where: str) -> Tensor:
    """d logit 3 behind the last token / d what is there, [token, width]; of the weights those of all experts."""
    leaves: list[Tensor] = []

    def leaf(value: Tensor) -> Tensor:
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[0]

    def change(hidden: Tensor, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if where == "router":
            every = torch.zeros(len(CLEAN), EXPERTS, dtype=weights.dtype).scatter(1, index, weights)
            return hidden, torch.arange(EXPERTS).expand(len(CLEAN), -1), leaf(every)
        return (leaf(hidden) if where == "experts_in" else hidden), index, weights

    with experts_called(name, layer, change, leaf if where == "experts" else None):
        logits = model_of(name).network(input_ids=torch.tensor([CORRUPT]), use_cache=False).logits[0, -1, 3]
    (found,) = torch.autograd.grad(logits, leaves)
    return found.reshape(len(CLEAN), -1)


@pytest.mark.parametrize("where", MIXTURE)
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_gradients_are_those_of_bare_autograd(name: str, where: str) -> None:
    place, expected = (where, 1), leaf_gradient(name, 1, where)
    found = gradients(model_of(name), [Run(CORRUPT)], [place], lambda logits: logits[:, -1, 3])[place][0]
    if where == "experts":  # all parts go into one sum
        for part in found.view(len(CLEAN), EXPERTS, -1).unbind(1):
            agree(part, expected)
    else:
        agree(found, expected)
    assert expected.abs().max() > 1e-3
