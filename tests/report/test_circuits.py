"""Circuits in words, on the page, in figures and in the terminal: what was measured, and no more."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.report.document import document
from causal_tracing.report.terminal import maps
from causal_tracing.report.words.circuits import share_of
from causal_tracing.testing import circuit, toys
from joint import PAIR, ByHand, measured, others, tiny

A, B, VALUE = "mlp_out 0", "mlp_out 1", "mlp_out 2"
QUIET: dict[str, Any] = {"progress": False, "spot_checks": 0}
RANKED = ["mlp_out 1", "z 2.0", "z 0.3", "z 3.1", "mlp_out 3"]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")


def one_way(count: int) -> list[ct.Pair]:
    """Pairs whose total effects have one sign: else their mean is no denominator."""
    hand = ByHand()
    made = others(40)
    clean = measured(hand.logits(made[0].clean), "logit_diff")
    totals = [clean - measured(hand.logits(each.corrupt or ""), "logit_diff") for each in made]
    kept = [each for each, total in zip(made, totals, strict=True) if total > 0.2][:count]
    assert len(kept) == count
    return [replace(each, id=f"pair-{n}") for n, each in enumerate(kept)]


def gate(name: str, ranking: list[str], **options: Any) -> str:
    return ct.circuit(*circuit(name), ranking=ranking, **QUIET | options).summary()


def test_a_set_that_is_enough_is_called_a_set() -> None:
    text = gate("or", [VALUE, A, B], sizes=[1, 2])
    assert (
        "A set of 2 nodes (of 6) keeps f = 1.00 of the behaviour when all else is patched from the other prompt" in text
    )
    assert "1.00 logits, against 0.00 without any and 1.00 with all." in text
    assert (
        "is enough, and not the circuit: another set, even one that shares nothing with it, can be as faithful" in text
    )
    assert "A ranking that was made on these pairs fits them" in text
    assert "The circuit" not in text


def test_what_rounding_leaves_of_a_share_is_told_as_nothing() -> None:
    shares = [-2.1e-7, 3e-5, -0.00012, 0.31049]
    rows = [pd.Series({"faithfulness": share, "low": share, "high": np.nan, "reason": ""}) for share in shares]
    assert [share_of(row).partition(" ")[0] for row in rows] == ["0.00", "0.00", "−0.0001", "0.31"]
    assert "−0.00," not in share_of(rows[0])


def test_the_world_and_what_is_ablated_are_named() -> None:
    text = gate("and", [VALUE, A, B], sizes=[1, 2])
    assert "A set of 2 nodes (of 6) keeps f = 0.00" in text
    assert "(no set that was measured keeps 0.8)" in text
    assert "when it is put into the corrupt run" in gate("and", [VALUE], sizes=[1], how="restored")
    zero = ct.circuit(tiny(), PAIR, ranking=RANKED, sizes=[5], write="zero", **QUIET)
    assert "when all else is set to zero" in zero.summary()
    page = zero.to_html()
    assert "every node outside a set (heads and MLPs, at all tokens) is set to zero" in page


def test_more_than_one_is_not_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toys.CIRCUITS, "less", (1, -0.5, 0, 0))
    text = gate("less", [VALUE, A, B], sizes=[2])
    assert "With 2 nodes f is 2.00, above 1, which is not better: all that is left out there, together, opposes" in text
    assert "above 1, which" not in gate("and", [VALUE, A, B], sizes=[2])


def test_what_is_told_of_a_share_is_what_the_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toys.CIRCUITS, "hardly", (1, -0.003, 0, 0))
    monkeypatch.setitem(toys.CIRCUITS, "mostly", (0.797, 0.203, 0, 0))
    hardly, mostly = (gate(name, [VALUE, A, B], sizes=[2]) for name in ("hardly", "mostly"))
    assert "keeps f = 1.00 of the behaviour" in hardly
    assert "above 1, which" not in hardly
    assert "keeps f = 0.80 of the behaviour" in mostly
    assert "no set that was measured" not in mostly


def test_tests_of_a_set_say_what_was_tried() -> None:
    text = gate("or", [VALUE, A, B], sizes=[2], tested=2)
    assert (
        "Completeness of the first 2 nodes: without the same nodes, 2 choices of them, the set minus the model is "
        "−1.00 logits where it is largest (without mlp_out 0), and 0.00 with nothing taken out."
    ) in text
    assert "Minimality: 2 of these 2 nodes move the metric by at least 1 % of the model's, 1.00 logits" in text
    idle = gate("and", [VALUE, A, B, "attn_out 0"], sizes=[2], tested=4, subsets=0)
    assert "Minimality: 3 of these 4 nodes" in idle
    assert "; of attn_out 0 it was not seen." in idle


def test_the_table_of_the_tests_is_headed_by_what_was_tested() -> None:
    page = ct.circuit(tiny(), PAIR, ranking=RANKED, sizes=[3], tested=3, **QUIET).to_html()
    assert '<th scope="col">circuit or model with some removed</th>' in page
    assert "{component}" not in page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside, self.charts, self.shown = False, 0, list[bool]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        if tag == "section":
            self.inside = attributes.get("id") == "circuits-section"
        elif self.inside and tag == "div" and "data-pair" in attributes:
            self.shown.append("hidden" not in attributes)
        elif self.inside and tag == "polyline":
            self.charts += 1
        elif self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self.inside = False


def test_the_page_has_the_curve_of_the_mean_and_of_each_pair() -> None:
    trace = ct.circuit(tiny(), one_way(9), ranking=RANKED, sizes=[2, 5], **QUIET)
    page = Page(trace.to_html())
    assert page.charts == 10
    assert page.shown == [True, *[False] * 9]
    row = trace.circuit().curve.set_index("size").loc[5]
    told = next(cells for cells in page.rows if cells[:1] == ["5"])
    assert told[1].startswith(f"{row.faithfulness:.2f} [".replace("-", "−"))
    assert told[4] == "z 0.3, z 3.1, mlp_out 3"
    one = Page(ct.circuit(tiny(), PAIR, ranking=RANKED, sizes=[2], **QUIET).to_html())
    assert (one.charts, one.shown) == (1, [True])
    assert [cells[0] for cells in one.rows] == ["nodes", "0", "2", "20"]


def test_figures_are_drawn_between_the_ends() -> None:
    trace = ct.circuit(tiny(), one_way(9), ranking=RANKED, sizes=[2, 5], **QUIET)
    curve = trace.circuit().curve.iloc[1:]
    axes = trace.plot("mean_circuits").axes[0]
    points = next(np.array(line.get_xydata()) for line in axes.lines if len(np.array(line.get_xydata())) == 3)
    np.testing.assert_allclose(points[:, 0], [2, 5, 20])
    np.testing.assert_allclose(points[:, 1], curve.faithfulness)
    assert len(axes.collections) == 1  # the interval
    alone = trace.plot("circuits", pair="pair-3").axes[0]
    assert len(alone.collections) == 0
    tests = ct.circuit(tiny(), PAIR, ranking=RANKED, sizes=[2], tested=2, **QUIET)
    assert tests.plot("circuit_tests").axes


def test_the_terminal_has_a_small_table() -> None:
    trace = ct.circuit(tiny(), PAIR, ranking=RANKED, sizes=[2, 5], **QUIET)
    console = Console(width=100, record=True)
    for shown in maps(trace.measurements, colour=False, most_pairs=4):
        console.print(shown)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert [line[0] for line in lines[2:]] == ["0", "2", "5", "20"]
    assert lines[-1][-1] == "1.00"


def test_the_document_has_what_python_has() -> None:
    trace = ct.circuit(tiny(), one_way(9), ranking=RANKED, sizes=[2, 5], tested=3, **QUIET)
    found, result = json.loads(json.dumps(document(trace.measurements), allow_nan=False)), trace.circuit()
    assert [row["faithfulness"] for row in found["faithful"]["curve"]] == result.curve.faithfulness.tolist()
    assert len(found["faithful"]["completeness"]) == len(result.completeness)
    assert found["faithful"]["minimality"][0]["item"] == "mlp_out 1"
    assert found["faithful"]["cpr"]["estimate"] is None
    assert len(found["circuit_tests"]["removed_nodes"]) == len(found["circuit_tests"]["removals"])
    assert found["evidence"]["fractions"]["faithfulness"]["nodes"]["mean"][-1] == 1
    table = trace.to_dataframe("circuits")
    assert {"disruption", "disruption_beyond_empty"} == {*table.effect.unique()}
    top = trace.top(2, of="circuits")
    assert top["size"].tolist()[0] in (5, 20)
    assert "faithfulness" in top.columns
    assert trace.scalars()["nodes/disruption_beyond_empty"] > 0


def test_a_saved_trace_says_the_same(tmp_path: Any) -> None:
    trace = ct.circuit(tiny(), one_way(9), ranking=RANKED, sizes=[2, 5], tested=3, **QUIET)
    trace.save(tmp_path / "saved")
    again = ct.open_trace(tmp_path / "saved")
    assert again.circuit().curve.equals(trace.circuit().curve)
    assert again.circuit().minimality.equals(trace.circuit().minimality)
    assert again.summary() == trace.summary()
    other = ct.circuit(tiny(), one_way(9), ranking=RANKED[::-1], sizes=[2, 5], **QUIET)
    compared = ct.compare(again, other, of="circuits").cells.faithfulness.sel(component="nodes")
    both = [each.circuit().curve.faithfulness for each in (trace, other)]
    np.testing.assert_allclose(compared, both[0] - both[1], atol=1e-12)
    assert abs(compared).max() > 1e-3


def test_edges_are_told_as_edges() -> None:
    ranking = ["resid_pre 0 -> v 0.0", "z 0.1 -> mlp_out 2", "mlp_out 2 -> logits", "mlp_out 0 -> logits"]
    trace = ct.circuit(tiny(), one_way(9), of="edges", ranking=ranking, sizes=[3, 4], tested=3, subsets=0, **QUIET)
    text = trace.summary()
    page = trace.to_html()
    assert "in the clean run every edge outside a set is cut, at all tokens" in page
    assert "reads what its sender (the embedding, a head, an MLP) adds in the run of the other prompt" in page
    assert "A set of 4 edges (of 343) keeps f = " in text
    assert "Completeness of the first 3 edges: without the same edges, 3 choices of them" in text
    assert "of these 3 edges move the metric" in text
    assert "node" not in "".join(line for line in text.splitlines() if "edges" in line)
    shown = Page(page)
    told = next(cells for cells in shown.rows if cells[:1] == ["3"])
    assert told[3:] == ["3", "resid_pre 0 -> v 0.0, z 0.1 -> mlp_out 2, mlp_out 2 -> logits"]
    assert shown.rows[0][0] == "edges"
    found = json.loads(json.dumps(document(trace.measurements), allow_nan=False))
    assert (found["faithful"]["of"], found["faithful"]["items"]) == ("edges", 343)
    assert trace.plot("circuits", pair="pair-3").axes[0].get_xlabel() == "edges, of 343"
    restored = ct.circuit(tiny(), PAIR, of="edges", ranking=ranking, sizes=[3], how="restored", **QUIET).to_html()
    assert "in the corrupt run the reader of each edge of a set reads what the sender adds in the clean run" in restored


def test_where_nothing_is_faithful_or_not_the_figure_is_empty() -> None:
    """Of pairs whose totals have both signs, everything and nothing cannot be told apart on average."""
    trace = ct.circuit(tiny(), others(9), ranking=RANKED[:2], sizes=[1, 2], **QUIET)
    assert trace.evidence(of="circuits").cells.faithfulness.isnull().all()
    figure = trace.plot("mean_circuits")
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    assert 0 < low < 1 < 20 < high


def test_circuits_are_compared_in_words() -> None:
    pairs = one_way(3)
    one, other = (ct.circuit(tiny(), pairs, ranking=some, sizes=[2], **QUIET) for some in (RANKED, RANKED[::-1]))
    found = ct.compare(one, other)
    assert "Largest difference of nodes: 2 nodes; disruption" in found.summary()


def test_a_figure_of_circuits_is_of_faithfulness_and_says_so() -> None:
    trace = ct.circuit(tiny(), PAIR, ranking=RANKED, sizes=[1, 2], **QUIET)
    assert trace.plot("circuits", effect="faithfulness").axes
    with pytest.raises(InvalidOption, match=r"plot\('circuits'\) shows faithfulness alone"):
        trace.plot("circuits", effect="disruption")
