"""Edges of attention by query on the page, in a real browser: each head's map, its words, and the mean."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

import causal_tracing as ct
from causal_tracing.report.page import queries
from causal_tracing.results.site_kinds import EDGES_BY_QUERY
from joint import PAIR, others, tiny
from pages import launched, needs_browser, numbers_in, opened

OF = "edges_by_query"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def traced(pairs: Any, **options: Any) -> ct.Trace:
    asked: dict[str, Any] = {"components": [], "edges": ["v", "k"], "edge_query": "each", "edge_heads": ["1"]}
    return ct.trace(tiny(), pairs, **asked | options, progress=False)


@needs_browser
def test_a_head_is_chosen_and_its_edges_are_read(browser: Browser, tmp_path: Path) -> None:
    trace = traced(PAIR)
    found = trace.of(OF).sel(metric="logit_diff", pair="pair-0")
    with opened(browser, tmp_path / "page.html", trace.measurements) as page:
        grid, said = page.locator(f"#{OF}-map"), page.locator(f"#{OF}-readout")
        assert page.locator(f"#{OF}-title").inner_text() == "Edges by query"
        assert grid.locator("tbody tr").count() == 6
        assert grid.locator("thead th").first.inner_text() == "key ↓ query →"
        assert grid.locator("thead th").nth(1).get_attribute("aria-label") == "query 0"
        for component, head, query, key in (("v_edge", "1.2", 5, 2), ("k_edge", "1.0", 4, 4)):
            page.locator(f'input[name="{OF}-c"][value="{component}"]').check()
            page.locator(f'select[name="{OF}-p"]').select_option(head)
            grid.locator(f'td[data-at="{query},{key}"]').hover()
            cell = found.sel(component=component, head=head, query=query, position=key)
            numbers = [cell[name].item() for name in ("restoration", "disruption", "interaction")]
            words = said.inner_text()
            np.testing.assert_allclose(numbers_in(words.partition(": ")[2]), numbers, rtol=5e-3, atol=1e-9)
            assert words.startswith(f"{component} · head {head} · from position {query} ")
            assert f" · key at position {key} " in words
        assert page.locator(f"#{OF}-note").inner_text().startswith("What each query (across) sees at each key (down)")
        grid.locator('td[data-at="1,4"]').hover()
        assert "structural zero" in said.inner_text()


@needs_browser
def test_the_mean_has_keys_by_role(browser: Browser, tmp_path: Path) -> None:
    longer = ct.Pair(
        clean=" w2 w11 w12 w13 w14 w15 w16", corrupt=" w2 w11 w12 w43 w14 w25 w16",
        answer=" w7", foil=" w8", subject=" w12 w13", corrupt_subject=" w12 w43",
    )  # fmt: skip
    trace = traced([*others(2), longer], edge_query=["subject_last", "last"])
    cells = trace.evidence(OF).cells
    with opened(browser, tmp_path / "page.html", trace.measurements) as page:
        grid, said = page.locator(f"#{OF}-map"), page.locator(f"#{OF}-readout")
        keys = [str(name) for name in cells.position.values]
        assert grid.locator("tbody th").all_inner_texts() == [name.replace("_", " ") for name in keys]
        page.locator(f'select[name="{OF}-p"]').select_option("1.3")
        at = keys.index("subject_last")
        grid.locator(f'td[data-at="1,{at}"]').hover()
        cell = cells.sel(component="v_edge", head="1.3", query="last", position="subject_last")
        assert numbers_in(said.inner_text())[0] == pytest.approx(cell.restoration.item(), rel=5e-3)
        page.locator('select[name="p"], input[name="p"][value="pair-2"]').first.check()
        assert grid.locator("tbody tr").count() == 7


def test_of_many_heads_the_strongest_are_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(PAIR, edge_heads=["1-2"])
    monkeypatch.setattr(queries, "MOST_NUMBERS", 2 * 2 * 36 * 3)  # directions, components, cells: room for three heads
    made = queries.query_maps(trace.measurements, EDGES_BY_QUERY, ["pair-0"])
    sizes = abs(trace.of(OF).restoration.sel(metric="logit_diff")).max(["pair", "component", "query", "position"])
    strongest = sizes["head"].values[np.argsort(-sizes.values)[:3]]
    assert sorted(made["positions"]) == sorted(strongest)
    assert made["measured"] == 8
    assert np.array(made["pairs"][0]["metrics"]["logit_diff"]["restoration"]["v_edge"]).shape == (3, 6, 6)
