"""The rows of docs/coming-from/transformerlens.md, run on one random GPT-2 by both: equal to 1e-4 logits, or it fails.

`python benchmarks/coming_from.py` needs the extra [bench]; `make bench` runs it first. The calls are read from the
page: a row whose calls are no longer true, or that nothing here knows how to compare, is an error.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import causal_tracing as ct

PAGE = Path(__file__).parents[1] / "docs" / "coming-from" / "transformerlens.md"
TOLERANCE = 1e-4
LAYERS, HEADS = 3, 4
WORDS = ("<eos>", "the", " city", " of", " Rome", " Paris", " is", " in", " Italy", " France", " a", " town")
CLEAN, CORRUPT, ANSWER, FOIL = "the city of Rome is in", "the town of Paris is a", " Italy", " France"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, its leading space included."""
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<eos>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<eos>", pad_token="<eos>")


def network() -> Any:
    """A random GPT-2 whose weights are large enough to matter."""
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=len(WORDS),
        n_embd=32,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=32,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def rows() -> list[tuple[str, str]]:
    """What the page's first table has in its first two columns, as code."""
    found = re.findall(r"^\| `(.+?)` \| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    if len(found) < 10:
        raise SystemExit(f"{PAGE} has {len(found)} rows: its table is not what it was.")
    return found


class Both:
    """The two sides of a comparison: names that the page's calls use, and how their numbers lie."""

    def __init__(self) -> None:
        words, twin = tokenizer(), network()
        self.model = ct.load(network(), words)
        self.tl = TransformerBridge.boot_transformers("gpt2", hf_model=twin, tokenizer=words)
        self.clean, self.corrupted = (torch.tensor([words.encode(text)]) for text in (CLEAN, CORRUPT))
        self.answer, self.foil = (WORDS.index(text) for text in (ANSWER, FOIL))
        self.clean_logits, self.cache = self.tl.run_with_cache(self.clean)
        self.corrupt_logits, self.corrupt_cache = self.tl.run_with_cache(self.corrupted)
        self.pair = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=ANSWER, foil=FOIL)

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        """The difference of the two logits at the last token."""
        return logits[0, -1, self.answer] - logits[0, -1, self.foil]

    def theirs(self, call: str) -> np.ndarray:
        """What TransformerLens gives: restoration, or for noising and ablation what is lost."""
        if call.startswith("tl.run_with_hooks"):
            return self._zeroed()
        names = {"tl": self.tl, "corrupted": self.corrupted, "cache": self.cache, "clean": self.clean}
        names |= {
            "corrupt_cache": self.corrupt_cache,
            "metric": self.metric,
            "each": lambda logits: self.metric(logits)[None],
        }
        names |= vars(patching)
        found = eval(call, names)
        if hasattr(found, "baseline"):
            return ct.from_transformer_lens(found).restoration.squeeze(("metric", "pair")).values
        noised = "corrupt_cache" in call
        base = self.metric(self.clean_logits if noised else self.corrupt_logits)
        return ((base - found) if noised else (found - base)).detach().numpy()

    def _zeroed(self) -> np.ndarray:
        """A hook on one site that writes zeros, one run a site."""
        base, positions = self.metric(self.clean_logits).item(), self.clean.shape[1]
        found = np.zeros((LAYERS, positions))
        for layer in range(LAYERS):
            for position in range(positions):

                def zero(value: torch.Tensor, hook: Any, position: int = position) -> torch.Tensor:
                    value = value.clone()
                    value[:, position] = 0
                    return value

                zeroing = [(f"blocks.{layer}.hook_mlp_out", zero)]
                found[layer, position] = (
                    base - self.metric(self.tl.run_with_hooks(self.clean, fwd_hooks=zeroing)).item()
                )
        return found

    def ours(self, call: str) -> np.ndarray:
        """What `trace(...)` of the page gives, without the axes of which there is one."""

        def trace(**options: Any) -> np.ndarray:
            components = {} if "components" in options else {"components": []}
            found = ct.trace(self.model, self.pair, **components, **options, progress=False)
            of = found.heads if "heads" in options else found.effects
            lost = options.get("write") == "zero" or options.get("directions") == ["disruption"]
            values = (of.disruption if lost else of.restoration).sel(metric="logit_diff", pair="pair-0")
            return values.squeeze(drop=True).values

        return eval(call, {"trace": trace})


def as_ours(call: str) -> Callable[[np.ndarray], np.ndarray]:
    """How their array must be turned to lie as ours does."""
    if "_by_pos" in call and "pattern" not in call:
        return lambda found: found.transpose(0, 2, 1)  # [layer, position, head] to [layer, head, position]
    return lambda found: found


def cut(call: str) -> Callable[[np.ndarray], np.ndarray]:
    """What of ours they have no number for: the stream behind the last layer."""
    return (lambda found: found[:-1]) if call.endswith("[1:]") else lambda found: found


def main() -> None:
    """Compares every row, and prints how far both are apart."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    both, worst = Both(), 0.0
    with torch.no_grad():
        for theirs, ours in rows():
            first = as_ours(theirs)(both.theirs(theirs))
            second = cut(theirs)(both.ours(ours))
            if first.shape != second.shape:
                raise SystemExit(f"{theirs} has the shape {first.shape}, {ours} has {second.shape}.")
            apart, size = float(np.abs(first - second).max()), float(np.abs(second).max())
            worst = max(worst, apart)
            print(f"{apart:.1e} of {size:.2f}  {theirs[:60]:60}  {ours}")
            if not apart < TOLERANCE or size < 0.01:
                raise SystemExit(
                    f"They are {apart:.2g} apart, where {TOLERANCE} is allowed and {size:.2g} is the largest."
                )
    print(f"{len(rows())} rows agree; the largest difference is {worst:.1e} logits")


if __name__ == "__main__":
    sys.exit(main())
