"""Models of which some layers have no heads, or are not passed by a text: what is there is exact, the rest is named."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial

import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.models.model import Model
from loaded import WORDS
from model_types.anatomy import find
from model_types.attention import Attention, Cell, visiting
from model_types.prompts import random_prompt
from model_types.recipes import build

CLEAN, CORRUPT = (5, 17, 32, 11, 40, 33, 8), (5, 23, 32, 11, 45, 33, 8)
PAIR = ct.Pair(
    clean=" ".join(f"w{n}" for n in CLEAN), corrupt=" ".join(f"w{n}" for n in CORRUPT), answer=" w9", foil=" w12"
)
AT = {"metric": "logit_diff", "pair": "pair-0"}
# A hybrid, the layers of it that attend, and the module of such a layer that reads the heads' outputs.
HYBRIDS = {
    "lfm2": ([1, 3], "self_attn.out_proj"),
    "bamba": ([1, 3], "self_attn.o_proj"),
    "jamba": ([1, 3], "self_attn.o_proj"),
    "minimax": ([1, 3], "self_attn.o_proj"),
    "nemotron_h+mixed": ([1], "mixer.o_proj"),
    "zamba": ([1, 3], "shared_transf.self_attn.o_proj"),
    "gemma4_text": ([0, 1, 2, 3], "self_attn.o_proj"),  # all attend, by heads of two sizes
}
Hook = Callable[[Tensor], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


@cache
def loaded(name: str) -> Model:
    return ct.load(build(name), tokenizer=WORDS)


def logit_diff(network: nn.Module, tokens: Sequence[int], inputs: dict[str, Hook], outputs: dict[str, Hook]) -> float:
    """The difference of the two logits where hooks change what these modules take in or give out."""

    def before(hook: Hook, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (hook(args[0]), *args[1:])

    def behind(hook: Hook, _: nn.Module, __: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]):
        return (hook(output[0]), *output[1:]) if isinstance(output, tuple) else hook(output)

    with ExitStack() as stack, torch.no_grad():
        for path, hook in inputs.items():
            handle = network.get_submodule(path).register_forward_pre_hook(partial(before, hook))
            stack.callback(handle.remove)
        for path, hook in outputs.items():
            handle = network.get_submodule(path).register_forward_hook(partial(behind, hook))
            stack.callback(handle.remove)
        logits = network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return (logits[9] - logits[12]).item()


class Moved:
    """What one run has at these modules, and hooks that put a part of it into another run at one token."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def keep(self, path: str, value: Tensor) -> Tensor:
        self.seen[path] = value.clone()
        return value

    def put(self, path: str, position: int, part: slice, value: Tensor) -> Tensor:
        changed = value.clone()
        changed[:, position, part] = self.seen[path][:, position, part]
        return changed


@pytest.mark.parametrize("name", HYBRIDS)
def test_heads_are_those_of_the_layers_that_attend(name: str):
    model, (layers, projection) = loaded(name), HYBRIDS[name]
    trace = ct.trace(model, PAIR, components=(), heads=["z", "q", "v"], progress=False)
    found = trace.of("heads").restoration.sel(AT)
    assert found.layer.values.tolist() == layers
    network, count = model.network, model.parts("z")
    corrupt = logit_diff(network, CORRUPT, {}, {})
    for layer, position, head in ((layers[0], 1, 0), (layers[-1], 4, count - 1), (layers[-1], 6, 1)):
        path, moved = f"{model.anatomy.layers}.{layer}.{projection}", Moved()
        logit_diff(network, CLEAN, {path: partial(moved.keep, path)}, {})
        size = moved.seen[path].shape[-1] // count
        part = slice(head * size, (head + 1) * size)
        expected = logit_diff(network, CORRUPT, {path: partial(moved.put, path, position, part)}, {}) - corrupt
        said = found.sel(component="z", layer=layer, head=head).isel(position=position).item()
        assert said == pytest.approx(expected, abs=1e-4), (layer, position, head)


def cell_of(effects: xr.DataArray, component: str, layer: int, position: int, head: int) -> Cell:
    """One head at one token, of as many heads as the layer has effects of."""
    parts = int(effects.sel(component=component, layer=layer).notnull().any("position").sum())
    return Cell(component=component, layer=layer, position=position, part=head, parts=parts)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next", "afmoe"])
def test_queries_and_values_are_what_the_attention_function_is_given_whatever_gate_stands_behind_it(name: str):
    model = loaded(name)
    found = find(model.network, [random_prompt(9, seed=seed) for seed in range(4)])
    trace = ct.trace(model, PAIR, components=(), heads=["q", "v", "pattern"], progress=False)
    effects = trace.of("heads").restoration.sel(AT)
    clean, corrupt = Attention.of_run(model.network, found, CLEAN), logit_diff(model.network, CORRUPT, {}, {})
    for component, head in (("q", 3), ("v", 1), ("pattern", 2)):
        for layer, position in ((effects.layer.values[0], 4), (effects.layer.values[-1], 6)):
            cell = cell_of(effects, component, int(layer), position, head)
            logits = clean.patched(model.network, found, CORRUPT, cell)[-1]
            said = effects.sel(component=component, layer=layer, head=head).isel(position=position).item()
            assert said == pytest.approx((logits[9] - logits[12]).item() - corrupt, abs=1e-4), (component, layer)


def test_where_attention_scales_what_it_mixes_only_the_pattern_is_refused():
    """Sinks behind the softmax: no pattern gives what attention gives, and heads are what they are all the same."""
    model = loaded("granite_swa")
    with pytest.raises(
        ComponentNotOffered, match=r"pattern is not offered on this model \(granite_swa\): its check fail"
    ):
        ct.trace(model, PAIR, components=(), heads=["pattern"], progress=False)
    found = find(model.network, [random_prompt(9, seed=seed) for seed in range(4)])
    trace = ct.trace(model, PAIR, components=(), heads=["q", "k", "v", "z"], progress=False)
    effects = trace.of("heads").restoration.sel(AT)
    clean, corrupt = Attention.of_run(model.network, found, CLEAN), logit_diff(model.network, CORRUPT, {}, {})
    for component, head in (("q", 3), ("k", 1), ("v", 1)):
        for layer, position in ((0, 4), (3, 6)):
            cell = cell_of(effects, component, layer, position, head)
            logits = clean.patched(model.network, found, CORRUPT, cell)[-1]
            said = effects.sel(component=component, layer=layer, head=head).isel(position=position).item()
            assert said == pytest.approx((logits[9] - logits[12]).item() - corrupt, abs=1e-4), (component, layer)
    path, moved = "model.layers.2.self_attn.o_proj", Moved()
    logit_diff(model.network, CLEAN, {path: partial(moved.keep, path)}, {})
    size = moved.seen[path].shape[-1] // model.parts("z")
    put = partial(moved.put, path, 4, slice(size, 2 * size))
    expected = logit_diff(model.network, CORRUPT, {path: put}, {}) - corrupt
    assert effects.sel(component="z", layer=2, head=1).isel(position=4).item() == pytest.approx(expected, abs=1e-4)


@contextmanager
def hidden(network: nn.Module, layers: Sequence[int], key: int) -> Iterator[None]:
    """In these layers the last query does not see a key: its pattern without it, made up to 1 again."""

    def without(layer: int, name: str, value: Tensor) -> Tensor:
        if name != "pattern" or layer not in layers:
            return value
        changed = value.clone()
        changed[:, -1, key] = 0
        changed[:, -1] /= changed[:, -1].sum(-1, keepdim=True)
        return changed

    found = find(network, [random_prompt(9, seed=seed) for seed in range(4)])
    with visiting(network, found, without):
        yield


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next"])
def test_a_window_of_a_hybrid_hides_keys_in_those_of_its_layers_that_attend(name: str):
    """ROME's windows around layer 3 of four, cut at the edge: layer 3, layers 2 and 3, layers 1 to 3."""
    model = loaded(name)
    clean = logit_diff(model.network, CLEAN, {}, {})
    layers = {"lfm2": [1, 3], "qwen3_next": [3]}[name]
    for width, attending in ((1, [3]), (3, [3]), (4, layers)):
        cut = {"knockout_window": width, "knockout_cut": True}
        trace = ct.trace(model, PAIR, components=(), knockout=True, progress=False, **cut)
        effects = trace.of("knockout").disruption.sel(AT).squeeze("component")
        assert effects.layer.values.tolist() == layers
        for key in (0, 4):
            with hidden(model.network, attending, key):
                expected = clean - logit_diff(model.network, CLEAN, {}, {})
            said = effects.sel(layer=3).isel(position=key).item()
            assert said == pytest.approx(expected, abs=1e-4), (width, key)
            assert abs(said) > 1e-3


def test_a_layer_without_heads_is_named():
    model = loaded("lfm2")
    message = r"z is not there in layer 0 of this model \(lfm2\), which has no attention heads\. Layers that have: 1, 3"
    with pytest.raises(ComponentNotOffered, match=message):
        ct.trace(model, PAIR, components=(), heads=["z"], layers=[0], progress=False)
    with pytest.raises(ComponentNotOffered, match=message.replace("z is", "attention is")):
        ct.trace(model, PAIR, components=(), edges=["v"], edge_heads=["0.1"], progress=False)
    with pytest.raises(ComponentNotOffered, match=message):
        ct.trace(model, PAIR, components=(), sets={"a": ["z 0.1 @ last"]}, progress=False)


def test_paths_of_a_hybrid_lead_to_the_heads_that_it_has_and_to_what_mixes_elsewhere():
    model = loaded("lfm2")
    trace = ct.paths(model, PAIR, senders=["mlp_out 0 @ last"], spot_checks=0, progress=False)
    receivers = trace.of("paths").receiver.values.tolist()
    assert {"q 1.0", "k 3.1", "v 1.0", "attn_out 0", "attn_out 2", "mlp_out 2", "logits"} <= {*receivers}
    assert not {"q 0.0", "q 2.0", "attn_out 1"} & {*receivers}
    with pytest.raises(ComponentNotOffered, match="q is not there in layer 0 of this model"):
        ct.paths(model, PAIR, senders=["mlp_out 0 @ last"], receivers=["q"], progress=False)


def test_nodes_of_a_hybrid_are_heads_where_there_are_any_and_mixers_elsewhere():
    model = loaded("lfm2")
    trace = ct.circuit(model, PAIR, ranking="exact", sizes=[1, 5], progress=False)
    names = [*trace.provenance["options"]["circuit"]]
    assert {"attn_out 0", "z 1.0", "z 3.3", "mlp_out 0"} <= {*names}
    assert not {"attn_out 1", "z 0.0"} & {*names}
    curve = trace.circuit().curve
    assert curve["size"].tolist() == [0, 1, 5, len(names)]
    assert curve.metric.iloc[-1] == pytest.approx(logit_diff(model.network, CLEAN, {}, {}), abs=1e-4)


def test_where_a_gate_stands_behind_heads_their_attention_is_a_node_as_a_whole():
    """What goes into the last projection is then no head's output, which is known once it was tried."""
    model = loaded("qwen3_next+full")
    trace = ct.circuit(model, PAIR, ranking="exact", sizes=[1], progress=False, spot_checks=0)
    assert {*trace.provenance["options"]["circuit"]} == {
        f"{part}_out {layer}" for part in ("attn", "mlp") for layer in range(4)
    }


# Layers that a text does not pass


def test_windows_are_of_the_layers_that_a_text_passes():
    model = loaded("mllama+cross1")
    assert model.anatomy.idle == (1,)
    trace = ct.trace(model, PAIR, components=["attn_out"], window=2, progress=False, spot_checks=0)
    effects = trace.effects.sel(AT).sel(component="attn_out")
    assert effects.window_first.values.tolist() == [0, 2, -1]
    assert effects.window_last.values.tolist() == [2, 3, -1]
    paths = [f"{model.anatomy.layers}.{layer}.self_attn" for layer in (0, 2)]
    moved, network = Moved(), model.network
    logit_diff(network, CLEAN, {}, {path: partial(moved.keep, path) for path in paths})
    put = {path: partial(moved.put, path, 4, slice(None)) for path in paths}
    expected = logit_diff(network, CORRUPT, {}, put) - logit_diff(network, CORRUPT, {}, {})
    assert effects.restoration.sel(layer=0).isel(position=4).item() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InvalidOption, match=r"A window of 4 layers \(attn_out\) is not possible: .* has 3 layers"):
        ct.trace(model, PAIR, components=["attn_out"], window=4, progress=False)


def test_what_is_severed_behind_a_state_are_the_layers_that_a_text_passes():
    model = loaded("mllama+cross1")
    trace = ct.trace(model, PAIR, components=["resid_post"], sever=["mlp_out"], progress=False, spot_checks=0)
    said = trace.effects.severed_mlp_out.sel(AT).sel(component="resid_post", layer=0).isel(position=4).item()
    network, moved, base = model.network, Moved(), Moved()
    whole, mlps = f"{model.anatomy.layers}.0", [f"{model.anatomy.layers}.{layer}.mlp" for layer in (2, 3)]
    logit_diff(network, CLEAN, {}, {whole: partial(moved.keep, whole)})
    corrupt = logit_diff(network, CORRUPT, {}, {path: partial(base.keep, path) for path in mlps})
    put = {path: partial(base.put, path, 4, slice(None)) for path in mlps}
    expected = logit_diff(network, CORRUPT, {}, put | {whole: partial(moved.put, whole, 4, slice(None))}) - corrupt
    assert said == pytest.approx(expected, abs=1e-4)
