"""Edges and paths of models whose layers differ, in float64: by bare hooks, and by the laws that all models obey.

Some layers mix tokens otherwise than by attention, have one part alone, or heads of their own number. The oracle
(`hooked_edges.py`) gives each reader a stream of its own in hooks on modules that are named by hand.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import causal_tracing as ct
import pruned
import uneven
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.models.model import Model
from causal_tracing.patching.kinds.edge_graph import EdgeGraph, edge_graph
from causal_tracing.report.words.senders import READ_AS_A_WHOLE
from hooked_edges import Added, Hooked
from loaded import WORDS
from model_types.recipes import build

CLEAN, CORRUPT = (5, 17, 32, 11, 40, 33, 8), (5, 23, 32, 11, 45, 33, 8)
PAIR = ct.Pair(
    clean=" ".join(f"w{n}" for n in CLEAN), corrupt=" ".join(f"w{n}" for n in CORRUPT), answer=" w9", foil=" w12"
)
AT = {"metric": "logit_diff", "pair": "pair-0"}
SAID = READ_AS_A_WHOLE.rpartition(") ")[2]  # without what a page escapes
NEAR = 2e-5  # some mixers compute in float32, whatever the rest does
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")


def two(name: str, norm: str, mixer: str, mlp_norm: str, mlp: str, **heads: Any) -> list[Added]:
    """A layer of two parts: attention or another mixer, and an MLP."""
    return [Added(name=name, norm=norm, module=mixer, **heads), Added(name="mlp_out", norm=mlp_norm, module=mlp)]


LFM2 = ("operator_norm", "ffn_norm", "feed_forward")
MAMBA = ("input_layernorm", "pre_ff_layernorm", "feed_forward")
LLAMA = ("input_layernorm", "post_attention_layernorm", "mlp")


def turns(names: Sequence[str], mixer: str, output: str) -> list[list[Added]]:
    """A mixer and attention in turn, each with an MLP behind it."""
    norm, mlp_norm, mlp = names
    plain = two("attn_out", norm, mixer, mlp_norm, mlp)
    return [plain, two("attn_out", norm, "self_attn", mlp_norm, mlp, heads=(4, 2), output=output)] * 2


ONE = Added(name="mixer_out", norm="norm", module="mixer")
NEMOTRON = [[ONE], [Added(name="mixer_out", norm="norm", module="mixer", heads=(4, 2))], [ONE], [ONE]]
GATED = [two("attn_out", LLAMA[0], mixer, *LLAMA[1:]) for mixer in ["linear_attn"] * 3 + ["self_attn"]]
PRUNED = [
    two("", LLAMA[0], "self_attn", *LLAMA[1:], heads=(4, 2))[n not in pruned.ATTENDS : 1 + (n in pruned.HAS_MLP)]
    for n in range(4)
]
UNEVEN = [two("", LLAMA[0], "self_attn", *LLAMA[1:], heads=each[:2]) for each in uneven.LAYERS]
SHAPES: dict[str, tuple[Sequence[Sequence[Added]], str]] = {
    "mamba": ([[ONE]] * 4, "backbone.norm_f"),
    "lfm2": (turns(LFM2, "conv", "out_proj"), "model.embedding_norm"),
    "bamba": (turns(MAMBA, "mamba", "o_proj"), "model.final_layernorm"),
    "jamba": (turns(MAMBA, "mamba", "o_proj"), "model.final_layernorm"),
    "nemotron_h+mixed": (NEMOTRON, "model.norm_f"),  # one part a layer: a state space, attention, an MLP, experts
    "qwen3_next": (GATED, "model.norm"),  # a gate behind the heads: they are not told apart
    "uneven": (UNEVEN, "model.norm"),
    "pruned": (PRUNED, "model.norm"),  # a layer without attention, and one without an MLP
}


@cache
def network(name: str) -> nn.Module:
    by_hand = {"uneven": uneven.network, "pruned": pruned.network}
    found: Any = by_hand[name]() if name in by_hand else build(name)
    found.config._experts_implementation = "eager"  # the others have no products in float64
    for layer in found.backbone.layers if name == "mamba" else ():
        layer.residual_in_fp32 = False
    return found.double()


@cache
def loaded(name: str) -> Model:
    return ct.load(network(name), tokenizer=WORDS)


@cache
def graph(name: str) -> EdgeGraph:
    return edge_graph(loaded(name))


def by_hand(name: str) -> Hooked:
    layers, norm = SHAPES[name]
    return Hooked(network=network(name), at=f"{norm.partition('.')[0]}.layers", layers=layers, norm=norm)


def shuffled(name: str) -> list[str]:
    return [graph(name).names[n] for n in np.random.default_rng(0).permutation(len(graph(name).names))]


def traced(name: str, **options: Any) -> ct.Trace:
    asked = {"of": "edges", "ranking": shuffled(name), "spot_checks": 0, "progress": False, "metric": "logit_diff"}
    return ct.circuit(loaded(name), PAIR, **asked | options)


def metrics(trace: ct.Trace) -> dict[int, float]:
    """m(C) by size."""
    return trace.circuit().curve.set_index("size").metric.to_dict()


@pytest.mark.parametrize("how", ["kept", "restored"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_set_is_what_bare_hooks_give(name: str, how: str):
    """C1 too: with every edge cut the run is the other one."""
    hand, order = by_hand(name), shuffled(name)
    every = len(order)
    sizes = [every // 3, every * 4 // 5, every - 2]
    found = metrics(traced(name, sizes=sizes, how=how))
    (clean, of_clean), (corrupt, of_corrupt) = hand.run(CLEAN), hand.run(CORRUPT)
    assert_allclose([found[0], found[every]], [corrupt, clean], atol=NEAR)
    for size in sizes:
        kept = frozenset(order[:size])
        cut = frozenset(order) - kept
        expected, _ = hand.run(CLEAN, cut, of_corrupt) if how == "kept" else hand.run(CORRUPT, kept, of_clean)
        assert_allclose(found[size], expected, atol=NEAR, err_msg=f"{size}")
    assert np.std([found[size] for size in (0, *sizes, every)]) > 0.01


def behind(senders: Sequence[str], readers: Sequence[str]) -> set[str]:
    return {f"{sender} -> {reader}" for sender in senders for reader in readers}


def test_the_edges_of_a_hybrid_one_by_one():
    """lfm2: convolutions in layers 0 and 2, attention of 4 heads that share 2 keys in layers 1 and 3."""

    def sent(layer: int) -> list[str]:
        return ["attn_out 0"] if layer == 0 else ["attn_out 2"] if layer == 2 else [f"z {layer}.{n}" for n in range(4)]

    def read(layer: int) -> list[str]:
        if layer in (0, 2):
            return [f"attn_out {layer}"]
        return [f"{name} {layer}.{n}" for name, count in (("q", 4), ("k", 2), ("v", 2)) for n in range(count)]

    expected, before = set(), ["resid_pre 0"]
    for layer in range(4):
        expected |= behind(before, read(layer))
        before += sent(layer)
        expected |= behind(before, [f"mlp_out {layer}"])
        before.append(f"mlp_out {layer}")
    expected |= behind(before, ["logits"])
    assert {*graph("lfm2").names} == expected
    assert len(expected) == len(graph("lfm2").names)


def test_the_edges_of_layers_with_one_part_and_of_heads_that_are_not_told_apart():
    mixed, gated, heads = (graph(name) for name in ("nemotron_h+mixed", "qwen3_next", "uneven"))
    assert "mixer_out 0 -> k 1.1" in mixed.names
    assert {name.partition(" -> ")[0] for name in mixed.names} == {
        "resid_pre 0", "mixer_out 0", "mixer_out 2", "mixer_out 3", *(f"z 1.{n}" for n in range(4)),
    }  # fmt: skip
    parts = [f"{part} {layer}" for layer in range(4) for part in ("attn_out", "mlp_out")]
    assert {*gated.names} == {
        f"{sender} -> {reader}"
        for number, reader in enumerate([*parts, "logits"])
        for sender in ["resid_pre 0", *parts[:number]]
    }
    count = {layer: len([name for name in heads.names if f" -> k {layer}." in name]) for layer in range(4)}
    # Shared keys, each read of the embedding, and of all heads and MLPs of earlier layers.
    assert count == {0: 1 * 1, 1: 4 * (1 + 2 + 1), 2: 2 * (1 + 2 + 4 + 2), 3: 1 * (1 + 2 + 4 + 6 + 3)}


@pytest.mark.parametrize("name", SHAPES)
def test_all_edges_of_a_sender_are_the_node(name: str):
    """C2."""
    senders = [f"{site}".partition(" @ ")[0] for site in graph(name).sites[1:]]
    for node in (senders[0], senders[len(senders) // 2]):
        rest = [each for each in graph(name).names if not each.startswith(f"{node} ->")]
        left = metrics(traced(name, ranking=rest, sizes=[len(rest)]))[len(rest)]
        others = [each for each in senders if each != node]
        nodes = ct.circuit(
            loaded(name), PAIR, ranking=others, sizes=[len(others)], metric="logit_diff", spot_checks=0, progress=False
        )
        assert_allclose(left, metrics(nodes)[len(others)], atol=NEAR)
        assert abs(left - metrics(nodes)[len(senders)]) > 1e-3


def followed(name: str, senders: Sequence[str], receivers: Any = None, **options: Any) -> Any:
    asked = {"spot_checks": 0, "progress": False, "metric": "logit_diff"} | options
    trace = ct.paths(loaded(name), PAIR, senders=senders, receivers=receivers, **asked)
    return trace.of("paths").sel(AT).squeeze("component")


def single(name: str, position: int) -> list[str]:
    """A head (or a whole attention), a mixer, an MLP and the embedding, at one token."""
    nodes = [f"{site}".partition(" @ ")[0] for site in graph(name).sites]
    kinds = {each.split()[0]: each for each in reversed(nodes)}
    return [f"{each} @ {position}" for each in kinds.values()]


@pytest.mark.parametrize("name", SHAPES)
def test_all_receivers_together_are_the_sender_patched_as_ever(name: str):
    """P1, at single tokens: what mixes tokens reads a sender at later ones too."""
    readers = list(dict.fromkeys(each.partition(" -> ")[2] for each in graph(name).names))
    found = followed(name, single(name, 4), {"all": readers})
    for direction in ("restoration", "disruption"):
        joint, node = (found[direction].sel(receiver=each) for each in ("all", "every path"))
        assert_allclose(joint, node, atol=NEAR)
        assert float(abs(node).max()) > 1e-2


@pytest.mark.parametrize("name", SHAPES)
def test_single_receivers_are_those_of_bare_hooks(name: str):
    """A sender at one token to one reader: in the hooks only that token of what it adds is the other run's."""
    hand, position = by_hand(name), 4
    senders = single(name, position)
    found = followed(name, senders)
    (corrupt, live), (_, other) = hand.run(CORRUPT), hand.run(CLEAN)
    random, seen = np.random.default_rng(1), []
    for sender in senders:
        node = sender.partition(" @ ")[0]
        moved = live | {node: live[node].clone()}
        moved[node][position] = other[node][position]
        readers = [each.partition(" -> ")[2] for each in graph(name).names if each.startswith(f"{node} ->")]
        for reader in {*random.choice(readers, min(5, len(readers)), replace=False)}:
            expected, _ = hand.run(CORRUPT, [f"{node} -> {reader}"], moved)
            said = found.restoration.sel(sender=sender, receiver=reader).item()
            assert_allclose(said, (expected - corrupt).item(), atol=NEAR, err_msg=f"{sender} -> {reader}")
            seen.append(abs(said))
    assert max(seen) > 1e-2


@cache
def estimated(name: str, method: str) -> Any:
    return ct.attribute(
        loaded(name), PAIR, method=method, at="all", direction="disruption", metric="logit_diff", verify=1, sample=1,
        progress=False,
    )  # fmt: skip


def zeros(name: str) -> torch.Tensor:
    return torch.zeros(len(CLEAN), loaded(name).width, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("name", SHAPES)
def test_edge_attribution_by_gradients_of_bare_hooks(name: str):
    """EAP of every edge: what the sender adds otherwise, times the slope with what the reader reads."""
    hand, scores = by_hand(name), estimated(name, "eap").edges().scores
    readers = list(dict.fromkeys(each.partition(" -> ")[2] for each in graph(name).names))
    probes = {f"into {each}": zeros(name) for each in readers}
    metric, live = hand.run(CLEAN, probes=probes)
    slopes = dict(zip(readers, torch.autograd.grad(metric, [*probes.values()]), strict=True))
    _, other = hand.run(CORRUPT)
    assert {*scores} | {*estimated(name, "eap").edges().unreached} >= {*graph(name).names}
    for edge in graph(name).names:
        sender, _, reader = edge.partition(" -> ")
        expected = ((live[sender] - other[sender]) * slopes[reader]).sum().item()  # what cutting it takes away
        assert_allclose(scores.get(edge, 0.0), expected, atol=5e-5, err_msg=edge)


@pytest.mark.parametrize("name", SHAPES)
def test_exact_reception_by_whole_readers(name: str):
    """What a mixer or an MLP makes of what it reads, times the slope of what it adds."""
    hand, scores = by_hand(name), estimated(name, "reception").edges().scores
    whole = [each for each in dict.fromkeys(n.partition(" -> ")[2] for n in graph(name).names) if "_out" in each]
    probes = {each: zeros(name) for each in whole}
    metric, live = hand.run(CLEAN, probes=probes)
    slopes = dict(zip(whole, torch.autograd.grad(metric, [*probes.values()]), strict=True))
    _, other = hand.run(CORRUPT)
    for edge in [each for each in graph(name).names if each.partition(" -> ")[2] in whole][::7]:
        _, made = hand.run(CLEAN, [edge], other)
        reader = edge.partition(" -> ")[2]
        expected = -((made[reader] - live[reader]) * slopes[reader]).sum().item()
        assert_allclose(scores.get(edge, 0.0), expected, atol=5e-5, err_msg=edge)


@pytest.mark.parametrize("name", ["lfm2", "nemotron_h+mixed", "uneven", "pruned"])
def test_every_ranking_names_every_edge(name: str):
    for ranking in ("exact", "estimates", "eap-ig"):
        found = traced(name, ranking=ranking, sizes=[3])
        assert {*found.provenance["options"]["circuit"]} == {*graph(name).names}
    exact = traced(name, ranking="exact", sizes=[3]).provenance["options"]["circuit"]
    first = max(exact, key=lambda edge: abs(exact[edge]))
    alone = traced(name, ranking=[each for each in graph(name).names if each != first], sizes=[len(exact) - 1])
    lost = alone.of("circuits").disruption.sel(AT).sel(component="edges", size=len(exact) - 1).item()
    assert_allclose(lost, exact[first], atol=NEAR)


def test_what_is_kept_shown_and_written(tmp_path: Path):
    scores = dict(estimated("lfm2", "eap").edges().scores) | {"attn_out 0 -> attn_out 2": 100.0}
    found = traced("lfm2", ranking=scores, sizes=[1, 5])
    found.save(tmp_path / "kept")
    again = ct.open_trace(tmp_path / "kept")
    assert again.of("circuits").identical(found.of("circuits"))
    assert again.provenance["options"]["circuit"] == found.provenance["options"]["circuit"]
    assert found.circuit().curve.added[1] == "attn_out 0 -> attn_out 2"
    assert "attn_out 0" in found.to_html()
    assert SAID in found.to_html()
    paths = ct.paths(loaded("lfm2"), PAIR, at="all", progress=False, spot_checks=0)
    assert {"attn_out 0", "attn_out 2"} <= {*paths.of("paths").receiver.values}
    assert {"attn_out 0 @ all", "z 1.0 @ all"} <= {*paths.of("paths").sender.values}
    assert SAID in paths.to_html()
    assert SAID not in traced("uneven", sizes=[3]).to_html()
    assert "attn_out 2" in {row["receiver"] for row in paths.to_dataframe(of="paths").reset_index().to_dict("records")}


def test_receivers_that_are_one_place_are_refused():
    with pytest.raises(InvalidOption, match="The receivers 'both' name q 1 twice, whole or in part"):
        followed("lfm2", ["mlp_out 0 @ last"], {"both": ["q 1.0", "attn_out 1"]})
    with pytest.raises(ComponentNotOffered, match="mixer_out is not offered on this model"):
        followed("lfm2", ["mlp_out 0 @ last"], ["mixer_out 1"])


@pytest.mark.parametrize("name", ["lfm2", "uneven"])
def test_attention_as_a_whole_is_its_queries_keys_and_values(name: str):
    sets = {"whole": ["attn_out 3"], "apart": ["q 3", "k 3", "v 3"]}
    found = followed(name, ["z 1.2 @ 3", "mlp_out 0 @ all"], sets)
    for direction in ("restoration", "disruption"):
        assert_allclose(*(found[direction].sel(receiver=each) for each in sets), atol=NEAR)


def test_mixers_beside_attention_are_refused():
    with pytest.raises(ComponentNotOffered, match="Circuits are not offered on this model .*: it is not known"):
        edge_graph(ct.load(build("falcon_h1"), tokenizer=WORDS))
