"""Laws of paths from senders to receivers, on every family; what is patched is patched again by bare hooks.

`Bare` knows modules by name alone. It adds to a base run nothing but what a law says must come out: the donor's whole
run, a sublayer's output as the donor has it, or keys and values that are made of a changed stream.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import causal_tracing as ct
from bare_hooks import PATHS, Bare, Paths, hooked, with_first
from causal_tracing.errors import InvalidOption
from families import FAMILIES
from loaded import BY_NAME, shared

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
ANSWER, FOIL, LAST, LAYERS = 7, 20, 8, 4
TOLERANCE = 2e-5  # of the largest logit: a path is a difference of differences
REAL = 1e-3  # of the total effect: what is larger is no rounding

# A state space adds to the stream beside attention; layers of one part, and queries that cannot be written.
NOT_HELD = ("falcon_h1",)
SENT = [
    family.name for family in FAMILIES
    if family.name not in NOT_HELD and "mixer_out" not in family.parts
]  # fmt: skip
NO_HEADS = ("qwen3_next",)  # in some layers, and in none whose outputs go into one projection
GROUPED = ["llama", "qwen3"]  # fewer keys than queries, rotary; in qwen3 keys are normed too


def pair() -> ct.Pair:
    clean, corrupt = (" ".join(f"w{n}" for n in tokens) for tokens in (CLEAN, CORRUPT))
    return ct.Pair(clean=clean, corrupt=corrupt, answer=f" w{ANSWER}", foil=f" w{FOIL}")


def readers(name: str) -> list[str]:
    offered = () if name in NO_HEADS else shared(name).anatomy.mediators
    return [*(one for one in ("q", "k", "v") if one in offered), "mlp_out", "logits"]


def heads(name: str) -> list[str]:
    model = shared(name)
    there = name not in NO_HEADS and "z" in model.anatomy.mediators
    return [f"z 1.{head} @ last" for head in range(model.parts("z"))] if there else []


@cache
def effects(name: str) -> Any:
    """What the laws ask, in one map: all writers, what is last, and a layer's attention beside its heads."""
    writers = ["resid_pre 0 @ last", *(f"{part} 0-{LAYERS - 1} @ last" for part in ("attn_out", "mlp_out"))]
    senders = {
        "all writers": writers, "last attention": [f"attn_out {LAYERS - 1} @ last"],
        "last MLP": [f"mlp_out {LAYERS - 1} @ last"], "attention": ["attn_out 1 @ last"], "heads": heads(name),
    }  # fmt: skip
    receivers = {"logits": ["logits"], "behind": [f"mlp_out {LAYERS - 1}", "logits"], "all": readers(name)}
    return ct.paths(
        shared(name), pair(), senders={each: sites for each, sites in senders.items() if sites}, receivers=receivers,
        engine="packed" if BY_NAME[name].packed else "replay", spot_checks=0, progress=False,
    ).of("paths").sel(metric="logit_diff", pair="pair-0", component="path")  # fmt: skip


@cache
def bare(name: str) -> Bare:
    return Bare(shared(name).network, PATHS.get(name, Paths()))


def difference(name: str, tokens: Sequence[int]) -> float:
    logits = bare(name).run(tuple(tokens))[0, LAST]
    return float(logits[ANSWER] - logits[FOIL])


def with_donor(name: str, component: str, layer: int) -> float:
    """The corrupt run's difference where one sublayer adds at the last token what it adds in the clean run."""
    made = bare(name)
    logits = made.patched(CORRUPT, made.donor(CLEAN, component, layer), component, layer)[LAST, LAST]
    return float(logits[ANSWER] - logits[FOIL])


def bound(name: str) -> float:
    return TOLERANCE * max(10.0, abs(difference(name, CLEAN)), abs(difference(name, CORRUPT)))


# P3: what all writers add, embedding and all, is the donor's stream.
@pytest.mark.parametrize("name", SENT)
def test_all_writers_together_are_the_donor_run(name: str):
    whole = difference(name, CLEAN) - difference(name, CORRUPT)
    found = effects(name).sel(sender="all writers", receiver="logits")
    assert float(found.restoration) == pytest.approx(whole, abs=bound(name))
    assert float(found.disruption) == pytest.approx(whole, abs=bound(name))
    assert abs(whole) > 100 * bound(name)


# P6: behind the last layer's attention come its MLP (not in a parallel block) and the logits, and nothing else.
@pytest.mark.parametrize("name", SENT)
def test_behind_the_last_layers_parts_is_nothing_but_what_reads_them(name: str):
    alone, parallel = difference(name, CORRUPT), BY_NAME[name].residual == "parallel"
    for sender, component in (("last attention", "attn_out"), ("last MLP", "mlp_out")):
        node = with_donor(name, component, LAYERS - 1) - alone
        found = effects(name).restoration.sel(sender=sender)
        assert float(found.sel(receiver="behind")) == pytest.approx(node, abs=bound(name)), sender
        apart = abs(float(found.sel(receiver="logits")) - node)
        if sender == "last MLP" or parallel:
            assert apart <= bound(name), sender
        else:
            assert apart > 5 * bound(name), sender


# P10: to every receiver, a layer's attention sends what its heads send jointly.
@pytest.mark.parametrize("name", [name for name in SENT if name not in NO_HEADS])
def test_attention_sends_what_its_heads_send_together(name: str):
    assert heads(name)
    found = effects(name)
    for direction in ("restoration", "disruption"):
        whole, together = (found[direction].sel(sender=each) for each in ("attention", "heads"))
        assert_allclose(whole, together, atol=bound(name))
    assert (abs(found.restoration.sel(sender="attention")) > REAL * abs(found.total_effect)).all()


# P9 for keys and values: heads of their own where queries are grouped, keys turned at their own token.
@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("position", [5, LAST])
def test_keys_and_values_read_as_bare_hooks_do(name: str, position: int):
    layers: Any = bare(name).layers
    sent, read, alone = "mlp_out 0 @ 5" if position == 5 else "mlp_out 0 @ last", ["k 1.1", "v 2.1", "k 2"], []
    found = ct.paths(
        shared(name), pair(), senders=[sent], receivers=read, directions=["restoration"], spot_checks=0, progress=False,
    ).of("paths").sel(metric="logit_diff", pair="pair-0", component="path", sender=sent).restoration  # fmt: skip
    apart = bare(name).donor(CLEAN, "mlp_out", 0) - bare(name).donor(CORRUPT, "mlp_out", 0)
    base = difference(name, CORRUPT)
    for receiver in read:
        component, place = receiver.split()
        layer, _, head = place.partition(".")
        with hooked(reading(layers[int(layer)], component, head, apart[position], position)):
            alone.append(difference(name, CORRUPT) - base)
    assert_allclose(found.sel(receiver=read), alone, atol=bound(name))
    assert min(map(abs, alone)) > bound(name), "nothing to see"


def reading(layer: Any, component: str, head: str, addition: Tensor, position: int) -> list[Any]:
    """Hooks by which one projection, or one head of it, reads a layer's input with an addition at one token."""
    norm, projection = layer.input_layernorm, layer.self_attn.get_submodule(f"{component}_proj")
    part = slice(int(head) * 8, int(head) * 8 + 8) if head else slice(None)
    changed: list[Tensor] = []

    def keep(_: Any, args: Any, output: Tensor) -> None:
        if not changed:  # the norm is called again below
            stream = args[0].clone()
            stream[0, position] += addition
            changed.append(stream)
            changed.append(norm(stream))

    def write(module: Any, _: Any, output: Tensor) -> Tensor:
        made = torch.nn.functional.linear(changed[1], module.weight, module.bias)
        output = output.clone()
        output[0, position, part] = made[0, position, part]
        return with_first(output, output)

    hooks: list[tuple[Any, Callable[..., Any]]] = [(norm, keep), (projection, write)]
    return hooks


NO_SENDERS = ("q 1.0", "k 1.0", "v 1", "pattern 1.0", "neurons 1.3", "resid_mid 1", "resid_pre 1", "resid_post 1")


@pytest.mark.parametrize("site", NO_SENDERS)
def test_what_adds_nothing_of_its_own_is_no_sender(site: str):
    with pytest.raises(InvalidOption, match=f"'{site} @ last' is no sender: heads by z"):
        ct.paths(shared("llama"), pair(), senders=[f"{site} @ last"], receivers=["logits"], progress=False)


@pytest.mark.parametrize("place", ["z 2.0", "pattern 2.0", "neurons 2", "resid_mid 2", "resid_pre 2"])
def test_what_reads_nothing_by_itself_is_no_receiver(place: str):
    with pytest.raises(InvalidOption, match=f"'{place.split()[0]}' receives nothing"):
        ct.paths(shared("llama"), pair(), senders=["z 1.0 @ last"], receivers=[place], progress=False)
