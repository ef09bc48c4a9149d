"""Circuits of edges: against models written out by hand, and by the laws that every family must obey.

The oracle (`written.py`) computes a llama and a GPT-2 head by head from their weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.engine.choose import open_backend
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Rewired, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.patching.kinds.edge_graph import EdgeGraph, edge_graph
from families import FAMILIES
from loaded import shared
from written import ANSWER, FOIL, HEADS, LAYERS, written

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
WITHOUT_QUERIES = ("falcon", "falcon-40b", "falcon-rw", "bloom", "gptj", "gpt_neo", "mpt")
WHOLE = ("qwen3_next", "mamba")  # no heads that are told apart: test_edges_of_hybrids.py
BEHIND_A_NORM, MORE = "opt-350m", "falcon_h1"
OFFERED = [each.name for each in FAMILIES if each.name not in (*WITHOUT_QUERIES, *WHOLE, BEHIND_A_NORM, MORE)]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")


def spelled(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def pair(corrupt: Sequence[int] = CORRUPT, **fields: Any) -> ct.Pair:
    given: dict[str, Any] = {"answer": f" w{ANSWER}", "foil": f" w{FOIL}"} | fields
    return ct.Pair(clean=spelled(CLEAN), corrupt=spelled(corrupt), **given)


def others(count: int) -> list[ct.Pair]:
    return [pair((*CORRUPT[:3], 20 + n, *CORRUPT[4:]), id=f"p{n}") for n in range(count)]


@cache
def graph(name: str) -> EdgeGraph:
    return edge_graph(shared(name))


def shuffled(name: str, seed: int = 0) -> list[str]:
    names = graph(name).names
    return [names[n] for n in np.random.default_rng(seed).permutation(len(names))]


def traced(name: str = "llama", pairs: Any = None, **options: Any) -> ct.Trace:
    asked = {"of": "edges", "ranking": shuffled(name), "spot_checks": 0, "progress": False}
    return ct.circuit(shared(name), pair() if pairs is None else pairs, **asked | options)


def left(trace: ct.Trace) -> Mapping[int, float]:
    """m(C) by size."""
    curve = trace.circuit().curve.set_index("size")
    return curve.metric.to_dict()


@pytest.mark.parametrize("how", ["kept", "restored"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_set_is_what_a_model_written_by_hand_gives(name: str, how: str) -> None:
    hand, order = written(name), shuffled(name)
    every = len(order)
    sizes = [every // 10, every // 2, every * 9 // 10, every - 3]
    found = left(traced(name, sizes=sizes, how=how))
    (clean, of_clean), (corrupt, of_corrupt) = hand.run(CLEAN), hand.run(CORRUPT)
    assert_allclose([found[0], found[every]], [corrupt, clean], atol=2e-5)
    for size in sizes:
        kept = frozenset(order[:size])
        if how == "kept":
            expected, _ = hand.run(CLEAN, frozenset(order) - kept, of_corrupt)
        else:
            expected, _ = hand.run(CORRUPT, kept, of_clean)
        assert_allclose(found[size], expected, atol=2e-5, err_msg=f"{size}")
    assert np.std([found[size] for size in sizes]) > 0.1


def logits(name: str, *worlds: World) -> np.ndarray:
    backend = open_backend(shared(name), ["z", "q", "k", "v", "attn_out", "mlp_out"])
    return backend.evaluate(worlds, lambda values, _: values.flatten(1), prune=False).values


def world(name: str, cut: frozenset[int]) -> World:
    """The clean run, in which these edges are cut."""
    found = graph(name)
    marked = np.zeros((len(found.readers), len(found.sites)), bool)
    for number in cut:
        sender, reader = found.edges[number]
        marked[reader, sender] = True
    senders = tuple((site.component, *place) for site in found.sites for place in site.places())
    readers = tuple(("resid_post", LAYERS - 1, None) if each[0] == "logits" else each for each in found.readers)
    edits = tuple(
        Edit(Site(component, layer, at, part), From(Run(CORRUPT), at))
        for component, layer, part in senders
        for at in range(len(CLEAN))
    )
    rewired = Rewired(senders=senders, readers=readers, cut=marked, edits=edits)
    return World(Run(CLEAN), (Edit(Site("wiring", 0, 0), rewired),), (len(CLEAN) - 1,))


@pytest.mark.parametrize("name", OFFERED)
def test_the_ends_and_the_nodes_of_every_family(name: str) -> None:
    """C1: with every edge cut the run is the other one. C2: with all edges of some senders cut, these are patched."""
    found = graph(name)
    some = range(2, len(found.sites), 3)  # heads of every layer, and MLPs: with every edge cut all add what is there
    of_some = frozenset(n for n, (sender, _) in enumerate(found.edges) if sender in some)
    patched = tuple(
        Edit(Site(site.component, layer, at, part), From(Run(CORRUPT), at))
        for site in (found.sites[n] for n in some)
        for layer, part in site.places()
        for at in range(len(CLEAN))
    )
    last = (len(CLEAN) - 1,)
    every, nodes, expected, corrupt, clean = logits(
        name,
        world(name, frozenset(range(len(found.edges)))),
        world(name, of_some),
        World(Run(CLEAN), patched, last),
        World(Run(CORRUPT), (), last),
        World(Run(CLEAN), (), last),
    )
    rounding = 1e-5 * max(1.0, float(abs(clean).max()), float(abs(corrupt).max()))
    assert_allclose(every, corrupt, atol=rounding)
    assert_allclose(nodes, expected, atol=rounding)
    assert abs(nodes - clean).max() > 0.1


@pytest.mark.parametrize("name", OFFERED)
def test_one_receiver_of_every_family_is_a_path(name: str) -> None:
    """What reaches one reader from a set of senders: also measured by runs in which all else is held."""
    found, random = graph(name), np.random.default_rng(2)
    heads = [f"z {n}.{random.integers(HEADS)}" for n in range(LAYERS - 1)]
    senders = {site: n for n, site in enumerate(str(each).partition(" @ ")[0] for each in found.sites)}
    readers = [f"q {LAYERS - 1}.1", f"k {LAYERS - 1}.0", f"v {LAYERS - 2}.1", f"mlp_out {LAYERS - 1}", "logits"]
    paths = ct.paths(
        shared(name), pair(), senders={"some": [f"{each} @ all" for each in heads]}, receivers=readers,
        directions=["disruption"], spot_checks=0, progress=False,
    ).of("paths").sel(metric="logit_diff", pair="pair-0", component="path", sender="some")  # fmt: skip
    cut = {
        reader: [f"{head} -> {reader}" for head in heads if f"{head} -> {reader}" in found.names] for reader in readers
    }
    places = {name: n for n, name in enumerate(found.names)}
    worlds = [world(name, frozenset(places[edge] for edge in edges)) for edges in cut.values()]
    clean, *others = (
        each[ANSWER] - each[FOIL] for each in logits(name, World(Run(CLEAN), (), (len(CLEAN) - 1,)), *worlds)
    )
    for reader, other in zip(readers, others, strict=True):
        assert_allclose(clean - other, paths.disruption.sel(receiver=reader).item(), atol=3e-5)
    rest = [each for each in found.names if each not in cut["logits"]]  # and as it is asked for
    cells = traced(name, ranking=rest, sizes=[len(rest)]).of("circuits")
    asked = cells.sel(metric="logit_diff", pair="pair-0", component="edges", size=len(rest)).disruption.item()
    assert_allclose(asked, paths.disruption.sel(receiver="logits").item(), atol=3e-5)
    assert {*heads} <= {*senders}
    assert float(abs(paths.disruption).max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi", "granite"])
def test_heads_added_up_and_heads_at_once_are_the_same(name: str) -> None:
    """Behind a norm heads do not add up, and side by side MLPs read what attention reads; replay takes them at once."""
    sizes = [len(graph(name).names) // 3, len(graph(name).names) * 4 // 5]
    packed, replay = (left(traced(name, sizes=sizes, engine=engine)) for engine in ("auto", "replay"))
    assert_allclose([packed[size] for size in sizes], [replay[size] for size in sizes], atol=2e-5)


def test_what_the_order_the_pairs_and_the_batch_do_not_change() -> None:
    """C7."""
    pairs, sizes = others(3), [60, 200]
    whole = traced(pairs=pairs, sizes=sizes).of("circuits")
    changed: list[dict[str, Any]] = [{"budget": 20_000}, {"engine": "replay"}]
    for options in changed:
        assert_allclose(
            traced(pairs=pairs, sizes=sizes, **options).of("circuits").disruption, whole.disruption, atol=1e-5
        )
    back = traced(pairs=pairs[::-1], sizes=sizes).of("circuits").sel(pair=[each.id for each in pairs])
    assert_allclose(back.disruption, whole.disruption, atol=1e-5)
    scores = {each: float(len(each) % 3) for each in graph("llama").names}  # with many ties
    turned = dict(reversed(scores.items()))
    assert traced(ranking=scores).of("circuits").identical(traced(ranking=turned).of("circuits"))


@pytest.mark.parametrize("write", ["zero", "mean"])
def test_zeros_and_means_stand_for_what_senders_add(write: str) -> None:
    """With every edge cut all that is read is zero, or a mean: measured, and no run of the pair's own."""
    prompts = [spelled(CLEAN), spelled(CORRUPT), spelled((1, 2, 3, 4, 5, 6, 7, 8, 9))]
    asked = "zero" if write == "zero" else ct.Write("mean", prompts=prompts)
    hand, found = written("llama"), traced(write=asked, sizes=[200])
    runs = [hand.run([int(word[1:]) for word in prompt.split()])[1] for prompt in prompts]
    instead = {
        name: torch.zeros_like(value) if write == "zero" else torch.stack([run[name] for run in runs]).mean(0)
        for name, value in runs[0].items()
    }
    order = shuffled("llama")
    curve = left(found)
    for size in (0, 200):
        expected, _ = hand.run(CLEAN, frozenset(order[size:]), instead)
        assert_allclose(curve[size], expected, atol=3e-5)
    assert "adds in the mean over the reference prompts" in found.summary() or write == "zero"


def test_edges_on_a_way_are_counted() -> None:
    """By hand: a chain from the embedding to the logits, and edges that lead nowhere."""
    chain = ["resid_pre 0 -> v 0.0", "z 0.1 -> mlp_out 2", "mlp_out 2 -> logits"]  # heads 0 and 1 share a value
    idle = ["z 1.0 -> logits", "resid_pre 0 -> q 3.3", "z 0.3 -> mlp_out 2"]
    found = traced(ranking=[*idle, *chain], sizes=[3, 5, 6]).circuit().curve.set_index("size")
    assert found.weighted_size[[0, 3, 5, 6]].tolist() == [0, 0, 0, 3]
    assert found.weighted_size[len(graph("llama").names)] == len(graph("llama").names)
    assert abs(found.metric[5] - found.metric[0]) < 1e-5 < abs(found.metric[6] - found.metric[0])


@cache
def estimated() -> Any:
    return ct.attribute(shared("llama"), others(9), method="reception", at="all", verify=1, sample=1, progress=False)


def test_a_ranking_comes_from_estimates_from_paths_and_from_traces(tmp_path: Path) -> None:
    pairs = others(9)
    ranking = estimated().edges()
    assert {*graph("llama").names} == {*ranking.scores}
    assert "estimated effect of each edge, at all tokens by logit_diff, mean over 9 pairs" in ranking.source
    assert 0 < ranking.stability(30) <= 1
    by_trace = traced(pairs=pairs, ranking=estimated(), sizes=[30])
    by_ranking = traced(pairs=pairs, ranking=ranking, sizes=[30])
    assert by_trace.of("circuits").identical(by_ranking.of("circuits"))
    assert "overlap of the first edges with those of resampled pairs" in by_trace.summary()
    estimated().save(tmp_path / "kept")
    assert traced(pairs=pairs, ranking=tmp_path / "kept", sizes=[30]).of("circuits").identical(by_trace.of("circuits"))
    exact = ct.paths(
        shared("llama"), pair(), senders=["each z @ all", "each mlp_out @ all", "resid_pre 0 @ all"],
        directions=["disruption"], spot_checks=0, progress=False,
    )  # fmt: skip
    scores = exact.edges().scores
    by_exact = traced(ranking="exact", sizes=[len(scores) // 2])
    kept = by_exact.provenance["options"]["circuit"]
    assert_allclose([kept[name] for name in graph("llama").names], [scores[name] for name in graph("llama").names])
    first = max(kept, key=lambda name: abs(kept[name]))
    alone = traced(ranking=[each for each in graph("llama").names if each != first], sizes=[len(kept) - 1])
    lost = alone.of("circuits").sel(metric="logit_diff", pair="pair-0", component="edges").disruption
    assert_allclose(lost.sel(size=len(kept) - 1).item(), kept[first], atol=3e-5)


def test_a_score_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Two heads share a key: the file has an edge to each, which add up to ours."""
    ranking = estimated().edges()
    path = ranking.write(tmp_path / "scores.json", width=32, parallel=False, size=30)
    content = json.loads(path.read_text())
    assert content["cfg"] == {"n_layers": LAYERS, "n_heads": HEADS, "parallel_attn_mlp": False, "d_model": 32}
    shared_key = ranking.scores["z 0.1 -> k 2.1"]
    halves = [content["edges"][f"a0.h1->a2.h{head}<k>"]["score"] for head in (2, 3)]
    assert_allclose(halves, shared_key / 2)
    assert content["edges"]["input->m0"]["score"] == ranking.scores["resid_pre 0 -> mlp_out 0"]
    inside = {name for name, each in content["edges"].items() if each["in_graph"]}
    ours = {each[:-4] + str(int(each[-4]) // 2) + each[-3:] if each[-2] in "kv" else each for each in inside}
    assert len(ours) == 30 < len(inside)
    assert all(content["nodes"][edge.partition("->")[0]]["in_graph"] for edge in inside)
    again = traced(ranking=path, sizes=[30])
    kept = again.provenance["options"]["circuit"]
    assert_allclose(
        [kept[each] for each in graph("llama").names], [ranking.scores[each] for each in graph("llama").names]
    )
    assert "edge scores of scores.json" in again.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a0.h9->m1": {"score": 1}}, "has an edge 'a0.h9->m1', which is none"),
        ({"a0.h1->a2.h1": {"score": 1}}, "has an edge 'a0.h1->a2.h1', which is none"),
        ({"a0.h1->m1": {"score": None}}, "has the score None for 'a0.h1->m1'"),
        ({"a0.h1->m1": 3}, "has 3 for the edge 'a0.h1->m1', and needs a table"),
    ],
)
def test_what_is_wrong_with_a_score_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = {"cfg": {"n_layers": LAYERS, "n_heads": HEADS}, "nodes": {}, "edges": change}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(InvalidOption, match=message):
        traced(ranking=tmp_path / "scores.json")


def test_completeness_and_minimality_take_edges_out() -> None:
    order = shuffled("llama")
    found = traced(tested=4, subsets=1, sizes=[4]).circuit()
    assert found.minimality["item"].tolist() == order[:4]
    alone = left(traced(ranking=[each for each in order if each != order[0]], sizes=[len(order) - 1]))
    row = found.completeness.set_index("removed").loc[order[0]]
    assert_allclose(row.model, alone[len(order) - 1], atol=1e-5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ranking": ["z 1.0"]}, "circuit= names 'z 1.0', which is no edge. Name a sender and a reader"),
    ({"ranking": ["z 3.0 -> q 1.0"]}, "circuit= names 'z 3.0 -> q 1.0', which is no edge of this model"),
    ({"ranking": ["z 0.0 -> k 1.0", "z 0.0 -> k 1"]}, "The edge 'z 0.0 -> k 1.0' is asked for twice"),
    ({"ranking": "eap", "of": "nodes"}, "ranking='eap' estimates edges"),
    ({"keep_input": False}, "is about nodes: edges from the embedding are ranked as all others"),
    ({"sizes": [400]}, "asks for 400 edges, and circuit= ranks 343 of the model's 343"),
    ({"of": "paths"}, "There is no kind of circuit 'paths'"),
    ({"ranking": "estimates", "write": "zero"}, "estimates patches between prompts: leave write= out"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_what_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        traced(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (BEHIND_A_NORM, "in layer 0 a norm stands between the sums, so that edges do not add up"),
        ("bloom", "q is not offered on this model"),
        (MORE, "is not offered on this model"),
    ],
)
def test_models_whose_edges_are_not_told_apart(name: str, message: str) -> None:
    with pytest.raises(ComponentNotOffered, match=message):
        ct.circuit(shared(name), pair(), of="edges", ranking="estimates", progress=False)


def test_a_trace_without_edges_says_how_to_get_them() -> None:
    nodes = ct.trace(shared("llama"), pair(), components=["mlp_out"], progress=False)
    with pytest.raises(InvalidOption, match="This trace has no edges: use paths"):
        nodes.edges()
    last = ct.paths(shared("llama"), pair(), senders=["each mlp_out @ last"], receivers=["logits"], progress=False)
    with pytest.raises(InvalidOption, match="begin at some tokens, and the edges of a circuit are at all of them"):
        last.edges()
    with pytest.raises(InvalidOption, match="The ranking has no score for 342 of the model's 343 edges"):
        traced(ranking=ct.paths(
            shared("llama"), pair(), senders=["mlp_out 3 @ all"], receivers=["logits"], progress=False
        ))  # fmt: skip


def test_a_ranking_longer_than_a_command_line_stands_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(shared("llama"), source={"kind": "folder"})
    scores = {name: float(n) for n, name in enumerate(graph("llama").names)}
    asked: dict[str, Any] = {"of": "edges", "ranking": scores, "sizes": [3], "spot_checks": 0, "progress": False}
    long = ct.circuit(model, pair(), **asked).provenance["command"]
    monkeypatch.setattr("causal_tracing.experiments.repeat.LONGEST", 5)
    short = ct.circuit(model, pair(), **asked).provenance["command"]
    assert "z 0.0 -> mlp_out 0 = " in long
    assert short == "causal-tracing trace --config config.toml"


def test_a_page_names_what_is_too_long_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(ranking={name: float(n) for n, name in enumerate(graph("llama").names)}, sizes=[3])
    assert "343 entries, which are kept in the saved trace" not in trace.to_html()
    monkeypatch.setattr("causal_tracing.report.page.page.MOST_ENTRIES", 300)
    assert "343 entries, which are kept in the saved trace" in trace.to_html()
