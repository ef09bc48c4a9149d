"""Maps of single heads and neurons: equal to bare hooks, their parts add up where they must, kept and read back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import ComponentNotOffered, EngineNote, InvalidOption
from causal_tracing.models.model import Model
from causal_tracing.patching import measure as measuring
from causal_tracing.patching.arrays import Sums
from causal_tracing.results.effects import effects
from causal_tracing.results.units import METRICS
from families import FAMILIES, build
from joint import WORDS, tiny

FAMILY = {family.name: family for family in FAMILIES}
CLEAN = " w11 w12 w13 w14 w15 w16 w17"
CORRUPT = " w11 w12 w43 w14 w46 w16 w17"  # differs at 2 and 4
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7", foil=" w8")
LAYERS, HEADS, SIZE = 4, 4, 8
ALL = ["q", "k", "v", "pattern", "z"]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def trace(model: Model) -> ct.Trace:
    return ct.trace(model, PAIR, heads=ALL, neurons=True, neuron_positions=[2, "last"])


def ids(text: str) -> torch.Tensor:
    return torch.tensor([WORDS(text)["input_ids"]])


def logit_diff(network: Any, text: str) -> float:
    with torch.no_grad():
        logits = network(ids(text)).logits[0, -1]
    return (logits[ids(" w7")[0, 0]] - logits[ids(" w8")[0, 0]]).item()


def input_of(network: Any, module: Any, text: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
    logit_diff(network, text)
    handle.remove()
    return seen[0]


def patched(network: Any, module: Any, text: str, change: Callable[[torch.Tensor], None]) -> float:
    def hook(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        value = args[0].clone()
        change(value[0])
        return (value, *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        return logit_diff(network, text)
    finally:
        handle.remove()


def part(found: Any, name: str, **at: Any) -> float:
    return found[name].sel(metric="logit_diff", pair="pair-0", **at).item()


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_effects_equal_bare_hooks(model, trace, kind):
    network = model.network
    clean, corrupt = logit_diff(network, CLEAN), logit_diff(network, CORRUPT)
    found = trace.heads if kind == "heads" else trace.neurons
    sizes = []
    for layer in range(LAYERS):
        block = network.model.layers[layer]
        module = block.self_attn.o_proj if kind == "heads" else block.mlp.down_proj
        donors = {text: input_of(network, module, text) for text in (CLEAN, CORRUPT)}
        for unit in range(HEADS) if kind == "heads" else range(0, 64, 7):
            columns = slice(unit * SIZE, (unit + 1) * SIZE) if kind == "heads" else slice(unit, unit + 1)
            for position, column in ((2, 2), (6, 6 if kind == "heads" else "last")):

                def put(value: torch.Tensor, donor: torch.Tensor, at: int = position, c: slice = columns) -> None:
                    value[at, c] = donor[at, c]

                restored = patched(network, module, CORRUPT, lambda v, d=donors[CLEAN], f=put: f(v, d)) - corrupt
                lost = clean - patched(network, module, CLEAN, lambda v, d=donors[CORRUPT], f=put: f(v, d))
                at = {"layer": layer, kind[:-1]: unit, "position": column}
                at["component"] = "z" if kind == "heads" else "neurons"
                assert part(found, "restoration", **at) == pytest.approx(restored, abs=1e-5)
                assert part(found, "disruption", **at) == pytest.approx(lost, abs=1e-5)
                sizes.append(abs(restored))
    assert max(sizes) > 0.05


def test_all_heads_together_are_the_attention(model):
    """One head's map has the other heads' values from the base run: the sum of the writes is the attention's."""
    one_headed = accept(
        build(FAMILY["llama"]).__class__(_with_heads(build(FAMILY["llama"]).config, 1)).eval(), WORDS, name="one head"
    )
    found = ct.trace(one_headed, PAIR, components=["attn_out"], heads=True, metrics="all")
    assert_allclose(
        found.heads.restoration.sel(component="z").squeeze("head").values,
        found.effects.restoration.sel(component="attn_out").values,
        rtol=0,
        atol=1e-5,
    )


def _with_heads(config: Any, heads: int) -> Any:
    config.num_attention_heads = config.num_key_value_heads = heads
    config.initializer_range = 0.3
    return config


def test_key_and_value_heads_are_named_as_what_they_are(trace):
    heads = trace.heads
    assert heads.readers.sel(component="k").values.tolist() == ["0, 1", "2, 3", "", ""]
    assert heads.readers.sel(component="q").values.tolist() == [""] * 4
    absent = heads.sel(component=["k", "v"], head=[2, 3])
    assert absent.restoration.isnull().all()
    assert (absent.status == "unpaired").sel(metric="logit_diff").all()
    assert heads.restoration.sel(component=["k", "v"], head=[0, 1], metric="logit_diff").notnull().all()


def test_zeros_are_exact_and_never_ranked(trace):
    early = trace.heads.sel(metric="logit_diff", position=[0, 1], component=["q", "pattern", "z"])
    assert (early.status == "structural_zero").all()
    assert_array_equal(early.restoration.values, 0)
    ranked = trace.top(1000, of="heads")
    assert (ranked.position > 1).all()
    assert ranked.restoration.abs().is_monotonic_decreasing
    assert set(ranked.component) == set(ALL)


def test_listed_neurons_only(model, trace):
    found = ct.trace(model, PAIR, neurons={2: [5, 3], 1: [60]}, neuron_positions=["last"]).neurons
    assert found.layer.values.tolist() == [1, 2]
    measured = found.restoration.sel(metric="logit_diff").squeeze().notnull().values
    assert {(int(layer) + 1, int(neuron)) for layer, neuron in np.argwhere(measured)} == {(1, 60), (2, 3), (2, 5)}
    for layer, neuron in ((1, 60), (2, 3), (2, 5)):
        at = {"component": "neurons", "layer": layer, "neuron": neuron, "position": "last"}
        assert part(found, "disruption", **at) == pytest.approx(part(trace.neurons, "disruption", **at), abs=1e-5)


def test_cells_come_in_portions_without_a_difference(model, trace, monkeypatch):
    monkeypatch.setattr(measuring, "AT_ONCE", 37)
    again = ct.trace(model, PAIR, heads=["z"], head_positions="each").heads
    assert_allclose(again.restoration, trace.heads.restoration.sel(component=["z"]), rtol=0, atol=1e-5)


def test_several_pairs_and_all_tokens_together(model):
    other = ct.Pair(clean=f" w3{CLEAN}", corrupt=f" w3{CORRUPT}", answer=" w9", foil=" w10", id="longer")
    found = ct.trace(model, [PAIR, other], heads=True, head_positions="together", metric="log_prob", metrics="all")
    assert found.heads.sizes["pair"] == 2
    assert found.heads.metric.values.tolist()[0] == "log_prob"
    alone = ct.trace(model, other, heads=True, head_positions=["together"], metrics="all")
    for name in METRICS[:-1]:
        assert_allclose(
            found.heads.restoration.sel(metric=name, pair="longer"),
            alone.heads.restoration.sel(metric=name).squeeze("pair"),
            rtol=0,
            atol=1e-5,
        )


def test_nothing_is_lost_in_a_file(trace, tmp_path):
    opened = ct.open_trace(trace.save(tmp_path / "saved"))
    assert opened.heads.identical(trace.heads)
    assert opened.neurons.identical(trace.neurons)
    assert opened.effects.identical(trace.effects)
    assert opened.summary() == trace.summary()


def test_the_words_name_heads_and_neurons(trace):
    said = trace.summary()
    best = trace.top(1, of="neurons").iloc[0]
    assert f"Strongest neuron: neuron {best.part} of layer {best.layer} at " in said
    best = trace.top(1, of="heads", component="v").iloc[0]
    readers = {0: "0, 1", 1: "2, 3"}[best.part]
    assert f"Strongest head by its v: head {best.part} of layer {best.layer} at " in said
    assert f"(It is read by query heads {readers}.)" in said


def test_provenance_knows_what_was_asked(model):
    found = ct.trace(model, PAIR, heads=["z"], neurons={1: [2]}, neuron_positions=[2, "last"])
    options = found.provenance["options"]
    assert (options["heads"], options["head_positions"]) == (["z"], "each")
    assert (options["neurons"], options["neuron_positions"]) == ({"1": [2]}, [2, "last"])
    blocks = ct.trace(model, PAIR).provenance
    assert found.provenance["worlds"] == blocks["worlds"] + 2 * (LAYERS * HEADS * 7) + 2 * 2
    assert "heads" not in blocks["options"]


def test_random_heads_and_neurons_are_run_again(model, monkeypatch):
    checked = ct.trace(model, PAIR, heads=["z"], neurons=True, spot_checks=6).provenance["spot_checks"]
    assert 13 < checked["cells"] <= 19  # and the one that lay furthest back in a call
    assert checked["largest_difference"] < 1e-4
    told = Sums.told
    monkeypatch.setattr(Sums, "told", lambda *a: told(*a) + 1.0)
    on_replay = pytest.warns(EngineNote, match=r"depends on what is run beside it \(replay\): of .. cells")
    with on_replay, pytest.warns(EngineNote, match="The packed engine is wrong here"):
        wrong = ct.trace(model, PAIR, heads=["z"], spot_checks=6).provenance["spot_checks"]
    assert wrong["largest_difference"] == pytest.approx(1.0, abs=1e-3)


def test_progress_reaches_the_end_once(model):
    seen: list[tuple[int, int]] = []
    ct.trace(model, PAIR, heads=True, neurons={0: [1]}, progress=lambda *told: seen.append(told))
    assert seen[-1] == (1000, 1000)
    assert seen == sorted(seen)
    assert sum(done == total for done, total in seen) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["zz"]}, "There is no heads' component 'zz'. Did you mean 'z'"),
        ({"heads": "z"}, "Give the heads' components as a list, such as \\['z'\\]"),
        ({"neurons": {9: [0]}}, "There is no layer 9: tiny has layers 0 to 3"),
        ({"neurons": {1: [64]}}, "There is no neuron 64: layer 1 of tiny has neurons 0 to 63"),
        ({"heads": True, "head_positions": [12]}, "There is no position 12"),
    ],
)
def test_bad_options_are_said(model, options, message):
    with pytest.raises(InvalidOption, match=message):
        ct.trace(model, PAIR, **options)


def test_what_is_not_there_is_said(model):
    plain = ct.trace(model, PAIR)
    with pytest.raises(InvalidOption, match=r"This trace has no heads. Measure them with trace\(..., heads=True\)"):
        _ = plain.heads
    with pytest.raises(InvalidOption, match="This trace has no neurons"):
        plain.top(of="neurons")
    with pytest.raises(InvalidOption, match="nothing called 'head' in a trace"):
        effects(plain.measurements, "head")
    experts = accept(build(FAMILY["mixtral"]), WORDS, name="experts")
    with pytest.raises(ComponentNotOffered, match="neurons is not offered on this model .*mixture of experts"):
        ct.trace(experts, PAIR, neurons=True)
