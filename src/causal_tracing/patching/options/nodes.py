"""The options of circuits: a ranking of nodes or edges, the sizes of the sets, and how all else is ablated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from numbers import Real
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.kinds.receivers import receiver
from causal_tracing.patching.named_sites import node_site
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.declare import CIRCUIT, option
from causal_tracing.patching.options.node_texts import NODES, SIZE, SIZES
from causal_tracing.patching.options.paths import PathOptions

OF, HOW, BY = ("nodes", "edges"), ("kept", "restored"), ("size", "sign")
Nodes = Mapping[str, float] | Sequence[str]


def check_nodes(value: Any) -> None:
    """Names of nodes, or scores by name. Raises InvalidOption."""
    if isinstance(value, Mapping):
        for name, score in value.items():
            if isinstance(score, bool) or not isinstance(score, (float, Real)) or not isfinite(score):
                raise InvalidOption(f"circuit= has the score {score!r} for {name!r}, which is no finite number.")
    elif isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidOption(
            f'circuit= is a list of nodes, the first ones first, such as ["z 3.1", "mlp_out 0"], of edges, such as '
            f'["z 3.1 -> q 5.0"], or scores by name; it is {value!r}.'
        )
    if not value:
        raise InvalidOption("circuit= names nothing: name one node or edge at least.")
    for name in () if isinstance(value, Mapping) else value:  # scores are seldom typed, and may be of millions
        _check_item(name)


def _check_item(text: Any) -> None:
    """A node, or an edge: a sender, -> and a receiver. Whether a model has it is seen there. Raises InvalidOption."""
    sender, arrow, receives = text.partition("->") if isinstance(text, str) else (text, "", "")
    node_site(sender.strip() if arrow else sender)
    if arrow:
        receiver(receives.strip())


def check_size(what: str, value: Any) -> None:
    """A number of nodes or edges, or a share of them. Raises InvalidOption."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not (whole or (isinstance(value, float) and 0 < value <= 1)):
        raise InvalidOption(
            f"{what} is a number of at least 1, or a share of all there are such as 0.05; it is {value!r}."
        )


def check_sizes(value: Any) -> None:
    """Numbers of nodes or edges, or shares of them. Raises InvalidOption."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise InvalidOption(f"circuit_sizes= is a list of numbers or of shares, such as [10, 0.2]; it is {value!r}.")
    for size in value:
        check_size("A size of circuit_sizes=", size)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions(PathOptions):
    """Sets of nodes or edges that are kept while all else is ablated."""

    circuit: Nodes | None = option(
        None,
        help="Circuits: the first of these nodes (heads by z, and MLPs, at all tokens) or edges (z 3.1 -> q 5.0), in "
        "sets of growing size, while all others are ablated; how much of the behaviour each set keeps.",
        python='Names, the first ones first: ["z 23.4", "mlp_out 29"], or scores: {"z 23.4": 7.5, …}.',
        group=CIRCUIT,
        text=NODES,
        check=check_nodes,
        beside="circuit",
    )
    circuit_of: str = option(
        "nodes",
        help="What circuits are sets of: nodes, or edges. Of an edge that is cut its reader (a head's query, key or "
        "value, an MLP, the logits) reads what the sender adds in the other run, and all else is live.",
        group=CIRCUIT,
        text=texts.WORD,
        check=partial(validation.one_of, "kind of circuit", valid=OF),
        names=OF,
        beside="circuit",
    )
    circuit_by: str = option(
        "size",
        help="Scores are ranked by their size, whatever the sign (as CMD wants), or by sign, the most positive first "
        "(as CPR does).",
        group=CIRCUIT,
        text=texts.WORD,
        check=partial(validation.one_of, "way to rank", valid=BY),
        names=BY,
        beside="circuit",
    )
    circuit_sizes: Sequence[int | float] | None = option(
        None,
        help="Sizes of the sets: numbers, or shares of all there are such as 0.05 (default: the shares of the "
        "benchmark MIB, 0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1). The empty set and everything are always "
        "measured.",
        group=CIRCUIT,
        text=SIZES,
        check=check_sizes,
        beside="circuit",
    )
    circuit_how: str = option(
        "kept",
        help="kept: in the clean run all but the set is ablated, and the set computes live from what it gets. "
        "restored: the set's clean activations are put into the corrupt run. These are different worlds.",
        group=CIRCUIT,
        text=texts.WORD,
        check=partial(validation.one_of, "world of a circuit", valid=HOW),
        names=HOW,
        always=True,
        beside="circuit",
    )
    circuit_input: bool = option(
        True,
        help="Whether every set of nodes but the empty one keeps the embedding. It is never a part of the count.",
        group=CIRCUIT,
        text=texts.SWITCH,
        beside="circuit",
    )
    circuit_source: str = option(
        "",
        help="Where the ranking comes from, in words: it is kept with the result.",
        group=CIRCUIT,
        text=texts.WORD,
        beside="circuit",
    )
    circuit_tested: int | float | None = option(
        None,
        help="The size of the set that is tested for completeness and minimality, a number or a share of all there "
        "are: single ones and random subsets are taken out of it, and out of the whole model.",
        group=CIRCUIT,
        text=SIZE,
        check=partial(check_size, "circuit_tested="),
        beside="circuit",
    )
    circuit_subsets: int = option(
        3,
        help="How many random subsets of that set are taken out; seed chooses them.",
        group=CIRCUIT,
        text=texts.NUMBER,
        check=partial(validation.whole, "circuit_subsets=", least=0, most=100),
        beside="circuit_tested",
    )
