"""What a notebook shows: never much in its file, the whole page where it is asked for, and apart from the rest."""

import re
from html import unescape
from pathlib import Path

import nbclient
import nbformat
import numpy as np

import causal_tracing as ct
from causal_tracing.report.notebook import MOST
from made import measurements, synthetic
from pages import EVIL, example, launched, needs_browser, with_units


def test_what_a_cell_keeps_is_small():
    for trace in (ct.Trace(example()), ct.Trace(with_units()), synthetic(0)):
        assert "<svg" in trace._repr_html_()
        assert len(trace._repr_html_().encode()) <= MOST
    random = np.random.default_rng(0)
    large = ct.Trace(measurements(random.normal(size=(96, 200)), random.normal(size=(96, 200))))
    assert len(large._repr_html_().encode()) <= MOST
    assert "19,200 cells, too many for a notebook's file. .show() has them." in large._repr_html_()


def test_the_page_is_framed_whole_and_apart_with_a_map_beside_it():
    trace = ct.Trace(example())
    shown = trace.show()
    html = shown._repr_html_()
    (page,) = re.findall(r'<iframe sandbox="allow-scripts" srcdoc="([^"]*)"', html)
    assert unescape(page) == trace.to_html()
    assert html.endswith(f"<details><summary>Without script</summary>{trace._repr_html_()}</details>")
    assert "allow-same-origin" not in html
    assert EVIL not in html
    assert repr(shown) == trace.summary()


@needs_browser
def test_the_framed_page_draws_its_maps_and_asks_for_nothing(tmp_path: Path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{ct.Trace(example()).show()._repr_html_()}", encoding="utf-8")
    with launched() as browser:
        page, requested, complaints = browser.new_page(), [], []
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        frame = page.frame_locator("iframe")
        frame.locator("table td").first.wait_for()
        assert "restoration" in frame.locator("body").inner_text()
        assert frame.locator("body").evaluate("() => window.origin") == "null"  # it reaches nothing of the notebook
        assert [url for url in requested if url not in (path.as_uri(), "about:srcdoc")] == []
        assert complaints == []


def executed(*cells: str) -> list[list[nbformat.NotebookNode]]:
    """The outputs of each cell of a notebook that was run from its beginning."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    ran = nbclient.NotebookClient(made, timeout=300, kernel_name="python3").execute()
    return [cell.outputs for cell in ran.cells]


def test_a_notebook_that_is_run_shows_result_page_and_a_bar_that_is_gone(tmp_path: Path):
    ct.Trace(example()).save(tmp_path / "run")
    (opened, shown, bar) = executed(
        f"import causal_tracing as ct\ntrace = ct.open_trace({str(tmp_path / 'run')!r})\ntrace",
        "trace.show()",
        "from causal_tracing.experiments.progress import telling\n"
        "with telling(True, at_once=True) as told:\n    told(1, 10)\n    told(10, 10)",
    )
    trace = ct.open_trace(tmp_path / "run")
    assert opened[0].data == {"text/plain": repr(trace), "text/html": trace._repr_html_()}
    assert shown[0].data["text/html"] == trace.show()._repr_html_()
    assert [output.data for output in bar] == [{"text/plain": "", "text/html": ""}]
