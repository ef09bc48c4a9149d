"""Paths to the logits, on every family: against bare hooks, and by the laws that they must obey.

The oracle patches and holds by forward hooks of its own, on modules that are named by hand; and for what reaches the
logits through the stream alone it computes nothing but the change that the patch makes there.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

import causal_tracing as ct
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.patching.direct_paths import plan_paths
from causal_tracing.prompts.pairs import tokenize
from causal_tracing.testing import lookup
from direct_by_hand import (
    ANSWER,
    CLEAN,
    CORRUPT,
    FOIL,
    LAST,
    LAYERS,
    PROJECTIONS,
    direct_by_hand,
    of_family,
    parts,
    written,
)
from families import FAMILIES
from loaded import BY_NAME, fresh, shared

ELSEWHERE = (0, 3, 4)  # before the first difference, at it, and at a token behind it that both prompts have
TOLERANCE = 1e-5  # of the largest logit, on tiny models
REAL = 1e-2  # of the total effect: what is larger is no rounding

NOT_HELD = ("falcon_h1",)  # a state space adds to the stream beside attention
HELD = [family.name for family in FAMILIES if family.name not in NOT_HELD]
# Where the stream between layers is no sum, and where logits are no linear map of the normed stream.
POST_NORM, CAPPED = ("opt-350m",), ("gemma2",)
WITHOUT_HEADS = ("mamba", "qwen3_next")
SINGLE = [name for name in HELD if "mixer_out" in BY_NAME[name].parts]
PARALLEL = [name for name in HELD if BY_NAME[name].residual == "parallel"]


def spelled(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def pair(clean: Sequence[int] = CLEAN, corrupt: Sequence[int] = CORRUPT) -> ct.Pair:
    return ct.Pair(clean=spelled(clean), corrupt=spelled(corrupt), answer=f" w{ANSWER}", foil=f" w{FOIL}")


def asked(name: str) -> list[str]:
    return ["mlps_frozen"] if name in SINGLE else ["mlps_frozen", "mlps_live"]


@cache
def traced(name: str, engine: str, norm: str = "live") -> ct.Trace:
    """Heads and other tokens by one engine: of the other one whole parts are looked at, where the logits are read."""
    model, usual = shared(name), engine == engine_of(name)
    heads = ["z"] if usual and name not in WITHOUT_HEADS and "z" in model.anatomy.mediators else []
    components = ["resid_pre", *parts(name), "resid_post"]
    return ct.trace(
        model, pair(), components=components, heads=heads, direct=asked(name), direct_norm=norm, engine=engine,
        positions=[*ELSEWHERE, LAST] if usual and norm == "live" else [LAST], progress=False, spot_checks=2,
    )  # fmt: skip


def engine_of(name: str) -> str:
    return "packed" if BY_NAME[name].packed else "replay"


def effects(name: str, norm: str = "live", of: str = "blocks", engine: str = "") -> Any:
    return traced(name, engine or engine_of(name), norm).of(of).sel(metric="logit_diff", pair="pair-0")


@cache
def bound(name: str) -> float:
    """What rounding explains of a difference of two logits."""
    return TOLERANCE * max(1.0, float(np.abs(of_family(name).run(CLEAN)).max()))


# P9: packed = replay = bare hooks, for whole parts and for the stream.
@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("name", HELD)
def test_paths_of_whole_parts_equal_bare_hooks(name: str, engine: str):
    if engine == "packed" and not BY_NAME[name].packed:
        pytest.skip("it does not attend by the replaceable function")
    found = effects(name, engine=engine).sel(position=LAST)
    sites = [("resid_pre", 0), ("resid_pre", 2), *((part, layer) for part in parts(name) for layer in (0, 2, 3))]
    for component, layer in sites:
        cell = found.sel(component=component, layer=layer)
        for direct, mlps in (("direct_path", True), ("direct_path_mlps_live", False)):
            if f"{direct}_restoration" in cell:
                expected = direct_by_hand(name, component, layer, mlps=mlps)
                measured = cell[f"{direct}_restoration"].item()
                assert measured == pytest.approx(expected, abs=2 * bound(name)), (component, layer, direct)
    apart = abs(found.direct_path_restoration - found.restoration)
    assert apart.max() > REAL * abs(found.total_effect)


# P2: the edge to the logits alone is the direct path with MLPs held: what the patch adds to the stream, and no more.
@pytest.mark.parametrize("name", [name for name in HELD if name not in POST_NORM])
def test_the_path_with_mlps_held_is_what_the_patch_adds_to_the_stream(name: str):
    found, bare = effects(name).sel(position=LAST), of_family(name)
    for part in parts(name):
        for layer in range(LAYERS):
            measured = found.direct_path_restoration.sel(component=part, layer=layer).item()
            assert measured == pytest.approx(bare.through_the_stream(part, layer), abs=2 * bound(name)), (part, layer)


# P3: what all writers and the embedding add, of the donor, is the donor.
@pytest.mark.parametrize("name", [name for name in HELD if name not in POST_NORM])
def test_all_writers_and_the_embedding_of_the_other_run_are_that_run(name: str):
    model, base, donor = shared(name), Run(CORRUPT), Run(CLEAN)
    sites = [Site("resid_pre", 0, LAST), *(Site(part, layer, LAST) for part in parts(name) for layer in range(LAYERS))]
    edits = tuple(Edit(site, From(donor, LAST)) for site in sites)
    worlds = [World(base, edits, (LAST,)), World(donor, (), (LAST,))]
    patched, other = evaluate(model, worlds, lambda logits, _: logits.flatten(1), engine=engine_of(name)).values
    assert_allclose(patched, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


# P4: with the final norm frozen, the paths of all writers add up.
@pytest.mark.parametrize("name", [name for name in HELD if name not in (*POST_NORM, *CAPPED)])
def test_with_the_norm_frozen_paths_add_up(name: str):
    found = effects(name, "frozen").sel(position=LAST).direct_path_restoration
    total = found.sel(component=list(parts(name))).sum() + found.sel(component="resid_pre", layer=0)
    assert total.item() == pytest.approx(of_family(name).with_the_norm_frozen(), abs=20 * bound(name))
    live = effects(name).sel(position=LAST).direct_path_restoration
    assert abs(live.sel(component=list(parts(name))).sum() + live.sel(component="resid_pre", layer=0) - total) > 1e-3


# P5: no path leads from another token, from what both runs share, or from nothing.
@pytest.mark.parametrize("name", HELD)
def test_where_no_path_leads_it_is_zero(name: str):
    names = [f"direct_path{more}_{way}" for more in ("", "_mlps_live") for way in ("restoration", "disruption")]
    for of in ("blocks", "heads") if "heads" in traced(name, engine_of(name)).measurements.maps else ("blocks",):
        found = effects(name, of=of)
        for each in names:
            if each in found:
                assert_array_equal(found[each].sel(position=[*ELSEWHERE]), 0)
                assert (found[each].sel(position=LAST) != 0).any()
    assert (effects(name).restoration.sel(position=3) != 0).any()


def test_what_is_written_by_half_or_not_at_all():
    model = shared("llama")

    def paths(**options: Any) -> Any:
        found = ct.trace(model, pair(), components=["attn_out"], direct=["mlps_frozen"], progress=False, **options)
        return found.effects.sel(metric="logit_diff", pair="pair-0", component="attn_out").direct_path_restoration

    assert_array_equal(paths(write=ct.Write(alpha=0.0)), 0)
    halves = [paths(write=ct.Write(alpha=alpha), direct_norm="frozen") for alpha in (0.5, 1.0)]
    assert_allclose(2 * halves[0], halves[1], rtol=0, atol=4 * bound("llama"))


# P6: what comes behind the last layer's attention is its MLP alone.
@pytest.mark.parametrize("name", [name for name in HELD if name not in SINGLE])
def test_in_the_last_layer_the_path_through_mlps_is_the_whole_effect(name: str):
    for of, components in (("blocks", ["attn_out", "mlp_out"]), ("heads", ["z"])):
        if of in traced(name, engine_of(name)).measurements.maps:
            last = effects(name, of=of).sel(component=components, layer=LAYERS - 1, position=LAST)
            assert_array_equal(last.direct_path_mlps_live_restoration, last.restoration)
            assert_array_equal(last.direct_path_mlps_live_disruption, last.disruption)
    blocks = effects(name).sel(layer=LAYERS - 1, position=LAST)
    assert_array_equal(*(blocks.sel(component="mlp_out")[each] for each in ("direct_path_restoration", "restoration")))
    attention = blocks.sel(component="attn_out")
    apart = abs(attention.direct_path_restoration - attention.restoration).item()
    assert apart <= 2 * bound(name) if name in PARALLEL else apart > 10 * bound(name)


# P9 for single heads, in both directions; the projection's input is written by hand.
@pytest.mark.parametrize("name", PROJECTIONS)
def test_paths_of_heads_equal_bare_hooks(name: str):
    bare, found = of_family(name), effects(name, of="heads").sel(position=LAST, component="z")
    for layer, head in ((0, 1), (2, 3), (3, 0)):
        projection = bare.layers[layer].get_submodule(PROJECTIONS[name])
        kept: list[Tensor] = []
        bare.run(CLEAN, [(projection, "in", lambda _, args, __, kept=kept: kept.append(args[0][0, -1].clone()))])
        size = len(kept[0]) // found.sizes["head"]
        part = slice(head * size, (head + 1) * size)

        def write(_: Any, args: Any, kwargs: Any, part: slice = part, value: Tensor = kept[0]) -> Any:
            changed = args[0].clone()
            changed[0, -1, part] = value[part]
            return (changed, *args[1:]), kwargs

        for direct, held in (("direct_path", ("attn_out", "mlp_out")), ("direct_path_mlps_live", ("attn_out",))):
            behind = [bare.module(each, later) for each in held for later in range(layer, LAYERS)][1:]
            hooks = [(module, "out", written(bare.seen(CORRUPT, module))) for module in behind]
            expected = bare.difference([(projection, "in", write), *hooks])
            measured = found[f"{direct}_restoration"].sel(layer=layer, head=head).item()
            assert measured == pytest.approx(expected, abs=2 * bound(name)), (layer, head, direct)


# P10: the path of a layer's attention is the joint path of its heads.
@pytest.mark.parametrize("name", [name for name in HELD if name not in WITHOUT_HEADS])
def test_the_path_of_attention_is_that_of_all_its_heads(name: str):
    model, base, donor = shared(name), Run(CORRUPT), Run(CLEAN)
    paths = plan_paths(model, [tokenize(pair(), model.tokenizer)], ["mlps_frozen"], "live")
    assert paths is not None
    heads = [Edit(Site("z", 1, LAST, head), From(donor, LAST)) for head in range(model.parts("z"))]
    world = World(base, (*heads, *paths.behind("mlps_frozen", base, heads)), (LAST,))
    measured = evaluate(model, [world, World(base, (), (LAST,))], lambda logits, _: logits.flatten(1)).values
    together = measured[0] - measured[1]
    cell = effects(name).direct_path_restoration.sel(component="attn_out", layer=1, position=LAST).item()
    assert cell == pytest.approx(together[ANSWER] - together[FOIL], abs=2 * bound(name))
    if name in (*POST_NORM, *CAPPED, "gemma3", "gemma3_text", "olmo2"):
        return
    frozen = effects(name, "frozen", "heads").direct_path_restoration.sel(component="z", layer=1, position=LAST)
    whole = effects(name, "frozen").direct_path_restoration.sel(component="attn_out", layer=1, position=LAST)
    assert frozen.sum().item() == pytest.approx(whole.item(), abs=8 * bound(name))


def test_disruption_is_the_same_with_the_runs_exchanged():
    found = effects("llama").sel(position=LAST)
    other = ct.trace(
        shared("llama"), pair(CORRUPT, CLEAN), components=["attn_out", "mlp_out"], direct=True, progress=False
    )
    back = other.effects.sel(metric="logit_diff", pair="pair-0", position=LAST)
    for name in ("direct_path", "direct_path_mlps_live"):
        one = found[f"{name}_disruption"].sel(component=["attn_out", "mlp_out"])
        assert_allclose(one, -back[f"{name}_restoration"], rtol=0, atol=4 * bound("llama"))


def test_keys_and_values_reach_the_token_that_reads_them_in_their_own_layer():
    found = ct.trace(
        shared("llama"), pair(), components=[], heads=["q", "v"], direct=True, progress=False
    ).of("heads").sel(metric="logit_diff", pair="pair-0")  # fmt: skip
    of_values = found.direct_path_restoration.sel(component="v", position=5)
    assert (abs(of_values) > 1e-3).any()
    assert_array_equal(found.direct_path_restoration.sel(component="q", position=5), 0)
    # Behind the last layer's attention its MLP alone is left: where that is live, the path is the whole effect.
    live, whole = (
        found[name].sel(component="v", position=5, layer=3)
        for name in ("direct_path_mlps_live_restoration", "restoration")
    )
    assert_allclose(live, whole, rtol=0, atol=4 * bound("llama"))


def test_a_window_is_patched_together_and_held_behind():
    model, base, donor = shared("llama"), Run(CORRUPT), Run(CLEAN)
    found = ct.trace(model, pair(), components=["attn_out"], window=2, direct=["mlps_frozen"], progress=False).effects
    cell = found.sel(metric="logit_diff", pair="pair-0", component="attn_out", layer=1, position=LAST)
    assert (cell.window_first, cell.window_last) == (1, 2)
    sites = [Site("mlp_out", layer, LAST) for layer in (1, 2, 3)] + [Site("attn_out", 3, LAST)]
    held = [Edit(site, From(base, LAST)) for site in sites]
    both = [Edit(Site("attn_out", layer, LAST), From(donor, LAST)) for layer in (1, 2)]
    worlds = [World(base, (*both, *held), (LAST,)), World(base, (), (LAST,))]
    numbers = evaluate(model, worlds, lambda logits, _: logits.flatten(1)).values
    expected = (numbers[0] - numbers[1])[ANSWER] - (numbers[0] - numbers[1])[FOIL]
    assert cell.direct_path_restoration.item() == pytest.approx(expected, abs=2 * bound("llama"))


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves
def test_the_lookup_writes_its_answer_by_attention_of_layer_4_alone():
    model, told = lookup()
    found = ct.trace(model, told, components=["resid_pre", "attn_out", "mlp_out"], direct=True, progress=False).effects
    found = found.sel(metric="logit_diff", pair="lookup")
    shares = found.direct_path_restoration / found.total_effect
    last = shares.isel(position=-1)
    assert last.sel(component="attn_out").values.tolist() == [0, 0, 0, 0, 1, 0]
    assert float(abs(last.sel(component="mlp_out")).max()) == 0
    assert float(abs(shares.isel(position=slice(None, -1))).max()) == 0


def test_the_model_is_left_as_it_was():
    model: Model = fresh("llama")
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.network.modules()]
    ct.trace(model, pair(), components=["attn_out"], direct=True, direct_norm="frozen", progress=False)
    after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.network.modules()]
    assert after == hooks
