"""Paths from senders to receivers: the laws on every family, and readers made by hand with bare hooks.

The oracle adds what the sender adds to the input of one reader alone, in hooks of its own on modules named by hand: it
knows nothing of runs, of what is held, or of the order in which readers are dealt with.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, InvalidOption, InvalidPair
from causal_tracing.models.model import Model
from causal_tracing.testing import lookup
from families import FAMILIES
from loaded import BY_NAME, shared

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
ANSWER, FOIL, LAST, LAYERS = 7, 20, 8, 4
TOLERANCE = 2e-5  # of the largest logit, on tiny models: a path is a difference of differences
REAL = 1e-3  # of the total effect: what is larger is no rounding

NOT_HELD = ("falcon_h1",)  # a state space adds to the stream beside attention
SINGLE = [family.name for family in FAMILIES if "mixer_out" in BY_NAME[family.name].parts]
SENT = [family.name for family in FAMILIES if family.name not in (*NOT_HELD, *SINGLE)]
EVERY_READER = ["q", "k", "v", "mlp_out", "logits"]
MIXED_READER = ["attn_out", "mlp_out", "logits"]  # where some layers mix tokens otherwise than by attention
# The modules of a layer: the queries' projection, the norm in front of attention, the MLP and the norm in front of it.
LLAMA = ("self_attn.q_proj", "input_layernorm", "mlp", "post_attention_layernorm", "self_attn.o_proj")
BY_HAND = {"llama": LLAMA, "gemma2": (*LLAMA[:3], "pre_feedforward_layernorm", LLAMA[4]), "qwen3": LLAMA}


def spelled(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def pair(clean: Sequence[int] = CLEAN, corrupt: Sequence[int] = CORRUPT) -> ct.Pair:
    return ct.Pair(clean=spelled(clean), corrupt=spelled(corrupt), answer=f" w{ANSWER}", foil=f" w{FOIL}")


def followed(model: Model, senders: Any, receivers: Any, **options: Any) -> Any:
    asked = {"components": [], "senders": senders, "receivers": receivers, "progress": False, "spot_checks": 0}
    return ct.trace(model, pair(), **(asked | options))


def effects(trace: ct.Trace, of: str = "paths") -> Any:
    return trace.of(of).sel(metric="logit_diff", pair="pair-0")


def senders_of(name: str) -> list[str]:
    attend = len(shared(name).having("z")) == shared(name).num_layers
    heads = ["z 0.1 @ last", "z 1.0 @ all"] if attend and shared(name).anatomy.offers("z") else []
    return [*heads, "attn_out 1 @ all", "mlp_out 0 @ all", "resid_pre 0 @ 5"]


def readers_of(name: str) -> list[str]:
    offered = shared(name).anatomy.mediators
    if len(shared(name).having("q")) < shared(name).num_layers:
        return MIXED_READER
    return [one for one in EVERY_READER if one not in ("q", "k", "v") or one in offered]


@cache
def jointly(name: str, engine: str) -> ct.Trace:
    return followed(shared(name), senders_of(name), {"all": readers_of(name), "logits": ["logits"]}, engine=engine)


def bound(trace: ct.Trace) -> float:
    return TOLERANCE * max(1.0, float(np.abs(effects(trace).total_effect).max()), 10.0)


def engine_of(name: str) -> str:
    return "packed" if BY_NAME[name].packed else "replay"


@pytest.mark.parametrize("name", SENT)
def test_all_receivers_together_are_the_sender_patched_as_ever(name: str):
    if readers_of(name) not in (EVERY_READER, MIXED_READER):
        pytest.skip("its queries, keys and values cannot be written")
    trace = jointly(name, engine_of(name))
    found = effects(trace)
    for direction in ("restoration", "disruption"):
        joint, node = found[direction].sel(receiver="all"), found[direction].sel(receiver="every path")
        assert_allclose(joint, node, atol=bound(trace))
        assert float(abs(node).max()) > REAL * float(abs(found.total_effect))
    apart = abs(found.restoration.sel(receiver="logits") - found.restoration.sel(receiver="every path"))
    assert float(apart.max()) > REAL * float(abs(found.total_effect)), "the logits alone are not all receivers"


@pytest.mark.parametrize("name", [name for name in SENT if BY_NAME[name].packed])
def test_the_engines_agree(name: str):
    packed, replay = (effects(jointly(name, engine)) for engine in ("packed", "replay"))
    for direction in ("restoration", "disruption"):
        assert_allclose(packed[direction], replay[direction], atol=bound(jointly(name, "packed")))


@pytest.mark.parametrize("name", [*SENT, *SINGLE])
def test_the_path_to_the_logits_is_the_direct_path(name: str):
    single = name in SINGLE
    senders = {"mixer_out": "each mixer_out @ last"} if single else {"attn_out": "each attn_out @ last"}
    (component,) = senders
    trace = followed(shared(name), [*senders.values()], ["logits"], engine=engine_of(name))
    direct = ct.trace(
        shared(name), pair(), components=[component], positions=["last"], direct=["mlps_frozen"],
        engine=engine_of(name), progress=False, spot_checks=0,
    )  # fmt: skip
    for direction in ("restoration", "disruption"):
        alone = effects(direct, "blocks")[f"direct_path_{direction}"].sel(component=component, position="last")
        assert_allclose(effects(trace)[direction].sel(receiver="logits").values[0], alone.values, atol=bound(trace))


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma2", "gpt_neox"])
def test_what_is_not_behind_a_sender_is_exactly_zero(name: str):
    senders = ["z 2.1 @ last", "attn_out 2 @ last", "mlp_out 1 @ last", "z 1.0 @ 5"]
    readers = ["q 2.0", "k 1", "v 0-2", "mlp_out 1", "logits"]
    trace = followed(shared(name), senders, readers)
    found = effects(trace)
    zero = found.status == "structural_zero"
    assert trace.provenance["worlds"] == 2 + 2 * (~zero).sum(), "what cannot arrive is not run, in either direction"
    parallel = BY_NAME[name].residual == "parallel"
    for sender, reader, is_zero in [
        ("z 2.1 @ last", "q 2.0", True), ("z 2.1 @ last", "v 0-2", True), ("z 2.1 @ last", "mlp_out 1", True),
        ("z 2.1 @ last", "logits", False), ("attn_out 2 @ last", "k 1", True), ("mlp_out 1 @ last", "mlp_out 1", True),
        ("mlp_out 1 @ last", "q 2.0", False), ("mlp_out 1 @ last", "v 0-2", False), ("z 1.0 @ 5", "logits", True),
        ("z 1.0 @ 5", "mlp_out 1", parallel),
    ]:  # fmt: skip
        cell = {"component": "path", "sender": sender, "receiver": reader}
        assert bool(zero.sel(cell)) == is_zero, cell
        values = [float(found[direction].sel(cell)) for direction in ("restoration", "disruption")]
        assert (values == [0.0, 0.0]) == is_zero, cell


class ByHand:
    """A network in which chosen readers see the sender's addition, by bare hooks."""

    def __init__(self, name: str) -> None:
        self.network: Any = shared(name).network
        self.names = BY_HAND[name]
        self.layers = self.network.model.layers

    def module(self, number: int, layer: int) -> Any:
        return self.layers[layer].get_submodule(self.names[number])

    def run(self, tokens: Sequence[int], hooks: Sequence[Any] = ()) -> float:
        with ExitStack() as stack, torch.no_grad():
            for module, kind, hook in hooks:
                pre = kind == "in"
                attach = module.register_forward_pre_hook if pre else module.register_forward_hook
                stack.callback(attach(hook, with_kwargs=True).remove if pre else attach(hook).remove)
            logits = self.network(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        return float(logits[ANSWER] - logits[FOIL])

    def added(self, layer: int, head: int, base: Sequence[int], donor: Sequence[int]) -> torch.Tensor:
        """What a head adds to the stream at the last token in the donor, less what it adds in the base run."""
        found: list[torch.Tensor] = []
        end = self.layers[layer]

        def keep(_: Any, args: Any, __: Any) -> None:
            found.append(args[0][0, LAST].clone())

        for tokens in (base, donor):
            self.run(tokens, [(self.module(4, layer), "in", keep)])
        size = len(found[0]) // shared_heads(self.network)
        mixed = found[0].clone()
        mixed[head * size : (head + 1) * size] = found[1][head * size : (head + 1) * size]
        sublayer = self.module(4, layer)
        stream: list[torch.Tensor] = []

        def write(_: Any, args: Any, kwargs: Any) -> Any:
            value = args[0].clone()
            value[0, LAST] = mixed
            return (value, *args[1:]), kwargs

        # The stream in front of this layer's MLP: post-norms and all, as the network itself adds them.
        def keep_mid(_: Any, args: Any, __: Any) -> None:
            stream.append(args[0][0, LAST].clone())

        mid = (self.module(3, layer), "in", keep_mid)
        self.run(base, [mid])
        self.run(base, [(sublayer, "in", write), mid])
        assert end is self.layers[layer]
        return stream[1] - stream[0]

    def query_reads(self, layer: int, head: int, addition: torch.Tensor) -> list[Any]:
        """One head's query as made of the stream with the addition."""
        store: dict[str, torch.Tensor] = {}
        norm, projection = self.module(1, layer), self.module(0, layer)
        size = projection.out_features // shared_heads(self.network)

        def keep(_: Any, args: Any, kwargs: Any) -> None:
            value = (args[0] if args else kwargs["hidden_states"]).clone()
            value[0, LAST] += addition
            store["stream"] = value

        def write(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
            made = torch.nn.functional.linear(norm(store["stream"])[0, LAST], module.weight, module.bias)
            output = output.clone()
            output[0, LAST, head * size : (head + 1) * size] = made[head * size : (head + 1) * size]
            return output

        return [(self.layers[layer], "in", keep), (projection, "out", write)]

    def mlp_reads(self, layer: int, addition: torch.Tensor) -> list[Any]:
        """An MLP whose norm reads the stream with the addition; the stream itself goes on without."""

        def add(_: Any, args: Any, kwargs: Any) -> Any:
            value = args[0].clone()
            value[0, LAST] += addition
            return (value, *args[1:]), kwargs

        return [(self.module(3, layer), "in", add)]


def shared_heads(network: Any) -> int:
    return network.config.num_attention_heads


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("direction", ["restoration", "disruption"])
def test_single_readers_are_those_of_bare_hooks(name: str, direction: str):
    hand, restores = ByHand(name), direction == "restoration"
    base, donor = (CORRUPT, CLEAN) if restores else (CLEAN, CORRUPT)
    readers = ["q 2.1", "q 3.0", "mlp_out 1", "mlp_out 3"]
    sets = {name: [name] for name in readers} | {"both": ["q 2.1", "mlp_out 3"], "mlps": ["mlp_out 1-3"]}
    found = effects(followed(shared(name), ["z 1.1 @ last"], sets, directions=[direction]))[direction]
    addition = hand.added(1, 1, base, donor)
    hooks = {
        "q 2.1": hand.query_reads(2, 1, addition), "q 3.0": hand.query_reads(3, 0, addition),
        "mlp_out 1": hand.mlp_reads(1, addition), "mlp_out 3": hand.mlp_reads(3, addition),
    }  # fmt: skip
    hooks["both"] = [*hooks["q 2.1"], *hooks["mlp_out 3"]]
    hooks["mlps"] = [hook for layer in (1, 2, 3) for hook in hand.mlp_reads(layer, addition)]
    alone = hand.run(base)
    sign = 1 if restores else -1
    for receiver, made in hooks.items():
        expected = sign * (hand.run(base, made) - alone)
        measured = float(found.sel(component="path", sender="z 1.1 @ last", receiver=receiver))
        assert measured == pytest.approx(expected, abs=1e-5), receiver
        assert abs(expected) > 1e-5, f"{receiver}: nothing to see"


def test_several_senders_are_one():
    """Senders in two layers: what the first does to the second is not counted, for the second is patched itself."""
    sets = {"both": ["z 0.1 @ last", "z 2.0 @ last"], "chain": ["z 0.1 @ last", "mlp_out 1 @ last"]}
    found = effects(followed(shared("llama"), sets, {"all": EVERY_READER, "logits": ["logits"]}))
    both = ct.trace(shared("llama"), pair(), components=[], sets=sets, progress=False, spot_checks=0)
    for name in sets:
        joint = effects(both, "sets").restoration.sel(component="set", set=name)
        for receiver in ("all", "every path"):
            cell = found.restoration.sel(component="path", sender=name, receiver=receiver)
            assert float(cell) == pytest.approx(float(joint), abs=1e-5)


def test_senders_at_different_tokens_are_held_at_each_others():
    """Of a set each sender is one token's: at another's token its part is held, and not left to what the other does."""
    sets = {"both": ["z 0.1 @ last", "mlp_out 1 @ 5", "z 2.0 @ 5"], "alone": ["z 0.1 @ last"]}
    found = effects(followed(shared("llama"), sets, ["q 3", "logits"])).restoration.sel(component="path")
    # A query of the last layer and the logits read the last token alone, and the other two senders write elsewhere.
    for receiver in ("q 3", "logits"):
        both, alone = (float(found.sel(receiver=receiver, sender=name)) for name in sets)
        assert both == pytest.approx(alone, abs=1e-6)
        assert abs(alone) > 1e-4


def test_the_look_up_goes_from_mlp_to_attention_to_the_logits():
    """A program written by hand has one path at each token: MLP 2 sends to attention, and that to the logits."""
    model, facts = lookup()
    senders = [
        f"{part} {layer} @ {token}" for part in ("attn_out", "mlp_out") for layer in range(6) for token in (2, "last")
    ]
    trace = ct.trace(
        model, facts, components=[], senders=senders, receivers=["each mlp_out", "logits"], engine="replay",
        progress=False, spot_checks=0,
    )  # fmt: skip
    chosen = trace.of("paths").sel(metric="logit_diff", pair="lookup", component="path")
    found = chosen.restoration
    paths = found.drop_sel(receiver="every path")
    sent = {
        (str(cell.sender.item()), str(cell.receiver.item()))
        for cell in paths.stack(cell=["sender", "receiver"])
        if abs(cell) > 1e-6
    }
    assert sent == {("attn_out 1 @ 2", "mlp_out 2"), ("attn_out 4 @ last", "logits")}
    node = found.sel(receiver="every path")
    assert float(node.sel(sender="attn_out 1 @ 2")) == pytest.approx(
        float(chosen.total_effect),
        abs=1e-6,
    )


def test_what_cannot_be_followed_is_refused():
    model = shared("llama")
    with pytest.raises(InvalidOption, match="is no sender"):
        followed(model, ["resid_post 1 @ last"], None)
    with pytest.raises(InvalidOption, match="receives nothing"):
        followed(model, ["z 1.0 @ last"], ["w 2"])
    with pytest.raises(InvalidOption, match="senders="):
        ct.trace(model, pair(), receivers=["logits"], progress=False)
    with pytest.raises(InvalidOption, match="given="):
        followed(model, ["z 1.0 @ last"], ["logits"], given=["z 2.0 @ last"])
    with pytest.raises(InvalidOption, match="twice, whole or in part"):
        followed(model, ["z 1.0 @ last"], {"a": ["q 2", "q 2.1"]})
    with pytest.raises(InvalidOption, match="twice, whole or in part"):
        followed(model, ["z 1.0 @ last"], {"a": ["mlp_out 1-2", "mlp_out 2"]})
    with pytest.raises(InvalidPair, match="one place, whole or in part"):
        followed(model, {"a": ["z 1 @ last", "z 1.0 @ last"]}, ["logits"])
    with pytest.raises(InvalidOption, match="leave at=3 out"):
        ct.paths(model, pair(), senders=["z 1.0 @ last"], at=3)
    with pytest.raises(ComponentNotOffered, match="senders= is not offered"):
        followed(shared("falcon_h1"), ["attn_out 1 @ last"], ["logits"])
