"""Files of scores as EAP-IG and the benchmark MIB have them: nodes and edges of a graph, with scores and what is in it.

JSON with "cfg" (n_layers, n_heads, parallel_attn_mlp, d_model), "nodes" (by name: "input", "a0.h0", "m0", "logits") and
"edges" ("a0.h0->m0", "input->a0.h0<q>"). A node is a table with in_graph and maybe a score, in older files true or
false; an edge is a table with score and in_graph. Where layers differ, n_heads is the most that one has, and the nodes
are those that there are.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.results.storage.atomic import write_text

ENDS = ("input", "logits")
THEIRS = re.compile(r"a(\d+)\.h(\d+)|m(\d+)")
OURS = re.compile(r"z (\d+)\.(\d+)|mlp_out (\d+)")
EDGE = re.compile(r"([^<>-]+)->([^<>-]+)(?:<([qkv])>)?")
INPUT = "resid_pre 0"  # the embedding, as a sender
ARROW = " -> "  # in our name of an edge


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a score file says: scores by our names, which nodes or edges are in its graph, and how they were found."""

    layers: int
    heads: int
    scores: Mapping[str, float]
    in_graph: frozenset[str]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's nodes by our names (single heads and MLPs), and how many heads of a layer share a key and a value."""

    nodes: tuple[str, ...]
    shared: Mapping[int, int]

    @property
    def layers(self) -> int:
        """How many layers there are, up to the last that has a node."""
        return 1 + max(_place(name)[0] for name in self.nodes)

    @property
    def heads(self) -> int:
        """The most heads that a layer has."""
        return max(self.heads_of(layer) for layer in range(self.layers))

    def heads_of(self, layer: int) -> int:
        """How many heads a layer has."""
        return sum(name.startswith(f"z {layer}.") for name in self.nodes)


def _place(name: str) -> tuple[int, int]:
    """The layer of a node, and its head; of an MLP 0."""
    found = OURS.fullmatch(name)
    assert found, "a node was asked for by name before"
    return int(found.group(1) or found.group(3)), int(found.group(2) or 0)


def read_scores(path: Path, shape: Shape | None = None) -> Scored:
    """A score file of EAP-IG or MIB, of a model of this shape. Raises InvalidOption with what is wrong.

    Without a shape each layer has the heads that the file says, and an MLP. Where nodes have no scores, a node's is the
    sum of the sizes of its outgoing edges' scores.
    """
    found, layers, heads, names = _graph(path, shape)
    scores = {names[name]: each for name, each in _node_scores(path, found["nodes"]) if name in names}
    source = f"node scores of {path.name}"
    if not scores:
        scores = _of_edges(path, found["edges"], names)
        source = f"scores of {path.name}: of each node the sizes of its outgoing edges' scores, added up"
    if missing := [name for name in names.values() if name not in scores]:
        raise InvalidOption(f"{path} has no score for {len(missing)} of {len(names)} nodes, such as {missing[0]!r}.")
    inside = frozenset(names[name] for name, each in found["nodes"].items() if name in names and _inside(each))
    return Scored(
        layers=layers,
        heads=heads,
        scores={name: scores[name] for name in names.values()},
        in_graph=inside,
        source=source,
    )


def read_edge_scores(path: Path, shape: Shape) -> Scored:
    """The edges' own scores of such a file, by our names. Raises InvalidOption with what is wrong.

    A file has keys and values for every head; where a layer has fewer, those of the heads that share one are added up.
    """
    found, layers, heads, names = _graph(path, shape)
    scores: dict[str, float] = {}
    inside: set[str] = set()
    for edge, each in found["edges"].items():
        name = _our_edge(path, edge, names | {"input": INPUT, "logits": "logits"}, shape)
        if not isinstance(each, dict):
            raise InvalidOption(f"{path} has {each!r} for the edge {edge!r}, and needs a table with its score.")
        scores[name] = scores.get(name, 0.0) + _number(path, edge, each.get("score"))
        if _inside(each):
            inside.add(name)
    if not scores:
        raise InvalidOption(f"{path} has no edges.")
    return Scored(
        layers=layers, heads=heads, scores=scores, in_graph=frozenset(inside), source=f"edge scores of {path.name}"
    )


def _our_edge(path: Path, edge: str, names: Mapping[str, str], shape: Shape) -> str:
    """An edge by our names, of a model of this shape. Raises InvalidOption."""
    found = EDGE.fullmatch(edge)
    sender, reader, end = found.groups() if found else ("", "", None)
    if sender not in names or reader not in names or (end is None) == reader.startswith("a"):
        raise InvalidOption(
            f"{path} has an edge {edge!r}, which is none. Edges are such as 'a0.h0->m0' or 'm0->a1.h0<q>'."
        )
    if end is None:
        return f"{names[sender]}{ARROW}{names[reader]}"
    layer, head = _place(names[reader])
    return f"{names[sender]}{ARROW}{end} {layer}.{head if end == 'q' else head // shape.shared[layer]}"


def _graph(path: Path, shape: Shape | None) -> tuple[Mapping[str, Any], int, int, dict[str, str]]:
    """The content, the numbers of layers and heads, and our names of its nodes. Raises InvalidOption."""
    found = _content(path)
    layers, heads = (_size(path, found["cfg"], name) for name in ("n_layers", "n_heads"))
    names = _nodes(layers, heads)
    if shape and (layers, heads) == (shape.layers, shape.heads):
        names = {theirs: ours for theirs, ours in names.items() if ours in shape.nodes}
    for name in found["nodes"]:
        if name not in names and name not in ENDS:
            raise InvalidOption(
                f"{path} has a node {name!r}, which {'this' if shape else 'a'} model of {layers} layers of {heads} "
                "heads has not. Nodes are such as 'a0.h0' and 'm0'."
            )
    return found, layers, heads, names


def _nodes(layers: int, heads: int) -> dict[str, str]:
    """Our names of all nodes of such a model, by theirs."""
    of_heads = {f"a{n}.h{m}": f"z {n}.{m}" for n in range(layers) for m in range(heads)}
    return of_heads | {f"m{n}": f"mlp_out {n}" for n in range(layers)}


def _content(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InvalidOption(f"{path} cannot be read as a score file: {error}") from None
    parts = ("cfg", "nodes", "edges")
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in parts):
        raise InvalidOption(f"{path} is no score file: it must be a table with the tables cfg, nodes and edges.")
    return found


def _size(path: Path, cfg: Mapping[str, Any], name: str) -> int:
    size = cfg.get(name)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InvalidOption(f"{path} is no score file: cfg must say {name}, a whole number; it says {size!r}.")
    return size


def _node_scores(path: Path, nodes: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, each in nodes.items():
        if isinstance(each, dict) and each.get("score") is not None and name not in ENDS:
            yield name, _number(path, name, each["score"])


def _of_edges(path: Path, edges: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    # A node without outgoing edges has the score 0; a file without any edges says nothing of nodes.
    found = dict.fromkeys(names.values(), 0.0) if edges else {}
    for edge, each in edges.items():
        sender, arrow, _ = edge.partition("->")
        if not arrow or (sender not in names and sender not in ENDS) or not isinstance(each, dict):
            raise InvalidOption(f"{path} has an edge {edge!r} that begins at no node. Edges are such as 'a0.h0->m0'.")
        if sender in names:
            found[names[sender]] += abs(_number(path, edge, each.get("score")))
    return found


def _number(path: Path, name: str, score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not isfinite(score):
        raise InvalidOption(f"{path} has the score {score!r} for {name!r}, which is no finite number.")
    return float(score)


def _inside(node: Any) -> bool:
    return bool(node.get("in_graph")) if isinstance(node, dict) else bool(node)


def write_scores(
    path: Path,
    scores: Mapping[str, float],
    kept: Iterable[str],
    *,
    width: int,
    parallel: bool,
    shape: Shape | None = None,
) -> Path:
    """Writes such a file; `kept` are the nodes in the graph, with all edges among them.

    Without a shape all layers have equally many heads, and an MLP. Raises InvalidOption, MachineError.
    """
    _require_heads(scores)
    theirs = {name: _theirs(name) for name in scores}
    inside = {*kept}
    layers, heads = (1 + max(numbers) for numbers in zip(*map(_place, shape.nodes if shape else scores), strict=True))
    there = shape.nodes if shape else [*_nodes(layers, heads).values()]
    if missing := [name for name in there if name not in scores]:
        raise InvalidOption(
            f"A score file has every head and MLP of its layers, and {len(missing)} of {len(there)} have no "
            f"score here, such as {missing[0]!r}: rank all of them."
        )
    nodes = {"input": {"in_graph": True}}
    nodes |= {theirs[name]: {"in_graph": name in inside, "score": score} for name, score in scores.items()}
    edges = dict(
        _edges([theirs[name] for name in scores if name in inside], {theirs[n]: s for n, s in scores.items()}, parallel)
    )
    cfg = {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": parallel, "d_model": width}
    content = {"cfg": cfg, "nodes": nodes | {"logits": {"in_graph": True}}, "edges": edges}
    write_text(path, json.dumps(content))
    return path


def _require_heads(nodes: Collection[str]) -> None:
    """Raises InvalidOption where nodes are no single heads and MLPs."""
    if not all(map(OURS.fullmatch, nodes)) or not any(name.startswith("z ") for name in nodes):
        raise InvalidOption(
            "A score file names single heads (z) and MLPs, and these nodes are others: no such file can be written."
        )


def _theirs(name: str) -> str:
    component, _, place = name.partition(" ")
    layer, _, head = place.partition(".")
    return f"a{layer}.h{head}" if component == "z" else f"m{layer}"


def _edges(kept: Sequence[str], scores: Mapping[str, float], parallel: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The edges among the nodes that are kept, from the input and to the logits."""
    for sender in ("input", *kept):
        for reader in (*kept, "logits"):
            if reader == "logits" or sender == "input" or _reads(sender, reader, parallel):
                # Their readers are queries, keys and values of a head, and each edge is named by which of them it is.
                for end in [f"<{each}>" for each in "qkv"] if reader.startswith("a") else [""]:
                    yield f"{sender}->{reader}{end}", {"score": scores.get(sender, 0.0), "in_graph": True}


def _reads(sender: str, reader: str, parallel: bool) -> bool:
    one, other = (THEIRS.fullmatch(name) for name in (sender, reader))
    assert one
    assert other
    layers = [int(each.group(1) or each.group(3) or 0) for each in (one, other)]
    return layers[1] > layers[0] or (layers[0] == layers[1] and sender[0] == "a" and reader[0] == "m" and not parallel)


def write_edge_scores(
    path: Path,
    scores: Mapping[str, float],
    kept: Iterable[str],
    *,
    width: int,
    parallel: bool,
    shape: Shape | None = None,
) -> Path:
    """Writes such a file of edges with scores of their own; `kept` are those in the graph.

    Without a shape all layers have equally many heads, keys and values. Raises InvalidOption, MachineError.
    """
    senders = dict.fromkeys(name.partition(ARROW)[0] for name in scores)
    nodes = [name for name in senders if name != INPUT]
    _require_heads(nodes)
    shape = shape or _even(nodes, [name.partition(ARROW)[2] for name in scores])
    inside = {*kept}
    edges = {
        theirs: {"score": score, "in_graph": name in inside}
        for name, whole in scores.items()
        for theirs, score in _their_edges(name, whole, shape)
    }
    used = {end for edge, each in edges.items() if each["in_graph"] for end in edge.partition("<")[0].split("->")}
    named = ["input", *map(_theirs, shape.nodes), "logits"]
    content = {
        "cfg": {"n_layers": shape.layers, "n_heads": shape.heads, "parallel_attn_mlp": parallel, "d_model": width},
        "nodes": {name: {"in_graph": name in ENDS or name in used} for name in named},
        "edges": edges,
    }
    write_text(path, json.dumps(content))
    return path


def _even(nodes: Sequence[str], readers: Iterable[str]) -> Shape:
    """The shape of a model all of whose layers have as many heads, and keys, as these name. Raises InvalidOption."""
    heads = _in_each((name for name in nodes if name.startswith("z ")), "heads")
    read = [name for name in dict.fromkeys(readers) if name.startswith(("k ", "v "))]
    keys = _in_each(read, "keys and values") or heads
    layers = {name.partition(" ")[2].partition(".")[0] for name in read}
    return Shape(nodes=tuple(nodes), shared=dict.fromkeys(map(int, layers), heads // keys))


def _in_each(names: Iterable[str], what: str) -> int:
    """How many heads each layer has by these names, such as "z 3.1". Raises InvalidOption where layers differ."""
    most: dict[str, int] = {}
    for name in names:
        layer, _, head = name.partition(" ")[2].partition(".")
        most[layer] = max(most.get(layer, 0), 1 + int(head))
    if len({*most.values()}) > 1:
        found = ", ".join(map(str, most.values()))
        raise InvalidOption(
            f"A score file has equally many {what} in every layer, and these have {found}: no such file can be written."
        )
    return next(iter(most.values()), 0)


def _their_edges(name: str, score: float, shape: Shape) -> Iterator[tuple[str, float]]:
    """What a file calls an edge, for every head that shares its reader, each with its share of the score."""
    sender, _, reader = name.partition(ARROW)
    start = "input" if sender == INPUT else _theirs(sender)
    end, _, place = reader.partition(" ")
    if end not in ("q", "k", "v"):
        yield f"{start}->{reader if end in ENDS else _theirs(reader)}", score
        return
    layer, head = map(int, place.split("."))
    count = 1 if end == "q" else shape.shared[layer]
    given = 0.0
    for number in range(count):
        # The last one has what is left, so that they add up to the score again, to the last bit.
        share = score / count if number < count - 1 else score - given
        yield f"{start}->a{layer}.h{head * count + number}<{end}>", share
        given += share
