"""Noise on the subject, windows of layers, severed effects: against bare hooks written here, and the laws of noise."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import causal_tracing as ct
from bare_hooks import hooked
from causal_tracing.engine.choose import plain_backend
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.patching.noise import draws, noised
from causal_tracing.patching.windows import plan_windows
from causal_tracing.prompts.pairs import tokenize, tokenize_pairs
from joint import WORDS, tiny
from noised_by_hand import (
    LAYERS,
    LENGTH,
    NOISE,
    PAIR,
    PROMPT,
    SUBJECT,
    WIDTH,
    baselines,
    by_hand,
    each_draw,
    ids,
    logit_diff,
    noise_hook,
    rows,
)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def trace(model: Model) -> ct.Trace:
    return ct.trace(model, PAIR, noise=NOISE, window={"mlp_out": 2, "attn_out": 3}, sever=["mlp_out", "attn_out"])


def cell(found: Any, name: str, component: str, layer: int, position: int) -> float:
    at = {"metric": "logit_diff", "pair": "pair-0", "component": component, "layer": layer, "position": position}
    return found[name].sel(at).item()


def test_noise_equals_bare_hooks(model, trace):
    found, noise, sizes = trace.effects, rows(model), []
    with hooked([noise_hook(model.network, noise[0])]):
        noised_by_hand = logit_diff(model.network)
    means = []
    for draw in noise:
        with hooked([noise_hook(model.network, draw)]):
            means.append(logit_diff(model.network))
    assert means[0] == noised_by_hand
    at = {"metric": "logit_diff", "pair": "pair-0"}
    assert found.clean.sel(at).item() == pytest.approx(logit_diff(model.network), abs=1e-5)
    assert found.corrupt.sel(at).item() == pytest.approx(np.mean(means), abs=1e-5)
    data = trace.measurements.pairs.sel(at)
    assert data.corrupt_deviation.item() == pytest.approx(np.std(means, ddof=1), abs=1e-5)
    for layer, position in product(range(LAYERS), (2, 3, 5, 6)):
        expected = by_hand(model.network, noise, [("resid_post", layer, position)])
        assert cell(found, "restoration", "resid_post", layer, position) == pytest.approx(expected, abs=1e-5)
        sizes.append(abs(expected))
    assert max(sizes) > 0.1


def test_windows_equal_bare_hooks_and_say_their_layers(model, trace):
    found, noise, apart = trace.effects, rows(model), []
    windows = {"mlp_out": {0: (0, 1), 1: (1, 2), 2: (2, 3)}, "attn_out": {1: (0, 1, 2), 2: (1, 2, 3)}}
    for component, cells in windows.items():
        for layer in range(LAYERS):
            ends = [found[f"window_{end}"].sel(component=component, layer=layer).item() for end in ("first", "last")]
            if layer not in cells:
                assert ends == [-1, -1]
                assert np.isnan(cell(found, "restoration", component, layer, 3))
                assert cell(found, "status", component, layer, 3) == "no_window"
                continue
            assert ends == [cells[layer][0], cells[layer][-1]]
            joint = by_hand(model.network, noise, [(component, one, 3) for one in cells[layer]])
            alone = sum(by_hand(model.network, noise, [(component, one, 3)]) for one in cells[layer])
            assert cell(found, "restoration", component, layer, 3) == pytest.approx(joint, abs=1e-5)
            assert cell(found, "restoration_sum", component, layer, 3) == pytest.approx(alone, abs=2e-5)
            apart.append(abs(joint - alone))
    assert max(apart) > 1e-2
    assert np.isnan(cell(found, "restoration_sum", "resid_post", 1, 3))


def test_the_spread_over_draws_is_of_the_effect_draw_by_draw(model, trace):
    """Paired: a draw's own baseline is taken from it, so that what all cells share does not count."""
    found, noise, unpaired = trace.effects, rows(model), []
    for component, places in (("resid_post", [1]), ("mlp_out", [1, 2])):
        effects = each_draw(model.network, noise, [(component, layer, 3) for layer in places])
        spread = np.std(effects, ddof=1)
        assert cell(found, "restoration_deviation", component, 1, 3) == pytest.approx(spread, abs=1e-5)
        raw = [effect + one for effect, one in zip(effects, baselines(model.network, noise), strict=True)]
        unpaired.append(abs(np.std(raw, ddof=1) - spread))
    assert min(unpaired) > 1e-2
    total = found.total_effect_deviation.sel(metric="logit_diff", pair="pair-0").item()
    assert total == pytest.approx(np.std(baselines(model.network, noise), ddof=1), abs=1e-5)


@pytest.mark.parametrize("part", ["mlp_out", "attn_out"])
def test_severed_effects_equal_bare_hooks(model, trace, part):
    found, noise = trace.effects, rows(model)
    for layer, position in product(range(LAYERS), (3, 6)):
        expected = by_hand(model.network, noise, [("resid_post", layer, position)], frozen=part)
        assert cell(found, f"severed_{part}", "resid_post", layer, position) == pytest.approx(expected, abs=1e-5)
    changed = found[f"severed_{part}"] - found.restoration
    assert abs(changed.sel(metric="logit_diff", component="resid_post")).max() > 1e-2
    assert found[f"severed_{part}"].sel(component=["attn_out", "mlp_out"]).isnull().all()


def test_severing_works_between_two_prompts_too(model):
    """What is severed without a difference behind the site changes nothing: the last layer has nothing behind it."""
    pair = ct.Pair(clean=PROMPT, corrupt=" w11 w12 w43 w14 w15 w16 w17", answer=" w7", foil=" w8")
    found = ct.trace(model, pair, components=["resid_pre", "resid_mid", "resid_post"], sever=["mlp_out"]).effects
    at = {"metric": "logit_diff", "pair": "pair-0"}
    last = found.sel(at).sel(layer=LAYERS - 1)
    assert_allclose(last.severed_mlp_out.sel(component="resid_post"), last.restoration.sel(component="resid_post"))
    inner = found.sel(at).sel(layer=slice(0, LAYERS - 2))
    assert abs(inner.severed_mlp_out - inner.restoration).max() > 1e-2
    # The MLP of the same layer is behind resid_pre and resid_mid, and not behind resid_post.
    for component in ("resid_pre", "resid_mid"):
        before = last.sel(component=component, position=LENGTH - 1)
        assert abs(before.severed_mlp_out - before.restoration) > 1e-3


# Laws 26 to 30.


def test_no_noise_is_the_clean_run(model):
    found = ct.trace(model, PAIR, noise=ct.Noise(scale=0.0, draws=2)).effects
    assert_allclose(found.total_effect.sel(metric=["logit_diff", "log_prob"]), 0, atol=1e-6)
    assert_allclose(found.restoration.sel(metric="logit_diff"), 0, atol=1e-5)


def test_noise_touches_the_subjects_embeddings_only(model):
    tokens = tokenize_pairs([PAIR], WORDS, noise=True)
    (contrast,), record = noised(plain_backend(model), WORDS, tokens, NOISE)
    assert record["positions"] == [list(SUBJECT)]
    for run in contrast.corrupt:
        assert [edit.site for edit in run.edits] == [Site("embed", 0, position) for position in SUBJECT]
    # Law 27: restoring those embeddings gives the clean run; law 29: restoring nothing gives the baseline.
    clean, base = contrast.clean, contrast.corrupt[0]
    restored = tuple(Edit(Site("resid_pre", 0, position), From(clean, position)) for position in SUBJECT)
    untouched = tuple(Edit(Site("resid_pre", 0, position), From(clean, position)) for position in (0, 1, 4, 5, 6))
    readout = (LENGTH - 1,)
    worlds = [World(clean, (), readout), World(base, (), readout)]
    worlds += [World(base, edits, readout) for edits in (restored, untouched)]
    for engine in ("packed", "replay"):
        found = evaluate(model, worlds, lambda logits, _: logits.flatten(1), engine=engine, prune=False).values
        assert_allclose(found[2], found[0], rtol=0, atol=1e-5)
        assert_allclose(found[3], found[1], rtol=0, atol=1e-5)
        assert np.abs(found[0] - found[1]).max() > 0.1


def test_tokens_before_the_noise_are_structural_zeros(trace):
    found = trace.effects.sel(metric="logit_diff", component="resid_post", position=[0, 1])
    assert (found.status == "structural_zero").all()
    assert_array_equal(found.restoration, 0)


def test_draws_do_not_depend_on_neighbours_order_or_portions(model, trace):
    other = ct.Pair(clean=" w3 w12 w13 w14 w15", answer=" w7", foil=" w8", subject="w12 w13", id="other")
    together = ct.trace(model, [other, PAIR], noise=NOISE, components=["resid_post"], budget=200_000)
    alone = trace.effects.restoration.sel(component="resid_post", pair="pair-0")
    assert_allclose(together.effects.restoration.sel(component="resid_post", pair="pair-1"), alone, rtol=0, atol=1e-5)
    fewer = draws(tokenize(PAIR, WORDS, noise=True), ct.Noise(draws=2, seed=5), WIDTH)
    assert_array_equal(fewer, draws(tokenize(PAIR, WORDS, noise=True), NOISE, WIDTH)[:2])
    reseeded = draws(tokenize(PAIR, WORDS, noise=True), ct.Noise(draws=2, seed=6), WIDTH)
    assert abs(fewer - reseeded).max() > 0.5
    assert abs(fewer[0] - fewer[1]).max() > 0.5


def test_a_window_of_one_is_the_single_layer(model):
    plain = ct.trace(model, PAIR, noise=NOISE, components=["mlp_out"])
    one = ct.trace(model, PAIR, noise=NOISE, components=["mlp_out"], window=1)
    assert "window_first" not in one.effects
    assert "restoration_sum" not in one.effects
    assert_array_equal(one.effects.restoration, plain.effects.restoration)


@pytest.mark.parametrize(
    ("width", "layer", "paper", "rome"),
    [
        (10, 15, range(11, 21), range(10, 20)),
        (10, 3, (), range(8)),
        (10, 46, (), range(41, 48)),
        (5, 2, range(5), range(5)),
        (2, 0, range(2), range(1)),
        (1, 7, (7,), (7,)),
    ],
)
def test_the_layers_of_a_window(width, layer, paper, rome):
    for expected, convention in ((paper, False), (rome, True)):
        windows = plan_windows(["mlp_out"], width, range(48), rome=convention)
        assert windows.layers("mlp_out", layer) == tuple(expected)


def test_a_window_of_the_stream_is_a_cut_where_one_of_its_layers_is(model):
    found = ct.trace(model, PAIR, noise=NOISE, components=["resid_post", "resid_pre"], window=2).effects
    at = {"metric": "logit_diff", "pair": "pair-0"}
    status = found.status.sel(at)
    assert status.sel(component="resid_post", position=LENGTH - 1).values.tolist() == ["ok", "ok", "cut", "no_window"]
    assert (status.sel(component="resid_pre", position=LENGTH - 1, layer=slice(0, 2)) == "ok").all()
    cut = found.sel(at).sel(component="resid_post", layer=2, position=LENGTH - 1)
    assert cut.restoration.item() == pytest.approx(cut.total_effect.item(), abs=1e-5)


def test_draws_do_not_depend_on_torchs_default_type():
    pair = tokenize(PAIR, WORDS, noise=True)
    before, expected = torch.get_default_dtype(), draws(pair, NOISE, WIDTH)
    try:
        torch.set_default_dtype(torch.float64)
        found = draws(pair, NOISE, WIDTH)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert_array_equal(found, expected)


def test_one_draw_has_no_spread(model):
    one = ct.trace(model, PAIR, noise=ct.Noise(draws=1), components=["resid_post"])
    assert not {"corrupt_deviation", "restored_deviation"} & set(one.measurements.pairs)
    assert "One draw" in one.summary()
    assert "over draws" not in one.summary()


def test_the_first_choices_after_noise_are_of_the_mean_over_draws(model, trace):
    probs = []
    for noise in rows(model):
        with hooked([noise_hook(model.network, noise)]), torch.no_grad():
            probs.append(model.network(ids(PROMPT)).logits[0, -1].softmax(-1))
    best = torch.stack(probs).mean(0).topk(5)
    data = trace.measurements.pairs.sel(pair="pair-0")
    assert data.corrupt_top.values.tolist() == [WORDS.decode([token]) for token in best.indices.tolist()]
    assert_allclose(data.corrupt_top_prob.values, best.values.numpy(), atol=1e-5)
    assert data.corrupt_top.values.tolist() != data.clean_top.values.tolist()
    (shown,) = ct.preview(model, PAIR, noise=NOISE)
    assert shown.corrupt_top == ()
    assert "noise   at positions 2 ( w13), 3 ( w14)" in str(shown)
    assert "corrupt" not in str(shown)


# ROME's own conventions.


def test_the_preset_is_romes(model):
    found = ct.trace(model, PAIR, preset="rome")  # four layers: the windows of ten are cut at both edges
    assert found.effects.window_first.sel(component="mlp_out").values.tolist() == [0, 0, 0, 0]
    assert found.effects.window_last.sel(component="attn_out").values.tolist() == [3, 3, 3, 3]
    assert found.effects.window_first.sel(component="resid_post").values.tolist() == [0, 1, 2, 3]
    noise = found.provenance["noise"]
    sigma = model.network.get_input_embeddings()(ids("w13 w14")).double().std().item()
    assert noise["sigmas"] == [pytest.approx(sigma)]
    assert (noise["draws"], noise["scale"], found.measurements.metric) == (10, 3.0, "prob")
    drawn = np.random.RandomState(1).randn(10, 2, WIDTH)
    values = []
    for draw in drawn:
        with hooked([noise_hook(model.network, torch.from_numpy(3 * sigma * draw).float())]), torch.no_grad():
            values.append(model.network(ids(PROMPT)).logits[0, -1].softmax(-1)[ids(" w7")[0, 0]].item())
    assert found.effects.corrupt.sel(metric="prob").item() == pytest.approx(np.mean(values), abs=1e-6)
    assert "By the conventions of ROME's code" in found.summary()


# Words, files, heads, the command that makes it again.


def test_the_words_say_what_was_done(model, trace, tmp_path):
    said = trace.summary()
    assert "against   the same with noise on its subject" in said
    assert "means of 4 draws, the same for every cell" in said
    assert "patched together; one at a time they add up to" in said
    assert "With the later MLPs at its token frozen, it brings back" in said
    assert "With the later attention at its token frozen, it brings back" in said
    assert "Over draws it varies by" in said
    opened = ct.open_trace(trace.save(tmp_path / "saved"))
    assert opened.effects.identical(trace.effects)
    assert opened.summary() == said
    trace.to_html(tmp_path / "page.html")
    assert trace.plot("map") is not None


def test_the_words_of_several_prompts_say_whose_noise_it_was(model):
    pairs = [PAIR, ct.Pair(clean=PROMPT, answer=" w7", foil=" w8", subject="w15", id="late")]
    said = ct.trace(model, pairs, preset="rome", components=["resid_post"], layers=[1]).summary()
    assert "added to the embeddings of ' w13', ' w14': means of 10 draws" in said
    assert "added to the embeddings of ' w15': means of 10 draws" in said
    assert said.count("By the conventions of ROME's code") == 1
    assert "windows of 10" not in said  # no component of this trace has any


def test_fractions_are_undefined_where_the_draws_cannot_tell_the_total_effect_from_none(model, trace):
    found = trace.effects.sel(metric="logit_diff", pair="pair-0")
    drawn = np.array([baselines(model.network, rows(model))])
    interval = stats.t.interval(0.95, 3, logit_diff(model.network) - drawn.mean(), drawn.std(ddof=1) / 2)
    assert interval[0] < 0 < interval[1]
    assert np.isnan(found.restored_fraction).all()
    assert found.restoration.notnull().any()
    assert f"{found.total_effect.item():.2g} ± {(interval[1] - interval[0]) / 2:.2g}) contains 0" in trace.summary()
    with torch.no_grad():  # noise can only make the model's first choice less likely
        first_choice = WORDS.decode([int(model.network(ids(PROMPT)).logits[0, -1].argmax())])
    sure = replace(PAIR, answer=first_choice)
    clear = ct.trace(model, sure, noise=ct.Noise(scale=3.0, draws=20), components=["resid_post"], metric="log_prob")
    found = clear.effects.sel(metric="log_prob", pair="pair-0")
    assert found.total_effect > 2.1 * found.total_effect_deviation / 20**0.5
    assert found.restored_fraction.notnull().any()
    assert "Fractions are undefined" not in clear.summary()


def test_the_table_has_what_windows_and_noise_add_where_they_were_asked_for(model, trace):
    table = trace.top(3, component="mlp_out")
    first = table.iloc[0]
    assert first.window_last == first.window_first + 1
    assert np.isfinite(first.restoration_sum)
    assert {"restoration_deviation", "severed_mlp_out"} <= {*table.columns}
    plain = ct.trace(model, ct.Pair(clean=PROMPT, corrupt=PROMPT.replace("w13", "w43"), answer=" w7"), layers=[1])
    assert not {"window_first", "restoration_sum", "restoration_deviation", "severed_mlp_out"} & {*plain.top(1).columns}
    assert "against   the same with noise" in trace.plot().get_suptitle()


def test_heads_go_with_noise(model):
    found = ct.trace(model, PAIR, noise=ct.Noise(draws=3, seed=1), heads=["z"])
    assert found.heads.restoration.sel(metric="logit_diff", position=slice(2, 6)).notnull().all()
    one = [ct.trace(model, PAIR, noise=ct.Noise(draws=n, seed=1), heads=["z"]).heads.restoration for n in (1, 2)]
    mean_of_two = one[1].sel(metric="logit_diff")
    assert abs(mean_of_two - one[0].sel(metric="logit_diff")).max() > 1e-3
    assert found.provenance["spot_checks"]["largest_difference"] < 1e-4


def test_pruned_cells_equal_run_ones(model):
    """Noise's zeros and duplicates are dropped; run all the same, they give the same."""
    tokens = tokenize_pairs([PAIR], WORDS, noise=True)
    (contrast,), _ = noised(plain_backend(model), WORDS, tokens, ct.Noise(draws=2))
    worlds = [
        World(base, (Edit(Site("resid_post", layer, p), From(contrast.clean, p)),), (LENGTH - 1,))
        for base in contrast.corrupt
        for layer, p in product(range(LAYERS), range(LENGTH))
    ]

    def flat(logits: torch.Tensor, _: Any) -> torch.Tensor:
        return logits.flatten(1)

    for engine in ("packed", "replay"):
        pruned = evaluate(model, worlds, flat, engine=engine)
        assert pruned.structural_zero.sum() == 2 * (2 * LAYERS + 4)  # before the noise; the last layer's inner tokens
        assert_allclose(pruned.values, evaluate(model, worlds, flat, prune=False).values, rtol=0, atol=1e-4)
    assert isinstance(contrast.clean, Run)
