"""A slice of the sweep (`make families`): one type for each way in which they differ, on one pair of prompts."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from torch import Tensor

from model_types import examine as whole
from model_types import mixture, oracle
from model_types.examine import BOUND, THREE, examine
from model_types.prompts import FEW
from model_types.spots import Change, put

RANKS = ("refused", "partial", "exact")
AT_LEAST = {
    # One stream, attention and MLP by turns or side by side; tuples, flat outputs, sums inside the modules
    "exact": "llama gpt2 gptj gpt_neo+window7 gpt_neox gpt_neox+sequential opt phi phi3 stablelm+parallel cohere2 "
    "falcon falcon+40b falcon+rw bloom mpt codegen biogpt ctrl gpt_bigcode olmo2 gemma2 gemma3_text afmoe dbrx "
    # Sums that are normed; factors, of the contributions and of the stream
    "bert bart blenderbot-small opt+postnorm granite+multipliers minicpm3+scaled beam gemma4_text+plain "
    # Other mixers of tokens, alone and in turns with attention
    "bamba jamba qwen3_next lfm2 minimax olmo_hybrid "
    # Experts, latent attention, windows, blocks, indexed keys
    "mixtral gpt_oss deepseek_v3 deepseek_v32+long llama4_text+long "
    "mistral+window "
    # Layers whose keys and values have other numbers of heads
    "mimo_v2_flash "
    # Decoders that another modality or an encoder goes with; a layer that a prompt of text does not reach
    "bigbird_pegasus whisper gemma3 qwen2_vl mllama",
    "partial": "doge deepseek_v4 granitemoeshared",
    "refused": "cpmant reformer xlm xlnet bert+encoder blip",
}
CASES = [(name, verdict) for verdict, names in AT_LEAST.items() for name in names.split()]


@pytest.mark.parametrize(("name", "verdict"), CASES, ids=[name for name, _ in CASES])
def test_a_type_does_at_least_as_well_as_is_known(name: str, verdict: str) -> None:
    result = examine(name, pairs=[FEW])
    assert result["verdict"] in RANKS[RANKS.index(verdict) :], result["why"]
    effects = [
        found["effect"]
        for component, entry in result.get("components", {}).items()
        for found in entry.get("prompts", {}).values()
        if component in THREE and found.get("cells")
    ]
    assert not effects or max(effects) > 50 * BOUND, "nothing moves: nothing could be wrong"


def asked_for(monkeypatch: pytest.MonkeyPatch, *components: str) -> None:
    """These and their likes alone are traced."""
    asked = [request for request in whole.REQUESTS if set(components) & set(request[0])]
    monkeypatch.setattr(whole, "REQUESTS", asked)


def test_heads_that_feed_another_mixer_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last matrix of what is added is the other mixer's; heads go into one before it."""
    asked_for(monkeypatch, "z")
    found = examine("zamba2", pairs=[FEW])["components"]["z"]["prompts"][FEW.name]
    assert found["cells"]
    assert "unchecked" not in found
    assert found["effect"] > 50 * BOUND


def test_a_write_at_another_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_later(donor: Tensor, position: int, length: int) -> Change:
        return put(donor, min(position + 1, length - 1), length)

    monkeypatch.setattr(oracle, "put", one_later)
    asked_for(monkeypatch, "resid_post")
    result: Any = examine("llama", pairs=[FEW])
    assert result["verdict"] == "WRONG"


@pytest.mark.parametrize(("component", "hole"), [("resid_post", (1, 2)), ("k", (1, slice(None), -1))])
def test_what_is_left_out_is_seen(component: str, hole: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell, or a head of one layer, that the tool calls undefined and the oracle does not."""
    arrays = whole.arrays

    def holed(numbers: xr.Dataset, direction: str) -> tuple[np.ndarray, np.ndarray]:
        table, zero = arrays(numbers, direction)
        table = table.copy()
        table[hole] = np.nan
        return table, zero

    monkeypatch.setattr(whole, "arrays", holed)
    asked_for(monkeypatch, component)
    result: Any = examine("llama", pairs=[FEW])
    assert result["verdict"] == "WRONG"
    assert component in result["why"]


def test_routers_and_experts_are_checked_and_a_write_at_another_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for(monkeypatch, "router", "experts")
    found = examine("deepseek_v3", pairs=[FEW])["components"]
    assert all(found[name]["prompts"][FEW.name]["cells"] for name in mixture.MIXTURE)
    assert min(found[name]["prompts"][FEW.name]["effect"] for name in mixture.MIXTURE) > 50 * BOUND
    at_token = mixture.at_token

    def one_before(own: Tensor, given: Tensor, position: int) -> Tensor:
        return at_token(own, given, position - 1)

    monkeypatch.setattr(mixture, "at_token", one_before)
    result: Any = examine("deepseek_v3", pairs=[FEW])
    assert result["verdict"] == "WRONG"
    assert "router" in result["why"]
    assert "experts_in" in result["why"]
