"""The pictures of the live explorer, taken again in headless Chromium: `python docs/site/pictures.py`.

1. `explore.png`: the first screen, when the example is traced.
2. `explore-filling.png`: another pair's map while it fills, and what a cell can reach.
3. `explore-deeper.png`: that map finished, beside the first one, and the heads of a cell.

Needs Chromium, the demo model, and the extras [explore] and [test]. Look at them: what is half full depends on the
clock.
"""

import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

import causal_tracing as ct
from causal_tracing.explorer.live import Live
from causal_tracing.explorer.serve import Serving

DOCS = Path(__file__).parents[1]
FINISHED = "document.getElementById('state').textContent.startsWith('Finished')"
READY = "!document.getElementById('go').disabled && document.getElementById('cost').textContent.includes('worlds')"
CLEAN, CORRUPT = "The capital of Spain is the city of", "The capital of Egypt is the city of"
HALF = "document.querySelectorAll('#map td.waiting').length < 0.55 * document.querySelectorAll('#map td').length"
SEEN, CELL = (4, 7), (12, 3)  # [layer, position] of what is pointed at, and of what is opened


def until(page: Page, script: str, most: float = 300) -> None:
    """Until a script gives something. No wait_for_function: the page forbids eval."""
    began = time.monotonic()
    while not page.evaluate(script):
        if time.monotonic() - began > most:
            raise SystemExit(f"{script}: {page.locator('#state').inner_text()} {page.locator('#wrong').inner_text()}")
        time.sleep(0.05)


def at(place: tuple[int, int]) -> str:
    """The cell of the map at a layer and position."""
    return f'#map td[data-at="{place[0]},{place[1]}"]'


def first(page: Page) -> None:
    """The first screen."""
    until(page, FINISHED)
    until(page, READY)
    page.screenshot(path=DOCS / "explore.png")


def filling(page: Page) -> None:
    """A map that is half full."""
    page.locator("#clean").fill(CLEAN)
    page.locator("#corrupt").fill(CORRUPT)
    until(page, READY)
    page.locator("#corrupt").press("Enter")
    until(page, "document.getElementById('map')?.classList.contains('filling')")
    until(page, HALF)
    page.locator(at(SEEN)).hover()
    page.locator("#full").screenshot(path=DOCS / "explore-filling.png")
    until(page, FINISHED)


def deeper(page: Page) -> None:
    """Two traces side by side, and the heads of a cell."""
    page.set_viewport_size({"width": 1700, "height": 1000})
    page.locator("#history button", has_text="beside").last.click()
    until(page, "!document.getElementById('beside-section').hidden")
    page.locator(at(CELL)).click()
    until(page, "document.querySelectorAll('#deeper-shown tbody tr').length > 8")
    until(page, "!document.getElementById('deeper-state').textContent")
    page.locator(at(CELL)).hover()
    page.locator("#map-title").evaluate("node => scrollTo(0, node.getBoundingClientRect().top + scrollY - 12)")
    page.screenshot(path=DOCS / "explore-deeper.png")


def main() -> None:
    """All three."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with TemporaryDirectory() as scratch, sync_playwright() as playwright:
        session = Live(ct.load("demo", device="cpu"), out=Path(scratch), limit=64)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with Serving(session) as serving:
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.goto(serving.url)
            for take in (first, filling, deeper):
                take(page)
        browser.close()


if __name__ == "__main__":
    main()
