"""Models whose layers differ in their heads and neurons: each layer has its own, and what it lacks has no number."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.models.model import Model
from loaded import WORDS
from uneven import LAYERS, SIZE, network

CLEAN, CORRUPT = (5, 17, 32, 11, 40, 33, 8), (5, 23, 32, 11, 45, 33, 8)
PAIR = ct.Pair(
    clean=" ".join(f"w{n}" for n in CLEAN), corrupt=" ".join(f"w{n}" for n in CORRUPT), answer=" w9", foil=" w12"
)
AT = {"metric": "logit_diff", "pair": "pair-0"}
HEADS, SHARED, NEURONS = zip(*LAYERS, strict=True)
PROJECTIONS = {"z": "self_attn.o_proj", "q": "self_attn.q_proj", "v": "self_attn.v_proj", "neurons": "mlp.down_proj"}
Hook = Callable[[Tensor], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


@cache
def loaded() -> Model:
    return ct.load(network(), tokenizer=WORDS)


def logit_diff(tokens: tuple[int, ...], path: str = "", hook: Hook | None = None, *, gives: bool = False) -> float:
    """The difference of the two logits, where a hook changes what a module takes, or what it `gives`."""
    whole = loaded().network
    module = whole.get_submodule(path)
    if hook is None:
        handle = module.register_forward_hook(lambda *_: None)
    elif gives:
        handle = module.register_forward_hook(lambda _, __, output: hook(output))
    else:
        handle = module.register_forward_pre_hook(lambda _, args: (hook(args[0]), *args[1:]))
    with torch.no_grad():
        logits = whole(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    handle.remove()
    return (logits[9] - logits[12]).item()


def by_hand(component: str, layer: int, position: int, part: slice) -> float:
    """What comes back where some numbers of a module's input (or output) are the clean run's at one token."""
    path, gives = f"model.layers.{layer}.{PROJECTIONS[component]}", component in ("q", "v")
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value.clone())
        return value

    def put(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[:, position, part] = seen[0][:, position, part]
        return changed

    logit_diff(CLEAN, path, keep, gives=gives)
    return logit_diff(CORRUPT, path, put, gives=gives) - logit_diff(CORRUPT)


def head(number: int) -> slice:
    return slice(number * SIZE, (number + 1) * SIZE)


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_each_layer_has_its_own_heads_and_what_it_lacks_has_no_number(engine: str):
    trace = ct.trace(loaded(), PAIR, components=(), heads=["z", "q", "v"], engine=engine, progress=False)
    found = trace.of("heads").sel(AT)
    assert found.sizes["head"] == max(HEADS)
    for layer, (heads, shared, _) in enumerate(LAYERS):
        for component, count in (("z", heads), ("q", heads), ("v", shared)):
            here = found.sel(component=component, layer=layer).transpose("head", "position", ...)
            assert (here.status[count:] == "unpaired").all()
            assert here.restoration[count:].isnull().all()
            assert here.restoration[:count].notnull().all()
            for position, number in ((1, 0), (4, count - 1), (6, count // 2)):
                expected = by_hand(component, layer, position, head(number))
                assert here.restoration[number, position].item() == pytest.approx(expected, abs=1e-4)
    assert not found.readers.values.any()  # who reads a head of keys is another matter in each layer


def test_neurons_are_those_of_their_layer():
    model = loaded()
    trace = ct.trace(model, PAIR, components=(), neurons=True, neuron_positions=[6], progress=False)
    found = trace.of("neurons").restoration.sel(AT).sel(component="neurons").isel(position=0)
    for layer, count in enumerate(NEURONS):
        assert found.sel(layer=layer).notnull().values.tolist() == [n < count for n in range(max(NEURONS))]
        expected = by_hand("neurons", layer, 6, slice(count - 1, count))
        assert found.sel(layer=layer)[count - 1].item() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InvalidOption, match=r"There is no neuron 16: layer 0 of .* has neurons 0 to 15"):
        ct.trace(model, PAIR, components=(), neurons={0: [16]}, progress=False)


def test_what_names_heads_knows_those_of_each_layer():
    model = loaded()
    named = {"sets": {"one": ["z 2.5 @ 4"]}, "knockout": ["heads"], "edges": ["v"], "edge_heads": ["2.5", "3", "0"]}
    trace = ct.trace(model, PAIR, components=(), **named, progress=False)
    said = trace.of("sets").restoration.sel(AT).squeeze().item()
    assert said == pytest.approx(by_hand("z", 2, 4, head(5)), abs=1e-4)
    blind = trace.of("knockout_heads").disruption.sel(AT).squeeze("component").notnull().any("position")
    for layer, heads in enumerate(HEADS):
        assert blind.sel(layer=layer).values.tolist() == [n < heads for n in range(max(HEADS))]
    edges = trace.of("edges").restoration.sel(AT).squeeze("component").notnull().any("position")
    assert [edges.sel(layer=layer).values.nonzero()[0].tolist() for layer in (0, 2, 3)] == [[0, 1], [5], [0]]
    with pytest.raises(InvalidOption, match=r"There is no part 2: layer 0 of .* \(z\) has parts 0 to 1"):
        ct.trace(model, PAIR, components=(), sets={"one": ["z 0-2.2 @ 4"]}, progress=False)
    with pytest.raises(InvalidOption, match=r"There is no head 1: layer 3 of .* has heads 0 to 0"):
        ct.trace(model, PAIR, components=(), edges=["v"], edge_heads=["2-3.1"], progress=False)
    each = ct.trace(model, PAIR, components=(), interactions=["each z 2-3 @ last"], progress=False, spot_checks=0)
    assert each.of("interactions").sizes["site"] == 7 + 1  # and each alone


def test_given_tensors_are_of_each_layers_size():
    tensors = {("z", layer): torch.zeros(heads, SIZE) for layer, heads in enumerate(HEADS)}
    asked = {"components": (), "heads": ["z"], "directions": ["disruption"], "progress": False}
    trace = ct.trace(loaded(), PAIR, write=ct.Write("given", tensors=tensors), **asked)
    zero = ct.trace(loaded(), PAIR, write="zero", **asked)
    both = (each.of("heads").disruption.sel(AT).values for each in (trace, zero))
    np.testing.assert_allclose(*both, atol=1e-5)
    tensors["z", 2] = torch.zeros(4, SIZE)
    with pytest.raises(InvalidOption, match=r"The tensor for z of layer 2 must have 6 rows"):
        ct.trace(loaded(), PAIR, write=ct.Write("given", tensors=tensors), **asked)


def test_nodes_of_a_circuit_and_estimates_are_of_each_layers_heads():
    trace = ct.circuit(loaded(), PAIR, ranking="exact", sizes=[2], progress=False, spot_checks=0)
    nodes = {*trace.provenance["options"]["circuit"]}
    assert nodes == {f"z {n}.{h}" for n, count in enumerate(HEADS) for h in range(count)} | {
        f"mlp_out {n}" for n in range(4)
    }
    found = ct.attribute(loaded(), PAIR, components=["z"], verify=3, sample=3, progress=False)
    estimated = np.isfinite(found.estimates["z"].values[0]).all(1)  # [layer, head]
    assert estimated.tolist() == [[n < heads for n in range(max(HEADS))] for heads in HEADS]


def test_where_no_layer_is_named_there_is_no_one_number_of_heads():
    with pytest.raises(ComponentNotOffered, match=r"equally many of z, and those of this model \(llama\) have 2, 4, 6"):
        loaded().parts("z")
    assert loaded().parts("z", 2) == 6


def test_a_check_says_how_many_each_layer_has():
    checkup = ct.check(loaded())
    assert checkup.to_dict()["mediators"]["z"] == [*HEADS]
    assert "z (by layer 2 4 6 1)" in str(checkup)
    assert all(finding.holds for finding in checkup.findings)
