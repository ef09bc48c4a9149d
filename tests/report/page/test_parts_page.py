"""Single heads and neurons on the page, in a real browser: their numbers, by mouse and keyboard, and nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import Browser, Page

from causal_tracing.report.page import parts
from causal_tracing.report.page.page import part
from causal_tracing.results.columns import labelled
from causal_tracing.results.effects import STATUSES
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import select, strongest
from causal_tracing.results.site_kinds import KINDS
from made import taken_apart
from pages import EVIL, example, launched, needs_browser, numbers_in, opened, with_units


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def shown() -> Measurements:
    return with_units()


@pytest.fixture
def units_page(browser: Browser, shown: Measurements, tmp_path: Path) -> Iterator[Page]:
    """The page of the example with heads and neurons."""
    with opened(browser, tmp_path / "report.html", shown) as page:
        yield page


def head_effects(component: str, layer: int, head: int) -> xr.Dataset:
    found = select(with_units(), of="heads")
    return found[["restoration", "disruption", "interaction"]].sel(component=component, layer=layer, head=head)


def numbers_of(found: xr.Dataset) -> list[float]:
    return [found[name].item() for name in ("restoration", "disruption", "interaction")]


@needs_browser
def test_the_grid_of_heads_shows_their_numbers(units_page: Page):
    heads, said = units_page.locator("#heads-map"), units_page.locator("#heads-readout")
    for component, count in (("z", 4), ("k", 2)):
        units_page.locator(f'input[name="heads-c"][value="{component}"]').check()
        assert heads.locator("tbody tr").count() == count
        for position in (0, 2):
            units_page.locator('select[name="heads-p"]').select_option(str(position))
            for layer, head in ((1, 0), (2, 1)):
                heads.locator(f'td[data-at="{layer},{head}"]').hover()
                expected = numbers_of(head_effects(component, layer, head).sel(position=position))
                np.testing.assert_allclose(numbers_in(said.inner_text()), expected, rtol=5e-3)
                assert f"{component} · layer {layer} · head {head}" in said.inner_text()


@needs_browser
def test_the_sum_over_positions_is_said_to_be_one(units_page: Page):
    units_page.locator('select[name="heads-p"]').select_option("sum")
    units_page.locator('#heads-map td[data-at="1,3"]').click()
    said = units_page.locator("#heads-readout").inner_text()
    expected = numbers_of(head_effects("z", 1, 3).sum("position"))
    np.testing.assert_allclose(numbers_in(said), expected, rtol=5e-3)
    assert "z · layer 1 · head 3 · sum over positions" in said
    note = units_page.locator("#heads-note").inner_text()
    assert note.startswith("The effects of 3 positions, patched one at a time and added up")


@needs_browser
def test_heads_have_a_scale_that_their_components_and_directions_share(units_page: Page):
    found = select(with_units(), of="heads")
    largest = max(abs(found[name]).max().item() for name in ("restoration", "disruption", "interaction"))
    for component in ("z", "k"):
        units_page.locator(f'input[name="heads-c"][value="{component}"]').check()
        assert f"+{largest:.3g} logits" in units_page.locator("#heads-legend").inner_text()


@needs_browser
def test_heads_are_read_by_keyboard_with_their_readers(units_page: Page):
    units_page.locator('input[name="heads-c"][value="k"]').check()
    units_page.locator('#heads-map td[tabindex="0"]').focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        units_page.keyboard.press(key)
    assert units_page.evaluate("document.activeElement.closest('table').id") == "heads-map"
    assert units_page.evaluate("document.activeElement.dataset.at") == "1,1"  # there is no third head of keys
    spoken = units_page.evaluate("document.activeElement.ariaLabel")
    assert spoken == units_page.locator("#heads-readout").inner_text()
    assert "k · layer 1 · head 1 (read by query heads 2, 3)" in spoken
    assert units_page.locator("#heads-map tbody th").nth(1).get_attribute("title") == "read by query heads 2, 3"
    assert units_page.locator("#readout").inner_text().startswith("Point at a cell")  # the map has a readout of its own


@needs_browser
def test_a_head_that_cannot_matter_is_drawn_as_such(units_page: Page):
    units_page.locator('select[name="heads-p"]').select_option("0")
    assert units_page.locator('#heads-map td[data-at="0,0"]').get_attribute("class") == "zero"
    assert units_page.locator('#heads-map td[data-at="0,1"]').get_attribute("class") == ""


@needs_browser
def test_sections_share_the_direction_and_a_view_of_them_can_be_linked(units_page: Page):
    units_page.locator('input[name="heads-d"][value="disruption"]').check()
    for place in ("", "heads-", "neurons-"):
        assert units_page.locator(f'input[name="{place}d"][value="disruption"]').is_checked()
    assert units_page.evaluate("document.activeElement.name") == "heads-d"
    units_page.locator('input[name="heads-c"][value="k"]').check()
    units_page.locator('select[name="heads-p"]').select_option("sum")
    units_page.locator('#heads-map td[data-at="2,1"]').click()
    before = units_page.locator("#heads-readout").inner_text()
    units_page.reload()
    assert units_page.locator("#heads-readout").inner_text() == before
    assert units_page.locator('select[name="heads-p"]').input_value() == "sum"
    units_page.evaluate("location.hash = '#heads-p=<b>&heads-at=99,0&heads-c=resid_post'")
    assert units_page.locator("#heads-readout").inner_text() == before


@needs_browser
@pytest.mark.parametrize("direction", ["restoration", "interaction"])
def test_the_strongest_neurons_are_listed(units_page: Page, direction: str):
    units_page.locator(f'input[name="neurons-d"][value="{direction}"]').check()
    lines, expected = (
        units_page.locator("#neurons-table tbody tr"),
        strongest(select(with_units(), of="neurons"), 100, by=direction),
    )
    for rows in (20, 100):
        units_page.locator(f'input[name="neurons-n"][value="{rows}"]').check()
        assert lines.count() == rows
        for line, row in zip(lines.all_inner_texts(), expected[:rows], strict=True):
            at = 'position 2 "t2"' if row.position == 2 else "the last token"
            assert f"layer {row.layer} · neuron {row.part}\t{at}\t" in line
            values = np.array([row.restoration, row.disruption, row.interaction], float)
            np.testing.assert_allclose(numbers_in(line), values, rtol=5e-3)


@needs_browser
def test_the_curve_is_of_all_neurons(units_page: Page):
    values = select(with_units(), of="neurons").restoration.values
    note = units_page.locator("#neurons-note").inner_text()
    assert f"1,800 effects, of which {(values > 0).sum()} support the clean behaviour and {(values < 0).sum()}" in note
    sizes = np.cumsum(np.sort(abs(values).ravel())[::-1])
    half = (sizes < sizes[-1] / 2).sum() + 1
    assert f"Half of their summed size is in the {half} strongest" in note
    for kind in ("supports", "opposes"):
        points = units_page.locator(f"#neurons-curve polyline.{kind}").get_attribute("points") or ""
        assert 60 < len(points.split()) <= 120
    first = strongest(select(with_units(), of="neurons"), 1)[0]
    assert f"layer {first.layer} · {first.part}" in units_page.locator("#neurons-curve text.named").all_text_contents()


@needs_browser
def test_what_was_not_measured_has_no_section(browser: Browser, tmp_path: Path):
    with opened(browser, tmp_path / "blocks.html", example()) as page:
        for part in ("heads", "neurons"):
            assert page.locator(f"#{part}-section").count() == 0
        assert page.get_by_role("heading", name="Single").count() == 0
    made = with_units()
    heads_only = taken_apart(made.numbers(), made.provenance, heads=made.maps["heads"])
    with opened(browser, tmp_path / "heads.html", heads_only) as other:
        assert other.locator("#heads-map td").count() == 12
        assert other.locator("#neurons-section").count() == 0


@needs_browser
def test_hostile_tokens_stay_text_among_heads_and_neurons(browser: Browser, tmp_path: Path):
    made = with_units()
    neurons = made.maps["neurons"].assign_coords(position=labelled([1, "last"]))
    hostile = taken_apart(made.numbers(), made.provenance, heads=made.maps["heads"], neurons=neurons)
    with opened(browser, tmp_path / "hostile.html", hostile) as page:
        page.locator('select[name="heads-p"]').select_option("1")
        page.locator('#heads-map td[data-at="1,1"]').click()
        assert EVIL.strip() in page.locator('select[name="heads-p"] option').nth(1).inner_text()
        for part in ("#heads-readout", "#heads-note", "#neurons-table"):
            assert EVIL.strip() in page.locator(part).inner_text()
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2


@needs_browser
def test_too_many_heads_leave_their_strongest_positions_and_say_so(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parts, "MOST_NUMBERS", 2 * 2 * 3 * 4 * 2)  # two positions, by one metric
    found = select(with_units(), of="heads")
    weakest = int(abs(found.restoration).max(["component", "layer", "head"]).argmin("position"))
    kept = [str(position) for position in range(3) if position != weakest]
    with opened(browser, tmp_path / "few.html", with_units()) as page:
        assert page.locator('select[name="heads-p"] option').evaluate_all("all => all.map(one => one.value)") == [
            *kept,
            "sum",
        ]
        page.get_by_role("radio", name="prob", exact=True).check()
        note = page.locator("#heads-note").inner_text()
        assert "the 2 of 3 positions with the strongest heads" in note
        assert "by logit_diff only" in note
        page.locator('select[name="heads-p"]').select_option("sum")
        page.locator('#heads-map td[data-at="1,3"]').click()
        expected = numbers_of(head_effects("z", 1, 3).sum("position"))  # of all three
        np.testing.assert_allclose(numbers_in(page.locator("#heads-readout").inner_text()), expected, rtol=5e-3)


def test_the_page_holds_few_of_many_neurons(monkeypatch: pytest.MonkeyPatch):
    found = select(with_units(), of="neurons")
    monkeypatch.setattr(parts, "STRONGEST", 30)
    data = parts.parts_data(with_units(), KINDS["neurons"], ["p"])["pairs"][0]["metrics"]["logit_diff"]
    kept = {(layer, neuron, ["2", "last"][position]) for layer, neuron, position, *_ in data["top"]}
    assert 30 <= len(data["top"]) == len(kept) <= 90
    for effect in ("restoration", "disruption", "interaction"):
        rows = strongest(found, 30, by=effect)
        assert {(row.layer, row.part, str(row.position)) for row in rows} <= kept
        assert data["curves"][effect]["count"] == 1800
        assert len(data["curves"][effect]["supports"]) <= parts.CURVE_POINTS
        assert data["curves"][effect]["supports"][-1][0] == data["curves"][effect]["supports_count"]


@pytest.mark.parametrize(("room", "metrics"), [(7, 7), (6, 1)])
def test_many_views_leave_the_neurons_their_first_metric(room: int, metrics: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "MOST_VIEWS", room)
    assert len(parts.parts_data(with_units(), KINDS["neurons"], ["p"])["metrics"]) == metrics


def test_every_status_has_a_letter_that_the_script_knows() -> None:
    """Sites that hold the other run's activation already were called undefined."""
    known = re.search("const STATUS_LETTERS = {(.*?)}", part("parts.js"))
    assert known is not None
    told = {name: letter for letter, name in re.findall(r'(\w): "(\w+)"', known.group(1))}
    assert {name: told[name] for name in STATUSES} == {name: parts.lettered([name]) for name in STATUSES}
    assert len({*told.values()}) == len(told)
