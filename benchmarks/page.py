"""The page of many pairs with every neuron, in two versions of the package.

    python benchmarks/page.py OLD/src NEW/src [--pairs 24] [--rounds 5]

The older version writes a trace of the demo model whose neurons' numbers are random (30 layers of 1536, at the last
token): both can open it. Then each makes summary, page and JSON document of it, in turn, in processes of their own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MAKE = """
import sys
from dataclasses import replace
import numpy as np
import xarray as xr
import causal_tracing as ct

folder, count = sys.argv[1], int(sys.argv[2])
model = ct.load("demo", device="cpu", progress=False)
made = ct.trace(model, ct.read_pairs("facts:capital")[:count], positions=["last"], layers=[0, 15, 29],
                components=["resid_post", "mlp_out"], neurons={0: [0]}, spot_checks=0).measurements
few, random = made.neurons, np.random.default_rng(0)
labels = {"layer": np.arange(30), "neuron": np.arange(1536)}
data = {}
for name, each in few.data_vars.items():
    sizes = {**each.sizes, **{axis: len(values) for axis, values in labels.items()}}
    shape = [sizes[dim] for dim in each.dims]
    numbers = random.normal(size=shape) * 0.01 if each.dtype.kind == "f" else np.zeros(shape, each.dtype)
    if name in ("restored", "disrupted"):
        whole = made.data.corrupt if name == "restored" else made.data.clean
        numbers = numbers + whole.transpose("metric", "pair").values.reshape(*whole.shape, 1, 1, 1, 1)
    data[name] = (each.dims, numbers)
kept = {name: few[name] for name in few.coords if name not in labels}
ct.Trace(replace(made, neurons=xr.Dataset(data, {**kept, **labels}))).save(folder)
"""
TIME = """
import sys, time
import causal_tracing as ct
try:
    from causal_tracing.report.document import document
except ImportError:  # 0.1.0
    from causal_tracing.documents import document
trace = ct.open_trace(sys.argv[1])
started = time.process_time()
trace.summary(), trace.to_html(), document(trace.measurements)
print(time.process_time() - started)
"""


def run(source: Path, code: str, *words: str) -> str:
    """What a version prints."""
    environment = os.environ | {"PYTHONPATH": str(source.resolve())}
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def main() -> None:
    """Prints seconds of CPU of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", default="24")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(Path(scratch) / "made")
        run(asked.old, MAKE, folder, asked.pairs)
        both = [[float(run(source, TIME, folder)) for source in (asked.old, asked.new)] for _ in range(asked.rounds)]
    old, new = (statistics.median(each) for each in zip(*both, strict=True))
    ratio = statistics.median(a / b for a, b in both)
    print(f"summary, page and document of {asked.pairs} pairs: {old:.1f} s, {new:.1f} s, {ratio:.1f} times faster")


if __name__ == "__main__":
    main()
