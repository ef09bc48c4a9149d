"""Two tiny models written out by hand, head by head from their weights: what edge circuits and edge scores must give.

What a reader reads is a sum of what senders add, each as it is in this run, or as it is in the other one where the edge
is cut: nothing else is said here, and nothing of the package is used.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from loaded import shared

ANSWER, FOIL, LAYERS, HEADS = 7, 20, 4, 4


class Written:
    """A tiny model by hand, in float64: what each sender adds, when each reader reads a sum of its own."""

    def __init__(self, name: str) -> None:
        network = shared(name).network
        self.weights = {key: value.double() for key, value in network.state_dict().items()}
        self.of = self.gpt2 if name == "gpt2" else self.llama

    def run(
        self, tokens: Sequence[int], cut: frozenset[str] = frozenset(), other: Mapping[str, Tensor] | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """The difference of the two logits, and what each sender adds in this run."""
        added: dict[str, Tensor] = {}

        def read(reader: str) -> Tensor:
            return sum(
                other[name] if other is not None and f"{name} -> {reader}" in cut else value
                for name, value in added.items()
            )  # type: ignore[return-value]

        logits = self.of(torch.tensor(tokens), read, added)
        return (logits[ANSWER] - logits[FOIL]).item(), added

    def slopes(self, tokens: Sequence[int], embedded: Tensor | None = None) -> dict[str, Tensor]:
        """The slope of that difference with what each reader reads [token, d_model], where others embed this."""
        added: dict[str, Tensor] = {}
        probes: dict[str, Tensor] = {}

        def read(reader: str) -> Tensor:
            read_of = added if embedded is None else added | {"resid_pre 0": embedded}
            total: Tensor = sum(read_of.values())  # type: ignore[assignment]
            # What several heads share is read for each of them: the slopes add up in one probe.
            return total + probes.setdefault(reader, torch.zeros_like(total).requires_grad_())

        logits = self.of(torch.tensor(tokens), read, added)
        found = torch.autograd.grad(logits[ANSWER] - logits[FOIL], [*probes.values()])
        return dict(zip(probes, found, strict=True))

    def llama(self, tokens: Tensor, read: Callable[[str], Tensor], added: dict[str, Tensor]) -> Tensor:
        w, size = self.weights, 8
        added["resid_pre 0"] = w["model.embed_tokens.weight"][tokens]

        def turned(value: Tensor) -> Tensor:
            angles = torch.arange(len(tokens))[:, None].double() / 10000 ** (torch.arange(0, size, 2).double() / size)
            cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
            return value * cos + torch.cat([-value[:, size // 2 :], value[:, : size // 2]], -1) * sin

        for n in range(LAYERS):
            at = f"model.layers.{n}."

            def part(kind: str, head: int, at: str = at, n: int = n) -> Tensor:
                normed = rms_norm(read(f"{kind} {n}.{head}"), (32,), w[f"{at}input_layernorm.weight"], 1e-6)
                return normed @ w[f"{at}self_attn.{kind}_proj.weight"][head * size : (head + 1) * size].T

            made = {
                f"z {n}.{head}": attended(
                    turned(part("q", head)), turned(part("k", head // 2)), part("v", head // 2)
                ) @ w[f"{at}self_attn.o_proj.weight"][:, head * size : (head + 1) * size].T
                for head in range(HEADS)
            }  # fmt: skip
            added |= made
            normed = rms_norm(read(f"mlp_out {n}"), (32,), w[f"{at}post_attention_layernorm.weight"], 1e-6)
            gate, up = (normed @ w[f"{at}mlp.{each}_proj.weight"].T for each in ("gate", "up"))
            added[f"mlp_out {n}"] = (torch.nn.functional.silu(gate) * up) @ w[f"{at}mlp.down_proj.weight"].T
        return rms_norm(read("logits")[-1:], (32,), w["model.norm.weight"], 1e-6)[0] @ w["lm_head.weight"].T

    def gpt2(self, tokens: Tensor, read: Callable[[str], Tensor], added: dict[str, Tensor]) -> Tensor:
        w, size = self.weights, 8
        embedded = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: len(tokens)]
        added["resid_pre 0"] = embedded

        def normed(value: Tensor, name: str) -> Tensor:
            return layer_norm(value, (32,), w[f"transformer.{name}.weight"], w[f"transformer.{name}.bias"], 1e-5)

        for n in range(LAYERS):
            at = f"transformer.h.{n}."

            def part(kind: str, head: int, at: str = at, n: int = n) -> Tensor:
                start = "qkv".index(kind) * 32 + head * size
                value = normed(read(f"{kind} {n}.{head}"), f"h.{n}.ln_1")
                columns = slice(start, start + size)
                return value @ w[f"{at}attn.c_attn.weight"][:, columns] + w[f"{at}attn.c_attn.bias"][columns]

            made = {
                f"z {n}.{head}": attended(part("q", head), part("k", head), part("v", head))
                @ w[f"{at}attn.c_proj.weight"][head * size : (head + 1) * size]
                for head in range(HEADS)
            }
            added |= made | {
                f"bias {n}": w[f"{at}attn.c_proj.bias"].expand(len(tokens), -1)
            }  # no head's, and read live
            inner = normed(read(f"mlp_out {n}"), f"h.{n}.ln_2") @ w[f"{at}mlp.c_fc.weight"] + w[f"{at}mlp.c_fc.bias"]
            bent = torch.nn.functional.gelu(inner, approximate="tanh")
            added[f"mlp_out {n}"] = bent @ w[f"{at}mlp.c_proj.weight"] + w[f"{at}mlp.c_proj.bias"]
        return normed(read("logits")[-1:], "ln_f")[0] @ w["lm_head.weight"].T


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = (query @ key.T / query.shape[1] ** 0.5).masked_fill(
        torch.ones(len(query), len(query)).triu(1).bool(), float("-inf")
    )
    return scores.softmax(-1) @ value


@cache
def written(name: str) -> Written:
    return Written(name)
