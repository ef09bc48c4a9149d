"""Direct paths of every head of the demo model, against two bare forwards for each of them.

PYTHONPATH=src python benchmarks/paths.py

The bare way: for each head one forward of the corrupt prompt in which the head's output is the clean run's, and all
later attention and MLPs are held at the last token, by forward hooks on values that were recorded once; and a second
forward without hooks, for path patching takes two. It is run for some heads spread over the map, and extrapolated: its
time does not depend on which. Both are interleaved, after the numbers were found equal.
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

import causal_tracing as ct
from causal_tracing.engine.choose import open_backend
from causal_tracing.interventions.edits import World
from causal_tracing.patching.cells import cells
from causal_tracing.patching.job import plan_job
from causal_tracing.patching.options.trace import Options

PAIR = ct.Pair(
    clean="The Colosseum is located in the city of",
    corrupt="The Eiffel Tower is located in the city of",
    answer=" Rome",
    foil=" Paris",
)
SAMPLE, ROUNDS, TOLERANCE = 20, 5, 1e-4


class Bare:
    """The network with hooks of its own: what both runs gave at the last token, kept once."""

    def __init__(self, model: Any) -> None:
        self.network, self.layers = model.network, list(model.layers)
        self.clean, self.corrupt = (
            model.tokenizer(text, return_tensors="pt").input_ids for text in (PAIR.clean, PAIR.corrupt)
        )
        self.answer, self.foil = (model.tokenizer(text).input_ids[0] for text in (PAIR.answer, PAIR.foil))
        self.size = model.network.config.head_dim
        self.donor: dict[int, Tensor] = {}
        self.held: dict[Any, Tensor] = {}
        parts = [part for layer in self.layers for part in (layer.self_attn, layer.mlp)]
        hooks = [
            part.register_forward_hook(lambda part, _, out: self.held.update({part: _first(out)[0, -1]}))
            for part in parts
        ]
        self.forward(self.corrupt, hooks)
        keep = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, n=n: self.donor.update({n: args[0][0, -1]})
            )
            for n, layer in enumerate(self.layers)
        ]
        self.forward(self.clean, keep)

    def forward(self, tokens: Tensor, hooks: list[Any]) -> Tensor:
        """The last token's logits."""
        try:
            with torch.no_grad():
                return self.network(input_ids=tokens, use_cache=False).logits[0, -1]
        finally:
            for hook in hooks:
                hook.remove()

    def direct(self, layer: int, head: int) -> float:
        """The logit difference with this head's output restored, and what is behind it held."""
        part = slice(head * self.size, (head + 1) * self.size)

        def restore(_: Any, args: Any) -> Any:
            value = args[0].clone()
            value[0, -1, part] = self.donor[layer][part]
            return (value,)

        def hold(module: Any, _: Any, out: Any) -> Any:
            value = _first(out).clone()
            value[0, -1] = self.held[module]
            return (value, *out[1:]) if isinstance(out, tuple) else value

        behind = [self.layers[layer].mlp]
        behind += [part for later in self.layers[layer + 1 :] for part in (later.self_attn, later.mlp)]
        hooks = [self.layers[layer].self_attn.o_proj.register_forward_pre_hook(restore)]
        logits = self.forward(self.corrupt, [*hooks, *(module.register_forward_hook(hold) for module in behind)])
        self.forward(self.corrupt, [])  # the second run of a pair
        return (logits[self.answer] - logits[self.foil]).item()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def worlds(model: Any, direct: str) -> tuple[Any, list[World], list[tuple[int, int]]]:
    """The product's own worlds of this path, and whose they are."""
    options = Options(components=[], heads=["z"], head_positions=["last"], directions=["restoration"], direct=[direct])
    job = plan_job(model, PAIR, options)
    mine = [cell for cell in cells(job.question(0), job.grids[0]) if cell.arm.direct]
    return job, [cell.world for cell in mine], [(cell.at[1], cell.at[2]) for cell in mine]


def main() -> None:
    """The ways in turn: medians of so many rounds, and their ratios."""
    model = ct.load("demo", progress=False)
    bare = Bare(model)
    _, _, places = worlds(model, "mlps_frozen")
    chosen = [places[n] for n in range(0, len(places), -(-len(places) // SAMPLE))]
    times: dict[str, list[float]] = {"mlps_frozen": [], "mlps_live": [], "two bare forwards each": []}
    for _ in range(1 + ROUNDS):  # the first warms up
        found = {}
        for direct in ("mlps_frozen", "mlps_live"):
            started = time.perf_counter()
            found[direct] = _measured(model, direct, bare)
            times[direct].append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = {place: bare.direct(*place) for place in chosen}
        times["two bare forwards each"].append((time.perf_counter() - started) / len(chosen) * len(places))
        apart = max(abs(found["mlps_frozen"][place] - expected[place]) for place in chosen)
        assert apart < TOLERANCE, apart
    print(f"{len(places)} heads; bare forwards extrapolated from {len(chosen)}; {torch.get_num_threads()} threads")
    bares = times["two bare forwards each"][1:]
    for name, seconds in times.items():
        rounds = [round(bare / own) for own, bare in zip(seconds[1:], bares, strict=True)]
        median = statistics.median(seconds[1:])
        print(f"{name}: {median:.2f} s, ratio {statistics.median(bares) / median:.0f}, by round {rounds}")
    started = time.perf_counter()
    options: dict[str, Any] = {"components": [], "heads": True, "head_positions": ["last"], "direct": True}
    ct.trace(model, PAIR, directions=["restoration"], progress=False, **options)
    print(f"ct.trace: whole effects, both paths, spot checks: {time.perf_counter() - started:.2f} s")


def _measured(model: Any, direct: str, bare: Bare) -> dict[tuple[int, int], float]:
    """Plans and runs the worlds of one path: everything but the map's own sums."""
    _, asked, places = worlds(model, direct)
    backend = open_backend(model, ["z", "attn_out", "mlp_out"])
    numbers = backend.evaluate(asked, lambda logits, _: logits[:, 0, [bare.answer, bare.foil]]).values
    return dict(zip(places, (numbers[:, 0] - numbers[:, 1]).tolist(), strict=True))


if __name__ == "__main__":
    main()
