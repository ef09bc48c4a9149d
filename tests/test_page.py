"""The report page, in a real browser: what is shown is what was measured, and token text stays text."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from causal_tracing.effects import effects
from causal_tracing.errors import MachineError
from causal_tracing.reading import select, strongest
from causal_tracing.report import to_html, unit_data
from causal_tracing.report.notebook import notebook_html
from causal_tracing.results import Measurements
from test_effects import measurements

EVIL = " </script><img src=x onerror=alert(1)>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
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
    made.data["clean_token"].values[0, 1] = EVIL
    made.data["clean_prompt"].values[0] = f"the {EVIL}\u202eprompt"
    cells = [name for name in made.data if "component" in made.data[name].dims]
    factors = {"resid_post": 1.0, "attn_out": 0.5, "mlp_out": 0.25}
    data = made.data.drop_vars(cells).drop_vars("component")
    for name in cells:
        values = made.data[name].values
        scaled = [values if values.dtype == bool else 1 + (values - 1) * factor for factor in factors.values()]
        data[name] = (made.data[name].dims, np.concatenate(scaled, axis=made.data[name].dims.index("component")))
    return Measurements(data=data.assign_coords(component=list(factors)), provenance=made.provenance)


def unit_table(
    made: Measurements, unit: str, components: dict[str, int], columns: list[Any], size: float
) -> xr.Dataset:
    """Numbers of three layers' heads or neurons, with as many units a component as it says; the rest is absent."""
    random, most = np.random.default_rng(1), max(components.values())
    shape = (len(components), 3, most, len(columns))
    absent = np.arange(most)[None, None, :, None] >= np.array([*components.values()])[:, None, None, None]
    absent = np.broadcast_to(absent, shape)
    dims, metrics = ("component", "layer", unit, "position"), made.data.metric.values
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
    neurons = unit_table(made, "neuron", {"neurons": 300}, ["2", "last"], 0.01)
    return Measurements(data=made.data, provenance=made.provenance, heads=heads, neurons=neurons)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The example's page."""
    with opened(browser, tmp_path / "report.html", example()) as page:
        yield page


@pytest.fixture
def units_page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page of the example with heads and neurons."""
    with opened(browser, tmp_path / "report.html", with_units()) as page:
        yield page


@contextmanager
def opened(browser: Browser, path: Path, shown: Measurements) -> Iterator[Page]:
    """A page opened from disk; anything that it requests or complains of fails the test."""
    to_html(shown, path)
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


def numbers_in(text: str) -> list[float]:
    """The effects that a readout tells: each has its sign; the shares in brackets are left out."""
    return [float(found.replace("−", "-")) for found in re.findall(r"[+−]\d[\d.e-]*", re.sub(r"\(.*?\)", "", text))]


def cell(name: str, component: str, layer: int, position: int) -> float:
    found = effects(example()).sel(metric="logit_diff", pair="p", component=component, layer=layer, position=position)
    return found[name].item()


def readout(page: Page) -> str:
    return page.locator("#readout").inner_text()


@needs_browser
def test_switching_shows_the_other_numbers(page: Page):
    page.locator('td[data-at="1,2"]').click()
    for component in ("resid_post", "attn_out", "mlp_out"):
        page.get_by_role("radio", name=component, exact=True).check()
        assert component in readout(page)
        expected = [cell(name, component, 1, 2) for name in ("restoration", "disruption", "interaction")]
        np.testing.assert_allclose(numbers_in(readout(page)), expected, rtol=5e-3)
    colours = []
    for direction in ("restoration", "disruption", "interaction"):
        page.get_by_role("radio", name=direction, exact=True).check()
        colours.append(page.locator('td[data-at="1,2"]').evaluate("cell => cell.style.backgroundColor"))
        assert page.locator("#map").get_attribute("aria-label") == f"{direction} of mlp_out by token and layer"
    assert len(set(colours)) == 3


@needs_browser
def test_a_cell_is_read_by_keyboard(page: Page):
    page.locator('td[tabindex="0"]').focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.at") == "1,2"
    assert 'resid_post · layer 1 · position 2 "t2"' in readout(page)
    assert numbers_in(readout(page))[0] == pytest.approx(cell("restoration", "resid_post", 1, 2), rel=5e-3)
    page.keyboard.press("End")
    assert "layer 2" in readout(page)
    assert "cut" in readout(page)
    page.keyboard.press("Home")
    assert "restoration undefined" in readout(page)
    assert "failed" in readout(page)
    page.keyboard.press("PageUp")
    assert page.evaluate("document.activeElement.dataset.at") == "0,0"


@needs_browser
def test_what_is_undefined_zero_or_a_cut_is_drawn_as_such(page: Page):
    classes = {at: page.locator(f'td[data-at="{at}"]').get_attribute("class") for at in ("0,2", "2,0", "2,2", "1,1")}
    assert classes == {"0,2": "none", "2,0": "zero", "2,2": "cut", "1,1": ""}
    hatch = page.locator('td[data-at="0,2"]').evaluate("cell => getComputedStyle(cell).backgroundImage")
    assert "repeating-linear-gradient" in hatch


@needs_browser
def test_one_scale_is_shared_by_every_component_and_direction(page: Page):
    found = effects(example()).sel(metric="logit_diff", pair="p")
    largest = max(abs(found[name]).max().item() for name in ("restoration", "disruption", "interaction"))
    assert largest == abs(found.interaction).max().item()
    for component in ("resid_post", "mlp_out"):
        page.get_by_role("radio", name=component, exact=True).check()
        assert f"+{largest:.3g} logits" in page.locator("#legend").inner_text()


@needs_browser
def test_a_token_that_looks_like_markup_stays_text(page: Page):
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert EVIL.strip() in page.locator("tbody th").nth(1).inner_text()
    assert EVIL.strip() in page.locator("h1").inner_text()
    assert "⟨U+202E⟩" in page.locator("h1").inner_text()


@needs_browser
def test_the_policy_blocks_what_is_not_the_pages_own(browser: Browser, tmp_path: Path):
    path = tmp_path / "broken.html"
    path.write_text(to_html(example()).replace("<main>", "<main><script>window.broken = 1</script>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("window.broken") is None
    page.close()


@needs_browser
def test_a_view_can_be_linked(page: Page):
    page.get_by_role("radio", name="mlp_out", exact=True).check()
    page.get_by_role("radio", name="disruption", exact=True).check()
    page.get_by_role("radio", name="fraction", exact=True).check()
    page.locator('td[data-at="1,0"]').click()
    before = readout(page)
    page.reload()
    for name in ("mlp_out", "disruption", "fraction"):
        assert page.get_by_role("radio", name=name, exact=True).is_checked()
    assert readout(page) == before
    page.evaluate("location.hash = '#c=nothing&cell=99999,1&d=<b>'")
    assert page.get_by_role("radio", name="mlp_out", exact=True).is_checked()  # what makes no sense changes nothing
    assert readout(page) == before


@needs_browser
def test_curves_follow_the_chosen_token(page: Page):
    assert "strongest single token" in page.locator("#curves-note").inner_text()
    page.locator("tbody th").nth(2).click()
    assert 'position 2 "t2"' in page.locator("#curves-note").inner_text()
    assert page.locator("#curves polyline").count() == 2


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_in_light_and_dark(browser: Browser, tmp_path: Path, scheme):
    path = tmp_path / "report.html"
    to_html(with_units(), path)
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    style = "(name => getComputedStyle(document.body)[name])"
    paper, ink = (page.evaluate(f"{style}('{name}')") for name in ("backgroundColor", "color"))
    light, dark = sorted((luminance(colour) for colour in (paper, ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 7
    assert (luminance(paper) > 0.5) == (scheme == "light")
    page.close()


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def head_effects(component: str, layer: int, head: int) -> xr.Dataset:
    found = select(with_units(), of="heads")
    return found[["restoration", "disruption", "interaction"]].sel(component=component, layer=layer, head=head)


def numbers_of(found: xr.Dataset) -> list[float]:
    return [found[name].item() for name in ("restoration", "disruption", "interaction")]


@needs_browser
def test_the_grid_of_heads_shows_their_numbers(units_page: Page):
    heads, said = units_page.locator("#heads"), units_page.locator("#heads-readout")
    for component, count in (("z", 4), ("k", 2)):
        units_page.locator(f'input[name="heads-hc"][value="{component}"]').check()
        assert heads.locator("tbody tr").count() == count
        for position in (0, 2):
            units_page.locator('select[name="hp"]').select_option(str(position))
            for layer, head in ((1, 0), (2, 1)):
                heads.locator(f'td[data-at="{layer},{head}"]').hover()
                expected = numbers_of(head_effects(component, layer, head).sel(position=position))
                np.testing.assert_allclose(numbers_in(said.inner_text()), expected, rtol=5e-3)
                assert f"{component} · layer {layer} · head {head}" in said.inner_text()


@needs_browser
def test_the_sum_over_positions_is_said_to_be_one(units_page: Page):
    units_page.locator('select[name="hp"]').select_option("sum")
    units_page.locator('#heads td[data-at="1,3"]').click()
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
        units_page.locator(f'input[name="heads-hc"][value="{component}"]').check()
        assert f"+{largest:.3g} logits" in units_page.locator("#heads-legend").inner_text()


@needs_browser
def test_heads_are_read_by_keyboard_with_their_readers(units_page: Page):
    units_page.locator('input[name="heads-hc"][value="k"]').check()
    units_page.locator('#heads td[tabindex="0"]').focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        units_page.keyboard.press(key)
    assert units_page.evaluate("document.activeElement.closest('table').id") == "heads"
    assert units_page.evaluate("document.activeElement.dataset.at") == "1,1"  # there is no third head of keys
    spoken = units_page.evaluate("document.activeElement.ariaLabel")
    assert spoken == units_page.locator("#heads-readout").inner_text()
    assert "k · layer 1 · head 1 (read by query heads 2, 3)" in spoken
    assert units_page.locator("#heads tbody th").nth(1).get_attribute("title") == "read by query heads 2, 3"
    assert readout(units_page).startswith("Point at a cell")  # the map has a readout of its own


@needs_browser
def test_a_head_that_cannot_matter_is_drawn_as_such(units_page: Page):
    units_page.locator('select[name="hp"]').select_option("0")
    assert units_page.locator('#heads td[data-at="0,0"]').get_attribute("class") == "zero"
    assert units_page.locator('#heads td[data-at="0,1"]').get_attribute("class") == ""


@needs_browser
def test_sections_share_the_direction_and_a_view_of_them_can_be_linked(units_page: Page):
    units_page.locator('input[name="heads-d"][value="disruption"]').check()
    for place in ("", "heads-", "neurons-"):
        assert units_page.locator(f'input[name="{place}d"][value="disruption"]').is_checked()
    assert units_page.evaluate("document.activeElement.name") == "heads-d"
    units_page.locator('input[name="heads-hc"][value="k"]').check()
    units_page.locator('select[name="hp"]').select_option("sum")
    units_page.locator('#heads td[data-at="2,1"]').click()
    before = units_page.locator("#heads-readout").inner_text()
    units_page.reload()
    assert units_page.locator("#heads-readout").inner_text() == before
    assert units_page.locator('select[name="hp"]').input_value() == "sum"
    units_page.evaluate("location.hash = '#hp=<b>&head=99,0&hc=resid_post'")
    assert units_page.locator("#heads-readout").inner_text() == before


@needs_browser
@pytest.mark.parametrize("direction", ["restoration", "interaction"])
def test_the_strongest_neurons_are_listed(units_page: Page, direction: str):
    units_page.locator(f'input[name="neurons-d"][value="{direction}"]').check()
    lines, expected = (
        units_page.locator("#neurons tbody tr"),
        strongest(select(with_units(), of="neurons"), 100, by=direction),
    )
    for rows in (20, 100):
        units_page.locator(f'input[name="n"][value="{rows}"], input[name="neurons-n"][value="{rows}"]').check()
        assert lines.count() == rows
        for line, row in zip(lines.all_inner_texts(), expected[:rows], strict=True):
            at = 'position 2 "t2"' if row.position == 2 else "the last token"
            assert f"layer {row.layer} · neuron {row.unit}\t{at}\t" in line
            values = [row.restoration, row.disruption, row.interaction]
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
    assert f"layer {first.layer} · {first.unit}" in units_page.locator("#neurons-curve text.named").all_text_contents()


@needs_browser
def test_what_was_not_measured_has_no_section(page: Page, browser: Browser, tmp_path: Path):
    for part in ("heads", "neurons"):
        assert page.locator(f"#{part}-section").count() == 0
    assert page.get_by_role("heading", name="Single").count() == 0
    made = with_units()
    heads_only = Measurements(data=made.data, provenance=made.provenance, heads=made.heads)
    with opened(browser, tmp_path / "heads.html", heads_only) as other:
        assert other.locator("#heads td").count() == 12
        assert other.locator("#neurons-section").count() == 0


@needs_browser
def test_hostile_tokens_stay_text_among_heads_and_neurons(browser: Browser, tmp_path: Path):
    made = with_units()
    neurons = made.neurons.assign_coords(position=["1", "last"]) if made.neurons else None
    hostile = Measurements(data=made.data, provenance=made.provenance, heads=made.heads, neurons=neurons)
    with opened(browser, tmp_path / "hostile.html", hostile) as page:
        page.locator('select[name="hp"]').select_option("1")
        page.locator('#heads td[data-at="1,1"]').click()
        assert EVIL.strip() in page.locator('select[name="hp"] option').nth(1).inner_text()
        for part in ("#heads-readout", "#heads-note", "#neurons"):
            assert EVIL.strip() in page.locator(part).inner_text()
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2


@needs_browser
def test_too_many_heads_leave_their_strongest_positions_and_say_so(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unit_data, "MOST_NUMBERS", 2 * 2 * 3 * 4 * 2)  # two positions, by one metric
    found = select(with_units(), of="heads")
    weakest = int(abs(found.restoration).max(["component", "layer", "head"]).argmin("position"))
    kept = [str(position) for position in range(3) if position != weakest]
    with opened(browser, tmp_path / "few.html", with_units()) as page:
        assert page.locator('select[name="hp"] option').evaluate_all("all => all.map(one => one.value)") == [
            *kept,
            "sum",
        ]
        page.get_by_role("radio", name="prob", exact=True).check()
        note = page.locator("#heads-note").inner_text()
        assert "the 2 of 3 positions with the strongest heads" in note
        assert "by logit_diff only" in note
        page.locator('select[name="hp"]').select_option("sum")
        page.locator('#heads td[data-at="1,3"]').click()
        expected = numbers_of(head_effects("z", 1, 3).sum("position"))  # of all three
        np.testing.assert_allclose(numbers_in(page.locator("#heads-readout").inner_text()), expected, rtol=5e-3)


@needs_browser
def test_sums_of_windows_have_a_switch(browser: Browser, tmp_path: Path):
    made = example()
    data = made.data.assign(
        restored_sum=made.data.restored + 0.25,
        window_first=(("component", "layer"), np.array([[0, 0, 1]] * 3)),
        window_last=(("component", "layer"), np.array([[1, 2, 2]] * 3)),
    )
    with opened(browser, tmp_path / "windows.html", Measurements(data=data, provenance=made.provenance)) as page:
        page.get_by_role("radio", name="restoration sum", exact=True).check()
        page.locator('#map td[data-at="1,1"]').click()
        assert "resid_post · layer 1 (layers 0 to 2 together)" in readout(page)
        single = cell("restoration", "resid_post", 1, 1)
        assert numbers_in(readout(page))[-1] == pytest.approx(single + 0.25, rel=5e-3)


def test_the_page_is_one_file_that_names_no_address():
    html = to_html(example())
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)""", html)
    assert not re.search(r"\son\w+\s*=\s*[\"']", html.replace("onerror=alert", ""))
    assert html.count("<style>") == html.count("<script>") == 1
    assert "default-src 'none'" in html


def test_the_data_is_json_without_nan_and_without_markup():
    html = to_html(example())
    text = html.split('id="data">')[1].split("</script>")[0]
    assert "<" not in text
    data = json.loads(text, parse_constant=pytest.fail)
    assert data["pairs"][0]["metrics"]["logit_diff"]["restoration"]["resid_post"][0][2] is None
    assert data["pairs"][0]["metrics"]["logit_diff"]["disruption"]["resid_post"][2][0] == 0
    assert [metric["name"] for metric in data["metrics"]] == [
        "logit_diff",
        "log_prob",
        "logit",
        "prob",
        "neg_kl",
        "neg_rank",
    ]


def test_one_direction_roles_and_an_undefined_fraction():
    made = example()
    roles = made.data.drop_vars("disrupted").assign_coords(position=["subject_last", "last", "together"])
    html = to_html(Measurements(data=roles, provenance=made.provenance))
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert data["directions"] == ["restoration"]
    assert [row["label"] for row in data["pairs"][0]["rows"]] == ["subject last", "last", "together"]
    small = to_html(measurements([[1.1]], [[1.0]], clean=1.001, spread=1e-3))
    data = json.loads(small.split('id="data">')[1].split("</script>")[0])
    assert "is not larger than" in data["pairs"][0]["metrics"]["logit_diff"]["fraction_reason"]


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.html"
    assert path.write_text("before")
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(MachineError, match="could not be written: disk full"):
            to_html(example(), path)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(MachineError, match=r"report\.html could not be written"):
        to_html(example(), tmp_path / "nowhere" / "report.html")


def test_a_notebook_gets_words_and_a_map_without_script():
    html = notebook_html(example())
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("<rect") == 9 + 9 - 1
    assert "total effect 2.00 logits" in html
