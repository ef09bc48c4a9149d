"""Rankings of nodes from traces and estimates, their stability, and score files that others can read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.results.rankings.edges import EdgeRanking
from causal_tracing.results.rankings.nodes import NodeRanking
from causal_tracing.results.rankings.score_files import read_scores
from joint import CLEAN, CORRUPT, PAIR, others, tiny

NODES = [node for layer in range(4) for node in (*(f"z {layer}.{head}" for head in range(4)), f"mlp_out {layer}")]
QUIET: dict[str, Any] = {"progress": False, "spot_checks": 0}
TOGETHER: dict[str, Any] = {"positions": "together", "head_positions": "together", **QUIET}


def test_a_score_is_the_effect_of_the_node_at_all_tokens() -> None:
    trace = ct.trace(tiny(), PAIR, components=["mlp_out"], heads=True, directions=["disruption"], **TOGETHER)
    found = trace.nodes()
    assert [*found.scores] == [*sorted(found.scores, key=lambda name: name.split()[0])]
    assert {*found.scores} == {*NODES}
    sets = ct.trace(tiny(), PAIR, components=[], sets={name: [f"{name} @ all"] for name in NODES}, **QUIET).of("sets")
    joint = sets.disruption.sel(metric="logit_diff", pair="pair-0", component="set")
    for name in NODES:
        assert_allclose(found.scores[name], joint.sel(set=name).item(), atol=1e-5)
    assert found.source == "exact disruption of each node alone, at all tokens together by logit_diff, one pair"
    assert found.first(1) == (max(found.scores, key=lambda name: abs(found.scores[name])),)
    assert found.first(1, by="sign") == (max(found.scores, key=lambda name: found.scores[name]),)
    assert found.first(20) != found.first(20, by="sign")


def test_single_tokens_and_estimates_are_added_up() -> None:
    each = ct.trace(tiny(), PAIR, components=["mlp_out"], heads=True, directions=["restoration"], **QUIET)
    blocks = each.effects.restoration.sel(metric="logit_diff", pair="pair-0", component="mlp_out")
    assert_allclose(each.nodes().scores["mlp_out 2"], blocks.sel(layer=2).sum("position").item(), atol=1e-6)
    assert "added up over tokens" in each.nodes().source
    estimated = ct.attribute(tiny(), PAIR, components=["mlp_out", "z"], verify=1, sample=1, **QUIET)
    found = estimated.nodes()
    assert found.source.startswith("estimated effect of each node, added up over tokens")
    whole = estimated.estimates["z"].sel(pair="pair-0", layer=1, head=3).sum("position").item()
    assert_allclose(found.scores["z 1.3"], whole, atol=1e-6)


def test_what_is_at_some_tokens_ranks_no_nodes() -> None:
    some = ct.trace(tiny(), PAIR, components=["mlp_out"], positions=["last"], **QUIET)
    with pytest.raises(InvalidOption, match="nodes at some tokens, and a circuit's are patched at all of them"):
        some.nodes()
    none = ct.trace(tiny(), PAIR, components=["resid_post"], positions="together", **QUIET)
    with pytest.raises(InvalidOption, match="This trace has no nodes: trace components="):
        none.nodes()
    lacking = ct.trace(tiny(), PAIR, components=["mlp_out"], positions="together", **QUIET)
    with pytest.raises(InvalidOption, match="The ranking has no score for 16 of the model's 20 nodes, such as 'z 0.0'"):
        ct.circuit(tiny(), PAIR, ranking=lacking, **QUIET)


def ranking(by_cluster: np.ndarray | None, means: list[float] | None = None) -> NodeRanking:
    scores = by_cluster.mean(0).tolist() if by_cluster is not None else means
    assert scores is not None
    return NodeRanking(scores={f"mlp_out {n}": s for n, s in enumerate(scores)}, source="made", by_cluster=by_cluster)


def test_stability_is_one_where_pairs_agree_and_less_where_chance_ranks() -> None:
    same = ranking(np.tile([5.0, -4.0, 1.0, 0.5], (10, 1)))
    assert same.stability(2) == 1.0
    assert same.first(2) == ("mlp_out 0", "mlp_out 1")
    noisy = ranking(np.random.default_rng(0).normal(size=(10, 40)))
    assert 0.2 < noisy.stability(10) < 0.8
    assert noisy.stability(40) == 1.0  # all of them are all of them
    assert np.isnan(ranking(np.ones((1, 3))).stability(1))
    assert np.isnan(ranking(None, [1.0, 2.0]).stability(1))
    assert noisy.stability(10, seed=1) == noisy.stability(10, seed=1) != noisy.stability(10, seed=2)


def test_stability_by_hand() -> None:
    """Of two clusters one ranks the first node, the other the second: four draws, of which one has other nodes."""
    found = ranking(np.array([[3.0, 0.0], [0.0, 2.0]]))  # means 1.5 and 1: the first node; only (b, b) has the second
    assert_allclose(found.stability(1, resamples=20_000), 0.75, atol=0.01)


def test_equal_scores_are_in_computation_order() -> None:
    found = ranking(None, [1.0, -1.0, 1.0])
    assert found.first(3) == ("mlp_out 0", "mlp_out 1", "mlp_out 2")
    assert found.first(3, by="sign") == ("mlp_out 0", "mlp_out 2", "mlp_out 1")


def test_a_ranking_of_pairs_is_their_mean_and_says_how_stable_it_is() -> None:
    found = ct.circuit(tiny(), others(3), sizes=[2], **QUIET)
    options = found.provenance["options"]
    assert [*options["circuit"]] == NODES
    assert "mean over 3 pairs; overlap of the first nodes" in options["circuit_source"]
    assert options["circuit_source"] in found.summary()
    added = found.circuit().curve.added[1].split("; ")
    sizes = {name: abs(score) for name, score in options["circuit"].items()}
    assert added == sorted(sizes, key=lambda name: -sizes[name])[:2]
    again = ct.circuit(tiny(), others(3), ranking=options["circuit"], sizes=[2], **QUIET)
    assert again.of("circuits").identical(found.of("circuits"))


def files(folder: Path, **changes: Any) -> Path:
    """A score file as EAP-IG writes it, of a model of one layer of two heads."""
    content: dict[str, Any] = {
        "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
        "nodes": {"input": True, "a0.h0": True, "a0.h1": False, "m0": True, "logits": True},
        "edges": {
            "input->a0.h0<q>": {"score": 9.0, "in_graph": True},
            "a0.h0->m0": {"score": -2.0, "in_graph": True},
            "a0.h0->logits": {"score": 1.0, "in_graph": False},
            "m0->logits": {"score": 4.0, "in_graph": True},
        },
    }
    path = folder / "scores.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_scores_of_edges_are_added_up_where_nodes_have_none(tmp_path: Path) -> None:
    found = read_scores(files(tmp_path))
    assert found.scores == {"z 0.0": 3.0, "z 0.1": 0.0, "mlp_out 0": 4.0}
    assert found.in_graph == {"z 0.0", "mlp_out 0"}
    assert "of each node the sizes of its outgoing edges' scores, added up" in found.source


def test_scores_of_nodes_come_first(tmp_path: Path) -> None:
    nodes = {
        "input": {"in_graph": True, "score": float("nan")},
        "a0.h0": {"in_graph": True, "score": -1.5},
        "a0.h1": {"in_graph": False, "score": 0.5},
        "m0": {"in_graph": False, "score": 2.0},
        "logits": {"in_graph": True},
    }
    found = read_scores(files(tmp_path, nodes=nodes))
    assert found.scores == {"z 0.0": -1.5, "z 0.1": 0.5, "mlp_out 0": 2.0}
    assert found.source == "node scores of scores.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": {"n_layers": 1}}, "cfg must say n_heads, a whole number; it says None"),
        ({"edges": 3}, "it must be a table with the tables cfg, nodes and edges"),
        ({"nodes": {"a1.h0": True}}, "has a node 'a1.h0', which a model of 1 layers of 2 heads has not"),
        ({"edges": {"b->m0": {"score": 1.0}}}, "has an edge 'b->m0' that begins at no node"),
        ({"edges": {"m0->logits": {"score": "x"}}}, "has the score 'x' for 'm0->logits', which is no finite number"),
        ({"edges": {}}, "has no score for 3 of 3 nodes, such as 'z 0.0'"),
    ],
    ids=str,
)
def test_files_of_another_shape(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        read_scores(files(tmp_path, **changes))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="is of a model of 1 layers of 2 heads, and tiny has 4 of 4"):
        ct.circuit(tiny(), PAIR, ranking=files(tmp_path), **QUIET)
    path = tmp_path / "no.json"
    with pytest.raises(InvalidOption, match="cannot be read as a score file"):
        ct.circuit(tiny(), PAIR, ranking=path, **QUIET)


def test_what_is_written_is_read_again_and_ranks_the_same(tmp_path: Path) -> None:
    scores = dict(zip(NODES, np.random.default_rng(0).normal(size=20).tolist(), strict=True))
    made = NodeRanking(scores=scores, source="made")
    path = made.write(tmp_path / "ours.json", width=32, parallel=False, size=3)
    found, content = read_scores(path), json.loads(path.read_text())
    assert found.scores == scores
    assert found.in_graph == {*made.first(3)}
    assert content["cfg"] == {"n_layers": 4, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    inside = {name for name, node in content["nodes"].items() if node["in_graph"]} - {"input", "logits"}
    ends = {end.partition("<")[0] for edge in content["edges"] for end in edge.split("->")} - {"input", "logits"}
    assert inside == ends  # no edge begins or ends at another node
    one, other = (ct.circuit(tiny(), PAIR, ranking=each, sizes=[3], **QUIET) for each in (path, made))
    assert one.of("circuits").identical(other.of("circuits"))
    assert CLEAN != CORRUPT
    whole = NodeRanking(scores={"attn_out 0": 1.0, "mlp_out 0": 2.0}, source="made")
    with pytest.raises(InvalidOption, match="A score file names single heads"):
        whole.write(tmp_path / "whole.json", width=8, parallel=False, size=1)


def test_a_file_with_a_hole_is_not_written(tmp_path: Path) -> None:
    """Nobody could read it: heads and MLPs without a score are none that such a file can leave out."""
    some = NodeRanking(scores=dict.fromkeys([*NODES[:3], *NODES[4:]], 1.0), source="made")
    with pytest.raises(InvalidOption, match=f"1 of 20 have no score here, such as '{NODES[3]}'"):
        some.write(tmp_path / "some.json", width=32, parallel=False, size=1)
    assert not [*tmp_path.iterdir()]


def test_values_that_heads_share_are_an_edge_for_each_of_them_without_keys_too(tmp_path: Path) -> None:
    names = [f"z 0.{head} -> v 1.{shared}" for head in range(4) for shared in range(2)]
    made = EdgeRanking(scores=dict.fromkeys(names, 1.0), source="made")
    content = json.loads(made.write(tmp_path / "v.json", width=32, parallel=False, size=1).read_text())
    expected = {f"a0.h{head}->a1.h{reader}<v>" for head in range(4) for reader in range(4)}
    assert {*content["edges"]} == expected
    assert {edge["score"] for edge in content["edges"].values()} == {0.5}


def test_edges_of_a_file_go_forwards(tmp_path: Path) -> None:
    made = NodeRanking(scores=dict.fromkeys(["z 0.0", "mlp_out 0", "z 1.0", "mlp_out 1"], 1.0), source="made")

    def edges(parallel: bool) -> set[str]:
        path = made.write(tmp_path / "four.json", width=8, parallel=parallel, size=4)
        return {edge.partition("<")[0] for edge in json.loads(path.read_text())["edges"]}

    forwards = {"a0.h0->m0", "a0.h0->a1.h0", "a0.h0->m1", "m0->a1.h0", "m0->m1", "a1.h0->m1"}
    ends = {f"input->{node}" for node in ("a0.h0", "m0", "a1.h0", "m1", "logits")}
    ends |= {f"{node}->logits" for node in ("a0.h0", "m0", "a1.h0", "m1")}
    assert edges(parallel=False) == forwards | ends
    assert edges(parallel=True) == forwards - {"a0.h0->m0", "a1.h0->m1"} | ends
