"""Values that cannot be meant: each is one clear error where it comes in, and never runs something else instead.

The tests' own type checker would speak first, so all is run once in a process without it (`outcomes`).
"""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import causal_tracing as ct
from forked_driver import executed
from joint import tiny

PAIR = ct.Pair(clean=" w11 w12 w13 w14", corrupt=" w11 w12 w43 w14", answer=" w7", foil=" w8")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"components": "resid_post"}, r"Give the components as a list, such as \['resid_post'\]"),
    ({"components": 3}, "the components must be a list, such as .*; it is 3"),
    ({"directions": 3}, "the directions must be a list"),
    ({"layers": 3}, r"the layers must be a list, such as \[0, 1\]; it is 3"),
    ({"layers": ["a"]}, "There is no layer 'a': tiny has layers 0 to 3"),
    ({"layers": [True]}, "There is no layer True"),
    ({"layers": []}, "No layer was asked for: tiny has layers 0 to 3"),
    ({"positions": 3}, "positions= must be a list"),
    ({"positions": [2.5]}, "positions= holds 2.5, which is neither a position nor a role"),
    ({"window": "10"}, "The window of resid_post must be a whole number of at least 1; it is '10'"),
    ({"window": 2.5}, "must be a whole number of at least 1; it is 2.5"),
    ({"window": {"mlp_out": True}}, "The window of mlp_out must be a whole number"),
    ({"noise": "3sigma"}, r"noise= must be a Noise, such as Noise\(scale=3.0\); it is '3sigma'"),
    ({"sever": 3}, "the part to severs must be a list"),
    ({"direct": 3}, "the direct paths must be a list"),
    ({"direct": ["mlps_live", "mlps_live"]}, "The direct path 'mlps_live' is asked for twice"),
    ({"preset": 1}, "There is no preset 1. Valid: rome"),
    ({"metric": 3}, "metric= is a name, a Metric, or a list of such; it is 3"),
    ({"heads": 3}, "the heads' components must be a list"),
    ({"heads": True, "head_positions": 3}, "positions= must be a list"),
    ({"neurons": [1, 2]}, r"neurons= is True .*, or a mapping from layers to neurons.*; it is \[1, 2\]"),
    ({"neurons": "all"}, "it is 'all'"),
    ({"neurons": 2}, "it is 2"),
    ({"neurons": {}}, "it is {}"),
    ({"neurons": {"a": [1]}}, "There is no layer 'a'"),
    ({"neurons": {1: 3}}, "the neurons must be a list"),
    ({"neurons": {1: ["x"]}}, "There is no neuron 'x': layer 1 of tiny has neurons 0 to 63"),
    ({"engine": 3}, "There is no engine 3. Valid: auto, packed, replay"),
    ({"budget": "1"}, "must be a whole number of at least 1; it is '1'"),
    ({"seed": -1}, "seed= must be a whole number of at least 0; it is -1"),
    ({"seed": "a"}, "seed= must be a whole number"),
    ({"spot_checks": 1.5}, "must be a whole number of at least 0; it is 1.5"),
    ({"lens": "no"}, "lens= is True or False; it is 'no'"),
    ({"window_sums": 0}, "window_sums= is True or False; it is 0"),
    ({"positions": [-1, 3]}, "positions= names one place twice: -1 and 3 are both 3. Name each once"),
    ({"positions": [2, "last", 2]}, "positions= names one place twice: 2 and 2 are both 2"),
    ({"positions": ["last", "last"]}, "positions= names one place twice: 'last' and 'last' are both last"),
    ({"heads": True, "head_positions": [0, -4]}, "positions= names one place twice: 0 and -4 are both 0"),
    ({"neurons": True, "neuron_positions": [np.int64(1), -3]}, "positions= names one place twice: 1 and -3 are both 1"),
    ({"layers": [1, 0, np.int64(1)]}, "The layer 1 is asked for twice. Name each once"),
    ({"components": ["mlp_out", "mlp_out"]}, "The component 'mlp_out' is asked for twice"),
    ({"directions": ["disruption", "disruption"]}, "The direction 'disruption' is asked for twice"),
    ({"sever": ["mlp_out", "mlp_out"]}, "The part to sever 'mlp_out' is asked for twice"),
    ({"heads": ["z", "z"]}, "The heads' component 'z' is asked for twice"),
    ({"neurons": {1: [5, 5]}}, "The neuron 5 is asked for twice"),
    ({"circuit": "z 1.0"}, r"circuit= is a list of nodes, .*, or scores by name; it is 'z 1.0'"),
    ({"circuit": 3}, "circuit= is a list of nodes"),
    ({"circuit": {"z 1.0": "a"}}, "circuit= has the score 'a' for 'z 1.0', which is no finite number"),
    ({"circuit": ["z 1.0"], "circuit_sizes": "5"}, "circuit_sizes= is a list of numbers or of shares"),
    ({"circuit": ["z 1.0"], "circuit_sizes": [True]}, "is a number of at least 1, or a share"),
    ({"circuit": ["z 1.0"], "circuit_subsets": -1}, "circuit_subsets= must be a whole number of at least 0; it is -1"),
    ({"circuit_tested": 3}, "circuit_tested=3 counts beside circuit= alone, and that is not asked for"),
    ({"circuit": ["mlp_out 0"], "circuit_subsets": 5}, "circuit_subsets=5 counts beside circuit_tested= alone"),
    ({"receivers": ["logits"]}, "counts beside senders= alone, and that is not asked for"),
    ({"knockout_query": 3}, "knockout_query=3 counts beside knockout= alone"),
    ({"edge_keys": "first"}, "counts beside edges= alone"),
    ({"head_positions": [1]}, r"head_positions=\[1\] counts beside heads= alone"),
    ({"neuron_positions": ["last", 1]}, "counts beside neurons= alone"),
    ({"growing": True}, "counts beside sets= alone"),
    ({"circuit": ["z 1.0"], "noise": ct.Noise()}, "circuit= compares two prompts as they are"),
    ({"circuit": ["z 1.0"], "directions": ["restoration"]}, "circuit_how='kept' is a disruption"),
]


BAD_NOISE: list[dict[str, Any]] = [{"scale": "a"}, {"scale": -1}, {"sigma": np.inf}, {"draws": 2.5}, {"seed": "x"}]
NO_PAIRS: list[Any] = ["hello", 3, [PAIR, "hello"], {"clean": "a"}]


BAD_WRITES: list[tuple[dict[str, Any], str]] = [
    ({"kind": 3}, "There is no kind of write 3"),
    ({"alpha": "half"}, "alpha= must be a finite number"),
    ({"kind": "mean", "prompts": "a text"}, "prompts= must be a list, of texts"),
    ({"kind": "given", "tensors": [1.0]}, r"tensors= maps \(component, layer\) to tensors; it is \[1.0\]"),
    ({"kind": "given", "tensors": {"resid_post": [1.0]}}, r"is by \(component, layer\).*it has 'resid_post'"),
]


def by_its_number() -> object:
    model = tiny()
    return ct.trace(model, replace(PAIR, spans={"2": "w12"}), positions=[2, "2"])


OTHERS: list[tuple[Callable[[Any], object], str]] = [
    (lambda _: ct.open_trace(None), "InvalidResults: A folder's name is needed, and this is None"),  # pyright: ignore[reportArgumentType]
    (lambda _: ct.compare("x", "y"), "InvalidOption: Two traces are compared"),  # pyright: ignore[reportArgumentType]
    (lambda _: ct.Pair(clean="a", answer=" b", labels=[1]), "InvalidPair: this pair: labels must map names"),  # pyright: ignore[reportArgumentType]
    (lambda model: ct.run(model, [], tempfile.mkdtemp()), "InvalidPair: There is no pair to trace: the list is empty"),
]


def outcome(run: Callable[[], object]) -> str:
    try:
        run()
    except ct.CausalTracingError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was said"


def outcomes() -> dict[str, Any]:
    """What is said of every bad value, and what numpy's numbers give."""
    model = tiny()
    asks: list[Callable[..., object]] = [ct.trace, ct.preview, ct.estimate, ct.attribute]
    numbers: dict[str, Any] = {"layers": np.arange(2), "positions": np.array([2])}
    numbers["neurons"] = {np.int64(1): np.array([3])}
    found = ct.trace(model, PAIR, **numbers)
    return {
        "options": [outcome(lambda given=given: ct.trace(model, PAIR, **given)) for given, _ in BAD],
        "noise": [outcome(lambda given=given: ct.Noise(**given)) for given in BAD_NOISE],
        "writes": [outcome(lambda given=given: ct.Write(**given)) for given, _ in BAD_WRITES],
        "write": outcome(lambda: ct.trace(model, PAIR, write=numbers["layers"])),
        "others": [outcome(lambda call=call: call(model)) for call, _ in OTHERS],
        "shard": outcome(lambda: ct.run(model, PAIR, tempfile.mkdtemp(), shard=None)),  # pyright: ignore[reportArgumentType]
        "pairs": [outcome(lambda ask=ask, given=given: ask(model, given)) for given in NO_PAIRS for ask in asks],
        "numpy": [found.effects.layer.values.tolist(), found.effects.position.values.tolist()],
        "numpy's neurons": [found.provenance["options"]["neurons"], found.neurons.restoration.notnull().sum().item()],
    }


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    done = executed("import json, test_validation; print(json.dumps(test_validation.outcomes()))")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(BAD)), ids=[str(options) for options, _ in BAD])
def test_values_that_cannot_be_meant(said, number):
    assert re.match(f"InvalidOption: .*{BAD[number][1]}", said["options"][number], re.DOTALL)


def test_a_span_that_is_called_as_a_position_is():
    assert outcome(by_its_number).startswith("InvalidPair: this pair: a span cannot be called '2': as a position it")


def test_noise_that_cannot_be_meant(said):
    assert [text.partition(":")[0] for text in said["noise"]] == ["InvalidOption"] * len(BAD_NOISE)


def test_writes_and_shards_that_cannot_be_meant(said):
    for text, (_, message) in zip(said["writes"], BAD_WRITES, strict=True):
        assert re.match(f"InvalidOption: .*{message}", text, re.DOTALL), text
    assert said["write"].startswith("InvalidOption: write= is one of donor, zero")
    assert said["shard"].startswith("InvalidOption: shard= is (i, n)")


def test_what_is_no_pair(said):
    assert len(said["pairs"]) == 4 * len(NO_PAIRS)
    assert all(text.startswith("InvalidPair: A pair is needed") for text in said["pairs"])


def test_what_is_no_folder_trace_or_label(said):
    for text, (_, expected) in zip(said["others"], OTHERS, strict=True):
        assert text.startswith(expected), text


def test_numpys_numbers_are_numbers(said):
    assert said["numpy"] == [[0, 1], [2]]
    assert said["numpy's neurons"] == [{"1": [3]}, 1]  # one cell, by the metric that is shown
