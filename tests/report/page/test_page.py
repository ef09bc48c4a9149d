"""The report page, in a real browser: what is shown is what was measured, and token text stays text."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from causal_tracing.errors import MachineError
from causal_tracing.report.labels import number
from causal_tracing.report.notebook import notebook_html
from causal_tracing.report.page.page import to_html
from causal_tracing.report.words.many_pairs import with_interval
from causal_tracing.results.effects import effects
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS
from made import measurements, synthetic, taken_apart
from pages import EVIL, example, launched, needs_browser, numbers_in, opened, with_units


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def shown() -> Measurements:
    return example()


@pytest.fixture
def page(browser: Browser, shown: Measurements, tmp_path: Path) -> Iterator[Page]:
    """The example's page."""
    with opened(browser, tmp_path / "report.html", shown) as page:
        yield page


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
    assert "restoration (logits) of the strongest single token" in page.locator("#curves-note").inner_text()
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


@needs_browser
def test_sums_of_windows_have_a_switch(browser: Browser, tmp_path: Path):
    made = example()
    data = made.numbers().assign(
        restored_sum=made.numbers().restored + 0.25,
        window_first=(("component", "layer"), np.array([[0, 0, 1]] * 3)),
        window_last=(("component", "layer"), np.array([[1, 2, 2]] * 3)),
    )
    with opened(browser, tmp_path / "windows.html", taken_apart(data, made.provenance)) as page:
        sites = page.locator("table.sites tbody").first.locator("tr td:first-child").all_inner_texts()
        assert sites
        assert all(site.count("(layers ") == 1 for site in sites)
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
        "prob_diff",
        "neg_kl",
        "neg_rank",
    ]


def test_one_direction_roles_and_an_undefined_fraction():
    made = example()
    roles = made.numbers().drop_vars("disrupted").assign_coords(position=["subject_last", "last", "together"])
    html = to_html(taken_apart(roles, made.provenance))
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


def test_prompts_with_the_page_s_own_marks_stay_whole():
    made = example()
    texts = {"clean_prompt": "one   against   two → three", "corrupt_prompt": "four → five", "foil": ""}
    pairs = made.pairs.assign({name: ("pair", np.array([text], object)) for name, text in texts.items()})
    html = to_html(replace(made, pairs=pairs))
    assert "<h1>one   against   two → three → <b>yes</b><small>against four → five</small></h1>" in html


def test_a_notebook_gets_words_and_a_map_without_script():
    html = notebook_html(example())
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("h1v1h-1z") == 9 + 9 - 1
    assert "total effect 2.00 logits" in html


def test_a_notebook_of_many_pairs_shows_their_mean_and_its_caveats():
    trace = synthetic(1)
    html, found = trace._repr_html_(), trace.evidence()
    assert "Mean over 12 pairs" in html
    assert with_interval(found.total) in html
    assert "anecdote" not in html
    assert "The unit is the pair" in html
    largest = number(float(abs(found.cells.restoration).max()))
    assert f"resid_post: restoration (−{largest} to {largest};" in html
    assert html == notebook_html(trace.measurements)


def test_a_notebook_of_pairs_without_a_mean_says_which_one_it_shows():
    trace = synthetic(1)
    trace.measurements.pairs.clean[0, 1:] = np.nan  # but one pair lacks the metric
    html = trace._repr_html_()
    assert "The first of 12 pairs. There is no mean over them: fewer than two pairs have logit_diff" in html
    assert "anecdote" in html


def test_another_kind_of_part_has_a_section_of_its_own(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lanes = replace(KINDS["heads"], name="lanes", axes=("component", "layer", "lane", "position"))
    monkeypatch.setitem(KINDS, "lanes", lanes)
    made = with_units()
    renamed = made.maps["heads"].rename(head="lane").assign_coords(kind="lanes")
    made = replace(made, maps={"blocks": made.maps["blocks"], "lanes": renamed})
    with opened(browser, tmp_path / "lanes.html", made) as page:
        page.locator('#lanes-map td[data-at="1,3"]').hover()
        said = page.locator("#lanes-readout").inner_text()
        assert "lane 3" in said
        assert page.locator("#lanes-title").inner_text() == "Single lanes"
        z = effects(made, "lanes").sel(metric="logit_diff", pair="p", component="z", layer=1, lane=3)
        strongest = int(abs(z.restoration).argmax("position"))
        page.locator('select[name="lanes-p"]').select_option(str(strongest))
        page.locator('#lanes-map td[data-at="1,3"]').hover()
        said = page.locator("#lanes-readout").inner_text()
        np.testing.assert_allclose(numbers_in(said)[0], z.restoration.sel(position=strongest), rtol=5e-3)
