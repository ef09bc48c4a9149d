"""The cases of `golden.py`: what is traced on the demo model, and what is kept of each result.

Only the public face of the package is used, so that the same cases run on every version of it.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import causal_tracing as ct

Model = Any  # what ct.load gives
Arrays = dict[str, np.ndarray]
TEXTS = ("status", "why")  # variables of text that are kept; what explains a number is left to the words
TIME = re.compile(r" worlds in .*")

DEMO = ct.Pair(
    clean="The Colosseum is located in the city of",
    corrupt="The Eiffel Tower is located in the city of",
    answer=" Rome",
    foil=" Paris",
    subject="The Colosseum",
    corrupt_subject="The Eiffel Tower",
)
NO_FOIL = ct.Pair(clean=DEMO.clean, corrupt=DEMO.corrupt, answer=" Rome", subject="The Colosseum")
LONG_ANSWERS = ct.Pair(clean=DEMO.clean, corrupt=DEMO.corrupt, answer=" Rome, Italy", foil=" Paris, France")
UNEQUAL = ct.Pair(
    clean=DEMO.clean,
    corrupt="The Leaning Tower of Pisa is located in the city of",
    answer=" Rome",
    foil=" Florence",
    subject="The Colosseum",
    corrupt_subject="The Leaning Tower of Pisa",
)
NOISED = ct.Pair(clean=DEMO.clean, answer=" Rome", foil=" Paris", subject="The Colosseum")
SPAN = ct.Pair(clean=DEMO.clean, corrupt=DEMO.corrupt, answer=" Rome", foil=" Paris", spans={"place": "the city"})
CHAT = ct.Pair(
    clean="In which city is the Colosseum?",
    corrupt="In which city is the Kremlin?",
    answer="Rome",
    foil="Moscow",
    subject="the Colosseum",
    corrupt_subject="the Kremlin",
    chat=True,
)
# As many tokens as the demo pair's prompts: only such references count.
REFERENCE = (
    "The old bridge stands close to a small town by",
    "The Brandenburg Gate is located in the city of",
    "The Eiffel Tower is located in the city of",
)
ALL_HEADS = ("q", "k", "v", "pattern", "z")
LAYERS, WIDTH = (10, 20), 576  # of the model: where tensors are given, and how long they are


@dataclass(kw_only=True)
class Found:
    """What a case gave: arrays, the axes of each, the metric of those that have no axis of metrics, and words."""

    arrays: Arrays = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, values: Any, axes: Sequence[Any] = (), metric: str | None = None) -> None:
        """One array: numbers and flags as they are, all else as text."""
        array = np.asarray(values)
        self.arrays[name] = array if array.dtype.kind in "fib" else array.astype(str)
        self.axes[name] = [str(axis) for axis in axes]
        if metric is not None:
            self.metrics[name] = metric

    def add_map(self, name: str, data: xr.Dataset, metric: str | None = None) -> None:
        """Every label and number of a map, with its statuses."""
        for variable, each in data.variables.items():
            if variable == "kind":  # since 0.2.0 a map says what it is of
                continue
            if variable in data.coords or variable in TEXTS or each.dtype.kind in "fib":
                self.add(f"{name}/{variable}", each.values, each.dims, metric)


def of_trace(trace: ct.Trace, *, tables: Sequence[str] = ()) -> Found:
    """A trace's maps, its words, and how many worlds it took on which engine."""
    found = Found()
    found.add_map("effects", trace.effects)
    for name in tables:
        found.add_map(name, getattr(trace, name))
    pairs = [str(id) for id in trace.effects.pair.values]
    found.words["summary"] = untimed(trace.summary())
    if len(pairs) > 1:
        found.words |= {f"summary {id}": untimed(trace.summary(pair=id)) for id in pairs[:2]}
    found.words |= {name: trace.provenance[name] for name in ("engine", "engine_note", "worlds", "worlds_skipped")}
    found.words |= {name: trace.provenance[name] for name in ("failed", "dropped") if name in trace.provenance}
    return found


def untimed(text: str) -> str:
    """Words without what depends on the clock."""
    return TIME.sub(" worlds", text)


def add_evidence(found: Found, trace: ct.Trace, of: str) -> None:
    """Means over pairs with intervals, tests and peaks."""
    evidence, name = trace.evidence(of), f"evidence {of}"
    found.add_map(name, evidence.cells, evidence.metric)
    _add_interval(found, f"{name}/total", evidence.total, evidence.metric)
    found.add(f"{name}/smallest_p", evidence.smallest_p)
    for component, both in evidence.peaks.items():
        for kind, peak in zip(("half", "stability"), both, strict=True):
            for part, value in asdict(peak).items():
                if part != "reason":
                    found.add(f"{name}/peak_{component}_{kind}_{part}", np.array(value, dtype=float))
    counts = {each: getattr(evidence, each) for each in ("pairs", "clusters", "metric", "unit", "shown")}
    counts["undefined"] = evidence.undefined if isinstance(evidence.undefined, int) else len(evidence.undefined)
    found.words[name] = counts


def add_comparison(found: Found, comparison: Any) -> None:
    """Paired differences of two traces."""
    if hasattr(comparison, "of"):  # version 0.1.0
        name, metric, totals = f"comparison {comparison.of}", comparison.metrics[0], comparison.totals
    else:
        sides = comparison.first, comparison.second
        name, metric, totals = f"comparison {comparison.kind}", sides[0].metric, [side.total for side in sides]
    found.add_map(name, comparison.cells, metric)
    for part, interval in zip(("total", "first", "second"), (comparison.total, *totals), strict=True):
        _add_interval(found, f"{name}/{part}", interval, metric)
    found.words[name] = comparison.summary()


def _add_interval(found: Found, name: str, interval: Any, metric: str) -> None:
    for part in ("estimate", "low", "high"):
        found.add(f"{name}_{part}", getattr(interval, part), metric=metric)


def of_attribution(attribution: Any) -> Found:
    """Estimates, the sites that were patched, and how far both agree."""
    found, record = Found(), attribution.provenance
    metric = (
        str(record["metric"]) if "total_effect" in record else attribution.measurements.metric
    )  # as of 0.1.0, or now
    for component, estimates in attribution.estimates.items():
        estimates = estimates.isel(pair=0) if "pair" in estimates.dims else estimates
        found.add(f"estimates/{component}", estimates.values, estimates.dims, metric)
    where = ["component", "layer", "position", "unit"]
    table = attribution.verified.rename(columns={"part": "unit"}).drop(columns="pair", errors="ignore")
    table = table.sort_values(where, ignore_index=True)
    for column in table:
        texts = column in ("component", "why")
        values = table[column].to_numpy(dtype=object if texts else float)
        found.add(f"verified/{column}", values, ["site"], metric if column in ("estimate", "exact") else None)
    for column in attribution.agreement.drop(columns="reason"):
        found.add(f"agreement/{column}", attribution.agreement[column].to_numpy(dtype=float), ["component"])
    if "total_effect" in record:
        total = record["total_effect"]
    else:
        total = attribution.effects.total_effect.sel(metric=metric).item()
    found.add("verified/total_effect", total, metric=metric)
    found.words["summary"] = attribution.summary()
    return found


Case = Callable[[Model], Found]


def traced(model: Model, pairs: ct.Pair | Sequence[ct.Pair] = DEMO, **options: Any) -> Found:
    """A trace with these options."""
    tables = [name for name in ("heads", "neurons") if options.get(name)]
    return of_trace(ct.trace(model, pairs, **options), tables=tables)


def default(model: Model) -> Found:
    """The default trace, its long table, and the same once it was saved and opened again."""
    trace = ct.trace(model, DEMO)
    found, table = of_trace(trace), trace.to_dataframe()
    for column in table:
        values = table[column].to_numpy()
        found.add(f"table/{column}", values, ["row"], str(column) if values.dtype.kind == "f" else None)
    with tempfile.TemporaryDirectory() as folder:
        again = ct.open_trace(trace.save(Path(folder) / "trace"))
        found.add_map("opened", again.effects)
        found.words["opened"] = untimed(again.summary())
    return found


def many(model: Model) -> Found:
    """A run folder of pairs of different lengths in two chunks, its evidence, and another run compared with it."""
    everything = ct.read_pairs("facts")
    pairs = everything[:: len(everything) // 10]
    options: dict[str, Any] = {"layers": [0, 10, 23], "heads": ["z"], "head_positions": ["subject_last", "last"]}
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            ct.run(model, pairs, Path(folder) / "run", keep="preferred", **options),
            ct.run(model, pairs, Path(folder) / "other", control="shuffled-pairs", **options),
        ]
    found = of_trace(runs[0], tables=["heads"])
    found.add_map("other", runs[1].effects)
    for of in ("blocks", "heads"):
        add_evidence(found, runs[0], of)
        add_comparison(found, ct.compare(*runs, of=of))
    add_comparison(found, ct.compare(runs[0], runs[0], metric="prob", second_metric="prob"))
    return found


def several(model: Model) -> Found:
    """Pairs of one length, few enough for exact tests and no intervals, some of them of one cluster."""
    pairs = ct.read_pairs("ioi:swap")[:4] + ct.read_pairs("ioi:third")[:4]
    trace = ct.trace(model, pairs, layers=[5, 25], positions=["last", "subject_last"])
    found = of_trace(trace)
    add_evidence(found, trace, "blocks")
    return found


def attributed(model: Model, **options: Any) -> Found:
    """Estimates by gradient."""
    return of_attribution(ct.attribute(model, DEMO, verify=10, sample=20, **options))


def given(model: Model, *, rank: int | None = None) -> Found:
    """Tensors of waves, or subspaces that waves span, put into the stream."""
    components = ("resid_post", "mlp_out")
    waves = torch.sin(torch.arange((rank or 1) * WIDTH) * 0.37).reshape(-1, WIDTH)
    tensors = {(name, layer): waves if rank else waves[0] for name in components for layer in LAYERS}
    write = ct.Write("subspace" if rank else "given", tensors=tensors)
    return traced(model, components=components, layers=LAYERS, write=write)


CASES: dict[str, Case] = {
    "default": default,
    "every-component": partial(
        traced, components=["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"], layers=[0, 15, 29]
    ),
    "roles": partial(traced, positions=["subject_last", "last"]),
    "role-of-several-tokens": partial(traced, positions=["subject_middle", "further"], layers=LAYERS),
    "numbers": partial(traced, positions=[2, -1], layers=LAYERS),
    "span": partial(traced, pairs=SPAN, positions=["place", "last"], layers=LAYERS),
    "together": partial(traced, positions="together"),
    "restoration-alone": partial(traced, directions=["restoration"], layers=LAYERS),
    "disruption-alone": partial(traced, directions=["disruption"], layers=LAYERS),
    "heads": partial(traced, heads=ALL_HEADS, layers=[3, 23]),
    "heads-at-roles": partial(traced, heads=True, head_positions=["subject_last", "last"], layers=LAYERS),
    "neurons": partial(traced, components=["mlp_out"], layers=[20, 23], neurons={20: [14, 1035], 23: []}),
    "neurons-elsewhere": partial(
        traced, components=["mlp_out"], layers=[0], neurons={0: range(100, 200)}, neuron_positions=[2, 3]
    ),
    "noise": partial(traced, pairs=NOISED, noise=ct.Noise(draws=3), layers=[0, 7, 15, 23]),
    "noise-on-heads": partial(
        traced,
        pairs=NOISED,
        noise=ct.Noise(scale=5.0, draws=2, seed=3, sigma=0.1),
        components=["attn_out"],
        layers=[20, 23],
        heads=["v", "z"],
        head_positions=["last"],
    ),
    "windows": partial(traced, window={"mlp_out": 5}, layers=[1, 5, 15, 29]),
    "windows-without-sums": partial(traced, components=["attn_out"], window=4, window_sums=False, layers=LAYERS),
    "windows-with-noise": partial(
        traced, pairs=NOISED, noise=ct.Noise(draws=2), components=["mlp_out"], window=3, layers=LAYERS
    ),
    "severed": partial(traced, sever=["mlp_out"], components=["resid_pre", "resid_post"], layers=[5, 15, 25]),
    "severed-with-noise": partial(
        traced,
        pairs=NOISED,
        noise=ct.Noise(draws=2),
        sever=["attn_out", "mlp_out"],
        components=["resid_post"],
        layers=[5, 15, 25],
    ),
    "rome": partial(traced, pairs=NOISED, preset="rome", layers=[2, 15]),
    "zero": partial(traced, write="zero", layers=LAYERS, heads=["z", "pattern"], head_positions=["last"]),
    "mean": partial(traced, write=ct.Write("mean", prompts=REFERENCE), layers=LAYERS, heads=["z"]),
    "resample": partial(
        traced,
        write=ct.Write("resample", prompts=REFERENCE, draws=2),
        layers=LAYERS,
        heads=["z"],
        head_positions=["last"],
    ),
    "alpha": partial(traced, write=ct.Write(alpha=0.5), layers=LAYERS, heads=["q", "z"], head_positions=["last"]),
    "given": given,
    "subspace": partial(given, rank=3),
    "answers-of-several-tokens": partial(
        traced, pairs=LONG_ANSWERS, layers=[0, 10, 20], heads=["z"], head_positions=["last"]
    ),
    "suffix": partial(traced, pairs=UNEQUAL, align="suffix", layers=LAYERS),
    "spans": partial(traced, pairs=UNEQUAL, align="spans", layers=LAYERS),
    "metric": partial(traced, metric="prob", layers=LAYERS),
    "no-foil": partial(traced, pairs=NO_FOIL, layers=LAYERS),
    "chat": partial(traced, pairs=CHAT, align="suffix", layers=LAYERS, components=["resid_post"]),
    "packed": partial(traced, engine="packed", layers=[0, 15, 29]),
    "replay": partial(traced, engine="replay", layers=[0, 15, 29]),
    "replay-of-heads": partial(
        traced, engine="replay", layers=[23], heads=ALL_HEADS, head_positions=["last"], neurons={23: range(20)}
    ),
    "small-batches": partial(traced, budget=64_000_000, layers=[0, 15, 29]),
    "random-weights": partial(traced, control="random-weights", layers=[15]),
    "several": several,
    "many": many,
    "atp": partial(attributed, components=["resid_post", "attn_out", "z", "neurons"]),
    "atp-of-disruption": partial(attributed, components=["mlp_out", "pattern"], direction="disruption", metric="prob"),
    "ig": partial(attributed, components=["mlp_out", "z"], method="ig", steps=3),
}
