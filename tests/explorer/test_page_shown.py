"""What the explorer's page shows and gives away, in a real browser: its sections, full screen, downloads, copies."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

import causal_tracing as ct
from causal_tracing.explorer.saved import Saved
from causal_tracing.explorer.serve import Serving
from explorer_pages import CLEAN, CORRUPT, FINISHED, begun, opened, traced, wait
from explorers import explorer, small_model, talking, toy_model
from pages import launched, needs_browser, numbers_in
from tiny import tiny_folder

CLIPBOARD = ["clipboard-read", "clipboard-write"]
TITLES = (
    "[...document.querySelectorAll('#result h2')].filter((node) => node.checkVisibility()).map((h) => h.textContent)"
)
EVERYWHERE = ["Strongest sites", "What the model would say", "How to read this", "What it does not show", "Provenance"]
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" Rome", foil=" Paris")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@needs_browser
def test_there_are_sections_of_what_was_measured_and_of_nothing_else(browser: Browser):
    with explorer(small_model()) as client, opened(browser, client) as page:
        traced(page)
        assert page.evaluate(TITLES) == ["The map", "MLP against attention, layer by layer", *EVERYWHERE]
        assert page.locator("#elsewhere").inner_text() == ""


@needs_browser
def test_a_trace_that_is_opened_again_is_seen(browser: Browser):
    with explorer(small_model()) as client, opened(browser, client) as page:
        traced(page)
        traced(page, "Mary gave the drink", "John gave the drink")
        page.locator("#history button", has_text="open").last.click()
        wait(page, f"document.querySelector('#stories h1')?.textContent.startsWith('{CLEAN}')")
        wait(page, FINISHED)
        assert page.locator("#clean").input_value() == CLEAN
        assert page.locator("#map-title").evaluate("node => node.getBoundingClientRect().top >= 0")


@needs_browser
def test_a_saved_trace_shows_its_heads_and_says_what_it_cannot_show(browser: Browser, tmp_path: Path):
    sets = {"two": ["z 1.0 @ last", "z 2.1 @ last"]}
    trace = ct.trace(small_model(), PAIR, components=["resid_post"], heads=["z"], sets=sets, progress=False)
    trace.save(tmp_path / "kept")
    with Serving(Saved([tmp_path / "kept"])) as serving, talking(serving) as client:
        client.serving = serving
        with opened(browser, client) as page:
            wait(page, "document.querySelectorAll('#heads-map td').length")
            assert page.evaluate(TITLES) == ["The map", "Single heads", *EVERYWHERE]
            assert page.locator("#elsewhere").inner_text().startswith("Not shown here: sets.")
            assert "z 1.0 @ last" in client.send("GET", f"/api/traces/{client.get('traces')[0]['id']}/page").text


@needs_browser
def test_a_saved_trace_shows_every_kind_that_has_a_map(browser: Browser, tmp_path: Path):
    asked: dict[str, Any] = {"knockout": True, "edges": ["v"], "edge_query": ["last"], "edge_heads": ["2"]}
    trace = ct.trace(small_model(), PAIR, components=["resid_post"], **asked, progress=False)
    trace.save(tmp_path / "kept")
    with Serving(Saved([tmp_path / "kept"])) as serving, talking(serving) as client:
        client.serving = serving
        with opened(browser, client) as page:
            wait(page, "document.querySelectorAll('#edges_by_query-map td').length")
            assert page.evaluate(TITLES) == ["The map", "Knockout", "Edges by query", *EVERYWHERE]
            page.locator('#knockout-map td[data-at="1,2"]').hover()
            said = page.locator("#knockout-readout").inner_text()
            assert said.startswith("attention · layer 1 · position 2")
            cell = trace.of("knockout").disruption.sel(metric="logit_diff", layer=1, position=2)
            assert numbers_in(said)[0] == pytest.approx(cell.item(), rel=1e-2)


@needs_browser
def test_what_will_stand_under_a_heading_is_said_while_the_map_fills(browser: Browser):
    with explorer(toy_model(seconds=0.02)) as client, opened(browser, client) as page:
        begun(page)
        wait(page, "document.getElementById('how-to-read')?.textContent === 'This comes when the map is whole.'")
        empty = (
            "[...document.querySelectorAll('#result section')].filter((node) => node.checkVisibility() && "
            "node.textContent.trim() === node.querySelector('h2').textContent.trim()).map((node) => node.innerText)"
        )
        assert page.evaluate(empty) == []
        page.locator("#stop").click()
        wait(page, "document.getElementById('state').textContent.startsWith('Stopped')")


@needs_browser
def test_the_logit_lens_is_read_where_it_is_wished(browser: Browser):
    model = small_model()
    with explorer(model) as client, opened(browser, client) as page:
        traced(page)
        page.locator('#map td[data-at="2,4"]').focus()
        assert page.locator("#lens").is_hidden()
        page.locator("#with-lens").check()
        page.locator("#corrupt").press("Enter")
        wait(page, "!document.getElementById('state').textContent.startsWith('Finished')")
        wait(page, FINISHED)
        page.mouse.move(0, 0)
        page.locator('#map td[data-at="2,4"]').focus()
        wait(page, "document.getElementById('lens').textContent.startsWith('Logit lens behind layer 2, a readout')")
        said = page.locator("#lens").inner_text()
        shown = client.get(f"traces/{client.get('traces')[-1]['id']}/view")["document"]
        page.reload()
        wait(page, FINISHED)
        assert page.locator("#with-lens").is_checked()
    assert shown["python"].endswith("trace = ct.trace(model, pair, lens=True)\n")
    scope: dict[str, Any] = {"model": model}
    exec(shown["python"], scope)
    lens = scope["trace"].lens
    for run in ("clean", "corrupt"):
        found = lens.sel(run=run, layer=2, token=4).squeeze("pair")
        top, prob, answer = re.findall(rf"{run} run: (.+?) ([\d.]+), p\(answer\) ([\d.]+)", said)[0]
        assert top == repr(found.top.item())
        assert float(prob) == pytest.approx(found.top_prob.item(), abs=0.006)  # two digits are said
        assert float(answer) == pytest.approx(found.answer_prob.item(), abs=0.006)


@needs_browser
def test_the_map_fills_the_screen_and_goes_back(browser: Browser):
    with explorer(small_model()) as client, opened(browser, client) as page:
        traced(page)
        page.locator("#full-screen").click()
        wait(page, "document.fullscreenElement?.id === 'full'")
        page.locator('#map td[data-at="0,1"]').focus()
        page.keyboard.press("ArrowRight")
        assert "layer 1 · position 1" in page.locator("#full #readout").inner_text()
        page.locator("#full #full-screen").click()
        wait(page, "document.fullscreenElement === null")


@needs_browser
def test_what_is_downloaded_and_copied_is_the_trace_that_is_shown(browser: Browser, tmp_path: Path):
    tiny_folder(tmp_path)
    model = ct.load(str(tmp_path), device="cpu", progress=False)
    with explorer(model) as client, opened(browser, client, permissions=CLIPBOARD) as page:
        traced(page)
        id = client.get("traces")[-1]["id"]
        for get, name in (("page", "report.html"), ("effects.csv",) * 2, ("effects.parquet",) * 2):
            with page.expect_download() as download:
                page.locator(f'[data-get="{get}"]').click()
            assert download.value.suggested_filename == name
            assert Path(download.value.path()).read_bytes() == client.send("GET", f"/api/traces/{id}/{get}").content
        view = client.get(f"traces/{id}/view")["document"]
        for what in ("command", "python"):
            page.locator("#copied-it").evaluate("node => { node.textContent = ''; }")
            page.locator(f"#copy-{what}").click()
            wait(page, "document.getElementById('copied-it').textContent === 'copied'")
            assert page.evaluate("navigator.clipboard.readText()") == view[what]
            assert CLEAN in view[what]
        page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')))")
        page.locator("#copy-python").click()
        wait(page, "document.getElementById('copied-it').textContent.startsWith('import causal_tracing')")


@needs_browser
def test_nothing_moves_for_those_who_do_not_want_it(browser: Browser):
    for wish, seconds in (("reduce", "0s"), ("no-preference", "0.25s")):
        with explorer(small_model()) as client, opened(browser, client, reduced_motion=wish) as page:
            traced(page)
            moving = "[...document.querySelectorAll('*')].map((node) => getComputedStyle(node).transitionDuration)"
            assert set(page.evaluate(moving)) - {"0s"} == {seconds} - {"0s"}
            assert page.evaluate("document.getAnimations().length") == 0 or wish == "no-preference"
