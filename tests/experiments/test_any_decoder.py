"""Models and prompts that are not as most are: they work, or one sentence says why not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import causal_tracing as ct
from causal_tracing.errors import ComponentNote, ComponentNotOffered, InvalidOption, InvalidPair, UnsupportedModel
from causal_tracing.models.model import Model
from causal_tracing.testing import ToyTokenizer
from loaded import WORDS, fresh
from model_types.recipes import build

CLEAN, CORRUPT = "w5 w17 w32 w11 w40 w33 w8", "w5 w23 w32 w11 w45 w33 w8"
AT = {"pair": "pair-0", "component": "resid_post", "metric": "logit_diff"}
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w9", foil=" w12")
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


def loaded(name: str) -> Model:
    return ct.load(build(name), tokenizer=WORDS)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def by_hand(network: nn.Module, path: str, position: int) -> float:
    """The logit difference of the corrupt run with one module's output at one token taken from the clean run."""
    clean, corrupt = (torch.tensor([[int(word[1:]) for word in text.split()]]) for text in (CLEAN, CORRUPT))
    module, seen = network.get_submodule(path), {}
    handle = module.register_forward_hook(lambda _, __, output: seen.update(value=first(output).clone()))
    with torch.no_grad():
        network(input_ids=clean, use_cache=False)
    handle.remove()

    def write(_, __, output):
        changed = first(output).clone()
        changed[:, position] = seen["value"][:, position]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(write)
    with torch.no_grad():
        logits = network(input_ids=corrupt, use_cache=False).logits[0, -1]
    handle.remove()
    return (logits[9] - logits[12]).item()


def restored(trace: ct.Trace, component: str, layer: int, position: int) -> float:
    at = {"metric": "logit_diff", "pair": "pair-0"}
    corrupt = trace.measurements.pairs.corrupt.sel(at).item()
    effects = trace.effects.restoration.sel(at).sel(component=component, layer=layer)
    return corrupt + effects.isel(position=position).item()


# Layers by hand: the module that holds them, and what is patched of a layer.
PARTS = {
    "mamba": ("backbone.layers", {"mixer_out": "mixer"}),
    "bert": ("bert.encoder.layer", {"attn_out": "attention.output.dense", "mlp_out": "output.dense"}),
    "bart": ("model.decoder.layers", {"attn_out": "self_attn", "mlp_out": "fc2"}),
    "minimax": ("model.layers", {"mlp_out": "mlp"}),
    "gpt2": ("transformer.h", {"attn_out": "attn", "mlp_out": "mlp"}),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_usual_components_are_those_that_a_model_offers(name):
    model = loaded(name)
    path, parts = PARTS[name]
    trace = ct.trace(model, PAIR, progress=False, spot_checks=0)
    assert {*parts, "resid_post"} <= {*trace.effects.component.values.tolist()}
    for component, part in {**parts, "resid_post": ""}.items():
        for layer, position in ((0, 1), (1, 4), (3, 6)):
            module = f"{path}.{layer}" + (f".{part}" if part else "")
            expected = by_hand(model.network, module, position)
            assert restored(trace, component, layer, position) == pytest.approx(expected, abs=1e-4)


def test_what_is_left_out_is_said():
    with pytest.warns(ComponentNote, match="attn_out is not traced on this model: its layers have one part each"):
        trace = ct.trace(loaded("mamba"), PAIR, progress=False, spot_checks=0)
    assert trace.effects.component.values.tolist() == ["resid_post", "mixer_out"]


def test_layers_that_text_does_not_pass_are_left_out():
    model = loaded("mllama")
    assert model.anatomy.idle == (3,)
    trace = ct.trace(model, PAIR, progress=False, spot_checks=0)
    assert trace.effects.layer.values.tolist() == [0, 1, 2]
    expected = by_hand(model.network, f"{model.anatomy.layers}.2.self_attn", 4)
    assert restored(trace, "attn_out", 2, 4) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ComponentNotOffered, match="A prompt of text alone does not pass layer 3 of this model"):
        ct.trace(model, PAIR, layers=[3], progress=False)


def test_layers_that_drop_tokens_for_few_logits_are_asked_for_all():
    model = loaded("gemma4_text")
    assert not model.anatomy.few_logits
    assert fresh("llama").anatomy.few_logits
    trace = ct.trace(model, PAIR, components=["resid_post"], progress=False, spot_checks=0)
    assert restored(trace, "resid_post", 1, 4) == pytest.approx(by_hand(model.network, "model.layers.1", 4), abs=1e-4)


def test_streams_of_several_lanes_are_patched_as_a_whole():
    """Whole layers of the other run at every position give that run's logits, whatever lies in which lane."""
    for name, lanes in (("deepseek_v4", "last"), ("gemma3n_text", "first")):
        model = loaded(name)
        assert model.anatomy.lanes == lanes
        trace = ct.trace(model, PAIR, components=["resid_post"], progress=False, spot_checks=0)
        path = f"{model.anatomy.layers}.3"
        if lanes == "last":
            assert restored(trace, "resid_post", 3, 6) == pytest.approx(by_hand(model.network, path, 6), abs=1e-4)
        assert np.isfinite(trace.effects.restoration.sel(metric="logit_diff")).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blip", ".* cannot be run on text alone: .* missing 1 required positional argument: 'pixel_values'"),
        ("hrm_text", r"cannot be traced layer by layer: in one run its model\.L_module\.layers are called 24 times"),
        ("xlnet", "is not causal: a later token changes what earlier ones predict"),
        ("musicgen", "its tokens are read by a ModuleList, such as one table for each codebook"),
        ("paligemma", "is not causal: a later token changes what earlier ones predict"),
    ],
)
def test_what_cannot_be_traced_is_refused_for_a_true_reason(name, message):
    with pytest.raises(UnsupportedModel, match=message):
        loaded(name)


def test_a_token_that_the_model_does_not_know():
    pair = ct.Pair(clean="w5 w60 w8", corrupt="w5 w61 w8", answer=" w9", foil=" w12")
    with pytest.raises(InvalidPair, match=r"has the token 'w60' \(id 60\), and .* knows 56 tokens: it was added to"):
        ct.trace(loaded("llama"), pair, progress=False)


def test_a_model_that_was_made_in_inference_mode_has_no_gradients():
    with torch.inference_mode():
        model = fresh("llama")
    with pytest.raises(UnsupportedModel, match=r"was made inside torch\.inference_mode\(\)"):
        ct.attribute(model, PAIR, progress=False)


def test_estimates_are_the_same_in_a_callers_inference_mode():
    model = fresh("llama")
    plain = ct.attribute(model, PAIR, progress=False, verify=1)
    with torch.inference_mode():
        inside = ct.attribute(model, PAIR, progress=False, verify=1)
    for name, values in plain.estimates.items():
        np.testing.assert_array_equal(values, inside.estimates[name])


# Models as people hand them in


def test_a_compiled_model_is_traced_as_it_was_written():
    network = build("llama")
    model = ct.load(torch.compile(network, backend="eager"), tokenizer=WORDS)
    assert model.network is network
    trace = ct.trace(model, PAIR, components=["mlp_out"], progress=False)
    expected = by_hand(network, "model.layers.1.mlp", 4)
    assert restored(trace, "mlp_out", 1, 4) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_that_gives_plain_tuples_is_told_what_to_set(name: str):
    network = build(name)
    network.config.return_dict = False
    with pytest.raises(UnsupportedModel, match=r"says return_dict=False, .* Set model\.config\.return_dict = True"):
        ct.load(network, tokenizer=WORDS)


@pytest.mark.parametrize("layer", range(4))
def test_a_model_that_looks_ahead_in_any_layer_is_not_causal(layer: int):
    network = build("llama")
    mlp = network.model.layers[layer].mlp
    mlp.register_forward_hook(lambda _, __, output: output + 0.5 * output.mean(1, keepdim=True))
    with pytest.raises(UnsupportedModel, match="is not causal: a later token changes what earlier ones predict"):
        ct.load(network, tokenizer=WORDS)


@pytest.mark.parametrize("block", [slice(0, 2), slice(0, 3), slice(3, 6), slice(4, 6)], ids=str)
def test_a_model_that_sees_a_few_tokens_at_once_is_not_causal(block: slice):
    """A prefix that is read whole, or tokens in blocks: nothing behind them is seen by what stands before."""
    network = build("llama")

    def look(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        mixed = output.clone()
        mixed[:, block] += 0.5 * output[:, block].mean(1, keepdim=True)
        return mixed

    network.model.layers[1].mlp.register_forward_hook(look)
    with pytest.raises(UnsupportedModel, match="is not causal: a later token changes what earlier ones predict"):
        ct.load(network, tokenizer=WORDS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda logits: logits.softmax(-1), r"adds up to 1, as probabilities do\. Let it give logits"),
        (lambda logits: logits * 1e7, r"its logits are as large as [0-9.]+e\+0[78]\. Probabilities are 0 or 1 there"),
    ],
    ids=["probabilities", "vast"],
)
def test_numbers_of_words_that_are_no_logits_are_told(make: Callable[[torch.Tensor], torch.Tensor], said: str):
    network = build("llama")
    network.lm_head.register_forward_hook(lambda _, __, logits: make(logits))
    with pytest.raises(UnsupportedModel, match=said):
        ct.load(network, tokenizer=WORDS)


class Dropped(nn.Module):
    """Dropout in evaluation too."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(value, 0.2, training=True)


class Stateful(nn.Module):
    """What it gives is moved by a running mean of what went in before."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.mean = inner, torch.zeros(())

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + value.mean()
        return self.inner(value) * (1 + self.mean)


@pytest.mark.parametrize("change", [Stateful, lambda mlp: nn.Sequential(mlp, Dropped())], ids=["state", "dropout"])
def test_a_model_that_gives_other_logits_each_time_is_told_so(change: Callable[[nn.Module], nn.Module]):
    network = build("llama")
    network.model.layers[1].mlp = change(network.model.layers[1].mlp)
    with pytest.raises(
        UnsupportedModel, match=r"gives other logits for the same prompt \(.*\)\. It draws random numbers"
    ):
        ct.load(network, tokenizer=WORDS)


def counted(_: nn.Module, __: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits * (1 + torch.arange(logits.shape[1])[:, None] / 20)


def test_of_a_head_that_counts_tokens_a_state_that_was_moved_is_no_cut():
    network = build("llama")
    shorter = ct.Pair(clean=CLEAN, corrupt=CORRUPT.removeprefix("w5 "), answer=" w9", foil=" w12")
    status = []
    for counts in (False, True):
        if counts:
            network.lm_head.register_forward_hook(counted)
        model = ct.load(network, tokenizer=WORDS)
        found = ct.trace(model, shorter, align="suffix", components=["resid_post"], progress=False).effects
        last = found.isel(layer=-1, position=-1).sel(AT)
        status.append(last.status.item())
        assert (last.restoration.item() == pytest.approx(last.total_effect.item(), abs=1e-3)) != counts
        tokens = torch.tensor([[int(word[1:]) for word in CLEAN.split()]])
        with torch.no_grad():
            whole = network(input_ids=tokens, use_cache=False).logits[0, -1]
        assert last.clean.item() == pytest.approx((whole[9] - whole[12]).item(), abs=1e-4)
    assert status == ["cut", "ok"]


def test_a_head_of_zeros_is_told():
    network = build("llama")
    with torch.no_grad():
        network.lm_head.weight.zero_()
    with pytest.raises(
        UnsupportedModel, match=r"all of its logits are 0, .*\. Load trained weights, with their head\."
    ):
        ct.load(network, tokenizer=WORDS)


class Rounded(nn.Module):
    """A product whose inputs are rounded by the largest of all that are there, as dynamic quantisation does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.weight = linear, linear.weight

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        step = value.abs().max() / 127
        return self.linear((value / step).round() * step)


def test_a_model_that_rounds_by_what_is_run_beside_is_refused_whatever_its_configuration_says():
    network = build("llama")
    for layer in network.model.layers:
        layer.mlp.down_proj = Rounded(layer.mlp.down_proj)
    with pytest.raises(UnsupportedModel, match="what it makes of a prompt depends on what is run beside it"):
        ct.load(network, tokenizer=WORDS)


@pytest.mark.parametrize("verb", [ct.trace, ct.paths])
def test_a_model_that_loses_its_weights_behind_our_back_is_refused(verb: Any):
    model = fresh("llama")
    model.network.to("meta")
    with pytest.raises(
        UnsupportedModel, match=r"has lost its weights since it was loaded \(meta device\): load it again"
    ):
        verb(model, PAIR, progress=False)


# Words that the model is forbidden to say


class Masked(nn.Module):
    def __init__(self, head: nn.Linear, by: float) -> None:
        super().__init__()
        self.head, self.weight, self.by = head, head.weight, by

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        logits = self.head(value).clone()
        logits[..., 12] = self.by
        return logits


@pytest.mark.parametrize("by", [-torch.inf, -1e9], ids=str)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_foil_that_is_masked_leaves_what_needs_it_undefined_and_says_why(by: float):
    """In a number such as 1e9 nothing is left of what a patch changes."""
    network = build("llama")
    network.lm_head = Masked(network.lm_head, by)
    model = ct.load(network, tokenizer=WORDS)
    trace = ct.trace(model, PAIR, metrics="all", progress=False)
    reasons = trace.effects.reason.sel(pair="pair-0")
    assert reasons.sel(metric="logit_diff").item().startswith("the model masks the answer or the foil")
    assert (reasons.sel(metric=["log_prob", "prob", "prob_diff", "neg_rank"]) == "").all()
    assert trace.effects.restoration.sel(metric="logit_diff").isnull().all()
    assert np.isfinite(trace.effects.restoration.sel(metric="prob_diff")).all()
    assert "the model masks the foil ' w12', which it never says" in str(ct.preview(model, PAIR)[0])
    expected = ct.trace(model, PAIR, metric="log_prob", components=["mlp_out"], progress=False)
    assert np.isfinite(expected.effects.restoration.sel(metric="log_prob")).all()
    with pytest.raises(InvalidOption, match="has no estimate of logit_diff: the model masks its foil"):
        ct.attribute(model, PAIR, progress=False)
    assert ct.attribute(model, PAIR, metric="prob", progress=False, verify=1).agreement is not None


def test_two_equal_prompts_have_no_worlds_to_skip_below_zero():
    pair = ct.Pair(clean=CLEAN, corrupt=CLEAN, answer=" w9", foil=" w12")
    record = ct.trace(fresh("llama"), pair, progress=False).provenance
    assert record["worlds"] - record["worlds_skipped"] == 1


def test_a_tokenizer_with_fewer_words_than_the_model():
    few = ToyTokenizer([f"w{n}" for n in range(40)])
    pair = ct.Pair(clean="w5 w17 w32", corrupt="w5 w23 w32", answer=" w9", foil=" w12")
    shown = str(ct.preview(ct.load(build("llama"), tokenizer=few), pair)[0])
    assert "pair pair-0" in shown
