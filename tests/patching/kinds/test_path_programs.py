"""Paths in networks whose true edges are known: a program written by hand into a transformer, and an affine one.

The program is in two layers of attention and an MLP, as Hugging Face's GPT-2 computes them without its norms: each
token is told what stood before it, the last token looks for itself among those, and an MLP translates what it finds.
Its edges follow from how it was written. Those of the affine network are gradients, by torch alone.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.models.model import Model
from causal_tracing.testing import ToyTokenizer
from families import build
from loaded import BY_NAME, WORDS

LETTERS, TOKENS = 8, 8
HEADS, WIDTH, SHARP = 2, 40, 60.0  # a score of 60 is all of the softmax: exp(−60) is nothing beside 1 in float32
IS, AT, WAS, FOUND, SAYS = 0, LETTERS, LETTERS + TOKENS, 2 * LETTERS + TOKENS, 3 * LETTERS + TOKENS
SIZE = WIDTH // HEADS


def network() -> Any:
    """GPT-2 with two layers of two heads and no norms, in which nothing is written yet."""
    config = GPT2Config(
        vocab_size=LETTERS, n_positions=TOKENS, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=LETTERS,
        activation_function="relu", tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    made = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    body: Any = made.transformer
    body.ln_f = nn.Identity()
    for block in body.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    return made


def attends(block: Any, head: int, query: Mapping[int, int], key: Mapping[int, int], moves: Mapping[int, int]) -> None:
    """One head scores `SHARP` where a query's dimension meets a key's of the same number, and moves dimensions."""
    weight, out, start = block.attn.c_attn.weight, block.attn.c_proj.weight, head * SIZE
    for number, dimension in query.items():
        weight[dimension, start + number] = SHARP * SIZE**0.5
    for number, dimension in key.items():
        weight[dimension, WIDTH + start + number] = 1.0
    for number, (source, target) in enumerate(moves.items()):
        weight[source, 2 * WIDTH + start + number] = 1.0
        out[start + number, target] = 1.0


@cache
def program() -> Model:
    """Says what follows the last token's letter, moved on by one: after "a b c d a" the letter behind b."""
    made, letters = network(), range(LETTERS)
    with torch.no_grad():
        made.transformer.wte.weight[:, IS : IS + LETTERS] = torch.eye(LETTERS)
        made.transformer.wpe.weight[:, AT : AT + TOKENS] = torch.eye(TOKENS)
        first, second = made.transformer.h
        before = {n: AT + n + 1 for n in range(TOKENS - 1)}  # a query at n + 1 has the number of the key at n
        attends(first, 0, before, {n: AT + n for n in range(TOKENS)}, {IS + n: WAS + n for n in letters})
        seen = {n: WAS + n for n in letters}
        attends(second, 1, {n: IS + n for n in letters}, seen, {IS + n: FOUND + n for n in letters})
        for n in letters:
            second.mlp.c_fc.weight[FOUND + n, n] = 1.0
            second.mlp.c_proj.weight[n, SAYS + (n + 1) % LETTERS] = 1.0
        made.lm_head.weight[:, SAYS : SAYS + LETTERS] = torch.eye(LETTERS)
    return accept(made, ToyTokenizer([*"abcdefgh"]), name="program")


# Before b stands a in the clean prompt and c in the corrupt one, before d the other: so "a" finds b, or d.
PAIR = ct.Pair(clean="h a b c d a", corrupt="h c b a d a", answer=" c", foil=" e")
SENT = {
    "embedding": ["resid_pre 0 @ all"],
    "told what was": ["z 0.0 @ 2", "z 0.0 @ 4"],
    "idle": ["z 0.1 @ all"],
    "no MLP": ["mlp_out 0 @ all"],
    "no head": ["z 1.0 @ all"],
    "finds": ["z 1.1 @ last"],
    "translates": ["mlp_out 1 @ last"],
}
EDGES = {
    ("embedding", "v 0.0"), ("told what was", "k 1.1"), ("finds", "mlp_out 1"), ("translates", "logits"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_the_edges_of_a_program_are_found_and_no_others(engine: str):
    found = ct.paths(
        program(), PAIR, senders=SENT, receivers=["each q", "each k", "each v", "each mlp_out", "logits"],
        engine=engine, spot_checks=0, progress=False,
    ).of("paths").sel(metric="logit_diff", pair="pair-0", component="path")  # fmt: skip
    assert float(found.total_effect) == 2, "it prefers c by 1, and then e by 1"
    for direction in ("restoration", "disruption"):
        shares = found[direction] / found.total_effect
        single = shares.drop_sel(receiver="every path").stack(edge=["sender", "receiver"])
        there = {edge: float(single.sel(edge=edge)) for edge in single.edge.values if abs(single.sel(edge=edge)) > 1e-6}
        assert there == dict.fromkeys(EDGES, 1.0)
        on_the_way = {sender for sender, _ in EDGES}
        node = shares.sel(receiver="every path")
        assert {str(each) for each in node.sender.values if node.sel(sender=each) != 0} == on_the_way


TRUE = {"resid_pre 0 -> v 0.0", "z 0.0 -> k 1.1", "z 1.1 -> mlp_out 1", "mlp_out 1 -> logits"}


def test_a_ranking_of_the_programs_edges_has_the_true_ones_first():
    """C6: no other edge has a score, so that the true ones are all before the rest (an AUROC of 1)."""
    found = ct.circuit(program(), PAIR, of="edges", ranking="exact", sizes=[3, 4], spot_checks=0, progress=False)
    scores = found.provenance["options"]["circuit"]
    assert {name for name, score in scores.items() if abs(score) > 1e-6} == TRUE
    assert len(scores) > 10 * len(TRUE)
    curve = found.circuit().curve.set_index("size")
    assert curve.faithfulness[[0, 3, 4, len(scores)]].tolist() == pytest.approx([0, 0, 1, 1], abs=1e-6)
    assert curve.weighted_size[4] == 4


def test_every_edge_of_the_program_is_needed_and_no_other():
    tested = ct.circuit(
        program(), PAIR, of="edges", ranking=sorted(TRUE), sizes=[4], tested=4, subsets=2, spot_checks=0, progress=False
    ).circuit()
    assert tested.minimality.matters.all()
    assert tested.minimality.moved.abs().tolist() == pytest.approx([2.0] * 4)
    assert tested.completeness.distance.max() < 1e-5


class Ones(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return torch.ones_like(value)


@cache
def affine() -> Model:
    """A tiny llama that is affine in its stream: no norms, every pattern even, and MLPs without a bend."""
    made: Any = build(BY_NAME["llama"])
    made.model.norm = nn.Identity()
    for layer in made.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = nn.Identity(), nn.Identity()
        layer.mlp.act_fn = Ones()
        with torch.no_grad():
            layer.self_attn.q_proj.weight.zero_()
    return accept(made, WORDS, name="affine")


CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
ANSWER, FOIL, LAST, LAYERS = 7, 20, 8, 4
ROUNDING = 1e-4  # logits, of sums some hundred large
SENDERS = {"head": "z 0.1 @ last", "attention": "attn_out 1 @ last", "MLP": "mlp_out 0 @ last"}
WRITERS = [f"{part} {layer} @ last" for part in ("attn_out", "mlp_out") for layer in range(LAYERS)]


def spelled(tokens: tuple[int, ...]) -> ct.Pair:
    return ct.Pair(
        clean=" ".join(f"w{n}" for n in tokens), corrupt=" ".join(f"w{n}" for n in CORRUPT),
        answer=f" w{ANSWER}", foil=f" w{FOIL}",
    )  # fmt: skip


def seen(tokens: tuple[int, ...], hooks: Mapping[nn.Module, Callable[..., Any]]) -> Tensor:
    """The logit difference at the last token, with a gradient where a hook lets one in."""
    bare: Any = affine().network
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        logits = bare(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return logits[ANSWER] - logits[FOIL]


def additions() -> dict[str, Tensor]:
    """What each sender adds to the stream at the last token in the clean run, less what it adds in the corrupt one."""
    bare: Any = affine().network
    zero, one = bare.model.layers[:2]
    inputs = {zero.self_attn.o_proj: [], one.self_attn.o_proj: [], zero.mlp.down_proj: []}
    for tokens in (CORRUPT, CLEAN):
        hooks = {each: lambda _, args, kept=kept: kept.append(args[0][0, LAST]) for each, kept in inputs.items()}
        with torch.no_grad():
            seen(tokens, hooks)
    head = torch.zeros(32)
    apart = {each: kept[1] - kept[0] for each, kept in inputs.items()}
    head[8:16] = apart[zero.self_attn.o_proj][8:16]
    with torch.no_grad():
        return {
            "head": zero.self_attn.o_proj(head), "attention": one.self_attn.o_proj(apart[one.self_attn.o_proj]),
            "MLP": zero.mlp.down_proj(apart[zero.mlp.down_proj]),
        }  # fmt: skip


def slopes() -> dict[str, Tensor]:
    """By receiver, the gradient of the corrupt run's logit difference with respect to what it alone reads."""
    bare: Any = affine().network
    leaves: dict[str, Tensor] = {}

    def leaf(name: str) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            leaves[name] = torch.zeros(32, requires_grad=True)
            at_last = torch.zeros_like(args[0])
            at_last[0, LAST] = 1
            return (args[0] + at_last * leaves[name], *args[1:])

        return hook

    hooks = {bare.lm_head: leaf("logits")}
    for n, layer in enumerate(bare.model.layers):
        hooks |= {layer.self_attn.v_proj: leaf(f"v {n}"), layer.mlp: leaf(f"mlp_out {n}")}
    seen(CORRUPT, hooks).backward()
    return {name: each.grad for name, each in leaves.items() if each.grad is not None}


# P8: without norms, patterns that move and bends, edges add up to the node, and are their gradients.
def test_in_an_affine_network_edges_are_gradients_and_add_up():
    added, gradients = additions(), slopes()
    readers = [f"{part} {layer}" for part in ("q", "v", "mlp_out") for layer in range(LAYERS)] + ["logits"]
    found = ct.paths(
        affine(), spelled(CLEAN), senders={name: [text] for name, text in SENDERS.items()},
        receivers={each: [each] for each in readers}, directions=["restoration"], spot_checks=0, progress=False,
    ).of("paths").sel(metric="logit_diff", pair="pair-0", component="path").restoration  # fmt: skip
    first = {"head": {"mlp_out": 0, "v": 1}, "MLP": {"mlp_out": 1, "v": 1}, "attention": {"mlp_out": 1, "v": 2}}
    for sender, addition in added.items():
        reads = ["logits", *(f"{part} {n}" for part, start in first[sender].items() for n in range(start, LAYERS))]
        for reader in readers:
            expected = float(gradients[reader] @ addition) if reader in reads else 0.0
            measured = float(found.sel(sender=sender, receiver=reader))
            assert measured == pytest.approx(expected, abs=ROUNDING), (sender, reader)
        edges = found.sel(sender=sender).drop_sel(receiver="every path")
        node = float(found.sel(sender=sender, receiver="every path"))
        assert float(edges.sum()) == pytest.approx(node, abs=ROUNDING * len(reads))  # each term is rounded
        assert (abs(edges.sel(receiver=reads)) > 10 * ROUNDING).all()


# P4: where logits are a linear map of the stream, what all writers send there adds up to the whole difference.
def test_without_a_norm_paths_to_the_logits_add_up_to_the_total_effect():
    with torch.no_grad():
        whole = float(seen(CLEAN, {}) - seen(CORRUPT, {}))
    heads = [f"z {layer}.{head} @ last" for layer in range(LAYERS) for head in range(4)]
    found = ct.paths(
        affine(), spelled(CLEAN), senders=["resid_pre 0 @ last", *WRITERS, *heads], receivers=["logits"],
        spot_checks=0, progress=False,
    ).of("paths").sel(metric="logit_diff", pair="pair-0", component="path", receiver="logits")  # fmt: skip
    for direction in ("restoration", "disruption"):
        each = found[direction]
        assert float(each.sel(sender=["resid_pre 0 @ last", *WRITERS]).sum()) == pytest.approx(whole, abs=ROUNDING)
        for layer in range(LAYERS):
            mine = [name for name in heads if name.startswith(f"z {layer}.")]
            assert_allclose(each.sel(sender=mine).sum(), each.sel(sender=f"attn_out {layer} @ last"), atol=ROUNDING)
    assert abs(whole) > 1
