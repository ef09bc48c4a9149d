"""The page of many pairs, in a real browser: the mean first, with its intervals, and every pair behind it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

import causal_tracing as ct
from causal_tracing.report.page.maps import unused
from causal_tracing.report.page.page import to_html
from joint import tiny
from made import longer, pair, taken_apart
from pages import EVIL, launched, needs_browser, numbers_in, opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def trace() -> ct.Trace:
    """Nine pairs; one is called as the mean would be, and one is an attack."""
    model = tiny()
    names = {0: "mean", 1: f"{EVIL}\u202e"}
    found = ct.trace(model, [pair(n, id=names.get(n, f"p{n}")) for n in range(9)])
    record = dict(found.provenance) | {"pairs_asked": 11, "dropped": {"d": f"not right {EVIL}"}, "failed": {"f": "bad"}}
    return ct.Trace(replace(found.measurements, provenance=record))


@pytest.fixture
def page(browser: Browser, trace: ct.Trace, tmp_path: Path) -> Iterator[Page]:
    with opened(browser, tmp_path / "report.html", trace.measurements) as page:
        yield page


def mean_of(trace: ct.Trace, component: str, layer: int, position: int) -> list[float]:
    cell = trace.effects.sel(metric="logit_diff", component=component, layer=layer, position=position)
    return [cell[name].values.mean() for name in ("restoration", "disruption", "interaction")]


def said(text: str) -> list[float]:
    """The numbers outside the intervals."""
    return numbers_in(re.sub(r"\[.*?\]", "", text))


@needs_browser
def test_the_mean_comes_first_with_its_numbers_and_intervals(page: Page, trace: ct.Trace):
    assert page.locator("h1:visible").inner_text() == "Mean over 9 of 11 pairs (1 left out by the clean run, 1 failed)"
    page.locator('#map td[data-at="1,1"]').hover()
    readout = page.locator("#readout").inner_text()
    np.testing.assert_allclose(said(readout), mean_of(trace, "resid_post", 1, 1), rtol=6e-3)
    cells = trace.evidence().cells.sel(component="resid_post", layer=1, position=1)
    low, high = (float(found.replace("−", "-")) for found in re.findall(r"\[(.*?), (.*?)\]", readout)[0])
    np.testing.assert_allclose([low, high], [cells.restoration_low, cells.restoration_high], rtol=6e-3)
    assert "9 clusters" in readout
    assert "over the map)" in readout
    page.get_by_role("radio", name="mlp_out", exact=True).check()
    page.locator('#map td[data-at="2,1"]').hover()
    np.testing.assert_allclose(said(page.locator("#readout").inner_text()), mean_of(trace, "mlp_out", 2, 1), rtol=6e-3)


@needs_browser
def test_what_is_not_shown_is_said_of_the_mean_and_of_a_pair_apart(page: Page):
    assert page.get_by_text("The templates are fixed, not sampled").is_visible()
    assert page.get_by_text("One pair of prompts is an anecdote").is_hidden()
    page.locator("select[name=p]").select_option("p3")
    assert page.get_by_text("The templates are fixed, not sampled").is_hidden()
    assert page.get_by_text("One pair of prompts is an anecdote").is_visible()


@needs_browser
def test_what_cannot_be_told_from_zero_is_marked(page: Page, trace: ct.Trace):
    cells = trace.evidence().cells.sel(component="resid_post")
    faint = {
        f"{n},{position}"
        for n in range(cells.sizes["layer"])
        for position in range(cells.sizes["position"])
        if cells.restoration_p_adjusted.values[n, position] >= 0.05
    }
    marked = page.locator("#map td.faint").evaluate_all("cells => cells.map((cell) => cell.dataset.at)")
    assert set(marked) == faint
    assert faint


@needs_browser
def test_the_spread_has_a_dot_a_pair_at_its_value(page: Page, trace: ct.Trace):
    page.locator('#map td[data-at="1,1"]').click()
    values = trace.effects.restoration.sel(metric="logit_diff", component="resid_post", layer=1, position=1).values
    titles = page.locator("#spread circle title").all_text_contents()
    np.testing.assert_allclose([numbers_in(text.rpartition(":")[2])[0] for text in titles], values, rtol=6e-3)
    across = page.locator("#spread circle").evaluate_all("dots => dots.map((dot) => +dot.getAttribute('cx'))")
    assert np.argsort(across).tolist() == np.argsort(values).tolist()


@needs_browser
def test_a_pair_is_found_sorted_and_opened(page: Page, trace: ct.Trace):
    totals = trace.effects.total_effect.sel(metric="logit_diff")
    names = page.locator("#browser tbody button")
    ranked = totals.pair.values[np.argsort(-totals.values)]
    assert names.all_text_contents() == [str(name) for name in ranked]
    page.get_by_role("button", name="total effect").click()
    assert names.all_text_contents() == [str(name) for name in ranked[::-1]]
    page.locator("#find").fill("w23")
    assert names.all_text_contents() == ["p3"]
    names.first.click()
    assert page.locator("h1:visible").inner_text().startswith("w11 w23 w13 w14 → w7")
    assert page.locator("#mean-section").is_hidden()
    page.locator('#map td[data-at="1,1"]').hover()
    cell = trace.effects.sel(metric="logit_diff", pair="p3", component="resid_post", layer=1, position=1)
    expected = [cell[name].item() for name in ("restoration", "disruption", "interaction")]
    np.testing.assert_allclose(said(page.locator("#readout").inner_text()), expected, rtol=6e-3)
    page.locator("select[name=p]").select_option("mean")  # the pair of that name
    assert "w20" in page.locator("h1:visible").inner_text()
    page.locator("select[name=p]").select_option(label="mean over 9 pairs")
    assert page.locator("h1:visible").inner_text().startswith("Mean over 9")


@needs_browser
def test_what_was_left_out_is_listed_and_stays_text(page: Page):
    page.get_by_text("1 pairs left out by the clean run").click()
    assert page.get_by_text(f"d: not right {EVIL}").is_visible()
    assert page.locator("img").count() == 0


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_reached_by_keyboard(browser: Browser, trace: ct.Trace, tmp_path: Path, scheme: Any):
    with opened(browser, tmp_path / "report.html", trace.measurements) as page:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 390, "height": 800})
        page.reload()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator('#map td[tabindex="0"]').focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.at") == "1,0"
        page.locator("#browser tbody button").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#mean-section").is_hidden()


@needs_browser
def test_pairs_of_different_lengths_are_averaged_by_role(browser: Browser, trace: ct.Trace, tmp_path: Path):
    model = tiny()
    mixed = ct.trace(model, [*(pair(n) for n in range(4)), *(longer(n) for n in range(4, 8))])
    with opened(browser, tmp_path / "report.html", mixed.measurements) as page:
        rows = page.locator("#map tbody th").all_text_contents()
        assert rows == [str(name).replace("_", " ") for name in mixed.evidence().cells.position.values]
        for name, length in (("pair-5", 7), ("pair-1", 4)):  # as long as its own prompt
            page.locator("select[name=p]").select_option(name)
            assert page.locator("#map tbody tr").count() == length


def test_no_mean_is_said_and_the_first_pair_is_shown():
    model = tiny()
    plain = {"subject": None, "corrupt_subject": None}
    both = [pair(0, **plain), replace(longer(1), **plain)]
    page = to_html(ct.trace(model, both).measurements)
    assert "There is no mean over these pairs: These prompts have different lengths" in page
    assert "mean" not in json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_hundreds_of_pairs_make_a_page_of_a_few_megabytes(trace: ct.Trace):
    data = trace.measurements.numbers().isel(position=np.resize(np.arange(4), 10), token=np.resize(np.arange(4), 10))
    many = data.isel(pair=np.resize(np.arange(9), 320), layer=np.resize(np.arange(data.sizes["layer"]), 30))
    many = many.assign_coords(pair=np.array([f"n{n}" for n in range(320)], dtype=object), layer=np.arange(30))
    many = many.assign_coords(position=np.arange(10)).assign(clean_length=("pair", np.full(320, 10)))
    page = to_html(taken_apart(many, trace.provenance))
    assert len(page) < 8 * 2**20
    assert "The maps of the first 250 of 320 pairs are here; the mean is of all." in page
    assert page.count('"asked":') == 250


def test_the_mean_is_called_as_no_pair_is():
    assert unused("mean", ["a"]) == "mean"
    assert unused("mean", ["mean", "mean*"]) == "mean**"
