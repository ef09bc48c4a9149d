"""Every model type of transformers, held against bare hooks: `make families`.

    make families                       all types and variants; goes on where it was stopped
    make families ONLY=gpt2,falcon+rw   these alone; for more, PYTHONPATH=tests .venv/bin/python -m model_types
        --only mllama --detail          with every number
        --fresh                         from the beginning
        --table                         docs/families.md from what is known

Results are in `.families/`, one file a type. `docs/families.md` is written after a sweep of all.
"""

import argparse
import json
import signal
import sys
import time

import torch

from model_types import table
from model_types.recipes import TYPES, VARIANTS
from model_types.sweep import SECONDS, kept, sweep


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model_types")
    parser.add_argument("--only", help="types and variants, with commas between them")
    parser.add_argument("--fresh", action="store_true", help="forget what is known")
    parser.add_argument("--detail", action="store_true", help="print every number")
    parser.add_argument("--table", action="store_true", help="write the page from what is known, of any age")
    parser.add_argument("--workers", type=int, default=2, help="types at a time")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of computing that a type may take")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes of single types end with this one
    torch.set_num_threads(1)
    everything = (*TYPES, *VARIANTS)
    if options.table:
        return write([result for name in everything if (result := kept(name))])
    names = options.only.split(",") if options.only else everything
    start = time.monotonic()
    results = sweep(names, fresh=options.fresh, workers=options.workers, seconds=options.seconds)
    if options.detail:
        print(json.dumps(results, indent=1))
    print(f"\n{table.counts(results)}   {time.monotonic() - start:.0f} s")
    return 0 if options.only else write(results)


def write(results: list[dict]) -> int:
    """The page. 1 where something is wrong."""
    table.PAGE.write_text(table.page(results))
    print(f"{table.PAGE.name}: {table.counts(results)}")
    return int(any(result["verdict"] in table.BAD for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
