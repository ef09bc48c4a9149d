"""Golden numbers: what one version of the package measures on the demo model, held against another, to the bit.

    python benchmarks/golden.py write FOLDER [--only default,noise] [--dtype float64]    with the version imported
    python benchmarks/golden.py compare FIRST SECOND [--only ...]      what is missing, what differs, and by how much

`write` leaves for each case CASE.npz (arrays by map and variable, such as "effects/restoration", labels of their axes
among them) and CASE.json (words, and what each axis is), and meta.json (version, torch, threads, processor, seconds).
Metrics that one version alone measures are named, and the others are compared.
`compare` exits with 1 where an array is missing, where shapes, labels, statuses, flags or undefined cells differ, or
where a number in logits, nats or probability differs by more than 1e-6. Ranks, fractions and statistics may amplify
the last bit of a logit: of these, and of words, differences are shown. Only the public face of the package is used, so
that the script outlives the modules behind it. Both folders should come from one machine: another processor, or
another number of threads, adds in another order.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_cases import CASES, Found

import causal_tracing as ct

LIMIT = 1e-6  # in the unit of the metric
HELD = ("logit_diff", "log_prob", "logit", "prob", "neg_kl", "entropy")  # to that limit; the others are shown


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
    problems, notes = list[str](), list[str]()
    for name in cases:
        there = [(folder / f"{name}.npz").is_file() for folder in (first, second)]
        if not all(there):
            lacking = [str(folder) for folder, known in zip((first, second), there, strict=True) if not known]
            problems.append(f"{name}: missing in {' and '.join(lacking)}")
            continue
        both = opened(first, name), opened(second, name)
        if alone := metrics_of(both[0]) ^ metrics_of(both[1]):
            notes.append(f"{name}: measured by one alone: {', '.join(sorted(alone))}")
        found = compare_case(in_common(*both), in_common(*reversed(both)))
        problems += [f"{name}: {problem}" for problem in found.problems]
        apart = ", ".join(f"{metric} {size:.1e}" for metric, size in found.apart.items() if size > 0) or "–"
        words = f"differ: {', '.join(found.words)}" if found.words else "equal"
        print(f"| {name} | {found.arrays} | {found.equal} | {apart} | {words} |")
    print(*notes, sep="\n")
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


def metrics_of(found: Found) -> set[str]:
    """The metrics of each map, as MAP/METRIC."""
    of_maps = {name: values.tolist() for name, values in found.arrays.items() if name.endswith("/metric")}
    return {f"{name.removesuffix('/metric')}/{metric}" for name, values in of_maps.items() for metric in values}


def in_common(found: Found, other: Found) -> Found:
    """What is measured by metrics that the other has too, in its own order."""
    there, arrays = metrics_of(found) & metrics_of(other), dict[str, np.ndarray]()
    fewer = {each.split("/")[0] for each in metrics_of(found) ^ metrics_of(other)}
    for name, values in found.arrays.items():
        of_map, axes = name.split("/")[0], found.axes[name]
        if "metric" in axes:
            labels = found.arrays[f"{of_map}/metric"].tolist()
            kept = [n for n, metric in enumerate(labels) if f"{of_map}/{metric}" in there]
            arrays[name] = np.take(values, kept, axes.index("metric"))
        # What is concluded from several metrics is there where all of them are.
        elif not (of_map in fewer and name.endswith("/damage_like")) and (name in other.arrays or of_map != "table"):
            arrays[name] = values
    return replace(found, arrays=arrays)


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
