"""ROME's corruption: Gaussian noise on the embeddings of the subject's tokens (Meng et al. 2022, section 2.1).

The noised runs are made once: the baseline and every cell have the same draws (common random numbers), and so does a
repeated run, whatever else is in the batch or the file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Backend
from causal_tracing.interventions.edits import Edit, Plus, Run
from causal_tracing.interventions.noise import Noise
from causal_tracing.interventions.sites import Site
from causal_tracing.patching.contrast import Contrast
from causal_tracing.prompts.pairs import TokenPair

EMBED = ("embed", 0)
ROME_SEED = 1


def noised(
    backend: Backend, tokenizer: Any, pairs: Sequence[TokenPair], noise: Noise
) -> tuple[list[Contrast], dict[str, Any]]:
    """Each pair's clean run and its noised runs, one a draw; and what is to be known of the noise.

    The noised positions are the tokens of the pair's span "subject".
    """
    shared = _sigma(backend, [_subject_alone(tokenizer, pair) for pair in pairs]) if noise.rome else None
    contrasts, sigmas = [], []
    for pair in pairs:
        sigma = noise.sigma if noise.sigma is not None else shared
        sigma = _sigma(backend, [Run(pair.clean.tokens)]) if sigma is None else sigma
        sigmas.append(sigma)
        contrasts.append(_contrast(backend, pair, noise, sigma))
    return contrasts, {**asdict(noise), "sigmas": sigmas, "positions": [list(pair.noised) for pair in pairs]}


def _contrast(backend: Backend, pair: TokenPair, noise: Noise, sigma: float) -> Contrast:
    clean = Run(pair.clean.tokens)
    width = _embedded(backend, clean).shape[-1]
    return Contrast(
        clean=clean,
        corrupt=tuple(
            Run(
                clean.tokens,
                tuple(
                    Edit(Site("embed", 0, position), Plus(noise.scale * sigma * row))
                    for position, row in zip(pair.noised, rows, strict=True)
                ),
            )
            for rows in draws(pair, noise, width)
        ),
    )


def draws(pair: TokenPair, noise: Noise, width: int) -> Float[Tensor, "draw token width"]:
    """Standard normal numbers for the pair's noised tokens."""
    shape = (len(pair.noised), width)
    if noise.rome:
        # By numpy's old generator, as in ROME's code: a newer one gives other numbers of the same seed.
        return torch.from_numpy(np.random.RandomState(ROME_SEED).randn(noise.draws, *shape)).float()
    named = f"{noise.seed} {pair.clean.tokens} {pair.noised}"
    rows = []
    for number in range(noise.draws):
        digest = hashlib.sha256(f"{named} {number}".encode()).digest()
        # On the CPU, so that every device gets the same noise; seven bytes always fit into a seed.
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
        rows.append(torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu"))
    return torch.stack(rows)


def _sigma(backend: Backend, runs: Sequence[Run]) -> float:
    """The standard deviation of all numbers that the embedding gives for these runs."""
    return torch.cat([_embedded(backend, run).flatten() for run in runs]).double().std().item()


def _embedded(backend: Backend, run: Run) -> Float[Tensor, "token width"]:
    return backend.record([run], [EMBED])[run].activations[EMBED]


def _subject_alone(tokenizer: Any, pair: TokenPair) -> Run:
    """The subject as ROME's code tokenises it: no space before it, and special tokens where the tokenizer adds them."""
    return Run(tuple(tokenizer(pair.pair.subject)["input_ids"]))
