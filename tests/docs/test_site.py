"""The built site as a browser has it: no request but to the site, no complaint, no barrier, and a search that finds.

`make docs` builds the site and runs this on it, by the folder that $SITE names.
"""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from pages import launched, needs_browser

SITE = os.environ.get("SITE")
pytestmark = [
    needs_browser,
    pytest.mark.skipif(SITE is None, reason="needs the built site, which make docs makes and tests"),
]
PAGES = (
    "index", "tutorials/first-map", "tutorials/ioi-heads", "trace", "results", "reference/api", "reference/errors",
    "coming-from/transformerlens", "effects", "statistics",
)  # fmt: skip
DARK = ("index", "tutorials/first-map")


class Quiet(SimpleHTTPRequestHandler):
    """Files of the site, without a log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(Path(SITE or ".").absolute())))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@pytest.fixture
def watched(browser: Browser, home: str) -> Iterator[Page]:
    """A page; what it requests elsewhere, or complains of, fails the test."""
    page, elsewhere, complaints = browser.new_page(), [], []
    page.on(
        "request", lambda request: None if request.url.startswith((home, "data:")) else elsewhere.append(request.url)
    )
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert elsewhere == []
    assert complaints == []
    page.close()


def test_every_page_is_complete_and_asks_for_nothing_elsewhere(watched: Page, home: str):
    files = sorted(Path(SITE or ".").rglob("*.html"))
    assert len(files) > 40
    for file in files:
        watched.goto(f"{home}{file.relative_to(Path(SITE or '.'))}")
        broken = watched.evaluate("[...document.images].filter(each => !each.naturalWidth).map(each => each.src)")
        assert broken == [], file


@pytest.mark.parametrize(("name", "scheme"), [*((name, "light") for name in PAGES), *((name, "dark") for name in DARK)])
def test_no_page_has_a_barrier(name: str, scheme: str, watched: Page, home: str):
    watched.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    watched.goto(f"{home}{name}.html")
    found = Axe().run(watched)
    assert found.violations_count == 0, found.generate_report()


def test_the_search_finds_a_word(watched: Page, home: str):
    watched.goto(home)
    watched.get_by_placeholder("Search").first.fill("restoration")
    watched.keyboard.press("Enter")
    watched.get_by_role("main").get_by_role("link", name="What the numbers mean", exact=True).wait_for()


def test_what_is_generated_is_there(watched: Page, home: str):
    watched.goto(f"{home}reference/api.html")
    assert watched.locator("#causal_tracing\\.trace").count() == 1
    watched.goto(f"{home}reference/errors.html")
    assert watched.locator("section#misalignedpair").count() == 1
    watched.goto(f"{home}reference/options.html")
    assert watched.locator("section#knockout").count() == 1
