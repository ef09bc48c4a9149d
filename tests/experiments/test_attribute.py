"""Estimates by gradient: of one pair and of several, in our signs, and the checks that go with them."""

import html
import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

import causal_tracing as ct
from causal_tracing.engine.choose import plain_backend
from causal_tracing.engine.hooks.gradients import gradients
from causal_tracing.errors import ComponentNotOffered, EngineNote, InvalidOption, InvalidPair, InvalidResults
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.interventions.edits import Run
from causal_tracing.interventions.sites import MEDIATORS, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.estimates import attribution
from causal_tracing.patching.estimates.sites import integrated
from causal_tracing.report.words.estimates import left_out
from differentiated import CLEAN, CORRUPT, LENGTH, PAIR, WHERE, ids, load, logit_diff

BLOCKS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@pytest.fixture(scope="module")
def model() -> Model:
    return load("llama")


# The screen.


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def activation(network: Any, part: Any, text: str, *, of_input: bool) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    if of_input:
        handle = part.register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
    else:
        handle = part.register_forward_hook(lambda _, __, out: kept.append(first(out)[0]))
    with torch.no_grad():
        network(torch.tensor([ids(text)]))
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("direction", ["restoration", "disruption"])
def test_estimates_are_first_order_effects_in_our_signs(model, direction):
    found = ct.attribute(model, PAIR, components=["resid_post", "z"], direction=direction, verify=5, sample=5)
    base, donor = (CORRUPT, CLEAN) if direction == "restoration" else (CLEAN, CORRUPT)
    for component in ("resid_post", "z"):
        module, of_input = WHERE[component]
        for layer in (0, 2):
            part = module(model.network, layer)
            kept = [activation(model.network, part, text, of_input=of_input) for text in (CLEAN, CORRUPT)]
            slope = gradients(model, [Run(ids(base))], [(component, layer)], logit_diff)[component, layer][0]
            expected = ((kept[0] - kept[1]) * slope).unflatten(1, (4 if component == "z" else 1, -1)).sum(-1)
            got = found.estimates[component].values[0, layer]
            assert_allclose(got.reshape(LENGTH, -1), expected, rtol=0, atol=1e-5)
    assert found.estimates["z"].name == f"estimated_{direction}"
    assert donor != base


@pytest.mark.parametrize("method", ["atp", "ig"])
def test_what_is_verified_is_the_traces_effect(model, method):
    components = [*BLOCKS, *MEDIATORS]
    found = ct.attribute(model, PAIR, components=components, method=method, steps=4, verify=6, sample=9, seed=3)
    trace = ct.trace(model, PAIR, components=BLOCKS, heads=MEDIATORS[:-1], neurons=True, neuron_positions="each")
    assert len(found.checked) > len(components) * 12
    for one in found.checked:
        site, unit = one.site, "neuron" if one.site.component == "neurons" else "head"
        table = trace.effects if site.part is None else (trace.neurons if unit == "neuron" else trace.heads)
        at: dict[str, Any] = {"metric": "logit_diff", "pair": "pair-0", "component": site.component}
        at |= {"layer": site.layer, "position": site.position} | ({} if site.part is None else {unit: site.part})
        cell = table.sel(at)
        assert cell.status.item() == "ok"
        assert one.exact == pytest.approx(cell.restoration.item(), abs=1e-5)
    for name in components:
        mine = [one for one in found.checked if one.site.component == name]
        least = min(abs(one.estimate) for one in mine if one.why == "top")
        assert any(one.why == "sample" for one in mine)
        assert all(abs(one.estimate) <= least for one in mine if one.why == "sample")


def test_the_agreement_is_what_the_numbers_say(model):
    found = ct.attribute(model, PAIR, verify=4, sample=5)
    alone = ct.attribute(model, PAIR, components=["mlp_out"], verify=4, sample=5)
    mine = [one for one in found.checked if one.site.component == "mlp_out"]
    assert [(one.site, one.why, one.estimate) for one in alone.checked] == [
        (one.site, one.why, one.estimate) for one in mine
    ]
    assert [one.exact for one in alone.checked] == pytest.approx([one.exact for one in mine], abs=1e-5)
    total = ct.trace(model, PAIR).effects.total_effect.sel(metric="logit_diff").item()
    assert found.effects.total_effect.sel(metric="logit_diff").item() == pytest.approx(total, abs=1e-5)
    for name, row in found.agreement.iterrows():
        mine = [one for one in found.checked if one.site.component == name]
        estimate, real = np.array([one.estimate for one in mine]), np.array([one.exact for one in mine])
        assert row.pearson == pytest.approx(np.corrcoef(estimate, real)[0, 1])
        assert row.spearman == pytest.approx(stats.spearmanr(estimate, real)[0])
        large = abs(real) >= 0.02 * abs(total)
        assert row.same_sign == np.mean((estimate * real > 0)[large])
        top = {id(one) for one in mine if one.why == "top"}
        best = sorted(mine, key=lambda one: -abs(one.exact))[:4]
        assert row.recall == sum(id(one) in top for one in best) / 4
        assert row.sampled_max == max(abs(one.exact) for one in mine if one.why == "sample")
        every = row.verified + row.sampled == found.agreements.sites["pair-0", name]
        assert row.above == (0 if every else pytest.approx(1 - 0.05 ** (1 / 5)))
    assert (found.agreement.above > 0).any()
    said = found.summary()
    assert "Estimates are a screen, not effects." in said
    assert re.search(
        r"of 5 random sites among the rest, none has an effect above [\d.e−]+ logits, of either sign;", said
    )
    assert "strongest of those patched, in logits " in said
    assert not re.search(r" -\d", said)


def test_nothing_is_lost_in_a_file(model, tmp_path):
    found = ct.attribute(model, PAIR, components=["z", "mlp_out"], verify=3, sample=4)
    opened = ct.open_trace(found.save(tmp_path / "screen"))
    assert isinstance(opened, Attribution)
    assert opened.summary() == found.summary()
    assert opened.verified.equals(found.verified)
    assert opened.estimates["z"].identical(found.estimates["z"])
    assert opened.to_dict() == found.to_dict()
    assert len(found.plot().axes) == 2
    path = tmp_path / "screen" / "trace.json"
    path.write_text(path.read_text().replace('"layer"', '"layers"', 1))
    with pytest.raises(InvalidResults, match="trace.json is damaged"):
        Attribution.open(tmp_path / "screen")
    (tmp_path / "screen.json").write_text("{}")
    with pytest.raises(InvalidResults, match="is no saved attribution"):
        Attribution.open(tmp_path / "screen.json")


def test_the_page_shows_every_patched_site_and_what_is_known_of_the_rest(model, tmp_path):
    found = ct.attribute(model, PAIR, components=["mlp_out", "z"], verify=3, sample=4)
    page = found.to_html(tmp_path / "screen.html")
    assert (tmp_path / "screen.html").read_text(encoding="utf-8") == page
    marks = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"', page)
    assert len(marks) == len(found.checked) == 14
    assert sorted(why for why, _, _ in marks) == sorted(one.why for one in found.checked)
    for name in ("mlp_out", "z"):
        mine = [one for one in found.checked if one.site.component == name]
        figure = next(part for part in page.split("<figure>") if f"of {name}" in part)
        drawn = re.findall(r'<circle class="\w+" cx="([\d.]+)" cy="([\d.]+)"', figure)
        places = np.array([[float(x), float(y)] for x, y in drawn])
        exact, estimate = np.array([one.exact for one in mine]), np.array([one.estimate for one in mine])
        scale = max(abs(exact).max(), abs(estimate).max())  # both axes have one scale, upwards and to the right
        assert_allclose(places[:, 0], 130 + 96 * exact / scale, rtol=0, atol=0.06)
        assert_allclose(places[:, 1], 130 - 96 * estimate / scale, rtol=0, atol=0.06)
        assert f"Pearson {found.agreement.pearson[name]:.2f}".replace("-", "−") in figure
    assert all(html.escape(sentence) in page for sentence in left_out(found.measurements, found.agreement))
    assert "<script" not in page
    assert "default-src 'none'; style-src 'sha256-" in page


def test_attribution_patching_takes_two_forwards(model, monkeypatch):
    seen: list[tuple[int, ...]] = []
    handle = model.network.register_forward_pre_hook(
        lambda _, __, options: seen.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    made = lambda *_: (_ for _ in ()).throw(KeyError("the estimates are made"))  # noqa: E731
    monkeypatch.setattr(attribution, "_chosen", made)
    with pytest.raises(KeyError, match="the estimates are made"):
        ct.attribute(model, PAIR, components=BLOCKS, engine="replay")
    handle.remove()
    look, donor, base = (2, LENGTH), (1, LENGTH), (1, LENGTH)  # the first serves whatever is compared with it
    assert seen == [look, donor, base]


def test_integrated_gradients_fit_the_memory(model, monkeypatch):
    """However many steps there are, a batch has no more runs than fit; the sum is the same."""
    sizes: list[int] = []
    handle = model.network.register_forward_pre_hook(
        lambda _, __, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    base, donor, sites = Run(ids(CORRUPT)), Run(ids(CLEAN)), [Site("mlp_out", 1, p) for p in range(LENGTH)]
    together = integrated(plain_backend(model), base, donor, sites, logit_diff, 7)
    assert sizes == [1, 1, 2, 7]  # one row and two are measured first
    sizes.clear()
    monkeypatch.setattr("causal_tracing.engine.network.rows_that_fit", lambda *_: 3)
    split = integrated(plain_backend(model), base, donor, sites, logit_diff, 7)
    handle.remove()
    assert sizes == [1, 3, 3, 1]
    assert_allclose(split, together, rtol=0, atol=1e-5)
    assert together.abs().max() > 1e-2


def test_an_engine_that_is_not_used_is_said():
    with pytest.warns(EngineNote, match="The packed engine is not used on bloom"):
        found = ct.attribute(load("bloom"), PAIR, components=["mlp_out"], verify=2, sample=2)
    assert found.provenance["engine"] == "replay"
    assert "layer 0 does not attend by" in found.provenance["engine_note"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "atlas"}, InvalidOption, "There is no method 'atlas'"),
        ({"metric": "neg_rank"}, InvalidOption, "There is no metric 'neg_rank' that has a gradient"),
        ({"steps": 0}, InvalidOption, "steps= must be a whole number of at least 1"),
        ({"verify": 0}, InvalidOption, "estimates are always checked"),
        ({"sample": 0}, InvalidOption, "estimates are always checked"),
        ({"components": ["z_out"]}, InvalidOption, "There is no component 'z_out'"),
        ({"direction": "both"}, InvalidOption, "There is no direction 'both'"),
        ({"engine": "fast"}, InvalidOption, "There is no engine 'fast'"),
        ({"seed": -1}, InvalidOption, "seed= must be a whole number of at least 0"),
    ],
)
def test_bad_options_are_said(model, options, error, message):
    with pytest.raises(error, match=message):
        ct.attribute(model, PAIR, **options)


def test_what_cannot_be_estimated_is_said(model):
    with pytest.raises(InvalidOption, match="no single logit"):
        ct.attribute(model, ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7 w9", foil=" w8"), metric="logit")
    longer = ct.Pair(clean=f" w11{CLEAN}", corrupt=CORRUPT, answer=" w7", foil=" w8")
    with pytest.raises(InvalidPair, match="a pattern goes over all tokens of a prompt, and these have 7 and 6"):
        ct.attribute(model, longer, components=["pattern"], align="suffix")
    with pytest.raises(InvalidOption, match="pair 'pair-0' has no logit_diff: it needs a foil. Use metric='log_prob'"):
        ct.attribute(model, ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7"), metric="logit_diff")
    with pytest.raises(ComponentNotOffered, match="neurons is not offered"):
        ct.attribute(load("mixtral"), PAIR, components=["neurons"])


# Many pairs, other alignments, longer answers.

SEVERAL = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7 w9", foil=" w8 w5 w6", id="several")
SHIFTED = ct.Pair(clean=f" w11{CLEAN}", corrupt=CORRUPT, answer=" w7", foil=" w8", id="shifted")


@pytest.mark.parametrize(
    ("pair", "options"),
    [
        (SEVERAL, {}),
        (SEVERAL, {"metric": "log_prob", "direction": "disruption"}),
        (SEVERAL, {"metric": "prob"}),
        (SHIFTED, {"align": "suffix"}),
        (SHIFTED, {"align": "suffix", "direction": "disruption"}),
    ],
)
def test_an_estimate_is_the_slope_of_the_effect_as_a_little_is_put_in(pair, options):
    """The engine's own effect of a small share of the donor's activation, divided by the share."""
    model, share = load("llama", torch.float64), 2e-3
    found = ct.attribute(model, pair, components=["resid_post", "attn_out", "neurons"], verify=1, sample=1, **options)
    traced = {name: value for name, value in options.items() if name in ("align", "metric")}
    more, less = (
        ct.trace(
            model, pair, components=["resid_post", "attn_out"], neurons=True, neuron_positions="each",
            write=ct.Write(alpha=alpha), directions=[found.direction], spot_checks=0, **traced,
        )
        for alpha in (share, -share)
    )  # fmt: skip
    metric = found.measurements.metric
    for name in ("resid_post", "attn_out", "neurons"):
        one, other = (getattr(each, "neurons" if name == "neurons" else "effects") for each in (more, less))
        slope = (one[found.direction] - other[found.direction]).sel(metric=metric, component=name) / (2 * share)
        slope = slope.transpose("pair", "layer", "position", ...)
        kept = slope.layer < slope.layer.values[-1]  # behind the last layer only the last token is read
        estimate = found.estimates[name]
        assert np.array_equal(np.isnan(slope), np.isnan(estimate))
        scale = float(abs(slope).max())
        assert_allclose(estimate.where(kept), slope.where(kept), rtol=0, atol=2e-3 * scale)
        assert abs(slope.where(kept)).max() > 0.1 * scale > 1e-6


def test_a_pairs_estimates_do_not_depend_on_its_neighbours(model):
    other = ct.Pair(clean=" w3 w4 w5 w6", corrupt=" w3 w7 w5 w6", answer=" w9", foil=" w2", id="other")
    both = ct.attribute(model, [PAIR, other, SEVERAL], components=["mlp_out", "z"], verify=3, sample=4)
    for n, each in enumerate((PAIR, other, SEVERAL)):
        alone = ct.attribute(model, each, components=["mlp_out", "z"], verify=3, sample=4)
        id = each.id or "pair-0"
        for name in ("mlp_out", "z"):
            here = both.estimates[name].isel(pair=n, position=slice(0, alone.estimates[name].sizes["position"]))
            assert_allclose(here, alone.estimates[name].isel(pair=0), rtol=0, atol=1e-5)
        mine = [(one.site, one.why) for one in both.checked if one.pair == id]
        assert mine == [(one.site, one.why) for one in alone.checked]
    assert {*both.agreements.reset_index().pair} == {"pair-0", "other", "several"}
    assert both.agreement.pearson["z"] == pytest.approx(both.agreements.pearson[:, "z"].median())
    assert both.agreement.above["z"] == both.agreements.above[:, "z"].max()
    said = both.summary()
    assert "3 pairs, each with estimates of its own; rows are medians over them" in said
    assert any(line.startswith("other: ") for line in said.splitlines())
    assert both.to_html().count("<circle") == len(both.checked)


def test_what_many_pairs_estimates_have_of_a_trace(model, tmp_path):
    pairs = [
        ct.Pair(
            clean=f" w11 w{20 + n} w13 w14", corrupt=f" w11 w{50 + n} w13 w14", answer=" w7", foil=" w8", id=f"p{n}"
        )
        for n in range(10)
    ]
    found = ct.attribute(model, pairs, components=["resid_post", "mlp_out"], verify=4, sample=3)
    means = found.evidence()
    cells = found.effects.sel(metric="logit_diff")
    assert_allclose(means.cells.estimated, cells.estimated.mean("pair"), rtol=0, atol=1e-12)
    assert (means.cells.estimated_low < means.cells.estimated).any()
    everywhere = (cells.status != "not_patched").all("pair")
    assert everywhere.any()
    assert not everywhere.all()
    exact = means.cells.restoration
    assert exact.where(~everywhere).isnull().all()  # patched for strong estimates alone: no mean would speak for others
    open_ = everywhere & (cells.status == "ok").all("pair")
    assert_allclose(exact.where(open_), cells.restoration.mean("pair").where(open_), rtol=0, atol=1e-12)
    assert {*found.to_dataframe().effect} >= {"restoration", "estimated"}
    assert found.export(tmp_path / "screen.csv").stat().st_size > 1000
    assert ct.compare(found, found).cells.estimated.max() == 0
    assert found.plot("map", effect="estimated").axes
    opened = ct.open_trace(found.save(tmp_path / "saved"))
    assert opened.summary() == found.summary()
