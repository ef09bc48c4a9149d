"""Paths on the page, in a real browser: a matrix of senders by receivers, and a graph of the strongest."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page

import causal_tracing as ct
from causal_tracing.report.page import matrices
from causal_tracing.report.page.matrices import matrix_data
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import PATHS
from followed import EVERY, RECEIVERS, SENDERS, TABLE, ZEROS, followed
from pages import launched, needs_browser, numbers_in, opened, violations

NAMES, TO = [*SENDERS], [*RECEIVERS]
SHOWN = ["q 2.0", "k 2.0", "mlp_out 1", "mlp_out 2", "logits"]  # receivers by group and layer
ZERO = np.array(ZEROS) == 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def shown() -> Measurements:
    return followed(TABLE)


@pytest.fixture
def page(browser: Browser, shown: Measurements, tmp_path: Path) -> Iterator[Page]:
    with opened(browser, tmp_path / "one.html", shown) as page:
        yield page


def large(seed: int = 0) -> tuple[np.ndarray, dict[str, int], dict[str, int]]:
    """60 senders by 91 receivers, of which few have a path worth a look."""
    random = np.random.default_rng(seed)
    senders = {f"z {layer}.{head} @ last": layer for layer in range(10) for head in range(6)}
    receivers = {f"{part} {layer}.{head}": layer for part in "vq" for layer in range(10) for head in range(4)}
    receivers |= {f"mlp_out {layer}": layer for layer in range(10)} | {"logits": -1, EVERY: -1}
    table = 0.01 * random.normal(size=(60, 92))
    table[7, 3], table[9, 50], table[41, 90], table[:, -1] = 3.0, -1.0, 0.16, 9 * random.normal(size=60)
    return table, senders, receivers


def cell(page: Page, row: int, column: int) -> Locator:
    return page.locator(f'#paths-map td[data-at="{column},{row}"]')


def said(page: Page) -> str:
    return page.locator("#paths-readout").inner_text()


@needs_browser
def test_each_cell_tells_its_numbers(page: Page) -> None:
    for row, sender in enumerate(NAMES):
        for column, receiver in enumerate([*SHOWN, EVERY]):
            cell(page, row, column).hover()
            value, whole = (TABLE[row][TO.index(name)] for name in (receiver, EVERY))
            numbers = [value, value / 2, -value / 2]
            edge = receiver == EVERY
            called = f"{sender}, every path (what it does in all): " if edge else f"{sender} → {receiver}: "
            assert said(page).startswith(called)
            np.testing.assert_allclose(numbers_in(said(page)), numbers if edge else [*numbers, whole], rtol=5e-3)
            zero = ZERO[row, TO.index(receiver)]
            assert ("structural zero" in said(page)) == zero
            assert ("zero" in (cell(page, row, column).get_attribute("class") or "")) == zero
    assert page.locator('#paths-map td[role="gridcell"]').count() == 18


@needs_browser
def test_receivers_stand_by_what_they_read_and_the_whole_effect_apart(page: Page) -> None:
    heads = page.locator("#paths-map thead tr").last.locator("th[aria-label]")
    assert heads.evaluate_all("all => all.map((one) => one.ariaLabel)") == SHOWN
    groups = page.locator("#paths-map thead tr").first.locator("th").all_inner_texts()
    assert groups == ["q", "k", "MLP", EVERY]
    assert page.locator("#paths-map tbody th").all_inner_texts() == NAMES
    for direction, half in (("restoration", 1), ("disruption", 2)):
        page.locator(f'input[name="paths-d"][value="{direction}"]').check()
        assert "+3 logits" in page.locator("#paths-legend").inner_text()  # one scale for both directions
        assert "+5 logits" in page.locator("#paths-beside").inner_text()  # without what senders do in all
        for name, at, most in (("logits", 4, 3), (EVERY, 5, 5)):
            colours = [cell(page, row, at).evaluate("one => one.style.backgroundColor") for row in (0, 2)]
            assert colours[0] != colours[1]
            assert (colours[0] == "rgb(53, 20, 110)") == (TABLE[0][TO.index(name)] / half == most)


@needs_browser
def test_the_matrix_is_read_by_keyboard(page: Page) -> None:
    page.locator('#paths-map td[tabindex="0"]').focus()
    for key, told in (
        ("ArrowDown", "z 1.1 @ last → q 2.0: restoration −1 logits"),
        ("ArrowRight", "z 1.1 @ last → k 2.0: restoration +0.0625 logits"),
        ("End", "z 1.1 @ last, every path (what it does in all): restoration +0.75 logits"),
        ("ArrowRight", "z 1.1 @ last, every path"),
        ("PageDown", "mlp_out 2 @ last, every path"),
        ("ArrowLeft", "mlp_out 2 @ last → logits: restoration −1.25 logits"),
    ):
        page.keyboard.press(key)
        assert said(page).startswith(told)
        assert page.evaluate("document.activeElement.ariaLabel") == said(page)
        assert page.locator('#paths-map td[tabindex="0"]').count() == 1


@needs_browser
def test_each_pair_and_the_mean_have_their_own_numbers(browser: Browser, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tables = [np.where(ZERO, 0, np.array(TABLE) + 0.3 * random.normal(size=(3, 6))) for _ in range(9)]
    made = followed(*tables)
    cells = ct.Trace(made).evidence("paths").cells.sel(component="path", sender="z 1.1 @ last", receiver="q 2.0")
    with opened(browser, tmp_path / "many.html", made) as page:
        cell(page, 1, 0).hover()
        found = [[float(end.replace("−", "-")) for end in ends] for ends in re.findall(r"\[(.*?), (.*?)\]", said(page))]
        bounds = [[cells[f"{name}_{end}"].item() for end in ("low", "high")] for name in ("restoration", "disruption")]
        np.testing.assert_allclose(found[:2], bounds, rtol=6e-3)
        assert "9 clusters" in said(page)
        faint = page.locator("#paths-map td.faint").evaluate_all("all => all.map((one) => one.dataset.at)")
        p = ct.Trace(made).evidence("paths").cells.restoration_p_adjusted.sel(component="path", receiver=SHOWN)
        assert {*faint} == {f"{column},{row}" for row, column in np.argwhere(p.values >= 0.05)}
        size = np.abs(np.mean(tables, 0))[:, [TO.index(name) for name in SHOWN]]
        assert page.locator("#paths-graph .pale").count() == (p.values[size >= np.sort(size, None)[-10]] >= 0.05).sum()
        page.locator('select[name="p"]').select_option("p4")
        cell(page, 1, 0).hover()
        np.testing.assert_allclose(numbers_in(said(page))[0], tables[4][1, 0], rtol=5e-3)
        assert page.locator("#paths-graph .pale").count() == 0
        assert violations(page) == []


@needs_browser
def test_one_sender_is_never_said_to_be_folded_away(browser: Browser, tmp_path: Path) -> None:
    table, senders, receivers = large()
    made = followed(table[7:8], senders=dict([[*senders.items()][7]]), receivers=receivers, zeros=np.zeros((1, 92)))
    with opened(browser, tmp_path / "one.html", made) as page:
        assert (
            "alone reads what it adds to the stream. 90 receivers are folded away:"
            in page.locator("#paths-note").inner_text()
        )


@needs_browser
def test_weak_senders_and_receivers_are_folded_away_until_all_are_asked_for(browser: Browser, tmp_path: Path) -> None:
    table, senders, receivers = large()
    made = followed(table, senders=senders, receivers=receivers, zeros=np.zeros((60, 92)))
    with opened(browser, tmp_path / "large.html", made) as page:
        strong = np.abs(table[:, :-1]) >= 0.05 * 3
        names = [[*senders][n] for n in np.flatnonzero(strong.any(1))]
        assert page.locator("#paths-map tbody th").all_inner_texts() == names == [[*senders][n] for n in (7, 9, 41)]
        folded = f"{60 - 3} senders and {91 - int(strong.any(0).sum())} receivers are folded away: none of their paths"
        assert f"{folded} is 0.15 logits or more" in page.locator("#paths-note").inner_text()
        page.locator('input[name="paths-f"][value="all"]').check()
        grid = page.locator("#paths-map")
        assert grid.get_attribute("aria-rowcount") == "63"
        assert grid.get_attribute("aria-colcount") == "93"
        assert "folded" not in page.locator("#paths-note").inner_text()
        assert page.locator('#paths-map td[role="gridcell"]').count() < 60 * 92 / 2  # those in sight alone
        page.locator('#paths-map td[tabindex="0"]').focus()
        page.keyboard.press("PageDown")
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        assert said(page).startswith("z 9.5 @ last → logits: ")
        np.testing.assert_allclose(numbers_in(said(page))[0], table[59, 90], rtol=5e-3)
        inside = "one => { const a = one.getBoundingClientRect(), b = one.closest('.matrix').getBoundingClientRect();"
        inside += " return a.top >= b.top && a.bottom <= b.bottom && a.right <= b.right; }"
        assert page.locator("#paths-map td:focus").evaluate(inside)
        assert page.locator("#paths-map thead th.beside").evaluate(inside)  # heads stay in sight
        page.locator("#paths-scroll").evaluate("one => one.scrollTo(0, 0)")
        page.locator('#paths-map td[data-at="0,0"], #paths-map td[data-at="60,0"]').first.wait_for()
        assert page.locator('#paths-map td[tabindex="0"]').count() == 1
        assert violations(page) == []


@needs_browser
@pytest.mark.parametrize("count", [10, 20])
@pytest.mark.parametrize("direction", ["restoration", "disruption"])
def test_the_graph_has_the_strongest_paths(browser: Browser, tmp_path: Path, count: int, direction: str) -> None:
    table, senders, receivers = large()
    lost = np.random.default_rng(3).normal(size=table.shape)
    made = followed(table, senders=senders, receivers=receivers, zeros=np.zeros((60, 92)), lost=lost)
    values = {"restoration": table, "disruption": lost}[direction][:, :-1]
    best = np.argsort(-np.abs(values), axis=None)[:count]
    expected = [np.unravel_index(n, values.shape) for n in best]
    with opened(browser, tmp_path / "large.html", made) as page:
        page.locator(f'input[name="paths-d"][value="{direction}"]').check()
        page.locator(f'input[name="paths-e"][value="{count}"]').check()
        lines = page.locator("#paths-graph .line")
        titles = lines.locator("title").evaluate_all("all => all.map((one) => one.textContent.split(':')[0])")
        assert titles[::-1] == [f"{[*senders][row]} → {[*receivers][column]}" for row, column in expected]
        widths = lines.evaluate_all("all => all.map((one) => Number(one.getAttribute('stroke-width')))")[::-1]
        sizes = np.array([abs(values[at]) for at in expected])
        np.testing.assert_allclose(widths, 1 + 9 * sizes / sizes[0], atol=0.06)
        opposes = lines.evaluate_all("all => all.map((one) => one.classList.contains('opposes'))")[::-1]
        assert opposes == [bool(values[at] < 0) for at in expected]
        height = "all => all.map((one) => [Number(one.querySelector('rect').getAttribute('y')), one.dataset.id])"
        seen = sorted(page.locator("#paths-graph .node").evaluate_all(height), reverse=True)
        layers = [int(layer) for _, name in seen for layer in re.findall(r" (\d+)", name)]
        assert layers == sorted(layers)  # from bottom to top
        assert not any(name == "logits" for _, name in seen[:-1])


@needs_browser
def test_a_node_tells_what_it_does_in_all_beside_its_paths(page: Page) -> None:
    nodes = page.locator("#paths-graph .node")
    assert {*nodes.evaluate_all("all => all.map((one) => one.dataset.id)")} == {
        "head 1.0", "head 1.1", "head 2.0", "key head 2.0", "MLP 1", "MLP 2", "logits",
    }  # fmt: skip
    told = page.locator("#paths-graph-readout")
    page.locator('#paths-graph .node[data-id="head 1.1"]').focus()
    assert told.inner_text().startswith(
        "head 1.1 · sends z 1.1 @ last: in all +0.75 logits, to the logits directly +2: hidden in what it does in all, "
        "the other way q 2.0 −1, mlp_out 2 −0.375"
    )
    page.locator('#paths-graph .node[data-id="head 1.0"]').focus()
    assert "in all +5 logits, to the logits directly +3," in told.inner_text()
    assert "hidden" not in told.inner_text()
    assert page.locator('#paths-graph .node[data-id="head 1.0"]').get_attribute("aria-label") == told.inner_text()
    page.locator('#paths-graph .node[data-id="MLP 2"]').focus()
    assert told.inner_text().startswith("MLP 2 · sends mlp_out 2 @ last: in all −1.5 logits, to the logits directly")
    assert "receives mlp_out 2 from z 1.0 @ last +1.5, mlp_out 2 from z 1.1 @ last −0.375" in told.inner_text()
    dim = page.locator("#paths-graph .line.dim").evaluate_all("all => all.map((one) => one.dataset.to)")
    assert len(dim) == page.locator("#paths-graph .line").count() - 3  # two that come, one that goes
    assert "MLP 2" not in dim


@needs_browser
def test_nodes_are_reached_by_keyboard(page: Page) -> None:
    page.locator('#paths-graph .node[tabindex="0"]').focus()
    seen = [page.evaluate("document.activeElement.dataset.id")]
    for key in ("ArrowDown", "ArrowLeft", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
        seen.append(page.evaluate("document.activeElement.dataset.id"))
    assert seen[0] == seen[-1] == "logits"
    assert seen[3][:6] == "head 1"
    assert page.locator('#paths-graph .node[tabindex="0"]').count() == 1


@needs_browser
def test_the_page_is_accessible_in_both_themes_and_names_are_text(browser: Browser, tmp_path: Path) -> None:
    senders = {"<b>bold</b>": 1, "z 1.1 @ last": 1, "mlp_out 2 @ last": 2}
    receivers = {"<i>some</i>": 2, "q": 0, "mlp_out 1": 1, "mlp_out 2": 2, "logits": -1, EVERY: -1}
    with opened(browser, tmp_path / "one.html", followed(TABLE, senders=senders, receivers=receivers)) as page:
        assert page.locator("#paths-map tbody th").first.inner_text() == "<b>bold</b>"
        assert page.locator("#paths-graph text").filter(has_text="<i>some</i>").count() == 1
        assert violations(page) == []
        page.locator("#theme").click()
        assert violations(page) == []
        page.set_viewport_size({"width": 360, "height": 700})
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_is_too_large_for_a_page_keeps_the_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    table, senders, receivers = large()
    made = followed(table, table, senders=senders, receivers=receivers, zeros=np.zeros((60, 92)))
    monkeypatch.setattr(matrices, "MOST_NUMBERS", 2 * 60 * 92)
    whole = matrix_data(made, PATHS, ["p0", "p1"])
    assert (whole["left_out"], len(whole["metrics"])) == ([0, 0], 1)
    assert [each is None for each in whole["pairs"]] == [False, True]
    monkeypatch.setattr(matrices, "MOST_NUMBERS", 2 * 30)
    cut = matrix_data(made, PATHS, ["p0"])
    kept = [each["name"] for each in cut["senders"]], [each["name"] for each in cut["receivers"]]
    assert kept[1][-1] == EVERY
    assert len(kept[0]) * len(kept[1]) <= 30
    assert cut["left_out"] == [60 - len(kept[0]), 92 - len(kept[1])]
    rows, columns = (np.abs(table[:, :-1]).max(axis) for axis in (1, 0))
    least = min(rows[[*senders].index(name)] for name in kept[0])
    assert least >= max(size for name, size in zip(senders, rows, strict=True) if name not in kept[0])
    assert {*kept[1]} >= {name for name, size in zip(receivers, columns, strict=False) if size >= least and size > 0.1}
    shown: Any = cut["pairs"][0]["metrics"]["logit_diff"]["restoration"]
    assert shown[kept[0].index("z 1.1 @ last")][kept[1].index("v 0.3")] == 3


def test_a_sender_at_several_tokens_is_a_node_at_each() -> None:
    receivers = {"q 2.1": 2, "logits": -1, EVERY: -1}

    def nodes(*senders: str) -> list[str]:
        told: dict[str, Any] = {
            "senders": dict.fromkeys(senders, 1),
            "receivers": receivers,
            "zeros": np.zeros((len(senders), 3)),
        }
        made = followed(np.ones((len(senders), 3)), **told)
        return [each["node"][0] for each in matrix_data(made, PATHS, ["p0"])["senders"]]

    assert nodes("z 1.1 @ last", "mlp_out 1 @ last") == ["head 1.1", "MLP 1"]
    assert nodes("z 1.1 @ 3", "z 1.1 @ 4") == ["head 1.1 @ 3", "head 1.1 @ 4"]
