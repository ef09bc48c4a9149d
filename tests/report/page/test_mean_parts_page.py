"""Single heads and neurons of many pairs, in a real browser: means with intervals, and each pair's own numbers."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

import causal_tracing as ct
from made import longer, model, pair
from pages import launched, needs_browser, numbers_in, opened

__all__ = ["model"]
EFFECTS = ["restoration", "disruption", "interaction"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def trace(model) -> ct.Trace:
    pairs = [pair(n, id=f"p{n}") for n in range(9)]
    return ct.trace(model, pairs, components=["resid_post"], heads=["z", "k"], neurons={1: range(8), 3: range(8)})


@pytest.fixture
def page(browser: Browser, trace: ct.Trace, tmp_path: Path) -> Iterator[Page]:
    with opened(browser, tmp_path / "report.html", trace.measurements) as page:
        yield page


def outside(text: str) -> list[float]:
    """The numbers outside the intervals."""
    return numbers_in(re.sub(r"\[.*?\]", "", text))


def intervals(text: str) -> list[list[float]]:
    return [[float(end.replace("−", "-")) for end in ends] for ends in re.findall(r"\[(.*?), (.*?)\]", text)]


def bounds(cell, names: list[str]) -> list[list[float]]:
    return [[cell[f"{name}_low"].item(), cell[f"{name}_high"].item()] for name in names]


@needs_browser
def test_heads_of_the_mean_have_their_numbers_and_intervals(page: Page, trace: ct.Trace):
    cells = trace.evidence("heads").cells
    for component in ("k", "z"):
        page.locator(f'input[name="heads-c"][value="{component}"]').check()
        page.locator('select[name="heads-p"]').select_option("1")
        page.locator('#heads-map td[data-at="2,1"]').hover()
        text = page.locator("#heads-readout").inner_text()
        here = trace.heads.sel(metric="logit_diff", component=component, layer=2, head=1, position=1)
        np.testing.assert_allclose(outside(text), [here[name].mean().item() for name in EFFECTS], rtol=6e-3)
        cell = cells.sel(component=component, layer=2, head=1, position=1)
        np.testing.assert_allclose(intervals(text), bounds(cell, EFFECTS), rtol=6e-3)
        assert text.endswith("9 clusters")
    assert page.get_by_text("The mean over pairs, with its 95 % interval and p over the map of heads").is_visible()
    assert page.locator('select[name="heads-p"] option[value="sum"]').count() == 0


@needs_browser
def test_heads_that_cannot_be_told_from_zero_are_marked(browser: Browser, model, tmp_path: Path):
    """The same change of the subject in other surroundings: some heads differ from 0, some may, some do not."""
    said = [(f" w{20 + n} w30 w13 w14", f" w{20 + n} w50 w13 w14") for n in range(9)]
    pairs = [ct.Pair(clean=clean, corrupt=corrupt, answer=" w7", foil=" w8") for clean, corrupt in said]
    same = ct.trace(model, pairs, components=["resid_post"], heads=["z"])
    cells, seen = same.evidence("heads").cells.sel(component="z"), []
    with opened(browser, tmp_path / "report.html", same.measurements) as page:
        for position, direction in product((1, 2, 3), EFFECTS):
            page.locator('select[name="heads-p"]').select_option(str(position))
            page.locator(f'input[name="heads-d"][value="{direction}"]').check()
            p = cells[f"{direction}_p_adjusted"].sel(position=position).transpose("layer", "head").values
            found = page.locator("#heads-map td.faint").evaluate_all("cells => cells.map((cell) => cell.dataset.at)")
            assert {tuple(map(int, at.split(","))) for at in found} == {(n, m) for n, m in np.argwhere(p >= 0.05)}
            seen += p[~np.isnan(p)].tolist()
    assert {*np.digitize(seen, [0.05, 0.5]).tolist()} == {0, 1, 2}


@needs_browser
@pytest.mark.parametrize("direction", ["restoration", "disruption"])
def test_neurons_of_the_mean_are_ranked_with_their_intervals(page: Page, trace: ct.Trace, direction: str):
    page.locator(f'input[name="neurons-d"][value="{direction}"]').check()
    cells = trace.evidence("neurons").cells.sel(component="neurons", position="last")
    order = abs(cells[direction].where(cells.status == "ok")).stack(site=("layer", "neuron")).dropna("site")
    best = order.site.values[np.argsort(-order.values)]
    rows = page.locator("#neurons-table tbody tr")
    assert rows.count() == len(best)
    for n in (0, 1, len(best) - 1):
        layer, neuron = best[n]
        text = rows.nth(n).inner_text()
        cell = cells.sel(layer=layer, neuron=neuron)
        assert f"layer {layer} · neuron {neuron}" in text
        np.testing.assert_allclose(intervals(text), bounds(cell, EFFECTS), rtol=6e-3)
        assert f"{float(f'{abs(cell[direction].item()):.3g}'):g}" in text


@needs_browser
def test_a_pair_has_its_own_heads_and_neurons(page: Page, trace: ct.Trace):
    page.locator("select[name=p]").select_option("p3")
    page.locator('select[name="heads-p"]').select_option("1")
    page.locator('#heads-map td[data-at="2,1"]').hover()
    here = trace.heads.sel(metric="logit_diff", pair="p3", component="z", layer=2, head=1, position=1)
    text = page.locator("#heads-readout").inner_text()
    np.testing.assert_allclose(outside(text), [here[name].item() for name in EFFECTS], rtol=6e-3)
    assert "clusters" not in text
    assert "[" not in page.locator("#neurons-table tbody tr").first.inner_text()
    page.locator('select[name="heads-p"]').select_option("sum")
    page.locator("select[name=p]").select_option("mean")  # which has no sum: its strongest position is shown
    assert page.locator('#heads-map td[data-at="2,1"][aria-label*="9 clusters"]').count() == 1


@needs_browser
def test_heads_without_a_mean_have_no_section_until_a_pair_is_chosen(browser: Browser, model, tmp_path: Path):
    pairs = [pair(n, subject=None, corrupt_subject=None, id=f"p{n}") for n in range(8)]
    pairs.append(ct.Pair(clean=" w11 w14 w9", corrupt=" w11 w13 w9", answer=" w7", foil=" w8", id="short"))
    mixed = ct.trace(model, pairs, components=["resid_post"], positions=["last"], heads=["z"])
    with opened(browser, tmp_path / "report.html", mixed.measurements) as page:
        assert page.get_by_text("There is no mean of heads over these pairs").is_visible()
        assert page.locator("#heads-section").is_hidden()
        page.locator("select[name=p]").select_option("p3")
        assert page.locator("#heads-section").is_visible()


@needs_browser
def test_means_by_role_have_roles_to_choose_from(browser: Browser, model, tmp_path: Path):
    pairs = [longer(n) if n % 2 else pair(n) for n in range(9)]
    mixed = ct.trace(model, pairs, components=["resid_post"], heads=["z"])
    with opened(browser, tmp_path / "report.html", mixed.measurements) as page:
        cells = mixed.evidence("heads").cells
        roles = [str(name) for name in cells.position.values]
        assert page.locator('select[name="heads-p"] option').evaluate_all("all => all.map((one) => one.value)") == roles
        page.locator('select[name="heads-p"]').select_option("subject_last")
        page.locator('#heads-map td[data-at="1,2"]').hover()
        cell = cells.sel(component="z", layer=1, head=2, position="subject_last")
        text = page.locator("#heads-readout").inner_text()
        assert "the subject last token" in text
        np.testing.assert_allclose(outside(text), [cell[name].item() for name in EFFECTS], rtol=6e-3)
