"""The whole path on the real model: cells against bare torch hooks, and what the demo says."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import causal_tracing as ct
from causal_tracing.models.model import Model
from causal_tracing.prompts.example import EXAMPLE

ROOT = Path(__file__).parents[2]
PAIR = ct.Pair(**EXAMPLE)
COMPONENTS = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}
TOLERANCE = 1e-4  # logits


@pytest.fixture(scope="module")
def trace(demo: Model) -> ct.Trace:
    return ct.trace(demo, PAIR)


Layers = Mapping[str, Sequence[int]]  # by component


def bare_hooks(model: Model, wanted: Layers) -> tuple[float, float, dict[tuple[str, str], np.ndarray]]:
    """Clean, corrupt, and patched logit differences by (component, direction) [layer, position]; no package code.

    One forward a layer and component: the first ten rows are the corrupt run restored at positions 0 to 9, the next
    ten the clean run disrupted there.
    """
    network, tokenizer = model.network, model.tokenizer
    clean, corrupt = (torch.tensor([tokenizer(EXAMPLE[name])["input_ids"]]) for name in ("clean", "corrupt"))
    answer, foil = (tokenizer(EXAMPLE[name])["input_ids"][0] for name in ("answer", "foil"))
    layers, length = network.model.layers, clean.shape[1]
    rows = torch.cat([corrupt.expand(length, -1), clean.expand(length, -1)])
    found = {(name, way): np.zeros((len(wanted[name]), length)) for name in wanted for way in ("restored", "disrupted")}

    def logit_diff(ids: torch.Tensor) -> torch.Tensor:
        last = network(ids, logits_to_keep=1).logits[:, -1]
        return last[:, answer] - last[:, foil]

    def first(out: object) -> torch.Tensor:
        return out[0] if isinstance(out, tuple) else out  # pyright: ignore[reportReturnType]

    with torch.no_grad():
        kept = {(name, number): [] for name in COMPONENTS for number in range(len(layers))}
        watched = [
            layers[number]
            .get_submodule(COMPONENTS[name])
            .register_forward_hook(lambda m, a, out, seen=seen: seen.append(first(out)))
            for (name, number), seen in kept.items()
        ]
        unedited = [logit_diff(ids).item() for ids in (clean, corrupt)]
        for handle in watched:
            handle.remove()
        for component, path in COMPONENTS.items():
            for place, number in enumerate(wanted[component]):
                module, seen = layers[number].get_submodule(path), kept[component, number]

                def patch(m, a, out, seen=seen):
                    new = first(out).clone()
                    for position in range(length):
                        new[position, position] = seen[0][0, position]
                        new[length + position, position] = seen[1][0, position]
                    return (new, *out[1:]) if isinstance(out, tuple) else new

                handle = module.register_forward_hook(patch)
                patched = logit_diff(rows).numpy()
                handle.remove()
                found[component, "restored"][place] = patched[:length]
                found[component, "disrupted"][place] = patched[length:]
    return unedited[0], unedited[1], found


def assert_equal_bare_hooks(demo: Model, trace: ct.Trace, wanted: Layers) -> None:
    """Every position and both directions of these layers."""
    clean, corrupt, patched = bare_hooks(demo, wanted)
    found = trace.effects.sel(metric="logit_diff", pair="pair-0")
    assert found.clean.item() == pytest.approx(clean, abs=TOLERANCE)
    assert found.corrupt.item() == pytest.approx(corrupt, abs=TOLERANCE)
    for component in COMPONENTS:
        here = found.sel(component=component, layer=list(wanted[component]))
        for name, expected in (
            ("restoration", patched[component, "restored"] - corrupt),
            ("disruption", clean - patched[component, "disrupted"]),
        ):
            np.testing.assert_allclose(here[name], expected, atol=TOLERANCE, err_msg=f"{component} {name}")
        assert abs(patched[component, "restored"] - corrupt).max() > 1


def test_cells_of_random_layers_equal_bare_hooks(demo: Model, trace: ct.Trace):
    """180 of 1,800 cells, the same ones every time: three layers of each component."""
    random = np.random.default_rng(0)
    assert_equal_bare_hooks(demo, trace, {name: sorted(random.choice(30, 3, replace=False)) for name in COMPONENTS})


@pytest.mark.slow
def test_every_cell_equals_bare_hooks(demo: Model, trace: ct.Trace):
    assert_equal_bare_hooks(demo, trace, dict.fromkeys(COMPONENTS, range(30)))


def test_law_40_float32_agrees_with_float64(demo: Model, trace: ct.Trace):
    exact = replace(demo, network=copy.deepcopy(demo.network).double())
    layers, positions = [0, 16, 23], [2, 9]  # where the effects are
    found = ct.trace(exact, PAIR, layers=layers, positions=positions, spot_checks=0, engine="replay")
    assert found.provenance["dtype"] == "float64"
    at = {"metric": "logit_diff", "layer": layers, "position": positions}
    ours, theirs = (result.effects.sel(at) for result in (trace, found))
    for name in ("restoration", "disruption", "total_effect", "interaction"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=TOLERANCE, err_msg=name)
    assert abs(theirs.restoration).max() > 1


def test_the_figures_that_everyone_gets(trace: ct.Trace):
    found = trace.effects.sel(metric="logit_diff", pair="pair-0")
    assert found.clean.item() == pytest.approx(9.059, abs=1e-3)
    assert found.corrupt.item() == pytest.approx(-4.812, abs=1e-3)
    assert found.total_effect.item() == pytest.approx(13.871, abs=1e-3)
    stream = found.restoration.sel(component="resid_post")
    assert stream.argmax("position").values.tolist() == [2] * 23 + [9] * 7
    assert stream.sel(layer=20, position=2).item() == pytest.approx(9.7, abs=0.05)
    assert stream.sel(layer=23, position=9).item() == pytest.approx(9.98, abs=0.005)
    assert trace.provenance["spot_checks"]["largest_difference"] < TOLERANCE
    assert trace.provenance["source"]["kind"] == "embedded"


def test_the_demo_says_so_in_words(trace: ct.Trace):
    words = trace.summary()
    assert "The Colosseum is located in the city of → Rome   against   The Eiffel Tower" in words
    assert "total effect 13.87 logits (clean 9.06, corrupt −4.81)" in words
    assert "rides most strongly on token 2 (osse | iffel) in layers 0 to 22" in words
    assert "and on the last token (of) in layers 23 to 29" in words
    assert "Warning" not in words


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_documents_show_what_is_printed(trace: ct.Trace, page: str):
    block = next(each for each in (ROOT / page).read_text(encoding="utf-8").split("```") if "4.81)" in each)
    words = block.partition("\n\n")[2].split("…")[0].split("\nresid_post: restoration,")[0]  # the map is the terminal's
    shown = " ".join(words.split())  # whose lines are broken otherwise
    assert shown.startswith("In the residual stream")
    assert ("What this does not show" in shown) == (page == "docs/results.md")
    assert shown in " ".join(trace.summary().split())


def test_the_model_knows_the_recipe_pages_facts(demo: Model):
    (shown,) = ct.preview(demo, PAIR)
    assert (shown.clean_top[0].token, round(shown.clean_top[0].prob, 2)) == (" Rome", 0.73)
    assert (shown.corrupt_top[0].token, round(shown.corrupt_top[0].prob, 2)) == (" Paris", 0.7)
    mary = ct.Pair(
        clean="When Mary and John went to the store, John gave a drink to",
        corrupt="When Mary and John went to the store, Mary gave a drink to",
        answer=" Mary",
        foil=" John",
    )
    assert round(ct.preview(demo, mary)[0].clean_top[0].prob, 2) == 0.92


def test_the_whole_layer_decomposition_of_the_recipe_page(demo: Model):
    found = ct.trace(demo, PAIR, positions="together", components=["resid_post", "mlp_out", "attn_out"])
    effects = found.effects.sel(metric="logit_diff", pair="pair-0", position="together")
    assert (effects.status.sel(component="resid_post") == "cut").all()
    np.testing.assert_allclose(
        effects.restoration.sel(component="resid_post"), effects.total_effect.item(), atol=TOLERANCE
    )
    assert "every layer of resid_post is a complete cut" in found.summary()
    assert {"mlp_out", "attn_out"} <= set(found.top(20).component)


def test_the_demos_agreement_is_with_the_traces_effects(demo: Model, trace: ct.Trace):
    found = ct.attribute(demo, PAIR)
    exact = trace.effects.restoration.sel(metric="logit_diff", pair="pair-0")
    assert len(found.verified) == 3 * 130
    for row in found.checked:
        cell = exact.sel(component=row.site.component, layer=row.site.layer, position=row.site.position).item()
        assert row.exact == pytest.approx(cell, abs=1e-4)
        assert row.estimate == found.estimates[row.site.component].values[0, row.site.layer, row.site.position]
    words = found.summary()
    for component, figures in found.agreement.iterrows():
        mine = found.verified[found.verified.component == component]
        assert figures.pearson == pytest.approx(np.corrcoef(mine.estimate, mine.exact)[0, 1])
        assert figures.spearman == pytest.approx(stats.spearmanr(mine.estimate, mine.exact)[0])
        assert f"{figures.pearson:.2f}" in next(line for line in words.splitlines() if line.startswith(f"{component} "))
    assert "Estimates are a screen, not effects." in words


# Measured with bare hooks by others than this code: logits that are lost without keys, in layer 23 and in windows of 9.
KNOCKED_OUT = {
    "blocked": {"subject_but_first": 3.806, 2: 0.664, 3: 1.252, "first": -1.082},
    "zeroed": {"subject_but_first": 4.096, 2: 1.982, 3: 2.257, "first": -0.115},
}


@pytest.mark.parametrize("by", [*KNOCKED_OUT])
def test_keys_of_one_layer_are_worth_what_bare_hooks_gave(demo: Model, by: str):
    found = ct.knockout(demo, PAIR, layers=[23], keys=[*KNOCKED_OUT[by]], by=by, spot_checks=0, progress=False)
    lost = found.effects.disruption.sel(metric="logit_diff", component="attention", pair="pair-0", layer=23)
    for keys, logits in KNOCKED_OUT[by].items():
        assert lost.sel(position=keys).item() == pytest.approx(logits, abs=1e-3)


def test_windows_without_the_subject_lose_what_bare_hooks_gave(demo: Model):
    found = ct.knockout(demo, PAIR, preset="geva", layers=[19, 20, 21, 22, 23], spot_checks=0, progress=False)
    prob = found.effects.sel(metric="prob", component="attention", pair="pair-0", position="subject")
    change = (-100 * prob.disruption / prob.clean).values
    assert np.round(change).tolist() == [-100, -100, -100, -100, -93]
    lost = found.effects.disruption.sel(metric="logit_diff", component="attention", pair="pair-0", position="subject")
    assert ((lost.sel(layer=[19, 20, 21, 22]) > 6.65) & (lost.sel(layer=[19, 20, 21, 22]) < 7.15)).all()


def test_pairs_of_heads_interact_as_bare_hooks_said(demo: Model):
    """Figures that were made once with bare hooks which share no code with this: logits of Rome over Paris."""
    one, other, *rest = [f"z 23.{head} @ all" for head in (4, 5, 1, 7)]
    common: dict[str, Any] = {"components": [], "spot_checks": 0, "progress": False}

    def told(kind: str, **asked: Any) -> Any:
        return ct.trace(demo, PAIR, **common, **asked).of(kind).sel(metric="logit_diff").squeeze(["pair", "component"])

    pairs = told("interactions", interactions=[[one, other], [other, *rest]])
    known = {"restoration": [7.541, 4.636, 13.467, 1.290], "disruption": [7.833, 3.945, 11.724, -0.054]}
    for name, numbers in known.items():
        alone = [pairs[name].sel(site=site, partner="alone").item() for site in (one, other)]
        both = [pairs[f"{name}{end}"].sel(site=one, partner=other).item() for end in ("", "_beyond_sum")]
        assert [*alone, *both] == pytest.approx(numbers, abs=1e-3)
    single = pairs.disruption.sel(site="alone", partner=rest)
    assert single.values.tolist() == pytest.approx([0.549, 0.745], abs=1e-3)
    behind = told("sets", sets={site: [site] for site in rest}, given=[one, other]).disruption
    assert behind.values.tolist() == pytest.approx([1.330, 0.422], abs=1e-3)
