"""Noise on a subject and patches beside it, by bare hooks on a tiny llama."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import causal_tracing as ct
from bare_hooks import first, hooked, put
from causal_tracing.models.model import Model
from causal_tracing.patching.noise import draws
from causal_tracing.prompts.pairs import tokenize
from joint import WORDS

PROMPT = " w11 w12 w13 w14 w15 w16 w17"
PAIR = ct.Pair(clean=PROMPT, answer=" w7", foil=" w8", subject="w13 w14")
SUBJECT = (2, 3)
LAYERS, LENGTH, WIDTH = 4, 7, 32
NOISE = ct.Noise(scale=3.0, draws=4, seed=5)


def ids(text: str) -> torch.Tensor:
    return torch.tensor([WORDS(text)["input_ids"]])


def logit_diff(network: Any) -> float:
    with torch.no_grad():
        logits = network(ids(PROMPT)).logits[0, -1]
    return (logits[ids(" w7")[0, 0]] - logits[ids(" w8")[0, 0]]).item()


def module(network: Any, component: str, layer: int) -> Any:
    block = network.model.layers[layer]
    return {"resid_post": block, "attn_out": block.self_attn, "mlp_out": block.mlp}[component]


def seen(network: Any, component: str, layer: int, hooks: list[Any]) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    look = (module(network, component, layer), lambda _, __, out: kept.append(first(out)[0].clone()))
    with hooked([*hooks, look]):
        logit_diff(network)
    return kept[0]


def noise_hook(network: Any, noise: torch.Tensor) -> tuple[Any, Callable[..., Any]]:
    def add(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[0, SUBJECT[0] : SUBJECT[-1] + 1] += noise
        return changed

    return network.get_input_embeddings(), add


def by_hand(network: Any, rows: torch.Tensor, patches: list[tuple[str, int, int]], frozen: str | None = None) -> float:
    """The mean over draws of what restoring these places does, with all later ones of `frozen` as in the noised run."""
    return float(np.mean(each_draw(network, rows, patches, frozen)))


def each_draw(
    network: Any, rows: torch.Tensor, patches: list[tuple[str, int, int]], frozen: str | None = None
) -> list[float]:
    differences = []
    for noise in rows:
        adding = [noise_hook(network, noise)]
        with hooked(adding):
            base = logit_diff(network)
        hooks = [
            (module(network, component, layer), put(seen(network, component, layer, []), position))
            for component, layer, position in patches
        ]
        if frozen:
            position = patches[0][2]
            for layer in range(patches[-1][1] + 1, LAYERS):
                held = seen(network, frozen, layer, adding)
                hooks.append((module(network, frozen, layer), put(held, position)))
        with hooked([*adding, *hooks]):
            differences.append(logit_diff(network) - base)
    return differences


def rows(model: Model) -> torch.Tensor:
    """The noise as the tool draws it; its strength from the embedding itself."""
    tokens = tokenize(PAIR, WORDS, noise=True)
    sigma = model.network.get_input_embeddings()(ids(PROMPT)).std().item()
    return draws(tokens, NOISE, WIDTH) * 3.0 * sigma


def baselines(network: Any, noise: torch.Tensor) -> list[float]:
    found = []
    for draw in noise:
        with hooked([noise_hook(network, draw)]):
            found.append(logit_diff(network))
    return found
