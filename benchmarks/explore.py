"""The explorer's page on the demo model, in headless Chromium: how soon something is there, and what looking on costs.

    python benchmarks/explore.py [--rounds 5]

Needs Chromium and the extras [explore] and [test]. Each round traces another pair in the page, and the same one by
`ct.trace`, in turn: the page keeps what it has traced. Prints medians, and the ratio of the whole; how far the cells
that were streamed are from those of `ct.trace`.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

import causal_tracing as ct
from causal_tracing.explorer.live import Live
from causal_tracing.explorer.serve import Serving
from causal_tracing.prompts.example import EXAMPLE

COLOURED = "[...document.querySelectorAll('#map td')].some((cell) => cell.style.backgroundColor)"
FINISHED = "document.getElementById('state').textContent.startsWith('Finished')"
UNDERSTOOD = "document.getElementById('clean-tokens').textContent.includes({!r})"


def until(page: Page, script: str, every: float = 0.01, most: float = 120) -> float:
    """Seconds until a script of the page is true."""
    began = time.perf_counter()
    while not page.evaluate(script):
        if time.perf_counter() - began > most:
            raise SystemExit(f"{script}: {page.locator('#state').inner_text()} {page.locator('#wrong').inner_text()}")
        time.sleep(every)
    return time.perf_counter() - began


def pairs(count: int) -> list[ct.Pair]:
    """As many pairs as rounds: the example's with other words in front, so that none was traced before."""
    front = [f"{n} " for n in range(2, 2 + count)]
    return [ct.Pair(**EXAMPLE | {name: one + EXAMPLE[name] for name in ("clean", "corrupt")}) for one in front]


def round_of(page: Page, model: Any, pair: ct.Pair, serving: Serving) -> dict[str, float]:
    """One pair in the page, and by `ct.trace`."""
    assert pair.corrupt is not None
    page.locator("#corrupt").fill(pair.corrupt)
    page.locator("#clean").fill(pair.clean)
    typed = until(page, UNDERSTOOD.format(pair.clean[:2].strip()))
    until(page, "!document.getElementById('go').disabled && document.getElementById('cost').textContent")
    for name, value in (("answer", pair.answer), ("foil", pair.foil)):
        page.locator(f"#{name}").fill(value or "")
    page.wait_for_timeout(1500)
    page.evaluate("document.getElementById('result').replaceChildren()")
    page.locator("#corrupt").press("Enter")
    began = time.perf_counter()
    first = until(page, COLOURED)
    until(page, FINISHED)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    trace = ct.trace(model, pair, progress=False)
    alone = time.perf_counter() - began
    shown = next(job.result for job in reversed(serving.session.worker.jobs.values()) if job.result is not None)
    apart = float(abs(shown.effects.restoration.values - trace.effects.restoration.values)[0].max())
    return {"tokens": typed, "first": first, "whole": whole, "ct.trace": alone, "ratio": whole / alone, "apart": apart}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    model = ct.load("demo", device="cpu", progress=False)
    found: list[dict[str, float]] = []
    with Serving(Live(model, out=Path(), limit=64)) as serving, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto(serving.url)
        until(page, COLOURED)
        print(f"the example's first cell after {time.perf_counter() - began:.2f} s")
        until(page, FINISHED)
        for pair in pairs(asked.rounds):
            found.append(round_of(page, model, pair, serving))
            print({name: round(value, 6) for name, value in found[-1].items()}, flush=True)
        browser.close()
    for name in found[0]:
        print(f"{name:10}{statistics.median(each[name] for each in found):12.6f}")
    assert np.max([each["apart"] for each in found]) <= 1e-4


if __name__ == "__main__":
    main()
