"""The explorer's page in a real browser: what is typed, what fills, by keyboard, and after a reload."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from causal_tracing.explorer.asked import Asked
from causal_tracing.explorer.jobs import Full, Job
from explorer_pages import CLEAN, CORRUPT, FINISHED, begun, launched_page, opened, traced, wait
from explorers import asked, explorer, small_model, toy_model
from pages import launched, needs_browser, violations

HIDE = (
    "Object.defineProperty(document, 'hidden', {{ value: {}, configurable: true }});"
    "document.dispatchEvent(new Event('visibilitychange'))"
)
EVIL = "<img/src=x/onerror=alert(1)>"
LOOKS = {
    "light": {},
    "dark": {"color_scheme": "dark", "reduced_motion": "reduce"},
    "narrow": {"viewport": {"width": 400, "height": 800}},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@needs_browser
def test_from_typing_to_a_saved_trace_by_keyboard(browser: Browser, tmp_path: Path):
    with explorer(small_model(), out=tmp_path) as client, opened(browser, client) as page:
        page.locator("#clean").focus()
        page.keyboard.type(CLEAN)
        page.keyboard.press("Home")
        page.keyboard.press("Shift+ControlOrMeta+ArrowRight")
        assert page.locator("#clean-subject").inner_text() == "“Mary” is the subject"
        page.keyboard.press("Tab")
        for _ in range(20):
            if page.evaluate("document.activeElement.id") == "clean-subject":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.locator("#clean-chosen").inner_text() == "subject: “Mary”"
        page.locator("#corrupt").focus()
        page.keyboard.type(CORRUPT)
        wait(page, "document.getElementById('cost').textContent.includes('worlds')")
        assert page.locator("#clean-tokens .differs").all_inner_texts() == ["Mary"]
        offers = page.locator("#clean-choices button")
        assert offers.count() == 5
        assert offers.first.get_attribute("aria-pressed") == "true"
        page.keyboard.press("Enter")
        wait(page, FINISHED)
        assert page.locator("#stories h1").inner_text().startswith(CLEAN)
        page.locator('#map td[tabindex="0"]').focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        assert "layer 2 · position 1" in page.locator("#readout").inner_text()
        reached = page.locator("#map td.reach").evaluate_all("cells => cells.map((cell) => cell.dataset.at)")
        assert sorted(reached) == ["3,1", "3,2", "3,3", "3,4"]
        page.keyboard.press("Enter")
        wait(page, "document.querySelectorAll('#deeper-shown tbody tr').length === 4")
        assert page.locator("#deeper-title").inner_text().startswith("Inside layer 2, position 1")
        page.locator('#deeper-switches button[data-kind="pattern"]').press("Enter")
        wait(page, "document.querySelectorAll('#deeper-shown svg').length === 2")
        page.locator("#name").focus()
        page.keyboard.type("kept")
        page.keyboard.press("Enter")
        wait(page, "document.getElementById('saved').textContent.startsWith('saved')")
        assert (tmp_path / "kept" / "report.html").is_file()
        view = page.url
        page.reload()
        wait(page, FINISHED)
        assert page.url == view
        assert page.locator("#clean").input_value() == CLEAN
        assert "layer 2 · position 1" in page.locator("#readout").inner_text()


@needs_browser
def test_a_map_fills_in_place(browser: Browser):
    model = toy_model(0.004, layers=12)
    with explorer(model) as client, opened(browser, client) as page:
        id = client.start(asked())
        page.reload()
        page.locator("#history button >> nth=0").click()
        wait(page, "document.querySelector('#map td.waiting')")
        assert "not computed yet" in page.locator("#legend").inner_text()
        page.locator('#map td[data-at="5,1"]').focus()
        assert "not computed yet" in page.locator("#readout").inner_text()
        page.evaluate("document.querySelector('#map td').mark = 'the same'")
        colours = page.locator("#map td").evaluate_all(COLOURS)
        wait(page, FINISHED)
        assert page.evaluate("document.querySelector('#map td').mark") == "the same"
        assert page.evaluate("document.activeElement.dataset.at") == "5,1"
        assert "restoration" in page.locator("#readout").inner_text()
        after = page.locator("#map td").evaluate_all(COLOURS)
        assert {at: colour for at, colour in after.items() if at in colours} == colours
        assert len(after) > len(colours)
        assert client.last(id)[1] == "done"


COLOURS = """cells => Object.fromEntries(cells.filter((cell) => cell.style.backgroundColor)
    .map((cell) => [cell.dataset.at, cell.style.backgroundColor]))"""


@needs_browser
def test_typing_stops_the_trace_and_a_hidden_tab_closes_its_stream(browser: Browser):
    with explorer(toy_model(0.01)) as client, opened(browser, client) as page:
        begun(page)
        wait(page, "document.querySelector('#map td.waiting')")
        (id,) = [job["id"] for job in client.get("traces")]
        page.evaluate(HIDE.format("true"))
        page.wait_for_timeout(300)
        computed = "document.querySelectorAll('#map td:not(.waiting)').length"
        before = page.evaluate(computed)
        page.wait_for_timeout(500)
        assert page.evaluate(computed) == before
        page.evaluate(HIDE.format("false"))
        wait(page, f"{computed} > {before}")
        page.locator("#clean").press_sequentially(" far")
        assert client.last(id)[1] == "cancelled"
        wait(page, "document.getElementById('state').textContent.startsWith('Stopped')")


@needs_browser
def test_what_is_entered_at_once_is_understood_too(browser: Browser):
    with explorer(small_model()) as client, opened(browser, client) as page:
        traced(page)
        traced(page, "Mary gave the drink", "John gave the drink")
        wait(page, "document.getElementById('clean-tokens').textContent === 'Mary gave the drink'")
        assert page.locator("#answer").input_value()
        assert page.locator("#corrupt-tokens .differs").all_inner_texts() == ["John"]


@needs_browser
def test_what_is_understood_already_is_not_asked_again(browser: Browser, monkeypatch: pytest.MonkeyPatch):
    with explorer(small_model()) as client, opened(browser, client) as page:
        session, previewed = client.serving.session, []
        preview = session.preview

        def counted(asked: Asked) -> Callable[[], Any]:
            previewed.append(asked.pair["clean"])
            return preview(asked)

        page.locator("#corrupt").fill(CORRUPT)
        page.locator("#clean").fill(CLEAN)
        wait(page, "document.getElementById('cost').textContent.includes('worlds')")
        monkeypatch.setattr(session, "preview", counted)
        page.locator("#corrupt").press("Enter")
        wait(page, FINISHED)
        assert previewed == []
        page.locator("#answer").fill(" Rome")
        page.locator("#corrupt").press("Enter")
        wait(page, "document.querySelector('#stories h1 b')?.textContent === 'Rome'")
        assert previewed == [CLEAN]


@needs_browser
def test_what_comes_of_an_older_text_is_dropped(browser: Browser, monkeypatch: pytest.MonkeyPatch):
    with explorer(small_model()) as client, opened(browser, client) as page:
        session, begun, go, priced = client.serving.session, threading.Event(), threading.Event(), []
        preview, estimate = session.preview, session.estimate

        def held(asked: Asked) -> Callable[[], Any]:
            begun.set()
            return lambda: (go.wait(10), preview(asked)())[1]

        def counted(asked: Asked) -> Callable[[], Any]:
            priced.append(asked.pair["clean"])
            return estimate(asked)

        page.locator("#corrupt").fill(CORRUPT)
        page.wait_for_timeout(500)
        monkeypatch.setattr(session, "preview", held)
        monkeypatch.setattr(session, "estimate", counted)
        page.locator("#clean").fill("Mary went to the drink")  # as long: it could be traced
        assert begun.wait(10)
        page.evaluate("() => { const now = setTimeout; window.setTimeout = (work, wait) => now(work, wait + 2000); }")
        page.locator("#clean").fill(CLEAN)
        go.set()  # what was held is of the older text, and comes before the newer one is asked for
        wait(page, "document.getElementById('cost').textContent.includes('worlds')")
        assert page.locator("#clean-tokens").inner_text().split() == CLEAN.split()
        assert priced == [CLEAN]


@needs_browser
def test_unequal_lengths_are_shown_and_one_click_pairs_them(browser: Browser):
    with explorer(small_model()) as client, opened(browser, client) as page:
        page.locator("#clean").fill(CLEAN)
        page.locator("#corrupt").fill("John gave the drink to the store")
        wait(page, "document.querySelector('#wrong button')")
        assert "They part at position 0" in page.locator("#wrong").inner_text()
        assert page.locator("#corrupt-tokens .parts").count() == 7
        assert page.locator("#go").is_disabled()
        page.get_by_role("button", name="pair them by suffix").click()
        wait(page, "!document.getElementById('go').disabled")
        assert page.locator("#wrong").inner_text() == ""
        page.locator("#go").click()
        wait(page, FINISHED)
        assert page.locator("#map td.none").count() > 0


@needs_browser
def test_two_traces_stand_side_by_side_on_one_scale(browser: Browser):
    with explorer(small_model()) as client, opened(browser, client) as page:
        traced(page)
        first = page.locator("#map td").evaluate_all(COLOURS)
        traced(page, "Mary gave the drink", "John gave the drink")
        page.get_by_role("button", name="beside").click()
        wait(page, "document.querySelectorAll('#beside td').length")
        assert page.locator("#beside td").count() == len(first) + page.locator("#beside td.zero").count()
        shown = page.locator("#legend").inner_text()
        page.get_by_role("radio", name="mlp_out", exact=True).check()
        page.locator('#beside td[tabindex="0"]').focus()
        page.keyboard.press("ArrowRight")
        assert "beside: mlp_out · layer 1" in page.locator("#beside-readout").inner_text()
        page.locator("#beside-close").click()
        assert page.locator("#beside-section").is_hidden()
        assert shown


@needs_browser
def test_side_by_side_no_layer_is_out_of_sight(browser: Browser):
    with explorer(toy_model(layers=30)) as client, opened(browser, client) as page:
        begun(page)
        wait(page, FINISHED)
        begun(page, "the cat sat", "the dog sat")
        wait(page, "document.getElementById('history').textContent.includes('beside')")
        wait(page, FINISHED)
        page.get_by_role("button", name="beside").first.click()
        wait(page, "document.querySelectorAll('#beside td').length")
        for box in ("#scroll", "#beside-section .scroll"):
            assert page.locator(box).evaluate("node => node.scrollWidth - node.clientWidth") <= 0
        starts = page.locator(".bar span, #ask").evaluate_all("all => all.map((one) => one.getBoundingClientRect().x)")
        assert starts[0] == starts[-1]


@needs_browser
def test_tokens_stay_text(browser: Browser):
    words = ("the", EVIL, "</script>", "\u202edog", "ran")
    with explorer(toy_model(words=words, layers=3)) as client, opened(browser, client) as page:
        pair = {"clean": f"the {EVIL} ran", "corrupt": "the </script> ran", "answer": f" {EVIL}", "foil": " </script>"}
        client.last(client.start({"pair": pair}))
        page.reload()
        page.locator("#history button >> nth=0").click()
        wait(page, FINISHED)
        assert page.locator("#stories h1").inner_text().startswith(f"the {EVIL} ran")
        assert page.locator("img").count() == 0
        assert EVIL in page.locator("#map").inner_text()
        page.locator("#corrupt").fill("the \u202edog ran")
        wait(page, "document.getElementById('corrupt-tokens').textContent.includes('U+202E')")


@needs_browser
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_nothing_stands_in_anybody_s_way(browser: Browser, look: dict[str, Any]):
    with explorer(small_model()) as client, opened(browser, client, bypass_csp=True, **look) as page:
        assert violations(page) == []
        traced(page)
        page.locator('#map td[data-at="1,1"]').click()
        wait(page, "document.querySelectorAll('#deeper-shown tbody tr').length === 4")
        assert violations(page) == []
        page.locator('#deeper-switches button[data-kind="pattern"]').click()
        wait(page, "document.querySelectorAll('#deeper-shown svg').length === 2")
        assert violations(page) == []
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0


@needs_browser
def test_who_listens_is_told_quarters_and_the_end(browser: Browser):
    with explorer(toy_model(0.002, layers=20)) as client, opened(browser, client) as page:
        page.evaluate(
            "window.said = []; new MutationObserver(() => said.push(document.getElementById('state').textContent))"
            ".observe(document.getElementById('state'), { childList: true, characterData: true, subtree: true })"
        )
        begun(page)
        wait(page, FINISHED)
        told = page.evaluate("said")
        assert len(told) <= 9, json.dumps(told)


@needs_browser
def test_a_server_that_has_gone_is_said_to_be(browser: Browser):
    with launched_page(browser) as (page, client):
        client.serving.close()
        page.locator("#clean").fill("the cat sat")
        page.locator("#corrupt").fill("the dog sat")
        wait(page, "document.getElementById('wrong').textContent.includes('Start it again in the terminal')")


@needs_browser
def test_what_is_said_of_a_trace_that_was_not_begun_stays(browser: Browser, monkeypatch: pytest.MonkeyPatch):
    with launched_page(browser) as (page, client):

        def full(job: Job) -> Job:
            raise Full

        monkeypatch.setattr(client.serving.session.worker, "submit", full)
        begun(page)
        wait(page, "document.querySelector('#clean-tokens .differs')")  # it was understood, after it was entered
        assert "traces wait already" in page.locator("#wrong").inner_text()
        page.locator("#clean").press_sequentially(" far")
        wait(page, "!document.getElementById('wrong').textContent.includes('wait already')")


@needs_browser
def test_ways_to_pair_are_offered_for_prompts_that_were_entered_at_once(browser: Browser):
    with launched_page(browser, toy_model(0.004)) as (page, client):
        before = client.start(asked(tab="other"))  # it is under way, and so the preview comes before the error
        begun(page, "the cat ran", "the dog ran far")
        wait(page, "document.querySelector('#wrong button')")
        client.send("DELETE", f"/api/traces/{before}")
        (id,) = [job["id"] for job in client.get("traces") if job["id"] != before]
        assert client.last(id)[1] == "error"
        wait(page, "document.getElementById('history').textContent.includes('failed')")
        assert page.get_by_role("button", name="pair them by suffix").is_visible()
        assert page.locator("#wrong").inner_text().count("They part at position") == 1


@needs_browser
def test_a_trace_under_way_is_found_again_and_can_still_be_stopped(browser: Browser):
    with explorer(toy_model(0.01)) as client, opened(browser, client) as page:
        begun(page)
        wait(page, "document.querySelector('#map td.waiting')")
        page.reload()
        wait(page, "document.querySelector('#map td.waiting')")
        assert page.locator("#clean").input_value() == "the cat ran"
        (id,) = [job["id"] for job in client.get("traces")]
        page.locator("#clean").press_sequentially(" far")
        assert client.last(id)[1] == "cancelled"
