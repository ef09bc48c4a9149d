"""Law 36: changes of the weights that keep the function leave every effect as it was, up to the permutation.

This finds wrong axes better than golden values: a head or neuron that is read from one place and written to another
moves with the weights.
"""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from causal_tracing.engine.checks.check import accept
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import MEDIATORS, Site
from causal_tracing.testing import ToyTokenizer
from causal_tracing.testing.fake import TWO_PARTS
from families import FAMILIES, build

FAMILY = next(family for family in FAMILIES if family.name == "llama")
CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33), (5, 23, 42, 11, 71, 33)
LAYERS, HEADS, SHARED, SIZE, NEURONS = 4, 4, 2, 8, 64
POSITIONS = (1, 4, 5)
TOLERANCE = 1e-5

Effects = dict[Site, np.ndarray]


@pytest.fixture(params=["packed", "replay"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def network() -> Any:
    return build(FAMILY)


def all_effects(network: nn.Module, engine: str) -> Effects:
    """What every site does to the logits of the last token, by patching alone."""
    model = accept(network, ToyTokenizer([f"w{n}" for n in range(97)]), name="tiny")
    layers = range(model.num_layers)
    sites = [Site(name, layer, p) for name, layer, p in product(TWO_PARTS, layers, POSITIONS)]
    for name, layer, p in product(MEDIATORS, layers, POSITIONS):
        step = 7 if name == "neurons" else 1
        sites += [Site(name, layer, p, unit) for unit in range(0, model.parts(name), step)]
    worlds = [World(Run(CORRUPT), (), (5,))]
    worlds += [World(Run(CORRUPT), (Edit(site, From(Run(CLEAN), site.position)),), (5,)) for site in sites]
    values = evaluate(model, worlds, lambda logits, _: logits.flatten(1), engine=engine).values
    return dict(zip(sites, values[1:] - values[0], strict=True))


def moved(effects: Effects, where: Callable[[Site], Site]) -> Effects:
    return {where(site): values for site, values in effects.items()}


def assert_same(found: Effects, expected: Effects) -> None:
    common = found.keys() & expected.keys()
    assert len(common) >= 0.5 * len(expected)
    for site in common:
        assert_allclose(found[site], expected[site], rtol=0, atol=TOLERANCE, err_msg=str(site))


def heads_of(weight: Tensor, dim: int) -> Tensor:
    """A view of the projection's heads on the axis `dim`."""
    return weight.unflatten(dim, (-1, SIZE))


def test_permuted_heads(engine):
    plain, permuted = network(), network()
    with torch.no_grad():
        for layer in permuted.model.layers:  # groups of two exchanged, and the two heads inside each
            attention = layer.self_attn
            for projection, order in ((attention.q_proj, [3, 2, 1, 0]), (attention.k_proj, [1, 0])):
                projection.weight.copy_(heads_of(projection.weight, 0)[order].flatten(0, 1))
            attention.v_proj.weight.copy_(heads_of(attention.v_proj.weight, 0)[[1, 0]].flatten(0, 1))
            attention.o_proj.weight.copy_(heads_of(attention.o_proj.weight, 1)[:, [3, 2, 1, 0]].flatten(1, 2))

    def where(site: Site) -> Site:
        count = {"q": 4, "pattern": 4, "z": 4, "k": 2, "v": 2}.get(site.component)
        if count is None:
            return site
        return Site(site.component, site.layer, site.position, count - 1 - (site.part or 0))

    before = all_effects(plain, engine)
    assert_same(all_effects(permuted, engine), moved(before, where))
    assert max(np.abs(before[site] - before[where(site)]).max() for site in before) > 0.05  # heads differ


def test_permuted_neurons(engine):
    plain, permuted = network(), network()
    order = torch.roll(torch.arange(NEURONS), 7)  # new neuron n is the old one n − 7
    with torch.no_grad():
        for layer in permuted.model.layers:
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight.copy_(projection.weight[order].clone())
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order].clone())

    def where(site: Site) -> Site:
        if site.component != "neurons":
            return site
        return Site("neurons", site.layer, site.position, ((site.part or 0) + 7) % NEURONS)

    assert_same(all_effects(permuted, engine), moved(all_effects(plain, engine), where))


def test_rotated_values(engine):
    plain, rotated = network(), network()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in rotated.model.layers:
            value, output = layer.self_attn.v_proj, layer.self_attn.o_proj
            turn = torch.linalg.qr(torch.randn(SHARED, SIZE, SIZE, generator=generator))[0]
            value.weight.copy_((turn @ heads_of(value.weight, 0)).flatten(0, 1))
            of_readers = turn.repeat_interleave(HEADS // SHARED, 0)
            columns = heads_of(output.weight, 1)  # [d_model, head, size]
            output.weight.copy_(torch.einsum("dhs,hts->dht", columns, of_readers).flatten(1))
    assert_same(all_effects(rotated, engine), all_effects(plain, engine))


def test_folded_gains(engine):
    plain, folded = network(), network()
    with torch.no_grad():
        for layer in folded.model.layers:
            attention = layer.self_attn
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                for reader in readers:
                    reader.weight.mul_(norm.weight)
                norm.weight.fill_(1)
    assert_same(all_effects(folded, engine), all_effects(plain, engine))


def test_an_identity_block(engine):
    plain, longer = network(), network()
    block = copy.deepcopy(longer.model.layers[1])
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    longer.model.layers.insert(2, block)
    longer.config.num_hidden_layers = LAYERS + 1
    for number, layer in enumerate(longer.model.layers):
        layer.self_attn.layer_idx = number
    before, after = all_effects(plain, engine), all_effects(longer, engine)

    def where(site: Site) -> Site:
        return Site(site.component, site.layer + (site.layer >= 2), site.position, site.part)

    assert_same(after, moved(before, where))
    for site in (site for site in after if site.layer == 2):
        if site.component in ("resid_pre", "resid_mid", "resid_post"):
            assert_allclose(after[site], before[Site("resid_post", 1, site.position)], rtol=0, atol=TOLERANCE)
        else:
            assert_allclose(after[site], 0, atol=TOLERANCE)
