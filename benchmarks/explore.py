"""The explorer's page on the demo model, in headless Chromium: how soon something is there, and what looking on costs.

    python benchmarks/explore.py [--rounds 5]

Needs Chromium and the extras [explore] and [test]. Each round traces another pair in the page and by `ct.trace`, by
turns one or the other first: the page keeps what it has traced. The cells that were streamed must be those of
`ct.trace`, or there are no figures. The page's own clock is read: from Enter to the first coloured cell, and to the
last words; from the last key to the tokens. Prints medians; of both sides the processor's seconds too, which depend
less on what else this machine does.
"""

import argparse
import json
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

APART = 1e-4  # logits
PROMPTS = ("clean", "corrupt")
FINISHED = "document.getElementById('state').textContent.startsWith('Finished')"
READY = "!document.getElementById('go').disabled && document.getElementById('cost').textContent.includes('worlds')"
# Reads the page's clock when a key is pressed, when tokens are shown, when a new map has a colour, and at the end.
CLOCK = """(clean) => {
    const times = (window.times = {}), before = document.getElementById("map"), now = () => performance.now();
    const seen = (name) => {
        if (times[name] !== undefined) return;
        times[name] = null;
        requestAnimationFrame(() => { times[name] = now(); });
    };
    const coloured = (map) => [...map.querySelectorAll("td")].some((cell) => cell.style.backgroundColor);
    addEventListener("input", () => { times.typed = now(); }, true);
    addEventListener("keydown", (event) => { if (event.key === "Enter") times.entered = now(); }, true);
    const look = () => {
        if (times.typed && document.getElementById("clean-tokens").textContent === clean) seen("tokens");
        if (!times.entered) return;
        const map = document.getElementById("map");
        if (times.cell === undefined && map && map !== before && coloured(map)) seen("cell");
        if (times.cell && document.getElementById("state").textContent.startsWith("Finished")) seen("whole");
    };
    window.clock?.disconnect();
    window.clock = new MutationObserver(look);
    const what = { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["style"] };
    window.clock.observe(document.body, what);
}"""


def until(page: Page, script: str, most: float = 300) -> Any:
    """What a script gives, as soon as it gives something."""
    began = time.perf_counter()
    while not (found := page.evaluate(script)):
        if time.perf_counter() - began > most:
            raise SystemExit(f"{script}: {page.locator('#state').inner_text()} {page.locator('#wrong').inner_text()}")
        time.sleep(0.25)  # the page's own clock is read: asking more often takes time from what is measured
    return found


def pairs(count: int) -> list[ct.Pair]:
    """As many pairs as rounds: the example's with other words in front, so that none was traced before."""
    fronts = [f"{n} " for n in range(2, 2 + count)]
    return [ct.Pair(**EXAMPLE | {name: front + EXAMPLE[name] for name in PROMPTS}) for front in fronts]


def on_page(page: Page, pair: ct.Pair, serving: Serving) -> dict[str, float]:
    """Types a pair and enters it, once its tokens and its cost are shown and the server is at rest."""
    page.evaluate(CLOCK, pair.clean)
    page.locator("#corrupt").fill(pair.corrupt or "")
    page.locator("#clean").fill(pair.clean)
    until(page, "window.times.tokens")
    for name, value in (("answer", pair.answer), ("foil", pair.foil)):
        page.locator(f"#{name}").fill(str(value or ""))
    until(page, READY)
    rest(page, serving)
    used = time.process_time()
    page.locator("#corrupt").press("Enter")
    until(page, "window.times.whole")
    used = time.process_time() - used
    times = page.evaluate("window.times")
    from_enter = {name: (times[name] - times["entered"]) / 1000 for name in ("cell", "whole")}
    return {**from_enter, "processor": used}


def rest(page: Page, serving: Serving) -> None:
    """Until the page has asked for all that it wants, and the server has given it: one thread may use the model."""
    until(page, "!document.getElementById('ask').classList.contains('unasked')")
    page.wait_for_timeout(1500)
    serving.session.worker.errand(lambda: None).result()  # behind all that was asked for


def tokens_after_a_key(page: Page, pair: ct.Pair, serving: Serving) -> float:
    """Seconds from a key to the tokens of what stands there then, the wait for more keys included."""
    page.evaluate(CLOCK, pair.clean + " of")
    page.locator("#clean").fill(pair.clean + " of")
    until(page, "window.times.tokens")
    times = page.evaluate("window.times")
    rest(page, serving)
    return (times["tokens"] - times["typed"]) / 1000


def alone(model: Any, pair: ct.Pair) -> tuple[ct.Trace, dict[str, float]]:
    """The same pair by `ct.trace`."""
    began, used = time.perf_counter(), time.process_time()
    trace = ct.trace(model, pair, progress=False)
    return trace, {"whole": time.perf_counter() - began, "processor": time.process_time() - used}


def apart(serving: Serving, trace: ct.Trace) -> float:
    """The largest difference, in logits, between a cell that was streamed to the page and that of `ct.trace`."""
    job = next(job for job in reversed(serving.session.worker.jobs.values()) if job.lane == "trace")
    expected = trace.effects.sel(metric="logit_diff").squeeze("pair").transpose("component", "layer", "position", ...)
    whole = {name: expected[name].values for name in ("restoration", "disruption")}
    told = {name: np.full(values.shape, np.nan) for name, values in whole.items()}
    for kind, data in job.events:
        for *at, numbers in json.loads(data)["cells"] if kind == "cells" else []:
            for name, value in zip(("restoration", "disruption"), numbers["logit_diff"][1:], strict=True):
                told[name][tuple(at)] = np.nan if value is None else value
    largest = max(float(abs(told[name] - whole[name]).max()) for name in whole)  # NaN where a cell never came
    if not largest <= APART:
        raise SystemExit(f"The page was told other numbers than ct.trace gives: they are {largest} logits apart.")
    return largest


def round_of(page: Page, model: Any, pair: ct.Pair, serving: Serving, page_first: bool) -> dict[str, float]:
    """One pair in the page, and by `ct.trace`."""
    before = on_page(page, pair, serving) if page_first else None
    trace, plain = alone(model, pair)
    shown = before or on_page(page, pair, serving)
    return {
        "apart": apart(serving, trace),
        "tokens": tokens_after_a_key(page, pair, serving),
        "first cell": shown["cell"],
        "whole": shown["whole"],
        "ct.trace": plain["whole"],
        "ratio": shown["whole"] / plain["whole"],
        "processor": shown["processor"],
        "ct.trace's": plain["processor"],
        "ratio of processor": shown["processor"] / plain["processor"],
    }


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
        page.goto(serving.url)
        until(page, FINISHED)
        for number, pair in enumerate(pairs(asked.rounds)):
            found.append(round_of(page, model, pair, serving, page_first=number % 2 == 0))
            print({name: round(value, 6) for name, value in found[-1].items()}, flush=True)
        browser.close()
    for name in found[0]:
        print(f"{name:20}{statistics.median(each[name] for each in found):12.6f}")


if __name__ == "__main__":
    main()
