"""What a write needs of a model and its pairs: tensors for all that is traced, and the runs of reference prompts."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.edits import From, Given, Mean, Run, Source, Subspace, Zero
from causal_tracing.interventions.sites import Site
from causal_tracing.interventions.write import REFERENCED, TENSORED, Write
from causal_tracing.models.model import Model
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import encode


def written(write: Write, site: Site, donor: From, reference: Sequence[Run]) -> Source:
    """What is written at a site, where the other run has `donor`."""
    match write.kind:
        case "zero":
            return Zero()
        case "mean":
            return Mean(tuple(From(run, site.position) for run in reference))
        case "given":
            tensor = write.tensors[site.component, site.layer]
            return Given(tensor if site.part is None else tensor[site.part])
        case "subspace":
            return Subspace(write.tensors[site.component, site.layer], donor)
        case _:
            return donor


def check_tensors(write: Write, components: Sequence[str], layers: Sequence[int], parts: Mapping[str, int]) -> None:
    """Raises InvalidOption where a tensor is missing for what is traced, or is not one for each of so many `parts`."""
    if write.kind not in TENSORED:
        return
    missing = [(name, layer) for name in components for layer in layers if (name, layer) not in write.tensors]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise InvalidOption(
            f"tensors= has nothing for {shown}. Give one for every component and layer traced, or trace fewer "
            "(components=, layers=)."
        )
    for (component, layer), tensor in write.tensors.items():
        if write.kind == "given" and component in parts and torch.as_tensor(tensor).shape[0] != parts[component]:
            raise InvalidOption(
                f"The tensor for {component} of layer {layer} must have {parts[component]} rows, one a head or neuron; "
                f"it has the shape {list(torch.as_tensor(tensor).shape)}."
            )


def reference_tokens(model: Model, write: Write) -> list[tuple[int, ...]]:
    """The tokens of the reference prompts."""
    return [tuple(encode(prompt, model.tokenizer)[0]) for prompt in write.prompts]


def reference_runs(found: Sequence[tuple[int, ...]], pair: TokenPair, write: Write) -> tuple[Run, ...]:
    """The runs that a pair's sites are written from: all of the reference's tokens, or those drawn from it.

    Raises InvalidPair where no reference prompt has as many tokens.
    """
    if write.kind not in REFERENCED:
        return ()
    length = len(pair.clean.tokens)
    fitting = list(dict.fromkeys(tokens for tokens in found if len(tokens) == length))
    if write.kind == "resample":
        fitting = [tokens for tokens in fitting if tokens != pair.clean.tokens]
    if not fitting:
        lengths = ", ".join(str(size) for size in sorted({len(tokens) for tokens in found}))
        raise InvalidPair(
            f"pair {pair.id!r} has {length} tokens, and no reference prompt beside it has as many (they have "
            f"{lengths}). Activations are written position by position: give prompts of {length} tokens."
        )
    runs = [Run(tokens) for tokens in fitting]
    return tuple(runs) if write.kind == "mean" else tuple(_drawn(runs, pair, write))


def _drawn(runs: list[Run], pair: TokenPair, write: Write) -> list[Run]:
    """So many of the runs, chosen by the seed and the pair's own tokens: no neighbour matters."""
    named = hashlib.sha256(f"{write.seed} {pair.clean.tokens}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(named[:8], "big"))
    return [runs[n] for n in random.permutation(len(runs))[: write.draws]]
