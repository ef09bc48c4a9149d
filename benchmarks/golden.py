"""Golden numbers: what one version of the package measures on the demo model, held against another, to the bit.

    python benchmarks/golden.py write FOLDER [--only default,noise] [--dtype float64]    with the version imported
    python benchmarks/golden.py compare FIRST SECOND [--only ...]      what is missing, what differs, and by how much

`write` leaves for each case CASE.npz (arrays by map and variable, such as "effects/restoration", labels of their axes
among them) and CASE.json (words, and what each axis is), and meta.json (version, torch, threads, processor, seconds).
`compare` exits with 1 where an array is missing, where shapes, labels, statuses, flags or undefined cells differ, or
where a number in logits, nats or probability differs by more than 1e-6. Ranks, fractions and statistics may amplify
the last bit of a logit: of these, and of words, differences are shown. Only the public face of the package is used, so
that the script outlives the modules behind it. Both folders should come from one machine: another processor, or
another number of threads, adds in another order.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
LIMIT = 1e-6  # in the unit of the metric
HELD = ("logit_diff", "log_prob", "logit", "prob", "neg_kl", "entropy")  # to that limit; the others are shown
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


# What is kept of each result.


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


# The cases.

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


# Writing.


def write(folder: Path, cases: Sequence[str], dtype: str) -> None:
    """Runs cases, and writes each as it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: name a new folder.")
    model, seconds = ct.load("demo", device="cpu", dtype=dtype, progress=False), {}
    for name in cases:
        started = time.perf_counter()
        found = CASES[name](model)
        seconds[name] = round(time.perf_counter() - started, 1)
        np.savez_compressed(folder / f"{name}.npz", allow_pickle=False, **found.arrays)
        _write_json(folder / f"{name}.json", {key: getattr(found, key) for key in ("words", "axes", "metrics")})
        print(f"{name}: {len(found.arrays)} arrays in {seconds[name]} s", flush=True)
    _write_json(folder / "meta.json", machine() | {"seconds": seconds})
    print(f"{len(cases)} cases in {sum(seconds.values()):.0f} s, by version {ct.__version__}")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Which version ran, and what decides in which order numbers are added."""
    return {
        "version": ct.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "cpu": f"{platform.machine()}, {processor()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def processor() -> str:
    """The processor's name, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


# Comparing.


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a case of two folders compares: `apart` is the largest difference by metric, `problems` are failures."""

    arrays: int
    equal: int
    apart: Mapping[str, float]
    words: Sequence[str]
    problems: Sequence[str]


def compare(first: Path, second: Path, cases: Sequence[str]) -> bool:
    """Prints a table; says whether the two agree."""
    _print_machines(first, second)
    print("| case | arrays | equal to the bit | largest differences | words |")
    print("|---|---|---|---|---|")
    problems = []
    for name in cases:
        there = [(folder / f"{name}.npz").is_file() for folder in (first, second)]
        if not all(there):
            lacking = [str(folder) for folder, known in zip((first, second), there, strict=True) if not known]
            problems.append(f"{name}: missing in {' and '.join(lacking)}")
            continue
        found = compare_case(opened(first, name), opened(second, name))
        problems += [f"{name}: {problem}" for problem in found.problems]
        apart = ", ".join(f"{metric} {size:.1e}" for metric, size in found.apart.items() if size > 0) or "–"
        words = f"differ: {', '.join(found.words)}" if found.words else "equal"
        print(f"| {name} | {found.arrays} | {found.equal} | {apart} | {words} |")
    print(*problems or [f"Nothing is missing, and nothing that is held differs by more than {LIMIT:g}."], sep="\n")
    return not problems


def _print_machines(first: Path, second: Path) -> None:
    both = [json.loads((folder / "meta.json").read_text(encoding="utf-8")) for folder in (first, second)]
    for name in both[0]:
        values = [each.get(name) for each in both]
        if name != "seconds":
            print(f"{name}: {values[0]}" if values[0] == values[1] else f"{name}: {values[0]} and {values[1]}")
    print()


def opened(folder: Path, name: str) -> Found:
    """A case as it was written."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        return Found(arrays=dict(arrays), **json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def compare_case(first: Found, second: Found) -> Verdict:
    """Array by array; words by their names."""
    shared = [name for name in first.arrays if name in second.arrays]
    apart: dict[str, float] = {}
    problems = [f"{name} is in one alone" for name in sorted({*first.arrays} ^ {*second.arrays})]
    for name in shared:
        one, other = first.arrays[name], second.arrays[name]
        wrong = unlike(one, other) or ("" if first.axes[name] == second.axes[name] else "other axes")
        if wrong:
            problems.append(f"{name}: {wrong}")
        elif one.dtype.kind == "f":
            for metric, size in differences(first, name, other):
                apart[metric] = max(apart.get(metric, 0.0), size)
    problems += [f"{metric} differs by {apart[metric]:.1e}" for metric in HELD if apart.get(metric, 0.0) > LIMIT]
    return Verdict(
        arrays=len(first.arrays),
        equal=sum(same_bits(first.arrays[name], second.arrays[name]) for name in shared),
        apart=apart,
        words=[n for n in {**first.words, **second.words} if first.words.get(n) != second.words.get(n)],
        problems=problems,
    )


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are the same, −0 and the bits of NaN included."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def unlike(one: np.ndarray, other: np.ndarray) -> str:
    """Why two arrays are not the same kind of thing, or do not say the same; empty where only numbers may differ."""
    if one.shape != other.shape:
        return f"shape {one.shape} and {other.shape}"
    if one.dtype.kind != other.dtype.kind:
        return f"type {one.dtype} and {other.dtype}"
    if one.dtype.kind == "f":
        count = int((np.isfinite(one) != np.isfinite(other)).sum())
        return f"{count} cells are defined in one alone" if count else ""
    count = int((one != other).sum())
    return f"{count} of {one.size} differ" if count else ""


def differences(first: Found, name: str, other: np.ndarray) -> Iterator[tuple[str, float]]:
    """The largest difference of an array, by metric where it has an axis of them."""
    with np.errstate(invalid="ignore"):  # of infinities; both arrays are finite in the same places
        size = np.nan_to_num(abs(first.arrays[name] - other), nan=0.0, posinf=0.0)
    axes, kind = first.axes[name], kind_of(name, first.metrics.get(name))
    if "metric" not in axes or kind == "fractions":
        yield kind, float(size.max(initial=0.0))
        return
    labels = first.arrays[f"{name.split('/')[0]}/metric"].tolist()
    for metric, part in zip(labels, np.moveaxis(size, axes.index("metric"), 0), strict=True):
        yield metric, float(part.max(initial=0.0))


def kind_of(name: str, metric: str | None) -> str:
    """What the numbers of an array are: fractions, statistics, or those of a metric."""
    if "fraction" in name:
        return "fractions"
    statistic = metric is None or name.endswith(("_p", "_p_adjusted", "_q", "clusters"))
    return "statistics" if statistic else str(metric)


def main() -> None:
    """Writes, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, folders in (("write", ["folder"]), ("compare", ["first", "second"])):
        each = verbs.add_parser(verb)
        for folder in folders:
            each.add_argument(folder, type=Path)
        each.add_argument("--only", default=",".join(CASES), help="which cases, by name")
        each.add_argument("--dtype", default="float32", help="to write in; in float64 nothing is left to rounding")
    asked = parser.parse_args()
    cases = asked.only.split(",")
    if unknown := [name for name in cases if name not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")
    if asked.verb == "write":
        write(asked.folder, cases, asked.dtype)
    elif not compare(asked.first, asked.second, cases):
        sys.exit(1)


if __name__ == "__main__":
    main()
