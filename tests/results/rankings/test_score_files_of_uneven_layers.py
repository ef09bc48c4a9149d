"""Score files of models whose layers differ in what they have: written, and read again to the last bit."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import causal_tracing as ct
import pruned
import uneven
from causal_tracing.errors import InvalidOption
from causal_tracing.experiments.circuit import shape_of
from causal_tracing.models.model import Model
from causal_tracing.patching.kinds.circuits import GRAPHS
from causal_tracing.results.rankings.edges import EdgeRanking
from causal_tracing.results.rankings.nodes import NodeRanking
from causal_tracing.results.rankings.score_files import read_edge_scores, read_scores
from loaded import WORDS
from model_types.recipes import build
from own_networks import PAIR

KINDS = {"nodes": NodeRanking, "edges": EdgeRanking}
OURS = {"uneven": (2, 4, 6, 1), "pruned": (4, 0, 4, 4)}  # heads of each layer
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


@cache
def loaded(name: str) -> Model:
    by_hand = {"uneven": uneven.network, "pruned": pruned.network}
    return ct.load(by_hand[name]() if name in by_hand else build(name), tokenizer=WORDS)


def names(name: str, of: str) -> Sequence[str]:
    return GRAPHS[of](loaded(name)).names


@pytest.mark.parametrize("of", ["nodes", "edges"])
@pytest.mark.parametrize("name", ["uneven", "pruned"])
def test_what_is_written_is_read_again_and_ranks_the_same(name: str, of: str, tmp_path: Path):
    model, items = loaded(name), names(name, of)
    scores = dict(zip(items, np.random.default_rng(0).normal(size=len(items)).tolist(), strict=True))
    made = KINDS[of](scores=scores, source="made")
    shape = shape_of(model)
    path = made.write(tmp_path / "scores.json", width=32, parallel=False, size=7, shape=shape)
    found = read_edge_scores(path, shape) if of == "edges" else read_scores(path, shape)
    assert found.scores == scores
    assert found.in_graph == {*made.first(7)}
    content = json.loads(path.read_text())
    assert (content["cfg"]["n_layers"], content["cfg"]["n_heads"]) == (4, max(OURS[name]))
    heads = [sum(node.startswith(f"a{layer}.h") for node in content["nodes"]) for layer in range(4)]
    assert heads == [*OURS[name]]
    assert ("m2" in content["nodes"]) == (name == "uneven")
    options = {"of": of, "sizes": [3], "spot_checks": 0, "progress": False}
    one, other = (ct.circuit(model, PAIR, ranking=each, **options) for each in (path, made))
    assert one.of("circuits").identical(other.of("circuits"))


def test_a_node_that_a_layer_lacks_is_said(tmp_path: Path):
    items = names("uneven", "nodes")
    made = NodeRanking(scores=dict.fromkeys(items, 1.0), source="made")
    path = made.write(tmp_path / "scores.json", width=32, parallel=False, size=7, shape=shape_of(loaded("uneven")))
    content = json.loads(path.read_text())
    content["nodes"]["a3.h1"] = {"in_graph": False, "score": 1.0}
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidOption, match=r"has a node 'a3\.h1', which this model of 4 layers of 6 heads has not"):
        ct.circuit(loaded("uneven"), PAIR, ranking=path, sizes=[3], progress=False)
    del content["nodes"]["a3.h1"], content["nodes"]["a3.h0"]
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidOption, match=r"has no score for 1 of 17 nodes, such as 'z 3\.0'"):
        ct.circuit(loaded("uneven"), PAIR, ranking=path, sizes=[3], progress=False)


def test_without_the_shape_layers_are_alike(tmp_path: Path):
    made = EdgeRanking(scores=dict.fromkeys(names("uneven", "edges"), 1.0), source="made")
    with pytest.raises(InvalidOption, match="equally many heads in every layer, and these have 2, 4, 6, 1"):
        made.write(tmp_path / "scores.json", width=32, parallel=False, size=5)


@pytest.mark.parametrize(("name", "node"), [("lfm2", "attn_out"), ("qwen3_next", "attn_out"), ("mamba", "mixer_out")])
def test_what_is_no_head_and_no_mlp_is_named(name: str, node: str, tmp_path: Path):
    (tmp_path / "scores.json").write_text('{"cfg": {"n_layers": 4, "n_heads": 4}, "nodes": {}, "edges": {}}')
    with pytest.raises(InvalidOption, match=f"of single heads and MLPs, and .* has other nodes, such as {node}"):
        ct.circuit(loaded(name), PAIR, ranking=tmp_path / "scores.json", sizes=[3], progress=False)
