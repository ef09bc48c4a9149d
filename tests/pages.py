"""Pages for tests: what is shown on them, and a browser that fails a test when a page requests or complains."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import axe_playwright_python
import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import Browser, Dialog, Page, Playwright, sync_playwright

from causal_tracing.report.page.page import to_html
from causal_tracing.results.columns import labelled
from causal_tracing.results.measurements import Measurements
from made import measurements, taken_apart

EVIL = " </script><img src=x onerror=alert(1)>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RUNNING: list[tuple[Playwright, Browser]] = []
LAST: list[tuple[Measurements, str]] = []  # what was shown last, and its page
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def example() -> Measurements:
    """Three layers, three tokens, three components; one token is an attack, one cell is undefined."""
    random = np.random.default_rng(0)
    restored, disrupted = 1 + random.normal(size=(3, 3)), 3 - random.normal(size=(3, 3))
    restored[0, 2] = np.nan
    flags: dict[str, Any] = {
        "structural_zero": [[0, 0, 0], [0, 0, 0], [1, 1, 0]],
        "cut": [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
    }
    restored[2, :2], disrupted[2, :2] = 1.0, 3.0
    made = measurements(restored, disrupted, **flags)
    made.numbers()["clean_token"].values[0, 1] = EVIL
    made.numbers()["clean_prompt"].values[0] = f"the {EVIL}\u202eprompt"
    whole = made.numbers()
    cells = [name for name in whole if "component" in whole[name].dims]
    factors = {"resid_post": 1.0, "attn_out": 0.5, "mlp_out": 0.25}
    data = whole.drop_vars(cells).drop_vars("component")
    for name in cells:
        values = whole[name].values
        scaled = [values if values.dtype == bool else 1 + (values - 1) * factor for factor in factors.values()]
        data[name] = (whole[name].dims, np.concatenate(scaled, axis=whole[name].dims.index("component")))
    return taken_apart(data.assign_coords(component=list(factors)), made.provenance)


def unit_table(made: Measurements, unit: str, components: dict[str, int], columns: Any, size: float) -> xr.Dataset:
    """Numbers of three layers' heads or neurons, with as many units a component as it says; the rest is absent."""
    random, most = np.random.default_rng(1), max(components.values())
    shape = (len(components), 3, most, len(columns))
    absent = np.arange(most)[None, None, :, None] >= np.array([*components.values()])[:, None, None, None]
    absent = np.broadcast_to(absent, shape)
    dims, metrics = ("component", "layer", unit, "position"), made.numbers().metric.values
    data: dict[str, Any] = {"unpaired": (("pair", *dims), absent[None])}
    for name in ("structural_zero", "cut"):
        data[name] = (("pair", *dims), np.zeros((1, *shape), bool))
    for name, base in (("restored", 1.0), ("disrupted", 3.0)):
        values = base + size * random.normal(size=(len(metrics), 1, *shape))
        data[name] = (("metric", "pair", *dims), np.where(absent, np.nan, values))
    labels = {"metric": metrics, "pair": ["p"], "layer": [0, 1, 2], unit: range(most), "position": columns}
    return xr.Dataset(data, {**labels, "component": np.array([*components], object)})


def with_units() -> Measurements:
    """The example with four heads by z, two by k, and three layers of 300 neurons at two positions."""
    made = example()
    heads = unit_table(made, "head", {"z": 4, "k": 2}, [0, 1, 2], 0.5)
    heads["structural_zero"].values[0, 0, 0, 0, 0] = True
    heads["restored"].values[:, 0, 0, 0, 0, 0], heads["disrupted"].values[:, 0, 0, 0, 0, 0] = 1.0, 3.0
    readers = np.array([["", "", "", ""], ["0, 1", "2, 3", "", ""]], object)
    heads = heads.assign_coords(readers=(("component", "head"), readers))
    neurons = unit_table(made, "neuron", {"neurons": 300}, labelled([2, "last"]), 0.01)
    return taken_apart(made.numbers(), made.provenance, heads=heads, neurons=neurons)


@contextmanager
def launched() -> Iterator[Browser]:
    """The system's Chromium: it runs on for the next file that asks for it (`conftest.py` ends it otherwise)."""
    if not RUNNING:
        playwright = sync_playwright().start()
        RUNNING.append((playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)))
    yield RUNNING[0][1]


def end() -> None:
    """Ends the browser, if one runs."""
    while RUNNING:
        playwright, browser = RUNNING.pop()
        browser.close()
        playwright.stop()


def page_of(shown: Measurements) -> str:
    """The page as text, made once for tests one after the other that show the same."""
    if not (LAST and LAST[0][0] is shown):
        LAST[:] = [(shown, to_html(shown))]
    return LAST[0][1]


@contextmanager
def opened(browser: Browser, path: Path, shown: Measurements) -> Iterator[Page]:
    """A page opened from disk; anything that it requests or complains of fails the test."""
    path.write_text(page_of(shown), encoding="utf-8")
    page, requested, complaints = browser.new_page(), [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def refused(dialog: Dialog) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refused)
    page.goto(path.as_uri())
    yield page
    assert set(requested) == {path.as_uri()}
    assert complaints == []
    page.close()


def violations(page: Page) -> list[str]:
    """What axe finds wrong. What it finds right is not written out: that takes ten times as long."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] }).then((found) => found.violations)")
    return [f"{each['id']}: {[node['html'][:80] for node in each['nodes']][:3]}" for each in found]


def numbers_in(text: str) -> list[float]:
    """The effects that a readout tells: each has its sign; the shares in brackets are left out."""
    return [float(found.replace("−", "-")) for found in re.findall(r"[+−]\d[\d.e-]*", re.sub(r"\(.*?\)", "", text))]
