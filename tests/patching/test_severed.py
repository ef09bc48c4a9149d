"""Severed effects (ROME, figure 3): against bare hooks, and by algebra on the network that looks a fact up."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from bare_hooks import first, hooked, put
from causal_tracing.testing import lookup
from joint import WORDS, tiny

CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w15 w16"
LAYERS, LENGTH = 4, 6
PARTS = {"attn_out": "self_attn", "mlp_out": "mlp"}


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny().network


@pytest.fixture(scope="module", params=["packed", "replay"])
def trace(request: pytest.FixtureRequest) -> ct.Trace:
    pair = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7", foil=" w8")
    components = ["resid_pre", "resid_mid", "resid_post"]
    return ct.trace(tiny(), pair, components=components, sever=[*PARTS], engine=request.param)


class ByHand:
    """Forwards of one network with hooks on its own modules, and what passed there."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def run(self, text: str, hooks: list[tuple[Any, Callable[..., Any]]]) -> float:
        with hooked(hooks), torch.no_grad():
            logits = self.network(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1]
        answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))
        return (logits[answer] - logits[foil]).item()

    def output(self, text: str, module: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        self.run(text, [(module, lambda _, __, out: seen.append(first(out)[0].clone()))])
        return seen[0]

    def severed(self, layer: int, position: int, part: str) -> float:
        """resid_post of the layer as in the clean run; every later part at this token as in the corrupt run."""
        layers = self.network.model.layers
        patches = [(layers[layer], self.output(CLEAN, layers[layer]))]
        later = [getattr(layers[n], PARTS[part]) for n in range(layer + 1, LAYERS)]
        patches += [(module, self.output(CORRUPT, module)) for module in later]
        hooks = [(module, put(value, position)) for module, value in patches]
        return self.run(CORRUPT, hooks) - self.run(CORRUPT, [])


@pytest.mark.parametrize("part", PARTS)
def test_severed_effects_between_prompts_equal_bare_hooks(network: Any, trace: ct.Trace, part: str):
    found = trace.effects.sel(metric="logit_diff", pair="pair-0", component="resid_post")
    changed = []
    for layer, position in product(range(LAYERS), range(2, LENGTH)):
        expected = ByHand(network).severed(layer, position, part)
        cell = found.sel(layer=layer, position=position)
        assert cell[f"severed_{part}"].item() == pytest.approx(expected, abs=1e-5), (layer, position)
        changed.append(abs(expected - cell.restoration.item()))
    assert max(changed) > 1e-2
    np.testing.assert_array_equal(found[f"severed_{part}"].sel(position=[0, 1]), 0)


def test_what_comes_behind_a_site_is_by_computation_order(trace: ct.Trace):
    """resid_pre of a layer is resid_post of the one before it; behind the middle, attention has been."""
    found = trace.effects.sel(metric="logit_diff", pair="pair-0")
    for part in PARTS:
        severed = found[f"severed_{part}"]
        before, behind = (severed.sel(component=name) for name in ("resid_pre", "resid_post"))
        np.testing.assert_allclose(before.values[1:], behind.values[:-1], rtol=0, atol=1e-5)
    middle, last = found.sel(component="resid_mid"), {"layer": LAYERS - 1}
    np.testing.assert_allclose(middle.severed_attn_out.sel(last), middle.restoration.sel(last), rtol=0, atol=1e-5)
    end = middle.sel(last).sel(position=LENGTH - 1)
    assert abs(end.severed_mlp_out - end.restoration) > 1e-2


def test_severing_needs_no_other_world_where_nothing_was_restored(trace: ct.Trace):
    found = trace.effects.sel(metric="logit_diff", pair="pair-0")
    zeros = found.status == "structural_zero"
    assert zeros.any()
    for part in PARTS:
        assert (found[f"severed_{part}"].where(zeros, 0) == 0).all()


# Law 25: attention of layer 1 copies a token's identity to the next token, the MLP of layer 2 looks both up there,
# attention of layer 4 copies what it found to the last token. Rows are tokens, columns layers, numbers are shares.
PICTURE = {
    "severed_mlp_out": [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],  # layer 1: the state is there, but the MLP that would look it up is frozen
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ],
    "severed_attn_out": [  # as restoration: what moves a token's state on is attention at *later* tokens
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ],
}
TOGETHER = {"severed_mlp_out": [0, 0, 1, 1, 1, 1], "severed_attn_out": [0, 0, 0, 0, 1, 1]}


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves
@pytest.mark.parametrize("effect", PICTURE)
def test_law_25_severing_the_lookup_gives_exact_zeros_and_ones(effect: str):
    model, pair = lookup()
    options: dict[str, Any] = {"components": ["resid_post"], "sever": [effect.removeprefix("severed_")]}
    found = ct.trace(model, pair, **options).effects.sel(metric="logit_diff", pair="lookup", component="resid_post")
    shares = (found[effect] / found.total_effect).transpose("position", "layer")
    assert shares.values.tolist() == PICTURE[effect]
    whole = ct.trace(model, pair, positions="together", **options).effects
    whole = whole.sel(metric="logit_diff", pair="lookup", component="resid_post", position="together")
    assert (whole[effect] / whole.total_effect).values.tolist() == TOGETHER[effect]
    assert (whole.restoration == whole.total_effect).all()
