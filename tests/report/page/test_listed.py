"""Tables of what is patched together on a page: each pair's own, the mean's, and no map where nothing has one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

import causal_tracing as ct
from joint import PAIR, others, tiny
from pages import launched, needs_browser, numbers_in, opened, violations

ASKED: dict[str, Any] = {
    "sets": {"both": ["mlp_out 1 @ last", "z 2.1 @ last"], "<b>bold</b>": ["resid_post 0-1 @ subject"]},
    "growing": ["both"],
    "interactions": ["each z 3.0-2 @ last"],
}
TABLES = ("sets", "growing", "interactions")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def traced(pairs: Any = PAIR, **options: Any) -> ct.Trace:
    return ct.trace(tiny(), pairs, **{"components": [], "progress": False} | options)


@pytest.fixture(scope="module")
def one() -> ct.Trace:
    return traced(components=["mlp_out"], **ASKED)


@pytest.fixture(scope="module")
def many() -> ct.Trace:
    return traced(others(9), **ASKED)


def rows(page: Page, kind: str) -> dict[str, list[str]]:
    """The rows of the visible table of a kind: a site's name and its numbers."""
    found = page.locator(f"#{kind}-section table:visible tbody tr")
    lines = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in found.all()]
    return {name: numbers for name, *numbers in lines}


def near(shown: list[str], values: list[float]) -> None:
    np.testing.assert_allclose([numbers_in(f"+{text}".replace("+−", "−"))[0] for text in shown], values, rtol=6e-2)


@needs_browser
def test_a_pair_has_a_table_of_each_kind(browser: Browser, one: ct.Trace, tmp_path: Path) -> None:
    with opened(browser, tmp_path / "one.html", one.measurements) as page:
        assert page.locator("#map").is_visible()
        sets = rows(page, "sets")
        assert {*sets} == {"set both", "set <b>bold</b>"}
        cell = one.of("sets").sel(metric="logit_diff", pair="pair-0", component="set", set="both")
        ends = ("", "_of_members", "_beyond_sum")
        expected = [cell[f"{name}{end}"].item() for name in ("restoration", "disruption") for end in ends]
        near(sets["set both"], expected)
        assert {*rows(page, "growing")} == {"the first 1 of both", "the first 2 of both"}
        pairs = rows(page, "interactions")
        assert len(pairs) == 3  # each once
        assert not any("alone" in name for name in pairs)
        heads = page.locator("#sets-section th[scope=col]:visible").all_inner_texts()
        columns = ("", ", each alone, added up", ", beyond the sum of each alone")
        assert heads[1:] == [f"{name}{end} (logits)" for name in ("restoration", "disruption") for end in columns]
        assert violations(page) == []


@needs_browser
def test_tables_follow_the_pair_that_is_chosen(browser: Browser, many: ct.Trace, tmp_path: Path) -> None:
    with opened(browser, tmp_path / "many.html", many.measurements) as page:
        cells = many.evidence("sets").cells.sel(component="set", set="both")
        shown = rows(page, "sets")["both"]
        near(shown[:1], [cells.restoration.item()])
        low, high = (float(text.replace("−", "-")) for text in re.findall(r"\[(.*?), (.*?)\]", shown[0])[0])
        np.testing.assert_allclose([low, high], [cells.restoration_low, cells.restoration_high], rtol=6e-2)
        page.locator('select[name="p"]').select_option("pair-3", timeout=5000)
        cell = many.of("sets").sel(metric="logit_diff", pair="pair-3", component="set", set="both")
        near(rows(page, "sets")["set both"][:1], [cell.restoration.item()])
        assert abs(cell.restoration.item() - cells.restoration.item()) > 1e-2
        for kind in TABLES:
            assert page.locator(f"#{kind}-section table:visible").count() == 1
        assert violations(page) == []


@needs_browser
@pytest.mark.parametrize("pairs", [PAIR, others(3)], ids=["one", "several"])
@pytest.mark.parametrize(
    "asked",
    [{"heads": ["z"]}, {"sets": ASKED["sets"]}, {"interactions": ASKED["interactions"]}, {"neurons": {1: [0, 1, 2]}}],
    ids=lambda asked: next(iter(asked)),
)
def test_a_page_without_a_map_has_no_empty_section(browser: Browser, pairs: Any, asked: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path / "page.html", traced(pairs, **asked).measurements) as page:
        kind = next(iter(asked))
        assert page.locator(f"#{kind}-section").is_visible()
        assert not page.locator("#map").is_visible()
        assert page.locator("#mean-section:visible, #curves-section:visible").count() == 0
        assert "The map" not in page.locator("h2:visible").all_inner_texts()
        if not isinstance(pairs, ct.Pair):
            page.get_by_role("radio", name="pair-2", exact=True).check(timeout=5000)
            assert page.locator(f"#{kind}-section").is_visible()
        assert violations(page) == []


def test_long_tables_say_that_they_are_not_all() -> None:
    """Each pair of sites counts once, whether both lists are one, overlap, or have nothing in common."""
    heads = [f"z {layer}.{head} @ last" for layer in range(4) for head in range(4)]
    told = 'The 40 strongest of {} cells; trace.of("interactions") has all.'
    for lists, count in (
        (heads, 16 * 15 // 2),
        ([heads[:4], heads[4:]], 4 * 12),
        ([heads[:5], heads], 10 + 5 * 11),
    ):
        assert told.format(count) in traced(interactions=lists).to_html()
    assert told.format(48) in traced(others(2), interactions=[heads[:4], heads[4:]]).to_html()  # the mean's
    assert "strongest of" not in traced(sets=ASKED["sets"]).to_html()
