"""A kind of site that nothing names, by token and layer beside blocks: what shows results learns of it by itself."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
from playwright.sync_api import Browser, Page

import causal_tracing as ct
from causal_tracing.report.document import document
from causal_tracing.report.page.sections import FIGURES
from causal_tracing.report.scalars import scalars
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import BLOCKS, KINDS, SiteKind
from causal_tracing.results.storage.join import joined
from made import taken_apart
from pages import example, launched, needs_browser, numbers_in, opened

TOY = SiteKind(
    name="adjacent_layers",
    components=("adjacent",),
    axes=BLOCKS.axes,
    drawn=BLOCKS.drawn,
    figure="tokens",
    columns="positions",
    called="pair of adjacent layers",
    address="layer {layer} and the next",
    named="layer {layer} and the next",
    restores="restoring both brings back",
    loses="disrupting both takes away",
)
VALUES = np.array([[1.0, 1.2, 2.75], [1.1, 1.0, 1.3], [1.0, 1.4, 1.0]])  # restored, [layer, position]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, TOY.name, TOY)


def measured(pair: str = "p", shift: float = 0.0) -> Measurements:
    """The example's blocks, and beside them a map of the toy kind, of which one cell is a cut."""
    made = example()
    toy = made.maps["blocks"].sel(component=["resid_post"]).assign_coords(component=np.array([*TOY.components], object))
    toy = toy.copy(deep=True)
    toy.restored.values[:] = VALUES + shift
    toy.disrupted.values[:] = 3.0
    for name in ("structural_zero", "cut", "unpaired"):
        toy[name].values[:] = False
    toy["cut"].values[..., 2, 2] = True
    whole = made.numbers().assign_coords(pair=[pair])
    return taken_apart(whole, made.provenance, adjacent_layers=toy.assign_coords(pair=[pair]))


@pytest.fixture
def many() -> ct.Trace:
    parts = [measured(f"p{n}", 0.1 * n) for n in range(9)]
    record = dict(parts[0].provenance) | {"pairs": [{"id": f"p{n}"} for n in range(9)]}
    return ct.Trace(joined(parts, record))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def read_cell(page: Page, layer: int, position: int) -> str:
    page.locator(f'#{TOY.name}-map td[data-at="{layer},{position}"]').hover()
    return page.locator(f"#{TOY.name}-readout").inner_text()


@needs_browser
def test_it_has_a_section_on_the_page(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path / "page.html", measured()) as page:
        assert page.locator(f"#{TOY.name}-title").inner_text() == "Adjacent layers"
        said = read_cell(page, 0, 2)
        assert said.startswith("adjacent · layer 0 · position 2")
        np.testing.assert_allclose(numbers_in(said)[0], VALUES[0, 2] - 1)  # the corrupt run has 1
        assert read_cell(page, 2, 2).endswith("· cut")
        assert "pair of adjacent layers" in page.locator(f"#{TOY.name}-note").inner_text()


@needs_browser
def test_of_many_pairs_it_has_their_mean_and_each(many: ct.Trace, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path / "page.html", many.measurements) as page:
        said = read_cell(page, 0, 2)
        assert said.endswith("9 clusters")
        np.testing.assert_allclose(numbers_in(said)[0], VALUES[0, 2] - 1 + 0.4, rtol=1e-3)
        page.locator("select[name=p]").select_option("p3")
        np.testing.assert_allclose(numbers_in(read_cell(page, 0, 2))[0], VALUES[0, 2] - 1 + 0.3, rtol=1e-3)


def test_it_has_words(many: ct.Trace) -> None:
    one = ct.Trace(measured()).summary()
    assert "Strongest pair of adjacent layers: layer 0 and the next at the last token" in one
    assert "restoring both brings back 1.75 logits" in one
    assert "Strongest pair of adjacent layers: layer 0 and the next at token 2" in many.summary()


def test_it_leaves_by_every_way(many: ct.Trace, tmp_path: Path) -> None:
    one = ct.Trace(measured())
    table = pandas.read_csv(one.export(tmp_path / "table.csv", of=TOY.name))
    row = table[(table.effect == "restoration") & (table.layer == 0) & (table.position == 2)]
    np.testing.assert_allclose(row.logit_diff, VALUES[0, 2] - 1)
    written = json.loads(json.dumps(document(one.measurements)))[TOY.name]
    np.testing.assert_allclose(written["effects"]["restoration"]["adjacent"][0][0], VALUES[0] - 1)
    assert one.measurements.kinds == ("blocks", TOY.name)
    one.save(tmp_path / "saved")
    assert ct.open_trace(tmp_path / "saved").of(TOY.name).identical(one.of(TOY.name))
    assert scalars(one.measurements)["adjacent/restoration"] == pytest.approx(VALUES[0, 2] - 1)
    assert one.top(1, of=TOY.name).layer.item() == 0
    assert many.evidence(TOY.name).peak("adjacent") is not None


def test_every_kind_has_a_figure_that_there_is() -> None:
    assert {kind.figure for kind in KINDS.values()} == {*FIGURES}
