"""What readers of a layer receive from the layer before, by the modules of a tiny llama and autograd alone.

The modules are called by name, with a softmax that is written here; slopes come from hooks of torch's.
"""

from functools import cache

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from causal_tracing.engine.checks.check import accept
from causal_tracing.models.model import Model
from families import FAMILIES, build
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w15 w16"
ANSWER, FOIL = " w7", " w8"
LAYERS, LAST, AT, LAYER = 4, 5, 3, 2
HEADS, KEYS = 4, 2


@cache
def exact_model(name: str) -> Model:
    """In float64, where rounding hides nothing."""
    network = build(next(one for one in FAMILIES if one.name == name), dtype=torch.float64)
    return accept(network, WORDS, name=name)


def slope_at(value: Tensor) -> Tensor:
    """What the backward left there."""
    assert value.grad is not None
    return value.grad[0]


class ByHand:
    """A tiny llama's base run: what layer LAYER reads and makes, and the slopes of the logit difference there."""

    def __init__(self) -> None:
        self.network = exact_model("llama").network  # in float64 but for its norms, which llama does in float32
        self.layer = self.network.model.layers[LAYER]
        corrupt, clean = (torch.tensor([WORDS(text)["input_ids"]]) for text in (CORRUPT, CLEAN))
        self.sent = self._run(clean)["sent"][0, AT - 1] - self._run(corrupt)["sent"][0, AT - 1]
        self.seen = self._run(corrupt)
        with torch.no_grad():
            self.rotary = self.network.model.rotary_emb(self.seen["pre"], torch.arange(LAST + 1)[None])

    def _run(self, tokens: Tensor) -> dict[str, Tensor]:
        attention, seen = self.layer.self_attn, dict[str, Tensor]()
        sender = self.network.model.layers[LAYER - 1].self_attn

        def keep(name: str, value: Tensor) -> None:
            if value.is_leaf:
                value.requires_grad_(True)
            value.retain_grad()
            seen[name] = value

        hooks = [
            sender.register_forward_hook(lambda _, __, out: seen.update(sent=out[0].detach())),
            self.layer.register_forward_pre_hook(lambda _, args: keep("pre", args[0])),
            self.layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: keep("mid", args[0])),
            attention.o_proj.register_forward_pre_hook(lambda _, args: keep("z", args[0])),
            self.layer.mlp.register_forward_hook(lambda _, __, out: keep("mlp", out)),
        ]
        logits = self.network(input_ids=tokens).logits[0, -1]
        answer, foil = (WORDS(text)["input_ids"][0] for text in (ANSWER, FOIL))
        for hook in hooks:
            hook.remove()
        (logits[answer] - logits[foil]).backward()
        return seen

    def heads(self, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as attention sees them: [head, token, size]."""
        attention, normed = self.layer.self_attn, self.layer.input_layernorm(stream)
        split = [
            projection(normed).view(LAST + 1, -1, attention.head_dim).transpose(0, 1)[None]
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        queries, keys = apply_rotary_pos_emb(split[0], split[1], *self.rotary)
        return queries[0], keys[0], split[2][0]

    def z(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What each head gives: [head, token, size]."""
        share = HEADS // KEYS
        scores = queries @ keys.repeat_interleave(share, 0).transpose(1, 2) * self.layer.self_attn.scaling
        hidden = torch.ones(LAST + 1, LAST + 1).triu(1).bool()
        return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values.repeat_interleave(share, 0)

    def changed(self, name: str) -> Tensor:
        """The stream with what the sender adds."""
        stream = self.seen[name][0].detach().clone()
        stream[AT - 1] += self.sent
        return stream


def received_by_hand() -> dict[str, Tensor]:
    """What reception says of each reader of layer LAYER, from the attention of the layer before, at one token."""
    one = ByHand()
    base, new = one.heads(one.seen["pre"][0]), one.heads(one.changed("pre"))
    slope = slope_at(one.seen["z"]).view(LAST + 1, HEADS, -1).transpose(0, 1)
    before = one.z(*base)
    q, k, v = (
        ((one.z(*(new[n] if n == which else base[n] for n in range(3))) - before) * slope).sum(-1).sum(-1)
        for which in range(3)
    )
    mlp = one.layer.mlp(one.layer.post_attention_layernorm(one.changed("mid")))
    mlp_out = ((mlp - one.seen["mlp"][0]) * slope_at(one.seen["mlp"])).sum()
    return {"q": q, "k": k.view(KEYS, -1).sum(1), "v": v.view(KEYS, -1).sum(1), "mlp_out": mlp_out[None]}


def linear_by_hand() -> dict[str, Tensor]:
    """The same of edge attribution: a product of the derivative at the base run with what is added."""
    one = ByHand()
    slope = slope_at(one.seen["z"]).view(LAST + 1, HEADS, -1).transpose(0, 1)

    def given(which: int, stream: Tensor) -> Tensor:
        base = one.heads(one.seen["pre"][0].detach())
        new = one.heads(stream)
        return (one.z(*(new[n] if n == which else base[n] for n in range(3))) * slope).sum((-1, -2))

    def mlp(stream: Tensor) -> Tensor:
        return (one.layer.mlp(one.layer.post_attention_layernorm(stream)) * slope_at(one.seen["mlp"])).sum()[None]

    added = torch.zeros_like(one.seen["pre"][0])
    added[AT - 1] = one.sent
    found = {}
    for name, function, place in (
        *((name, lambda stream, n=n: given(n, stream), "pre") for n, name in enumerate("qkv")),
        ("mlp_out", mlp, "mid"),
    ):
        at = one.seen[place][0].detach().requires_grad_()
        outputs = function(at)
        slopes = [torch.autograd.grad(output, at, retain_graph=True)[0] for output in outputs]
        moved = torch.stack([(each * added).sum() for each in slopes])
        found[name] = moved.view(KEYS, -1).sum(1) if name in ("k", "v") else moved
    return found
