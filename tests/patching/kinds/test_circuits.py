"""Circuits of nodes, on every family: against bare hooks, and by the laws that they must obey.

The oracle overwrites the inputs of output projections (heads) and the outputs of MLPs, by hooks of its own, on modules
that are named by hand.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

import causal_tracing as ct
from bare_hooks import PATHS, Paths, first, with_first
from causal_tracing.errors import ComponentNotOffered, InvalidOption, InvalidPair
from causal_tracing.testing import FakeBackend, LinearToy, circuit, fake_model, toys
from families import FAMILIES
from loaded import shared

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
ANSWER, FOIL, LAYERS, HEADS = 7, 20, 4, 4
WITHOUT = ("falcon_h1",)  # a state space adds to the stream beside attention
WHOLE = {"qwen3_next": ("attn_out", "mlp_out"), "mamba": ("mixer_out",)}  # families without single heads
PROJECTIONS = {
    **dict.fromkeys(("llama", "qwen2", "qwen3-wide-heads", "mistral", "gemma2", "gemma3_text"), "self_attn.o_proj"),
    **dict.fromkeys(("olmo2", "mixtral", "cohere", "stablelm-parallel", "granite"), "self_attn.o_proj"),
    "gpt2": "attn.c_proj", "phi": "self_attn.dense", "gpt_neox": "attention.dense", "opt": "self_attn.out_proj",
    "opt-350m": "self_attn.out_proj", "gptj": "attn.out_proj", "bloom": "self_attention.dense",
    "qwen3_next": "", "mamba": "",
}  # fmt: skip
FAMILIES_WITH = [family.name for family in FAMILIES if family.name not in WITHOUT]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")


def spelled(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def pair(clean: Sequence[int] = CLEAN, corrupt: Sequence[int] = CORRUPT, **fields: Any) -> ct.Pair:
    given: dict[str, Any] = {"answer": f" w{ANSWER}", "foil": f" w{FOIL}"} | fields
    return ct.Pair(clean=spelled(clean), corrupt=spelled(corrupt), **given)


def others(count: int) -> list[ct.Pair]:
    return [pair(corrupt=(*CORRUPT[:3], 20 + n, *CORRUPT[4:]), id=f"p{n}") for n in range(count)]


def nodes(name: str) -> list[str]:
    """All nodes, in an order that mixes layers and parts."""
    parts = WHOLE.get(name)
    every = [
        node
        for layer in range(LAYERS)
        for node in (
            [f"{part} {layer}" for part in parts]
            if parts
            else [*(f"z {layer}.{head}" for head in range(HEADS)), f"mlp_out {layer}"]
        )
    ]
    return [every[n] for n in np.random.default_rng(0).permutation(len(every))]


def traced(name: str = "llama", pairs: Any = None, **options: Any) -> ct.Trace:
    asked = {"ranking": nodes(name), "spot_checks": 0, "progress": False}
    return ct.circuit(shared(name), pair() if pairs is None else pairs, **asked | options)


class ByHand:
    """One family's network with bare hooks."""

    def __init__(self, name: str) -> None:
        self.network, self.paths, self.name = shared(name).network, PATHS.get(name, Paths()), name
        self.layers: Any = self.network.get_submodule(self.paths.layers)
        self.donor: dict[str, Tensor] = {}

    def run(self, tokens: Sequence[int], hooks: Sequence[tuple[Any, str, Callable[[Tensor], Tensor]]] = ()) -> float:
        """The difference of the two logits. A hook is (module, "in" or "out", what becomes of the tensor)."""
        with ExitStack() as stack, torch.no_grad():
            for module, side, change in hooks:
                if side == "in":
                    hook = module.register_forward_pre_hook(lambda _, args, change=change: (change(args[0]), *args[1:]))
                else:
                    hook = module.register_forward_hook(
                        lambda _, __, output, change=change: with_first(output, change(first(output)))
                    )
                stack.callback(hook.remove)
            logits = self.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double()
        return (logits[ANSWER] - logits[FOIL]).item()

    def place(self, node: str) -> tuple[Any, str, slice]:
        """The module of a node, on which side of it the node is, and which numbers are the node's."""
        component, _, rest = node.partition(" ")
        if component == "embed":
            return self.network.get_input_embeddings(), "out", slice(None)
        layer, _, head = rest.partition(".")
        if not head:
            return self.layers[int(layer)].get_submodule(self.paths.of(component, int(layer))), "out", slice(None)
        module = self.layers[int(layer)].get_submodule(PROJECTIONS[self.name])
        return module, "in", slice(int(head), int(head) + 1)

    def overwritten(self, node: str, tokens: Sequence[int]) -> tuple[Any, str, Callable[[Tensor], Tensor]]:
        """A hook that writes what a node is in the unedited run of other tokens."""
        module, side, part = self.place(node)
        seen: list[Tensor] = []
        self.run(tokens, [(module, side, lambda value: seen.append(value.clone()) or value)])

        def change(value: Tensor) -> Tensor:
            changed, donor = value.clone(), seen[0].reshape(value.shape)
            if part == slice(None):
                return donor.clone()
            heads = (*value.shape[:-1], HEADS, -1)
            changed.reshape(heads)[..., part, :] = donor.reshape(heads)[..., part, :]
            return changed

        return module, side, change

    def kept(self, inside: Sequence[str]) -> float:
        """m(C): everything outside is what it is in the corrupt run; the embedding too where nothing is kept."""
        outside = [node for node in nodes(self.name) if node not in inside] + ([] if inside else ["embed"])
        return self.run(CLEAN, [self.overwritten(node, CORRUPT) for node in outside])

    def restored(self, inside: Sequence[str]) -> float:
        """The corrupt run with these as they are in the clean one."""
        return self.run(CORRUPT, [self.overwritten(node, CLEAN) for node in inside])


@cache
def by_hand(name: str) -> ByHand:
    return ByHand(name)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_set_is_what_hooks_on_all_other_nodes_give(name: str) -> None:
    """Law C2: all outside the set is the corrupt run's, and the set computes live from what it gets."""
    hand, order = by_hand(name), nodes(name)
    sizes = [size for size in (1, 3, len(order) // 2, len(order) - 1) if size < len(order)]
    curve = traced(name, sizes=sizes).circuit().curve.set_index("size")
    clean, empty = hand.run(CLEAN), hand.run(CORRUPT)
    bound = 3e-5 * max(1.0, abs(clean), abs(empty))
    for size in sizes:
        expected = hand.kept(order[:size])
        assert_allclose(curve.metric[size], expected, atol=bound, err_msg=f"{size}")
        assert_allclose(curve.faithfulness[size], (expected - empty) / (clean - empty), atol=bound / abs(clean - empty))
    assert curve.metric[sizes].std() > 1e-3
    assert_allclose(hand.kept([]), empty, atol=bound)  # and the oracle itself knows C1


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_next"])
def test_a_restored_set_is_another_world(name: str) -> None:
    hand, order = by_hand(name), nodes(name)
    curve = traced(name, sizes=[1, 5], how="restored").circuit().curve.set_index("size")
    for size in (1, 5):
        assert_allclose(curve.metric[size], hand.restored(order[:size]), atol=1e-4)
    kept = traced(name, sizes=[1, 5]).circuit().curve.set_index("size")
    assert abs(kept.metric[5] - curve.metric[5]) > 1e-2


@pytest.mark.parametrize("how", ["kept", "restored"])
@pytest.mark.parametrize("name", FAMILIES_WITH)
def test_the_ends_are_the_two_runs(name: str, how: str) -> None:
    """Law C1: with the embedding ablated too nothing is left, and with everything all is there; both are measured."""
    trace = traced(name, sizes=[2], how=how)
    curve = trace.circuit().curve
    total = trace.of("circuits").sel(metric="logit_diff", pair="pair-0")
    rounding = 1e-5 * max(1.0, abs(total.clean.item()), abs(total.corrupt.item()))
    assert_allclose(curve.metric.iloc[[0, -1]], [total.corrupt.item(), total.clean.item()], atol=rounding)
    assert curve.faithfulness.iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert curve["size"].tolist() == [0, 2, len(nodes(name))]
    assert trace.provenance["worlds"] >= 3


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
def test_below_a_layer_ablated_above_live(name: str) -> None:
    """Law C3: with the embedding and every writer below a layer ablated, all that is above gets the donor's stream."""
    above = [node for node in nodes(name) if int(node.split()[1].split(".")[0]) >= 2]
    found = traced(name, ranking=above, sizes=[len(above)], keep_input=False).circuit().curve.set_index("size")
    assert_allclose(found.metric[len(above)], found.metric[0], atol=1e-6)
    assert abs(found.faithfulness[len(above)]) < 1e-5
    below = [node for node in nodes(name) if node not in above]
    other = traced(name, ranking=below, sizes=[len(below)], keep_input=True).circuit().curve.set_index("size")
    assert abs(other.metric[len(below)] - other.metric[0]) > 1e-2  # the same with a kept embedding is no such law


def gates(name: str, ranking: Sequence[str], sizes: Sequence[int], **options: Any) -> dict[int, float]:
    """f by size; the nodes of a gate are a, b and the value that is made of them."""
    model, asked = circuit(name)
    found = ct.circuit(model, asked, ranking=ranking, sizes=sizes, spot_checks=0, progress=False, **options)
    curve = found.circuit().curve.set_index("size").faithfulness
    return {size: curve[size] for size in (0, *sizes)}


A, B, VALUE = "mlp_out 0", "mlp_out 1", "mlp_out 2"


def test_an_and_gate_needs_both_inputs() -> None:
    """Law C4: with the output kept, f is 0, 0, 1."""
    assert gates("and", [VALUE, A, B], [1, 2, 3]) == {0: 0, 1: 0, 2: 0, 3: 1}


def test_an_or_gate_has_two_minimal_circuits() -> None:
    """Law C4: either input is enough, so that disjoint choices are equally faithful."""
    assert gates("or", [VALUE, A, B], [1, 2, 3]) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert gates("or", [VALUE, B, A], [1, 2, 3]) == {0: 0, 1: 0, 2: 1, 3: 1}


def test_what_opposes_takes_faithfulness_above_one_when_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """a − b/2 is a half: without b it is the whole of a, and without a it is less than nothing."""
    assert gates("sum", [VALUE, A, B], [1, 2, 3]) == {0: 0, 1: 0, 2: 0.5, 3: 1}
    monkeypatch.setitem(toys.CIRCUITS, "less", (1, -0.5, 0, 0))
    assert gates("less", [VALUE, A, B], [1, 2, 3]) == {0: 0, 1: 0, 2: 2, 3: 1}
    assert gates("less", [VALUE, B, A], [1, 2, 3]) == {0: 0, 1: 0, 2: -1, 3: 1}


def affine(layers: int = 3) -> tuple[Any, ct.Pair]:
    """Every way leads through counts of words: the stream behind a layer is what stood before, twice and a token on."""
    names = ["the", "old", "cat", "dog", "ran", "home"]
    toy = LinearToy(len(names), layers)
    model = fake_model(names, FakeBackend(toy, activations=toy.activations, num_layers=layers))
    return model, ct.Pair(clean="the old cat ran home", corrupt="the old dog ran home", answer=" cat", foil=" dog")


def test_an_affine_model_by_algebra() -> None:
    """The answer stands two tokens back: it takes two steps of attention, and every MLP on the way doubles it."""
    model, asked = affine(2)
    ranking = ["attn_out 0", "attn_out 1", "mlp_out 0", "mlp_out 1"]
    found = ct.circuit(model, asked, ranking=ranking, sizes=[1, 2, 3], spot_checks=0, progress=False).circuit()
    # Whole: answer − foil is 4 in one run and −4 in the other. Attention alone carries 1 of 4, each MLP doubles that.
    assert found.curve.metric.tolist() == [-4, -4, -2, 0, 4]
    assert found.curve.faithfulness.tolist() == [0, 0, 0.25, 0.5, 1]


def test_areas_of_constant_curves_and_of_mibs_shares() -> None:
    """Law C5: CMD(f = 1) = 0 and CMD(f = 0) = CPR(f = 1) = 0.999, but for the last point, which is always 1."""
    found = traced(ranking=nodes("llama")).circuit()
    assert found.cmd.of_mib
    assert found.cpr.shares == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    weights = [0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25]
    sizes = [1, 1, 1, 1, 1, 1, 2, 4, 10, 20]  # of 20 nodes: at least 1, halves up
    f = found.curve.set_index("size").faithfulness[sizes].values
    assert_allclose(found.cpr.estimate, np.dot(weights, f), atol=1e-12)
    assert_allclose(found.cmd.estimate, np.dot(weights, abs(1 - f)), atol=1e-12)
    assert sorted({*found.curve["size"]}) == [0, 1, 2, 4, 10, 20]


ALIKE = ["mlp_out 1", "z 0.1", "z 2.3", "mlp_out 3", "z 1.0"]


def test_what_the_order_and_the_engine_and_the_batch_do_not_change() -> None:
    """Law C7."""
    everything = nodes("llama")
    scores = {node: float(3 * (node in ALIKE) - len(node) % 2) for node in everything}  # with many ties
    turned = dict(reversed(scores.items()))
    one, other = (traced(ranking=each).of("circuits") for each in (scores, turned))
    assert one.identical(other)
    pairs = others(3)
    whole = traced(pairs=pairs, sizes=[1, 5])
    for number, each in enumerate(pairs):  # a pair alone, and beside others
        alone = traced(pairs=[each], sizes=[1, 5]).of("circuits").isel(pair=0)
        beside = whole.of("circuits").isel(pair=number)
        assert_allclose(alone.disruption.values, beside.disruption.values, atol=1e-5)
    small = traced(pairs=pairs, sizes=[1, 5], budget=20_000)
    replayed = traced(pairs=pairs, sizes=[1, 5], engine="replay")
    for found in (small, replayed):
        assert_allclose(found.of("circuits").disruption, whole.of("circuits").disruption, atol=1e-5)
    assert_array_equal(traced(pairs=pairs[::-1], sizes=[5]).circuit().curve.faithfulness.values[[0, -1]], [0, 1])
    back = traced(pairs=pairs[::-1], sizes=[1, 5]).circuit().curve.faithfulness
    assert_allclose(back, whole.circuit().curve.faithfulness, atol=1e-6)


@pytest.mark.parametrize("write", ["zero", "mean"])
def test_zeros_and_means_have_ends_of_their_own(write: str) -> None:
    """m(empty) is measured: no run of the pair's own has its number."""
    prompts = [spelled(CLEAN), spelled(CORRUPT), spelled((1, 2, 3, 4, 5, 6, 7, 8, 9))]
    asked = "zero" if write == "zero" else ct.Write("mean", prompts=prompts)
    found = traced(write=asked, sizes=[5])
    result = found.circuit()
    assert result.write == write
    assert result.curve.faithfulness.iloc[[0, -1]].tolist() == [0, 1]
    assert abs(result.curve.metric[0] - found.of("circuits").corrupt.sel(metric="logit_diff").item()) > 1e-2
    if write == "zero":
        hand = by_hand("llama")
        nothing = [(*hand.place(node)[:2], _zeroed(hand.place(node)[2])) for node in nodes("llama")[5:]]
        assert_allclose(result.curve.metric[1], hand.run(CLEAN, nothing), atol=1e-4)


def _zeroed(part: slice) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        whole = (*value.shape[:-1], HEADS if part != slice(None) else 1, -1)
        changed.reshape(whole)[..., part, :] = 0
        return changed

    return change


def test_means_over_pairs_come_before_the_ratio() -> None:
    pairs = others(9)
    found = traced(pairs=pairs, sizes=[4])
    result, cells = found.circuit(), found.of("circuits").sel(metric="logit_diff", component="nodes")
    clean, kept = cells.clean.values, (cells.clean - cells.disruption).transpose("pair", "size").values
    expected = (kept[:, 1] - kept[:, 0]).mean() / (clean - kept[:, 0]).mean()
    row = result.curve.set_index("size").loc[4]
    assert_allclose(row.faithfulness, expected, rtol=1e-6)
    assert row.low < row.faithfulness < row.high
    assert abs(row.faithfulness - ((kept[:, 1] - kept[:, 0]) / (clean - kept[:, 0])).mean()) > 1e-4
    assert (result.pairs, result.clusters, result.how) == (9, 9, "kept")
    assert result.cmd.low <= result.cmd.estimate <= result.cmd.high
    evidence = found.evidence("circuits").cells
    assert_allclose(evidence.faithfulness.sel(component="nodes", size=4).item(), expected, rtol=1e-6)
    one = found.circuit(pair="p3").curve.set_index("size").loc[4]
    assert_allclose(one.faithfulness, (kept[3, 1] - kept[3, 0]) / (clean[3] - kept[3, 0]), rtol=1e-6)
    assert "fewer than 8" in one.reason


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ranking": []}, "circuit= names nothing"),
    ({"ranking": ["z 9.0"]}, "circuit= names 'z 9.0', which is no node of this model"),
    ({"ranking": ["attn_out 1"]}, "circuit= names 'attn_out 1', which is no node of this model"),
    ({"ranking": ["z 1.0 @ last"]}, "'z 1.0 @ last' is no node: nodes are patched at all tokens"),
    ({"ranking": ["z 1.0", "z 1.0"]}, "The node 'z 1.0' is asked for twice"),
    ({"ranking": ["z 1.0", "z 1.0-1 @ all"]}, "The node 'z 1.0' is asked for twice"),
    ({"ranking": {"z 1.0": float("nan")}}, "the score nan for 'z 1.0', which is no finite number"),
    ({"ranking": ["z 1.0"], "sizes": [2]}, "asks for 2 nodes, and circuit= ranks 1 of the model's 20"),
    ({"sizes": [0]}, "is a number of at least 1, or a share"),
    ({"sizes": [1.5]}, "is a number of at least 1, or a share"),
    ({"how": "live"}, "There is no world of a circuit 'live'"),
    ({"by": "name"}, "There is no way to rank 'name'"),
    ({"how": "restored", "tested": 3}, "are about circuit_how='kept'"),
    ({"how": "restored", "write": "zero"}, "puts clean activations there: leave write='zero' out"),
    ({"write": ct.Write("donor", alpha=0.5)}, "ablates by write="),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_what_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        traced(**options)


def test_pairs_that_do_not_go_together_token_by_token() -> None:
    with pytest.raises(InvalidPair, match="do not go together one by one. Give prompts of equal length"):
        traced(pairs=pair(corrupt=(5, *CLEAN[2:])), align="suffix")
    with pytest.raises(InvalidPair, match="an answer or a foil of several tokens is read further on too"):
        traced(pairs=pair(answer=" w7 w9"))


def test_a_model_with_more_than_nodes_is_refused() -> None:
    with pytest.raises(ComponentNotOffered, match="something could pass beside all nodes"):
        ct.circuit(shared("falcon_h1"), pair(), ranking=["mlp_out 0"], progress=False)
