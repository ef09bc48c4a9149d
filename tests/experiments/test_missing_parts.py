"""Models of which some layers have no attention, or no MLP: what is there is exact, and has no number elsewhere."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import causal_tracing as ct
from causal_tracing.errors import ComponentNote, ComponentNotOffered
from causal_tracing.models.model import Model
from loaded import WORDS
from pruned import ATTENDS, EVERY, HAS_MLP, network

CLEAN, CORRUPT = (5, 17, 32, 11, 40, 33, 8), (5, 23, 32, 11, 45, 33, 8)
PAIR = ct.Pair(
    clean=" ".join(f"w{n}" for n in CLEAN), corrupt=" ".join(f"w{n}" for n in CORRUPT), answer=" w9", foil=" w12"
)
AT = {"metric": "logit_diff", "pair": "pair-0"}
HAVING = {"attn_out": ATTENDS, "mlp_out": HAS_MLP, "resid_mid": (0, 3)}
MODULES = {"attn_out": "self_attn", "mlp_out": "mlp"}
Hook = Callable[[Tensor], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")


@cache
def loaded(attends: tuple[int, ...] = ATTENDS) -> Model:
    return ct.load(network(attends), tokenizer=WORDS)


def run(tokens: tuple[int, ...], hooks: Mapping[str, Hook], attends: tuple[int, ...] = ATTENDS) -> float:
    """The difference of the two logits where hooks change what modules give."""

    def behind(hook: Hook, _: Any, __: Any, output: Any) -> Any:
        return (hook(output[0]), *output[1:]) if isinstance(output, tuple) else hook(output)

    whole = loaded(attends).network
    with ExitStack() as stack, torch.no_grad():
        for path, hook in hooks.items():
            handle = whole.get_submodule(f"model.layers.{path}").register_forward_hook(partial(behind, hook))
            stack.callback(handle.remove)
        logits = whole(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return (logits[9] - logits[12]).item()


def by_hand(paths: list[str], position: int, held: tuple[str, ...] = (), attends: tuple[int, ...] = ATTENDS) -> float:
    """What comes back with these modules' clean outputs at one token, and others held there as they are."""
    seen: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def keep(path: str, tokens: tuple[int, ...], value: Tensor) -> Tensor:
        seen[path, tokens] = value.clone()
        return value

    def put(path: str, tokens: tuple[int, ...], value: Tensor) -> Tensor:
        changed = value.clone()
        changed[:, position] = seen[path, tokens][:, position]
        return changed

    for tokens in (CORRUPT, CLEAN):
        run(tokens, {path: partial(keep, path, tokens) for path in (*paths, *held)}, attends)
    hooks = {path: partial(put, path, CLEAN) for path in paths} | {path: partial(put, path, CORRUPT) for path in held}
    return run(CORRUPT, hooks, attends) - run(CORRUPT, {}, attends)


@pytest.mark.parametrize(("engine", "attends"), [("replay", ATTENDS), ("replay", EVERY), ("packed", EVERY)])
def test_parts_are_those_of_the_layers_that_have_them(engine: str, attends: tuple[int, ...]):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ComponentNote)
        trace = ct.trace(loaded(attends), PAIR, engine=engine, progress=False)
    effects, having = trace.effects.sel(AT), HAVING | {"attn_out": attends}
    assert effects.component.values.tolist() == ["resid_post", "attn_out", "mlp_out"]
    for component, module in MODULES.items():
        here = effects.sel(component=component)
        for layer in range(4):
            if layer not in having[component]:
                assert (here.status.sel(layer=layer) == "unpaired").all()
                assert here.restoration.sel(layer=layer).isnull().all()
                continue
            assert here.restoration.sel(layer=layer).notnull().all()
            for position in (1, 4, 6):
                expected = by_hand([f"{layer}.{module}"], position, attends=attends)
                said = here.restoration.sel(layer=layer).isel(position=position).item()
                assert said == pytest.approx(expected, abs=1e-4), (component, layer, position)
    assert {*trace.top(20)["component"]} >= {"attn_out", "mlp_out"}
    assert "attn_out" in trace.summary()
    assert trace.to_html()


def test_the_stream_in_the_middle_is_there_where_both_parts_are():
    trace = ct.trace(loaded(), PAIR, components=["resid_mid"], progress=False)
    found = trace.effects.restoration.sel(AT).sel(component="resid_mid").notnull().all("position")
    assert found.values.tolist() == [layer in HAVING["resid_mid"] for layer in range(4)]


def test_heads_and_neurons_are_those_of_the_layers_that_have_them():
    trace = ct.trace(loaded(), PAIR, components=(), heads=True, neurons=True, neuron_positions=["last"], progress=False)
    assert trace.of("heads").layer.values.tolist() == list(ATTENDS)
    assert trace.of("neurons").layer.values.tolist() == list(HAS_MLP)


def test_a_layer_without_a_part_is_named():
    with pytest.raises(ComponentNotOffered, match=r"attn_out is not there in layer 1 .* no attention\. .*: 0, 2, 3"):
        ct.trace(loaded(), PAIR, components=["attn_out"], layers=[1], progress=False)
    usual = ct.trace(loaded(), PAIR, layers=[1], spot_checks=0, progress=False)
    assert usual.effects.component.values.tolist() == ["resid_post", "mlp_out"]
    with pytest.raises(ComponentNotOffered, match=r"mlp_out is not there in layer 2 .* has no MLP\. .*: 0, 1, 3"):
        ct.trace(loaded(), PAIR, components=(), sets={"a": ["mlp_out 2 @ last"]}, progress=False)
    each = ct.trace(loaded(), PAIR, components=(), interactions=["each mlp_out @ last"], spot_checks=0, progress=False)
    assert each.of("interactions").sizes["site"] == len(HAS_MLP) + 1


def test_windows_severed_and_direct_effects_leave_out_what_is_not_there():
    trace = ct.trace(loaded(), PAIR, components=["attn_out"], window=2, spot_checks=0, progress=False)
    found = trace.effects.sel(AT).sel(component="attn_out")
    assert found.window_first.values.tolist() == [-1, -1, 2, -1]
    expected = by_hand(["2.self_attn", "3.self_attn"], 4)
    assert found.restoration.sel(layer=2).isel(position=4).item() == pytest.approx(expected, abs=1e-4)

    trace = ct.trace(loaded(), PAIR, components=["resid_post"], sever=["mlp_out"], spot_checks=0, progress=False)
    said = trace.effects.severed_mlp_out.sel(AT).sel(component="resid_post", layer=0).isel(position=4).item()
    expected = by_hand(["0"], 4, ("1.mlp", "3.mlp"))
    assert said == pytest.approx(expected, abs=1e-4)

    direct = ct.trace(
        loaded(), PAIR, components=["attn_out", "mlp_out"], positions=["last"], direct=True, spot_checks=0,
        progress=False,
    )  # fmt: skip
    found = direct.effects.direct_path_restoration.sel(AT).isel(position=0)
    held = ("0.mlp", "1.mlp", "2.self_attn", "3.self_attn", "3.mlp")
    expected = by_hand(["0.self_attn"], 6, held)
    assert found.sel(component="attn_out", layer=0).item() == pytest.approx(expected, abs=1e-4)
    assert found.sel(component="mlp_out").isnull().values.tolist() == [False, False, True, False]


def test_estimates_circuits_and_ledgers_are_of_what_is_there():
    found = ct.attribute(loaded(), PAIR, components=["attn_out", "mlp_out"], verify=3, sample=3, progress=False)
    for component in MODULES:
        there = np.isfinite(found.estimates[component].values[0]).all(-1)
        assert there.tolist() == [layer in HAVING[component] for layer in range(4)]
    trace = ct.circuit(loaded(), PAIR, ranking="exact", sizes=[2], spot_checks=0, progress=False)
    assert {name.split(".")[0] for name in trace.provenance["options"]["circuit"]} == {
        *(f"z {layer}" for layer in ATTENDS), *(f"mlp_out {layer}" for layer in HAS_MLP)
    }  # fmt: skip
    assert trace.circuit().curve.metric.iloc[-1] == pytest.approx(run(CLEAN, {}), abs=1e-4)
    ledger = ct.ledger(loaded(), PAIR, ["z 0.1 @ last"], direction="restoration")
    assert {*zip(ledger.component, ledger.layer, strict=True)} >= {("attn_out", 2), ("mlp_out", 1)}
    assert not {*zip(ledger.component, ledger.layer, strict=True)} & {("attn_out", 1), ("mlp_out", 2)}


def test_a_check_says_which_layers_lack_what():
    checkup = ct.check(loaded())
    assert checkup.to_dict()["components"] == ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    assert all(finding.holds for finding in checkup.findings)
    assert checkup.to_dict()["lacking"] == {"attn_out": [1], "mlp_out": [2], "resid_mid": [1, 2]}
    assert "note        attn_out is not there in layer 1\n" in str(checkup)
