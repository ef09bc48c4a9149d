"""Edges from head to head, against TransformerLens' `get_act_patch_direct_path`: equal to 1e-4 logits, or it fails.

`python benchmarks/direct_paths.py` needs the extra [bench]; `make bench` runs it too.

Theirs: the change of one head's output (clean minus corrupt) is added at all positions to what one later head makes its
queries, keys or values of; everything else stays as in the corrupt run. Ours, by worlds: in a first run the head's
output is the clean run's, and all that later attention and MLPs write is held; what arrives at the reader's q, k or v
there is written into the corrupt run, at all positions.

1. A random GPT-2, both sides with the same weights: every edge between a few heads, by q, k and v.
2. Models that TransformerLens refuses (grouped queries; a norm behind attention): its refusal is shown, and our numbers
   are held against hooks that share no code with either.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
from coming_from import ANSWER, CLEAN, CORRUPT, FOIL, HEADS, LAYERS, TOLERANCE, WORDS, network, tokenizer
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM

import causal_tracing as ct
from causal_tracing.engine.choose import open_backend
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site

ANSWERS = WORDS.index(ANSWER), WORDS.index(FOIL)
LLAMA = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
REFUSED = {  # model type, and the name that TransformerLens knows such a model by
    "llama": "meta-llama/Llama-3.2-1B",
    "gemma2": "google/gemma-2-2b",
}


def grouped(model_type: str) -> Any:
    """A random model with two key and value heads for four query heads; gemma2 has a norm behind attention too."""
    more = {"query_pre_attn_scalar": 8, "sliding_window": 16} if model_type == "gemma2" else {}
    config = AutoConfig.for_model(model_type, **LLAMA, **more)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def difference(logits: Tensor) -> Tensor:
    """Answer minus foil, of logits [..., vocab]."""
    return logits[..., ANSWERS[0]] - logits[..., ANSWERS[1]]


class Ours:
    """Edges as worlds of the public kind."""

    def __init__(self, made: Any) -> None:
        words = tokenizer()
        self.model = ct.load(made, words)
        self.base, self.donor = (Run(tuple(words.encode(text))) for text in (CORRUPT, CLEAN))
        self.backend = open_backend(self.model, ["z", "q", "k", "v", "attn_out", "mlp_out"])

    def numbers(self, sender: tuple[int, int], readers: Sequence[tuple[str, int, int]]) -> list[float]:
        """The corrupt run's metric with the edge from a head (layer, head) to each reader (q, k or v, layer, head)."""
        base, tokens = self.base, range(len(self.base.tokens))
        arrives = Run(base.tokens, tuple(self._held(*sender)))
        worlds = [
            World(base, tuple(Edit(Site(name, layer, at, head), From(arrives, at)) for at in tokens), (tokens[-1],))
            for name, layer, head in readers
        ]
        return self.backend.evaluate(worlds, lambda logits, _: difference(logits)).values[:, 0].tolist()

    def _held(self, layer: int, head: int) -> list[Edit]:
        """The sender's output from the clean run, and what is behind it as in the corrupt run, at every token."""
        tokens, last = range(len(self.base.tokens)), self.model.num_layers
        later = [("attn_out", each) for each in range(layer + 1, last)] + [("mlp_out", n) for n in range(layer, last)]
        patched = [Edit(Site("z", layer, at, head), From(self.donor, at)) for at in tokens]
        held = [Edit(Site(name, each, at), From(self.base, at)) for name, each in later for at in tokens]
        return [*patched, *held]


class Theirs:
    """The same by TransformerLens."""

    def __init__(self, name: str, made: Any) -> None:
        words = tokenizer()
        self.tl = TransformerBridge.boot_transformers(name, hf_model=made, tokenizer=words)
        self.clean, self.corrupted = (torch.tensor([words.encode(text)]) for text in (CLEAN, CORRUPT))
        self.caches = [self.tl.run_with_cache(tokens)[1] for tokens in (self.clean, self.corrupted)]

    def numbers(self, sender: tuple[int, int], component: str) -> Tensor:
        """The metric by reader, [layer, head]; 0 in layers up to the sender's."""
        return patching.get_act_patch_direct_path(
            self.tl, self.corrupted, *self.caches, lambda logits: difference(logits[0, -1]), *sender,
            component=component, verbose=False,
        )  # fmt: skip


class Bare:
    """The same by forward hooks on transformers' own modules: the stream at the reader, with the change, through its
    norm and projection by hand; and the result written where the reader's projection gives its own."""

    def __init__(self, made: Any) -> None:
        self.network, self.size = made, made.config.head_dim
        words = tokenizer()
        self.clean, self.corrupt = (torch.tensor([words.encode(text)]) for text in (CLEAN, CORRUPT))

    def number(self, sender: tuple[int, int], reader: tuple[str, int, int]) -> float:
        """The metric of the corrupt run with that edge."""
        (layer, head), (name, at, part) = sender, reader
        sends, reads = (self.network.model.layers[n] for n in (layer, at))
        z = {run: self._seen(run, sends.self_attn.o_proj) for run in ("clean", "corrupt")}
        mixed, mine = z["corrupt"].clone(), slice(head * self.size, (head + 1) * self.size)
        mixed[..., mine] = z["clean"][..., mine]
        change = self._written(sends, mixed) - self._written(sends, z["corrupt"])
        stream = self._seen("corrupt", reads.input_layernorm)
        projection = getattr(reads.self_attn, f"{name}_proj")
        new, there = projection(reads.input_layernorm(stream + change)), slice(part * self.size, (part + 1) * self.size)

        def write(_: Any, __: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[..., there] = new[..., there]
            return output

        handle = projection.register_forward_hook(write)
        logits = self.network(self.corrupt).logits
        handle.remove()
        return difference(logits[0, -1]).item()

    def _written(self, layer: Any, z: Tensor) -> Tensor:
        """What attention adds to the stream: behind its own norm where there is one."""
        written = layer.self_attn.o_proj(z)
        return layer.post_attention_layernorm(written) if self.network.config.model_type == "gemma2" else written

    def _seen(self, run: str, module: Any) -> Tensor:
        """What comes into a module."""
        seen: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        self.network(getattr(self, run))
        handle.remove()
        return seen[0]


def say(called: str, ours: Sequence[float], others: Sequence[float], base: float) -> float:
    """A line of the table; how far both are apart. Exits where that is too far, or where nothing moves."""
    apart = max(abs(one - other) for one, other in zip(ours, others, strict=True))
    moved = max(abs(one - base) for one in ours)
    print(f"{apart:.1e} of {moved:.2f}  {called}")
    if not apart < TOLERANCE or moved < 0.01:
        raise SystemExit(f"They are {apart:.2g} apart, where {TOLERANCE} is allowed and {moved:.2g} is what moves.")
    return apart


def with_transformer_lens() -> float:
    """A model that both take: four senders, every later head, by q, k and v."""
    ours, theirs, worst = Ours(network()), Theirs("gpt2", network()), 0.0
    base = difference(theirs.tl(theirs.corrupted)[0, -1]).item()
    for sender in ((0, 0), (0, 3), (1, 1), (1, 2)):
        for component in ("q", "k", "v"):
            later = [(layer, head) for layer in range(sender[0] + 1, LAYERS) for head in range(HEADS)]
            others = theirs.numbers(sender, component)
            found = ours.numbers(sender, [(component, *reader) for reader in later])
            called = f"gpt2, head {sender[0]}.{sender[1]} to {component} of {len(later)} heads: TransformerLens"
            worst = max(worst, say(called, found, [others[reader].item() for reader in later], base))
    return worst


def without_it() -> float:
    """Models that it refuses: what it says, and what hooks give."""
    worst = 0.0
    for model_type, name in REFUSED.items():
        made = grouped(model_type)
        ours, bare, component = Ours(made), Bare(grouped(model_type)), "k" if model_type == "llama" else "q"
        try:
            Theirs(name, grouped(model_type)).numbers((0, 1), component)
            raise SystemExit(f"TransformerLens takes {model_type} now: compare it as the first model is.")
        except (ValueError, NotImplementedError) as error:
            print(f"{model_type}, {component}: TransformerLens refuses it: {' '.join(str(error).split())}")
        base = difference(made(bare.corrupt).logits[0, -1]).item()
        for sender in ((0, 1), (1, 2)):
            readers = [("q", 2, 0), ("q", 2, 3), ("k", 2, 1), ("v", 2, 0)]
            expected = [bare.number(sender, reader) for reader in readers]
            called = f"{model_type}, head {sender[0]}.{sender[1]} to {len(readers)} readers: bare hooks"
            worst = max(worst, say(called, ours.numbers(sender, readers), expected, base))
    return worst


def main() -> None:
    """Compares both, and prints how far they are apart."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with torch.no_grad():
        first, second = with_transformer_lens(), without_it()
    print(f"all agree; largest differences {first:.1e} (TransformerLens) and {second:.1e} logits (bare hooks)")


if __name__ == "__main__":
    sys.exit(main())
