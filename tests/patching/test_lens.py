"""The logit lens on every family: against norm and head called by hand, and by what it must say behind the last layer.

The oracle listens to the layers with forward hooks of its own, and calls the final norm and the head itself; what a
family does behind its head stands here by hand.
"""

from functools import cache
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

import causal_tracing as ct
from bare_hooks import PATHS, Paths, first
from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.noise import Noise
from causal_tracing.patching import lens as lens_module
from causal_tracing.results.lens import lens_of
from causal_tracing.testing import FakeBackend, fake_model
from families import FAMILIES
from loaded import BY_NAME, shared

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
ANSWER, FOIL, LAST, LAYERS = 7, 20, 8, 4
BOUND = TWO_FORWARDS["float32"]  # of the largest logit
NORMS = {  # the final norm by hand, where it is not model.norm; opt-350m has none
    "gemma3": "model.language_model.norm", "phi": "model.final_layernorm", "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm", "gpt_neox-sequential": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm", "falcon": "transformer.ln_f", "falcon-40b": "transformer.ln_f",
    "falcon-rw": "transformer.ln_f", "bloom": "transformer.ln_f", "gptj": "transformer.ln_f",
    "gpt_neo": "transformer.ln_f", "mpt": "transformer.norm_f", "mamba": "backbone.norm_f",
    "falcon_h1": "model.final_layernorm", "opt-350m": "model.decoder.project_out",
}  # fmt: skip
BEHIND = {
    "gemma2": lambda logits, config: torch.tanh(logits / 10.0) * 10.0,
    "cohere": lambda logits, config: logits * config.logit_scale,
    "granite": lambda logits, config: logits / config.logits_scaling,
    "falcon_h1": lambda logits, config: logits * config.lm_head_multiplier,
}
NAMES = [family.name for family in FAMILIES]


def spelled(tokens: Any) -> str:
    return " ".join(f"w{token}" for token in tokens)


def pair(clean: Any = CLEAN, corrupt: Any = CORRUPT, **fields: Any) -> ct.Pair:
    made: dict[str, Any] = {"answer": f" w{ANSWER}", "foil": f" w{FOIL}"}
    return ct.Pair(clean=spelled(clean), corrupt=spelled(corrupt), **(made | fields))


def traced(name: str, *pairs: ct.Pair, **options: Any) -> ct.Trace:
    small: dict[str, Any] = {"components": ["resid_post"], "layers": [1], "progress": False, "spot_checks": 0}
    return ct.trace(shared(name), list(pairs) or pair(), lens=True, **(small | options))


@cache
def read(name: str, engine: str) -> tuple[ct.Trace, xr.Dataset]:
    found = traced(name, engine=engine)
    return found, lens_of(found.measurements).isel(pair=0)


def engines(name: str) -> list[str]:
    return ["packed", "replay"] if BY_NAME[name].packed and name != "falcon_h1" else ["replay"]


BOTH = [(name, engine) for name in NAMES for engine in engines(name)]


class ByHand:
    """One family's streams, and what its norm and head make of them."""

    def __init__(self, name: str) -> None:
        self.name, self.network = name, shared(name).network
        layers: Any = self.network.get_submodule(PATHS.get(name, Paths()).layers)
        self.layers = layers

    def streams(self, tokens: tuple[int, ...]) -> tuple[dict[int, Tensor], Tensor]:
        """The stream by layer, −1 for what goes in, [token, d_model]; and the model's own logits."""
        seen: dict[int, Tensor] = {}

        def into(_: Any, args: Any, kwargs: Any) -> None:
            seen[-1] = (args[0] if args else kwargs["hidden_states"]).reshape(len(tokens), -1).clone()

        handles = [self.layers[0].register_forward_pre_hook(into, with_kwargs=True)]
        for n, layer in enumerate(self.layers):
            handles.append(
                layer.register_forward_hook(
                    lambda _, __, out, n=n: seen.update({n: first(out).reshape(len(tokens), -1).clone()})
                )
            )
        with torch.no_grad():
            logits = self.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        for handle in handles:
            handle.remove()
        return seen, logits

    def logits(self, stream: Tensor) -> Tensor:
        with torch.no_grad():
            normed = self.network.get_submodule(NORMS.get(self.name, "model.norm"))(stream)
            logits = self.network.get_output_embeddings()(normed)
            return BEHIND.get(self.name, lambda logits, config: logits)(logits, self.network.config)


def assert_says(here: xr.Dataset, logits: Tensor) -> None:
    """The lens of one run and layer, against logits [token, vocab]."""
    logits = logits.double()
    probs, bound = logits.softmax(-1), BOUND * float(logits.abs().max())
    for text, token in (("answer", ANSWER), ("foil", FOIL)):
        assert_allclose(here[f"{text}_logit"], logits[:, token], rtol=0, atol=bound)
        assert_allclose(here[f"{text}_prob"], probs[:, token], rtol=0, atol=2 * bound)
        low, high = ((logits > logits[:, token : token + 1] + move).sum(-1) for move in (2 * bound, -2 * bound))
        assert (low.numpy() <= here[f"{text}_rank"].values).all()
        assert (here[f"{text}_rank"].values <= np.maximum(high.numpy() - 1, 0)).all()
    chosen = probs[torch.arange(len(probs)), torch.tensor(here.top_id.values.astype(int))]
    assert_allclose(chosen, probs.max(-1).values, rtol=0, atol=4 * bound)
    assert_allclose(here.top_prob, probs.max(-1).values, rtol=0, atol=4 * bound)
    assert here.top.values.tolist() == [f"w{token}" for token in here.top_id.values.tolist()]


@pytest.mark.parametrize(("name", "engine"), BOTH)
def test_behind_the_last_layer_it_is_the_models_own_logits(name: str, engine: str):
    """To `bounds.TWO_FORWARDS`, at every token of both runs."""
    _, found = read(name, engine)
    for run, tokens in (("clean", CLEAN), ("corrupt", CORRUPT)):
        assert_says(found.sel(run=run, layer=LAYERS - 1), ByHand(name).streams(tokens)[1])


@pytest.mark.parametrize(("name", "engine"), BOTH)
def test_at_the_token_that_is_read_it_ends_at_the_metrics_unedited_values(name: str, engine: str):
    trace, found = read(name, engine)
    effects, last = trace.effects.isel(pair=0), found.sel(layer=LAYERS - 1, token=LAST)
    largest = float(ByHand(name).streams(CLEAN)[1].abs().max())
    for run in ("clean", "corrupt"):
        for ours, metric in (("logit_diff", "logit_diff"), ("answer_prob", "prob"), ("answer_logit", "logit")):
            expected = effects[run].sel(metric=metric).item()
            assert last[ours].sel(run=run).item() == pytest.approx(expected, abs=2 * BOUND * largest)
    assert abs(last.logit_diff.sel(run="clean") - last.logit_diff.sel(run="corrupt")) > 100 * BOUND * largest


@pytest.mark.parametrize(("name", "engine"), BOTH)
def test_in_between_it_is_norm_and_head_called_by_hand(name: str, engine: str):
    _, found = read(name, engine)
    by_hand = ByHand(name)
    for run, tokens in (("clean", CLEAN), ("corrupt", CORRUPT)):
        streams, own = by_hand.streams(tokens)
        largest = float(own.abs().max())
        assert_allclose(by_hand.logits(streams[LAYERS - 1]), own, rtol=0, atol=BOUND * largest)  # the oracle itself
        for layer in (-1, 0, 1, 2):
            expected = by_hand.logits(streams[layer])
            assert_says(found.sel(run=run, layer=layer), expected)
            assert float((expected - own).abs().max()) > 100 * BOUND * largest  # another layer would be seen


def test_all_layers_are_read_whichever_are_traced_and_how_many_tokens_at_once_changes_nothing(monkeypatch: Any):
    _, found = read("llama", "packed")
    assert found.layer.values.tolist() == [-1, 0, 1, 2, 3]
    monkeypatch.setattr(lens_module, "AT_ONCE", 4)
    again = lens_of(traced("llama", engine="packed").measurements).isel(pair=0)
    for name in found.data_vars:
        if found[name].dtype == object:
            assert_array_equal(again[name], found[name])
        else:
            assert_allclose(again[name], found[name], rtol=1e-5, atol=1e-5)


def test_pairs_of_several_lengths_each_have_their_own_tokens():
    long = pair((3, *CLEAN), (3, *CORRUPT), id="long")
    found = traced("llama", pair(id="short"), long)
    lens, alone = lens_of(found.measurements), lens_of(traced("llama", pair(id="short")).measurements)
    assert lens.sizes["token"] == LAST + 2
    behind = lens.sel(pair="short").isel(token=LAST + 1)
    assert (behind.top == "").all()
    assert (behind.top_id == -1).all()
    assert behind[["top_prob", "answer_logit", "answer_rank", "logit_diff"]].isnull().to_array().all()
    for name in ("logit_diff", "answer_prob", "top_id"):
        here = lens[name].sel(pair="short").isel(token=slice(LAST + 1))
        assert_allclose(here, alone[name].sel(pair="short"), rtol=1e-5, atol=1e-5)


def test_prompts_of_two_lengths():
    found = traced("llama", pair(CLEAN, (3, *CORRUPT[:-1], 90)), align="suffix", layers=[1])
    lens, effects = lens_of(found.measurements).isel(pair=0, layer=-1), found.effects.isel(pair=0)
    assert lens.top_prob.notnull().sum("token").values.tolist() == [LAST + 1, LAST + 2]
    for run, last in (("clean", LAST), ("corrupt", LAST + 1)):
        assert lens.logit_diff.sel(run=run).isel(token=last).item() == pytest.approx(
            effects[run].sel(metric="logit_diff").item(), abs=1e-4
        )


def test_of_noise_it_is_the_mean_over_draws_which_have_no_one_first_choice():
    noisy = ct.Pair(clean=spelled(CLEAN), answer=f" w{ANSWER}", foil=f" w{FOIL}", subject="w42 w11")
    found = traced("llama", noisy, noise=Noise(scale=3.0, draws=3))
    lens, effects = lens_of(found.measurements).isel(pair=0, layer=-1, token=LAST), found.effects.isel(pair=0)
    for run in ("clean", "corrupt"):
        for ours, metric in (("logit_diff", "logit_diff"), ("answer_prob", "prob")):
            assert lens[ours].sel(run=run).item() == pytest.approx(effects[run].sel(metric=metric).item(), abs=1e-4)
        assert -lens.answer_rank.sel(run=run).item() == pytest.approx(effects[run].sel(metric="neg_rank").item())
    assert found.measurements.pairs.corrupt_deviation.sel(metric="logit_diff").item() > 1e-2  # so draws differ
    assert lens.top.values.tolist() == [found.measurements.pairs.clean_top.values[0, 0], ""]
    assert lens.top_id.sel(run="corrupt") == -1
    assert np.isnan(lens.top_prob.sel(run="corrupt"))


def test_in_an_edited_world_it_reads_the_edited_runs():
    sites = ["resid_post 3 @ last", "mlp_out 1 @ 3"]
    found = traced("llama", given=sites, components=["resid_post"], layers=[2])
    lens, effects = lens_of(found.measurements).isel(pair=0, layer=-1, token=LAST), found.effects.isel(pair=0)
    plain = read("llama", "packed")[1].isel(layer=-1, token=LAST)
    for run in ("clean", "corrupt"):
        assert lens.logit_diff.sel(run=run).item() == pytest.approx(
            effects[run].sel(metric="logit_diff").item(), abs=1e-4
        )
        assert abs(lens.logit_diff.sel(run=run) - plain.logit_diff.sel(run=run)) > 1e-2


def test_sets_texts_of_several_tokens_and_no_foil():
    plain = read("llama", "packed")[1]
    two = pair(answer=[f" w{ANSWER}", " w9"], foil=f" w{FOIL}", id="set")
    found = lens_of(traced("llama", two).measurements).isel(pair=0)
    streams, _ = ByHand("llama").streams(CLEAN)
    logits = ByHand("llama").logits(streams[1]).double()
    here = found.sel(run="clean", layer=1)
    assert_allclose(here.answer_logit, logits[:, [ANSWER, 9]].logsumexp(-1), rtol=0, atol=1e-4)
    assert_allclose(here.answer_prob, logits.softmax(-1)[:, [ANSWER, 9]].sum(-1), rtol=0, atol=1e-5)
    several = pair(answer=f" w{ANSWER} w9", foil=f" w{FOIL} w9", id="several")
    texts = lens_of(traced("llama", several, metric="log_prob").measurements).isel(pair=0)
    assert_allclose(texts.logit_diff, plain.logit_diff, rtol=0, atol=1e-4)  # first tokens
    none = lens_of(traced("llama", pair(foil=None, id="none")).measurements).isel(pair=0)
    assert none[["foil_logit", "foil_prob", "foil_rank", "logit_diff"]].isnull().to_array().all()
    assert_allclose(none.answer_logit, plain.answer_logit, rtol=0, atol=1e-4)


def test_of_the_linear_toy_it_is_known_by_algebra():
    """Behind layer l the word k tokens before has the logit 2^(l+1) · C(l+1, k), whatever comes later."""
    model = fake_model(["the", "cat", "dog", "ran"])
    asked = ct.Pair(clean="the cat ran", corrupt="the dog ran", answer=" cat", foil=" the")
    found = lens_of(ct.trace(model, asked, lens=True, progress=False).measurements).isel(pair=0)
    for layer in (-1, 0, 1):
        here, times = found.sel(run="clean", layer=layer, token=2), 2 ** (layer + 1)
        assert here.answer_logit.item() == times * comb(layer + 1, 1)
        assert here.foil_logit.item() == times * comb(layer + 1, 2)
        assert here.logit_diff.item() == here.answer_logit - here.foil_logit
    assert found.sel(run="clean", layer=-1).top.values.tolist() == ["the", "cat", "ran"]
    assert (found.answer_logit.sel(run="corrupt") == 0).all()


def test_a_backend_without_activations_refuses_by_name():
    model = fake_model(["a", "b", "c"], FakeBackend(lambda run: [float(len(run.edits)), 0.0, 0.0]))
    asked = ct.Pair(clean="a b", corrupt="a c", answer=" b", foil=" c")
    with pytest.raises(ComponentNotOffered, match="has no activations"):
        ct.trace(model, asked, lens=True, progress=False)
    few = FakeBackend(lambda run: [1.0, 0.0, 0.0], components=["attn_out"])
    with pytest.raises(ComponentNotOffered, match="resid_pre is not offered"):
        ct.trace(fake_model(["a", "b", "c"], few), asked, components=["attn_out"], lens=True, progress=False)


def test_without_it_nothing_is_read():
    found = ct.trace(shared("llama"), pair(), components=["resid_post"], layers=[1], progress=False, spot_checks=0)
    assert found.measurements.lens is None
    assert "lens" not in found.provenance["options"]
    with pytest.raises(InvalidOption, match=r"no logit lens. Read it with trace\(..., lens=True\)"):
        lens_of(found.measurements)


def test_its_worlds_are_counted_before_and_after():
    options: dict[str, Any] = {"components": ["resid_post"], "layers": [1], "spot_checks": 0}
    without, with_it = (ct.estimate(shared("llama"), pair(), lens=lens, **options) for lens in (False, True))
    assert with_it.worlds - without.worlds == 2 * (LAYERS + 1)
    assert with_it.naive_token_layers - without.naive_token_layers == 2 * (LAYERS + 1) * len(CLEAN) * LAYERS
    assert traced("llama").provenance["worlds"] == with_it.worlds
