"""The explorer's page in a browser: what is typed into it, and a browser that fails a test when a page complains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Dialog, Page

from causal_tracing.models.model import Model
from explorers import Client, explorer, toy_model

CLEAN, CORRUPT = "Mary went to the store", "John went to the store"
FINISHED = "document.getElementById('state').textContent.startsWith('Finished')"


@contextmanager
def opened(browser: Browser, client: Client, **look: Any) -> Iterator[Page]:
    """The page; a request off the host, a message in the console or a dialog fails the test."""
    context = browser.new_context(**look)
    page, requested, complaints = context.new_page(), [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def refused(dialog: Dialog) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refused)
    page.goto(client.serving.url)
    yield page
    here = f"http://127.0.0.1:{client.serving.port}/"
    assert all(url.startswith((here, f"blob:{here}")) for url in requested)
    assert complaints == [], complaints
    assert client.serving.token not in page.url
    assert not any(client.serving.token in url.partition("#")[0] for url in requested)
    context.close()


def wait(page: Page, script: str) -> Any:
    """What a script gives, as soon as it gives something: no wait_for_function, for the page forbids eval."""
    for _ in range(600):
        if found := page.evaluate(script):
            return found
        page.wait_for_timeout(50)
    raise AssertionError(f"{script}: {page.locator('#state').inner_text()} {page.locator('#wrong').inner_text()}")


def begun(page: Page, clean: str = "the cat ran", corrupt: str = "the dog ran") -> None:
    """Types a pair of the toy's words, and presses Enter."""
    for name, text in (("clean", clean), ("corrupt", corrupt), ("answer", " cat"), ("foil", " dog")):
        page.locator(f"#{name}").fill(text)
    page.locator("#corrupt").press("Enter")


def traced(page: Page, clean: str = CLEAN, corrupt: str = CORRUPT) -> None:
    """Types two prompts, presses Enter, and waits for the whole map."""
    page.locator("#clean").fill(clean)
    page.locator("#corrupt").fill(corrupt)
    page.locator("#corrupt").press("Enter")
    wait(page, "!document.getElementById('state').textContent.startsWith('Finished')")
    wait(page, FINISHED)


@contextmanager
def launched_page(browser: Browser, model: Model | None = None) -> Iterator[tuple[Page, Client]]:
    """A page that may complain, and its server, which can be ended under it."""
    with explorer(model or toy_model(layers=3)) as client:
        page = browser.new_page()
        page.goto(client.serving.url)
        wait(page, "document.getElementById('model').textContent")
        yield page, client
        page.close()
