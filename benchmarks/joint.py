"""Times maps of what is done together, and of keys that are hidden, on the demo model; prints a table.

    python benchmarks/joint.py [--rounds 5] [--case knockout,knockout-long,pairs,edges] [--from-layer 0]

`knockout`: every key hidden from the last token, layer by layer, against the same masks through whole forwards, one
each (`knockout-long`: a prompt of 100 tokens; of the forwards 60 are timed, and all are extrapolated). `pairs`: all
pairs of heads at the last token, in one direction, against the operations' bound: the layers' products at the speed of
large ones. `edges`: all paths from heads to queries, keys and values at the last token, against the same bound, and
against two bare forwards each (of 100, extrapolated). Numbers are compared first; both sides
are timed in turn, and medians are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from bounds import large_product, operations, products
from torch.nn import functional

import causal_tracing as ct
from causal_tracing.engine import evaluate as evaluation
from causal_tracing.engine.packed import engine
from causal_tracing.models.model import Model
from causal_tracing.patching import measure
from causal_tracing.prompts.example import EXAMPLE

AGREE = 1e-3  # logits
TIMED = 60  # forwards, where there are thousands


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def pair_of(tokens: int | None) -> ct.Pair:
    """The example, with so many tokens before it where they are given."""
    if tokens is None:
        return ct.Pair(**EXAMPLE)
    long = " and".join([" the"] * ((tokens - 10) // 2 + 1))[1:]
    asked = {name: f"{long} {EXAMPLE[name]}" if name in ("clean", "corrupt") else EXAMPLE[name] for name in EXAMPLE}
    return ct.Pair(**{name: value for name, value in asked.items() if "subject" not in name})


class Masked:
    """The clean run's logit difference where a mask hides a key from the last token in one layer: a whole forward."""

    def __init__(self, model: Model, pair: ct.Pair) -> None:
        self.network = model.network
        self.tokens = torch.tensor([model.tokenizer(pair.clean)["input_ids"]])
        self.words = [
            model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (pair.answer, pair.foil)
        ]
        self.layers = model.layers

    def value(self, layer: int, key: int) -> float:
        length = self.tokens.shape[1]
        mask = torch.zeros(1, 1, length, length).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        mask[0, 0, -1, key] = -torch.inf

        def hide(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"attention_mask": mask}

        handle = self.layers[layer].register_forward_pre_hook(hide, with_kwargs=True)
        with torch.no_grad():
            logits = self.network(self.tokens, use_cache=False).logits[0, -1]
        handle.remove()
        return float(logits[self.words[0]] - logits[self.words[1]])


def knockout(model: Model, tokens: int | None, rounds: int) -> str:
    """A row: every key in every layer."""
    pair = pair_of(tokens)
    masked, asked = Masked(model, pair), {"knockout": True, "components": [], "spot_checks": 0, "progress": False}
    trace = ct.trace(model, pair, **asked)
    found = trace.of("knockout").sel(metric="logit_diff").squeeze(["pair", "component"])
    length = found.sizes["position"]
    cells = [(layer, key) for layer in range(model.num_layers) for key in range(length)]
    step = max(1, len(cells) // TIMED)
    some = cells[::step] if tokens else cells
    by_hand = [masked.value(*cell) for cell in some if cell[1] < length]
    ours = [float(found.clean - found.disruption.sel(layer=layer, position=key)) for layer, key in some]
    apart = float(np.nanmax(np.abs(np.array(ours) - np.array(by_hand))))
    if not apart < AGREE:
        raise SystemExit(f"The numbers are {apart:.1e} apart: there is nothing to time.")
    both = [
        (seconds(lambda: ct.trace(model, pair, **asked)), seconds(lambda: [masked.value(*cell) for cell in some]))
        for _ in range(rounds)
    ]
    times = [(mine, theirs * len(cells) / len(some)) for mine, theirs in both]
    mine, theirs = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    how = "" if len(some) == len(cells) else f" (from {len(some)})"
    return (
        f"| knockout, {length} tokens | {len(cells):,} | {mine:.2f} | {theirs:.1f}{how} | {ratio:.1f} | {apart:.0e} |"
    )


def against_bound(model: Model, what: str, asked: dict[str, Any], rounds: int) -> tuple[str, float]:
    """A row: a map, and what its operations take at the speed of large products; and the map's seconds."""
    pair, product = pair_of(None), large_product()
    asked = {"components": [], "directions": ["restoration"], "spot_checks": 0, "progress": False} | asked

    def sweep() -> ct.Trace:
        return ct.trace(model, pair, **asked)

    calls = products(model, sweep)
    count = sweep().provenance["worlds"]
    work = operations(model, calls, 0)
    times = [(seconds(sweep), work / statistics.median(product() for _ in range(9))) for _ in range(rounds)]
    mine, bound = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    return f"| {what} | {count:,} | {mine:.1f} | {bound:.1f} | {ratio:.2f} | |", mine


def pairs_of_heads(model: Model, first: int, rounds: int) -> str:
    """All pairs of heads of these layers."""
    sites = [f"each z {first}-{model.num_layers - 1} @ last"]
    return against_bound(model, f"pairs of heads, layers {first} on", {"interactions": sites}, rounds)[0]


def edges(model: Model, first: int, rounds: int) -> str:
    """All paths from heads of these layers to queries, keys and values; and two bare forwards for each of 100."""
    layers = f"{first}-{model.num_layers - 1}"
    asked = {"senders": [f"each z {layers} @ last"], "receivers": [f"each {part} {layers}" for part in ("q", "k", "v")]}
    row, mine = against_bound(model, f"heads to q, k, v, layers {first} on", asked, rounds)
    trace = ct.trace(model, pair_of(None), components=[], spot_checks=0, progress=False, **asked)
    found = trace.of("paths").squeeze(["pair", "component"]).sel(metric="logit_diff")
    there = (
        found.restoration.where(found.status == "ok").drop_sel(receiver="every path").stack(cell=["sender", "receiver"])
    )
    cells = there.dropna("cell")
    some = cells[:: max(1, cells.size // 100)][:100]
    by_hand = ByHand(model, pair_of(None))
    expected, took = [], 0.0
    for cell in some:
        sender, receiver = map(str, cell.cell.item())
        started = time.perf_counter()
        expected.append(by_hand.path(sender, receiver))
        took += time.perf_counter() - started
    apart = float(np.abs(np.array(expected) - found.corrupt.item() - some.values).max())
    if not apart < AGREE:
        raise SystemExit(f"The numbers are {apart:.1e} apart: there is nothing to time.")
    bare = took / len(some) * cells.size
    return (
        f"{row}\n| the same by two forwards each (from {len(some)}) | {cells.size:,} | {bare:.0f} | | "
        f"{bare / mine:.1f} times | {apart:.0e} |"
    )


def shares(model: Model, first: int, rounds: int) -> str:
    """Where one thread's time goes in the paths of `edges`: medians, in shares of the whole."""
    torch.set_num_threads(1)
    layers, spent = f"{first}-{model.num_layers - 1}", dict[str, float]()
    asked: dict[str, Any] = {"senders": [f"each z {layers} @ last"]}
    asked |= {"receivers": [f"each {part} {layers}" for part in ("q", "k", "v")]}
    asked |= {"components": [], "directions": ["restoration"], "spot_checks": 0, "progress": False}
    watched = [
        (functional, "linear"),
        (functional, "scaled_dot_product_attention"),
        *((engine, name) for name in ("read_by", "recorded_behind", "groups")),
        (evaluation, "plan"),
    ]
    for module, name in watched:
        setattr(module, name, _timed(getattr(module, name), name, spent))
    measure._Chunk._batches = _timed_batches(measure._Chunk._batches, spent)
    found: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        spent.clear()
        started = time.thread_time()
        ct.trace(model, pair_of(None), **asked)
        whole = time.thread_time() - started
        found.append({name: part / whole for name, part in spent.items()})
    medians = {name: statistics.median(each[name] for each in found[1:]) for name in found[0]}
    rest = 1 - sum(medians.values())
    return ", ".join(f"{name} {share:.1%}" for name, share in (medians | {"all else": rest}).items())


def _timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **options: Any) -> Any:
        started = time.thread_time()
        found = function(*args, **options)
        spent[name] = spent.get(name, 0.0) + time.thread_time() - started
        return found

    return timed


def _timed_batches(batches: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """Worlds are made while a batch of them is asked for."""

    def timed(*args: Any) -> Iterator[Any]:
        step = _timed(partial(next, batches(*args), None), "worlds", spent)
        while (batch := step()) is not None:
            yield batch

    return timed


class ByHand:
    """Two forwards a path, as path patching does it: what arrives at a head with all else held, and what that does."""

    def __init__(self, model: Model, pair: ct.Pair) -> None:
        self.network: Any = model.network
        self.layers: list[Any] = [*model.layers]
        self.size: int = self.network.config.head_dim
        self.clean, self.corrupt = (
            torch.tensor([model.tokenizer(text)["input_ids"]]) for text in (pair.clean, pair.corrupt)
        )
        self.words = [
            model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (pair.answer, pair.foil)
        ]
        self.given: dict[int, Any] = {}
        self.held: dict[Any, Any] = {}
        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, n=n: self.given.update({n: args[0][0, -1]})
            )
            for n, layer in enumerate(self.layers)
        ]
        self._run(self.clean, hooks)
        parts = [part for layer in self.layers for part in (layer.self_attn.o_proj, layer.mlp)]
        self._run(
            self.corrupt,
            [part.register_forward_hook(lambda part, _, out: self.held.update({part: out[0, -1]})) for part in parts],
        )

    def _run(self, tokens: torch.Tensor, hooks: list[Any]) -> torch.Tensor:
        with torch.no_grad():
            logits = self.network(tokens, use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        return logits

    def path(self, sender: str, receiver: str) -> float:
        """The corrupt run's logit difference with what one head of the clean run sends to one query, key or value."""
        layer, head = map(int, sender.split()[1].split("."))
        component, where = receiver.split()
        reader, part = map(int, where.split("."))
        mine = slice(head * self.size, (head + 1) * self.size)
        read = slice(part * self.size, (part + 1) * self.size)
        projection = getattr(self.layers[reader].self_attn, f"{component}_proj")
        arrived: dict[str, Any] = {}

        def send(_: Any, args: Any) -> Any:
            value = args[0].clone()
            value[0, -1, mine] = self.given[layer][mine]
            return (value,)

        def hold(module: Any, _: Any, out: Any) -> Any:
            out = out.clone()
            out[0, -1] = self.held[module]
            return out

        def keep(_: Any, __: Any, out: Any) -> None:
            arrived["value"] = out[0, -1, read].clone()

        def receive(_: Any, __: Any, out: Any) -> Any:
            out = out.clone()
            out[0, -1, read] = arrived["value"]
            return out

        between = [self.layers[layer].mlp]
        between += [each for later in self.layers[layer + 1 :] for each in (later.self_attn.o_proj, later.mlp)]
        hooks = [self.layers[layer].self_attn.o_proj.register_forward_pre_hook(send)]
        hooks += [module.register_forward_hook(hold) for module in between]
        self._run(self.corrupt, [*hooks, projection.register_forward_hook(keep)])
        logits = self._run(self.corrupt, [projection.register_forward_hook(receive)])
        return float(logits[self.words[0]] - logits[self.words[1]])


def main() -> None:
    """Prints a row a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", default="knockout,knockout-long,pairs,edges")
    parser.add_argument("--from-layer", type=int, default=0)
    asked = parser.parse_args()
    model = ct.load("demo", device="cpu", progress=False)
    print("| map | worlds | seconds | masks or bound, s | ratio | apart (logits) |\n|---|---|---|---|---|---|")
    cases: dict[str, Callable[[], str]] = {
        "knockout": lambda: knockout(model, None, asked.rounds),
        "knockout-long": lambda: knockout(model, 100, asked.rounds),
        "pairs": lambda: pairs_of_heads(model, asked.from_layer, asked.rounds),
        "edges": lambda: edges(model, asked.from_layer, asked.rounds),
        "shares": lambda: shares(model, asked.from_layer, asked.rounds),
    }
    for case in asked.case.split(","):
        print(cases[case](), flush=True)


if __name__ == "__main__":
    main()
