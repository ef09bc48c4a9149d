"""Maps of queries by keys for single heads: every cell against attention written out and hooks, and what is said.

The oracle is in this file and in `bare_hooks`: a layer's q, k, v and weights of a bare run, the row of one query made
again by hand, and what the head then reads put before the last projection at that query.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

import causal_tracing as ct
from bare_hooks import attention_written_out
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.results.means import NoMean
from causal_tracing.results.site_kinds import EDGES_BY_QUERY
from joint import CLEAN, CORRUPT, LAST, PAIR, WORDS, measured, network, others, tiny

HEADS, READERS, WIDTH = 4, 2, 8  # query heads, those that share a key head, and the size of each
NAMED = ["1.0-1", "2.3"]
PLACES = [(1, 0), (1, 1), (2, 3)]
PARTS = ("q", "k", "v")
OF = "edges_by_query"


@cache
def seen(text: str, layer: int) -> dict[str, Tensor]:
    """A layer's q, k, v [query head, token, size] and weights [query head, query, key] of a bare run."""
    found: dict[str, Tensor] = {}

    def look(at: int, name: str, value: Tensor) -> Tensor:
        if at == layer:
            found[name] = value[0].repeat_interleave(HEADS // value.shape[1], 0)
        return value

    with attention_written_out(network(), look):
        logits(text)
    return found


def logits(text: str) -> Tensor:
    with torch.no_grad():
        return network()(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1].double()


def read_at(base: str, donor: str, part: str, place: tuple[int, int], query: int, key: int) -> Tensor:
    """What the head gives at a query that sees one key as the donor has it."""
    layer, head = place
    here, there = ({name: each[head] for name, each in seen(text, layer).items()} for text in (base, donor))
    scores = here["q"][query] @ here["k"][: query + 1].T
    if part == "k":
        scores[key] = here["q"][query] @ there["k"][key]
    if part == "q":
        scores[key] = there["q"][query] @ here["k"][key]
    values = here["v"][: query + 1].clone()
    if part == "v":
        values[key] = there["v"][key]
    return (scores * WIDTH**-0.5).softmax(-1) @ values


def patched(base: str, donor: str, part: str, place: tuple[int, int], query: int, key: int) -> float:
    """The metric of a text in which one query of a head sees one key as another text has it."""
    layer, head = place
    given = read_at(base, donor, part, place, query, key)

    def write(_: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[0, query, head * WIDTH : (head + 1) * WIDTH] = given
        return (changed, *args[1:])

    handle = network().model.layers[layer].self_attn.o_proj.register_forward_pre_hook(write)
    try:
        return measured(logits(base), "logit_diff")
    finally:
        handle.remove()


def traced(pairs: Any = PAIR, **options: Any) -> ct.Trace:
    asked: dict[str, Any] = {"components": [], "edges": ["v"], "edge_query": "each", "edge_heads": ["1"]}
    return ct.trace(tiny(), pairs, **asked | options, progress=False)


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_each_cell_is_a_row_made_by_hand(engine: str) -> None:
    found = traced(edges=[*PARTS], edge_heads=NAMED, engine=engine).of(OF).sel(metric="logit_diff", pair="pair-0")
    assert found.restoration.dims == ("component", "head", "query", "position")
    assert found["head"].values.tolist() == ["1.0", "1.1", "2.3"]
    clean, corrupt = (measured(logits(text), "logit_diff") for text in (CLEAN, CORRUPT))
    moved = dict.fromkeys(PARTS, 0.0)
    seen_by = [(query, key) for query in range(LAST + 1) for key in range(query + 1)]
    for part in PARTS:
        for place in PLACES:
            cells = found.sel(component=f"{part}_edge", head=f"{place[0]}.{place[1]}")
            for query, key in seen_by:
                restored = patched(CORRUPT, CLEAN, part, place, query, key) - corrupt
                lost = clean - patched(CLEAN, CORRUPT, part, place, query, key)
                here = cells.sel(query=query, position=key)
                assert_allclose([here.restoration, here.disruption], [restored, lost], atol=1e-5)
                if query < LAST:
                    moved[part] = max(moved[part], abs(restored), abs(lost))
    assert min(moved.values()) > 1e-3  # earlier queries too


def test_keys_behind_a_query_are_zeros_by_construction() -> None:
    found = traced(edges=[*PARTS], edge_heads=["0", "3"]).of(OF).sel(metric="logit_diff", pair="pair-0")
    behind = found["position"].values[None] > found["query"].values[:, None]
    assert (found.status.values[..., behind] == "structural_zero").all()
    assert (found.restoration.values[..., behind] == 0).all()
    last = found.sel(head=[f"3.{n}" for n in range(HEADS)], query=range(LAST))
    assert (last.status == "structural_zero").all()  # nobody reads what the last layer gives at earlier tokens
    read = found.sel(head="3.0", query=LAST, component="q_edge")
    assert (read.status == "ok").all()


def test_one_query_of_a_map_is_the_map_of_that_query() -> None:
    each = traced(edges=[*PARTS], edge_heads=NAMED).of(OF)
    for query in (4, "last"):
        alone = traced(edges=[*PARTS], edge_heads=NAMED, edge_query=query).of("edges")
        assert set(np.unique(alone.status.sel(layer=1, head=[2, 3]))) == {"unpaired"}  # heads that were not asked for
        for layer, head in PLACES:
            one = alone.sel(layer=layer, head=head, drop=True)
            other = each.sel(head=f"{layer}.{head}", query=LAST if query == "last" else query, drop=True)
            for effect in ("restoration", "disruption"):
                assert_allclose(one[effect].values, other[effect].values, atol=1e-6)


def test_queries_and_keys_by_name() -> None:
    found = traced(edge_query=["subject_last", "last", -2], edge_keys=["subject", 0, "last"]).of(OF)
    assert found["query"].values.tolist() == ["subject_last", "last", 4]
    numbered = traced().of(OF).disruption.sel(metric="logit_diff", pair="pair-0", component="v_edge")
    named = found.disruption.sel(metric="logit_diff", pair="pair-0", component="v_edge")
    assert_allclose(named.sel(query="subject_last", position=0), numbered.sel(query=2, position=0), atol=1e-6)
    assert_allclose(named.sel(query=4, position="last"), numbered.sel(query=4, position=5), atol=1e-6)
    # The keys of a name are seen together, from one query: values add up before the last projection, and not behind.
    assert abs(named.sel(query="last", position="subject") - numbered.sel(query=LAST, position=2)).max() < 1e-5
    assert abs(numbered.sel(query=LAST, position=2)).max() > 1e-3  # token 1 is the same in both prompts


def test_many_pairs_in_a_folder_are_those_traced_at_once(tmp_path: Path) -> None:
    pairs, options = others(9), {"components": [], "edges": ["v", "q"], "edge_query": [3, "last"], "edge_heads": ["1"]}
    run = ct.run(tiny(), pairs, tmp_path / "run", **options, progress=False)
    direct = traced(pairs, edges=["v", "q"], edge_query=[3, "last"])
    for name in ("restored", "disrupted"):
        assert_allclose(run.measurements.numbers(OF)[name], direct.measurements.numbers(OF)[name], atol=1e-5)
    assert ct.open_trace(tmp_path / "run").summary() == run.summary()
    cell = run.evidence(OF).peak("v_edge")
    assert cell is not None
    said = f"Strongest v_edge of a head: head {cell['head'].item()}, from "
    assert said in run.summary()
    asked = run.provenance["options"]
    assert (asked["edge_heads"], asked["edge_query"]) == (["1"], [3, "last"])


def test_a_query_must_mean_the_same_in_every_pair() -> None:
    longer = ct.Pair(
        clean=" w2 w11 w12 w13 w14 w15 w16", corrupt=" w2 w11 w12 w43 w14 w25 w16",
        answer=" w7", foil=" w8", subject=" w12 w13", corrupt_subject=" w12 w43",
    )  # fmt: skip
    with pytest.raises(NoMean, match=r'no query means the same .* edge_query=\["subject_last", "last"\]'):
        traced([PAIR, longer]).evidence(OF)
    found = traced([PAIR, longer], edge_query=["subject_last", "last"])
    mean = found.evidence(OF).cells.disruption.sel(component="v_edge", query="subject_last", position="subject_last")
    each = found.of(OF).disruption.sel(metric="logit_diff", component="v_edge", query="subject_last")
    assert_allclose(mean, (each.sel(pair="pair-0", position=2) + each.sel(pair="pair-1", position=3)) / 2, atol=1e-9)


def test_tables_and_files_name_the_query(tmp_path: Path) -> None:
    trace = traced(edge_heads=["1.2", "2"])
    table = trace.to_dataframe()
    assert {"component", "head", "query", "position", "clean_token"} <= {*table.columns}
    chosen = table.set_index(["head", "query", "position", "effect"])["logit_diff"]
    value = chosen[("1.2", 4, 2, "disruption")].item()
    cell = trace.of(OF).sel(metric="logit_diff", pair="pair-0", component="v_edge", head="1.2", query=4, position=2)
    assert value == cell.disruption.item() != 0
    read = pd.read_csv(trace.export(tmp_path / "edges.csv"), dtype={"head": str})
    assert read.shape == table.shape
    assert_allclose(read.logit_diff, table.logit_diff)
    top = trace.top(1)
    assert top["query"].item() in range(LAST + 1)
    assert "layer" not in top.columns
    assert "query" not in ct.trace(tiny(), PAIR, components=["mlp_out"], progress=False).top(1).columns


def test_words_figures_and_the_page_have_both_tokens(tmp_path: Path) -> None:
    trace = traced(components=["mlp_out"], edges=["v", "k"], edge_heads=["1", "2"])
    row = trace.top(1, of=OF, component="k_edge").iloc[0]
    said = trace.summary()
    assert (
        f"Strongest k_edge of a head: head {row.part}, from token {row['query']} ({row.query_token.strip()}), key at"
        in said
    )
    page = trace.to_html(tmp_path / "page.html")
    assert "Each head has a map of queries by keys." in page
    titles = [axes.get_title() for axes in trace.plot(OF).axes if axes.get_title()]
    assert len(titles) == 2 * 2 * 4  # directions, components, and of eight heads those with the strongest edges
    strongest = trace.top(1, of=OF).iloc[0]
    assert f"{strongest.component} {strongest.part}: restoration" in titles
    assert_array_equal(trace.tensors(of=OF)["v_edge"].shape, [8, 6, 6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge_heads": ["z 1.0"]}, "edge_heads= names 'z 1.0'. Name layers, or heads of them"),
        ({"edge_heads": "1.0"}, "edge_heads= must be a list"),
        ({"edge_heads": []}, "edge_heads= is empty"),
        ({"edge_heads": ["1.3-1"]}, "its heads run backwards"),
        ({"edge_heads": ["9"]}, "There is no layer 9: tiny has layers 0 to 3"),
        ({"edge_heads": ["1.4"]}, "There is no head 4: layer 1 of tiny has heads 0 to 3"),
        ({"edge_heads": ["1", "1.2"]}, "The head '1.2' is asked for twice"),
        ({"edge_query": []}, "edge_query= is empty"),
        ({"edge_query": True}, "edge_query= is one position, role or span"),
        ({"edge_query": [17]}, "There is no position 17: the longest prompt has 6 tokens"),
        ({"edge_query": [5, "last", -1]}, "The queries 5, last, -1 name one place twice"),
        ({"edge_query": ["nobody"]}, "There is no position 'nobody'"),
        ({"edge_query": 17}, "has no token 17 that could attend"),
    ],
)
def test_what_cannot_be_asked_for_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidOption, InvalidPair), match=message):
        traced(**options)


def test_a_map_that_takes_hours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causal_tracing.patching.kinds.attention_edges.MOST_CELLS", 4 * 36 - 1)
    with pytest.raises(InvalidOption, match=r"4 heads by 1 of q, k, v, from 6 queries to 6 keys are 144 cells: more"):
        traced()
    with pytest.raises(InvalidOption, match="Name fewer heads"):
        ct.estimate(tiny(), PAIR, components=[], edges=["v"], edge_query="each", edge_heads=["1"])
    traced(edge_heads=["1.0-2"])


def test_the_cost_is_said_before_it_is_run() -> None:
    options: dict[str, Any] = {"components": [], "edges": ["v"], "edge_heads": ["1"], "edge_query": "each"}
    cost = ct.estimate(tiny(), PAIR, **options)
    assert cost.worlds == 2 + 2 * 4 * 36  # the unedited runs, both directions, four heads
    run = traced().provenance
    assert cost.worlds - cost.worlds_skipped <= run["worlds"] - run["worlds_skipped"]
    assert cost.worlds_skipped >= 2 * 4 * 15  # keys behind a query


def test_the_kind_is_asked_for_as_it_says() -> None:
    with pytest.raises(InvalidOption, match=r'Measure them with trace\(..., edges=\["v"\], edge_query="each"\)'):
        traced(edge_query="last").of(OF)
    assert EDGES_BY_QUERY.figure == "queries"
