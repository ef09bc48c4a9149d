"""Times the packed engine on a GPU, against bare hooks, nnsight's loop, and the device's own matrix products.

    PYTHONPATH=src:tests python benchmarks/gpu.py [--shape 1B] [--lengths 10,50,200,500] [--rounds 5] [--cells 1024]

Nothing is downloaded: the model is a random Llama of the given shape, made on the device, with a tokenizer of words.
The task is that of `speed.py`: `resid_post` of the clean run restored in the corrupt one. Of the map of every layer and
position so many cells are run, evenly spread; the peers run fewer of them, for their time a cell does not depend on
which. All sides must give the same numbers before any is timed; the times are medians, interleaved.
"""

import argparse
import importlib.util
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
import transformers
from peers import PEERS, Cell, Task, agreement, all_cells
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.engine.checks.check import accept
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
    },
    "1B": {  # as Llama 3.2
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8B": {  # as Llama 3.1
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
WORDS = 1000  # the tokenizer's: prompts are made of these
PACKED = "causal-tracing, packed"
SIDES = {  # label: which of the peers, and how many cells it runs
    "bare hooks, one forward a cell": ("bare_hooks", 30),
    "bare hooks, batches of 32": ("bare_hooks_batched", 96),
    "nnsight, the recipe's loop": ("nnsight_loop", 30),
}
MINUTES = 7.0  # after so many no round begins
Sweep = Callable[[Task, Sequence[Cell]], np.ndarray]
Prepared = dict[str, tuple[Sweep, int | None]]  # by label, and how many cells it runs (None: all)


@dataclass(slots=True)
class Side:
    """One way to do the sweep: its cells, what it found on them, the bytes that it took, and the seconds of rounds."""

    sweep: Sweep
    cells: Sequence[Cell]
    found: np.ndarray
    peak: float
    seconds: list[float] = field(default_factory=list)

    @property
    def a_cell(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds) / len(self.cells)


# The model


def made(shape: str, device: torch.device, dtype: str) -> Model:
    """A random model of this shape, on the device from the start, and checked as every model is."""
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        # A product then keeps the size of what goes in: what a token says is not lost on its way through the layers.
        initializer_range=SHAPES[shape]["hidden_size"] ** -0.5,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return accept(network.eval().requires_grad_(False), tokenizer(), name=f"random Llama {shape}")


def tokenizer() -> PreTrainedTokenizerFast:
    """Words between white space are tokens: w0, w1, …"""
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2")


def task_of(length: int) -> Task:
    """Two prompts of random words that differ everywhere but in the first."""
    clean = torch.randint(3, WORDS, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    corrupt = [clean[0], *(3 + (token + 500) % (WORDS - 3) for token in clean[1:])]
    return Task(clean=tuple(clean), corrupt=tuple(corrupt), answer=7, foil=11)


# The sides


def packed(model: Model) -> Sweep:
    """The sweep on the packed engine, as the peers have theirs: nan where there is no cell."""

    def sweep(task: Task, cells: Sequence[Cell]) -> np.ndarray:
        base, donor, last = Run(task.corrupt), Run(task.clean), len(task.clean) - 1
        worlds = [
            World(base, (Edit(Site("resid_post", layer, position), From(donor, position)),), (last,))
            for layer, position in cells
        ]

        def contrast(logits: Tensor, _: Any) -> Tensor:
            return (logits[:, -1, task.answer] - logits[:, -1, task.foil])[:, None]

        table = np.full((model.num_layers, len(task.corrupt)), np.nan)
        table[tuple(np.transpose(cells))] = evaluate(model, worlds, contrast, engine="packed").values[:, 0]
        return table

    return sweep


def prepared(model: Model) -> Prepared:
    """Every side that can be run here."""
    sides: Prepared = {PACKED: (packed(model), None)}
    for label, (name, count) in SIDES.items():
        if name != "nnsight_loop" or importlib.util.find_spec("nnsight"):
            sides[label] = PEERS[name](model.network, model.tokenizer), count
    return sides


def spread(cells: Sequence[Cell], count: int | None) -> list[Cell]:
    """So many of the cells, evenly spread over them."""
    if count is None or count >= len(cells):
        return list(cells)
    return [cells[int(at)] for at in np.linspace(0, len(cells) - 1, count)]


# Time, memory and work


def finished(device: torch.device) -> float:
    """The time when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def at_peak(run: Callable[[], np.ndarray], device: torch.device) -> tuple[np.ndarray, float]:
    """What it gives, and the bytes of the device's memory that it took above what was there; nan on others."""
    if device.type != "cuda":
        return run(), math.nan
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    found = run()
    return found, torch.cuda.max_memory_allocated(device) - before


def product_speed(device: torch.device, dtype: str) -> float:
    """Operations a second of a product of two large square matrices: the median of five times eight of them."""
    size, times = (8192, 8) if device.type == "cuda" else (1024, 1)
    left, right = torch.randn(2, size, size, device=device, dtype=torch.float32).to(getattr(torch, dtype))
    left @ right
    seconds = []
    for _ in range(5):
        started = finished(device)
        for _ in range(times):
            left @ right
        seconds.append(finished(device) - started)
    return times * 2.0 * size**3 / statistics.median(seconds)


def operations(model: Model, task: Task, cells: Sequence[Cell]) -> float:
    """What must be computed for these cells at least: the projections of what a patch can change, and the head.

    Behind the patched layer every token from the patched one on; in the last layer their keys and values, and the rest
    of the last token alone. A patch of the first token changes nothing, for the prompts begin alike; nor does one of
    the last layer at another token than the last. Attention's own products are left out: they are few.
    """
    length, last = len(task.clean), model.num_layers - 1
    weights = {
        name: each.weight.numel() for name, each in model.layers[0].named_modules() if isinstance(each, nn.Linear)
    }
    layer = sum(weights.values())
    keys_and_values = weights["self_attn.k_proj"] + weights["self_attn.v_proj"]
    head = model.network.get_output_embeddings().weight.numel()
    done = 0
    for at, position in cells:
        tokens = length - position
        if position and at < last:
            done += (last - 1 - at) * tokens * layer + tokens * keys_and_values + layer - keys_and_values + head
        elif position == length - 1:
            done += head
    return 2.0 * done


# What is printed


def checked(model: Model, those: Prepared, task: Task, cells: Sequence[Cell], device: torch.device) -> dict[str, Side]:
    """The sides after their first run, in which all must have given the same numbers."""
    sides: dict[str, Side] = {}
    for label, (sweep, count) in those.items():
        some = spread(cells, count)
        found, peak = at_peak(lambda sweep=sweep, some=some: sweep(task, some), device)
        sides[label] = Side(sweep, some, found, peak)
    tables = {label: side.found for label, side in sides.items()}
    with torch.no_grad():
        logits = model.network(torch.tensor([task.corrupt], device=device), use_cache=False).logits[0, -1].float()
    largest = logits.abs().max().item()
    unpatched = np.full_like(tables[PACKED], (logits[task.answer] - logits[task.foil]).item())
    apart, effect = agreement(tables) / largest, agreement({"a": tables[PACKED], "b": unpatched}) / largest
    bound = TWO_FORWARDS[model.dtype]
    print(
        f"\n{len(task.clean)} tokens: all agree to {apart:.1e} of the largest logit; patches move it by {effect:.1e}."
    )
    if not apart <= bound < effect:
        raise SystemExit(f"They must agree to {bound:.0e}, and patches move logits by more: there is nothing to time.")
    return sides


def rows(model: Model, task: Task, sides: dict[str, Side], product: float) -> list[str]:
    """The table's rows for one length."""
    fastest = sides[PACKED].a_cell
    found = []
    for label in (PACKED, *SIDES):
        if label not in sides:
            found.append(f"| {len(task.clean)} | {label} | | not installed | | | | |")
            continue
        side = sides[label]
        speed = operations(model, task, side.cells) / statistics.median(side.seconds)
        peak = "–" if math.isnan(side.peak) else f"{side.peak / 2**20:,.0f}"
        times = f"{1000 * side.a_cell:.3f} | {side.a_cell / fastest:.2f}"
        speeds = f"{speed / 1e12:.3g} | {speed / product:.1%}"
        found.append(f"| {len(task.clean)} | {label} | {len(side.cells)} | {times} | {speeds} | {peak} |")
    return found


def measured(model: Model, asked: argparse.Namespace, device: torch.device) -> list[str]:
    """The table's rows for all lengths, for as long as there is time."""
    started, found, those = time.perf_counter(), [], prepared(model)
    product = product_speed(device, asked.dtype)
    print(f"A product of two large matrices in {asked.dtype}: {product / 1e12:.3g} TFLOP/s.")
    for length in asked.lengths:
        if time.perf_counter() - started > 60 * MINUTES:
            print(f"{length} tokens: left out, {MINUTES:.0f} minutes are over.")
            continue
        task = task_of(length)
        sides = checked(model, those, task, spread(all_cells(model.num_layers, task), asked.cells), device)
        for number in range(asked.rounds):
            if number and time.perf_counter() - started > 60 * MINUTES:
                print(f"{length} tokens: {number} rounds, then {MINUTES:.0f} minutes were over.")
                break
            for side in sides.values():
                began = finished(device)
                side.sweep(task, side.cells)
                side.seconds.append(finished(device) - began)
        found += rows(model, task, sides, product)
    return found


def main() -> None:
    """Prints the machine, the command, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1B")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[10, 50, 200, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=1024, help="at most so many of a map, evenly spread")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=TWO_FORWARDS, default="bfloat16")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here. Try the script out with --device cpu --shape tiny.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"python {' '.join(sys.argv)}")
    model = made(asked.shape, device, asked.dtype)
    weights = sum(each.numel() for each in model.network.parameters())
    print(f"{model.name}: {weights / 1e9:.3g} billion weights in {model.num_layers} layers, {asked.dtype}.")
    lines = measured(model, asked, device)
    print("\n| tokens | sweep | cells | ms a cell | times packed | useful TFLOP/s | of a product's | peak, MB |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    print(f"\nMedians of {asked.rounds}, interleaved. Useful: projections and head of what a patch can change.")


if __name__ == "__main__":
    main()
