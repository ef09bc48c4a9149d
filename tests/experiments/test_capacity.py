"""Mixtures whose experts take so many tokens of a call, and no more: what a token gives is told of it run alone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import causal_tracing as ct
from causal_tracing.engine.hooks.rewired import Rewirings
from causal_tracing.errors import ComponentNotOffered, EngineNote, UnsupportedModel
from loaded import WORDS, shared
from own_networks import AT, PAIR, WIDTH, Own, made, own_logits, restored_by_hand

EXPERTS = 4


class Routed(nn.Module):
    """One expert a token; of all tokens of a call an expert takes a share, and at least so many: who comes first."""

    def __init__(self, least: int, *, by_weight: bool = False) -> None:
        super().__init__()
        self.least, self.by_weight = least, by_weight
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS)])

    def forward(self, stream: Tensor) -> Tensor:
        flat = stream.reshape(-1, WIDTH)
        weights = self.router(flat).softmax(-1)
        most, chosen = weights.max(-1)
        room = max(self.least, math.ceil(1.25 * len(flat) / EXPERTS))
        found = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            if self.by_weight:
                mine = mine[most[mine].argsort(descending=True)]
            mine = mine[:room]
            found[mine] = expert(flat[mine]) * most[mine, None]
        return found.view_as(stream)


class Mixture(Own):
    least, by_weight = 1, False

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.mlp = Routed(type(self).least, by_weight=type(self).by_weight)
            for weight in block.mlp.parameters():
                nn.init.normal_(weight, std=0.4)


class MuchRoom(Mixture):
    least = 120


class HeaviestFirst(Mixture):
    by_weight = True


def exact(trace: ct.Trace, network: Any) -> None:
    """Every cell of the streams that is looked at is what bare hooks give, in runs of one row."""
    found = trace.effects.restoration.sel(AT).sel(component="resid_pre")
    for layer, position in ((0, 1), (1, 1), (1, 4), (2, 4), (2, 5), (2, 6)):
        expected = restored_by_hand(network, f"blocks.{layer}", position, own_logits)
        assert found.sel(layer=layer).isel(position=position).item() == pytest.approx(expected, abs=1e-5)


def test_where_rows_take_each_others_room_each_is_run_alone():
    network = made(Mixture)
    with pytest.warns(EngineNote, match=r"depends on what is run beside it .* a forward of its own, which is slower"):
        model = ct.load(network, tokenizer=WORDS)
    with pytest.warns(EngineNote, match="a forward of its own"):
        assert "note        each run is made in a forward of its own" in str(ct.check(model))
    with pytest.warns(EngineNote, match=r"The packed engine is not used .* what it makes of a run depends on"):
        trace = ct.trace(model, PAIR, components=["resid_pre", "attn_out"], progress=False)
    exact(trace, network)
    assert trace.provenance["spot_checks"]["largest_difference"] == 0


def test_room_that_runs_out_in_a_large_batch_alone_is_seen_by_the_cells_that_are_run_again():
    network = made(MuchRoom)
    model = ct.load(network, tokenizer=WORDS)
    assert not model.anatomy.alone
    said = pytest.warns(EngineNote, match=r"All was run again on replay, each run in a forward of its own")
    with said, pytest.warns(EngineNote, match="The packed engine is not used"):
        trace = ct.trace(model, PAIR, components=["resid_pre", "attn_out", "mlp_out"], progress=False)
    exact(trace, network)
    assert "differs by" in trace.provenance["spot_checks"]["rerun"]
    assert "forward of its own" in trace.provenance["engine_note"]


def test_experts_that_take_the_heaviest_tokens_are_not_causal():
    with pytest.raises(UnsupportedModel, match=r"what it makes of a prompt depends on what is run beside it"):
        ct.load(made(HeaviestFirst), tokenizer=WORDS)


def test_what_needs_rows_side_by_side_is_refused_where_each_is_run_alone():
    model = shared("llama")
    single = replace(model, anatomy=model.anatomy.made_alone())
    with pytest.raises(ComponentNotOffered, match=r"Edges are not offered .* takes several rows"):
        Rewirings(single, [], 0)
