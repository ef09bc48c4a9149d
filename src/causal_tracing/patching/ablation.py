"""What a write needs of a model and its pairs: tensors for all that is traced, and the runs of reference prompts."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.edits import From, Given, Mean, Run, Source, Subspace, Zero
from causal_tracing.interventions.sites import Site
from causal_tracing.interventions.write import REFERENCED, Write
from causal_tracing.models.model import Model
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import encode

EXCHANGED = ("donor", "subspace")  # what is written where the other run has it


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


def check_tensors(
    write: Write,
    places: Sequence[tuple[str, int]],
    parts: Mapping[tuple[str, int], int],
    widths: Mapping[tuple[str, int], int],
) -> None:
    """Raises InvalidOption where a tensor is missing for what is written at these (component, layer), or has no fit.

    `parts` says of heads and neurons how many a layer has, `widths` how many numbers each place has (one part of it).
    """
    missing = [place for place in places if place not in write.tensors]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise InvalidOption(
            f"tensors= has nothing for {shown}. Give one for every component and layer traced, or trace fewer "
            "(components=, layers=)."
        )
    for component, layer in places:
        shape, given = list(torch.as_tensor(write.tensors[component, layer]).shape), write.kind == "given"
        if given and (component, layer) in parts and shape[0] != parts[component, layer]:
            raise InvalidOption(
                f"The tensor for {component} of layer {layer} must have {parts[component, layer]} rows, one a head or "
                f"neuron; it has the shape {shape}."
            )
        # A subspace has one basis for all parts of a layer, [rank, size]; a given tensor a row for each.
        rows = [parts[component, layer]] if (component, layer) in parts else []
        expected = [*(rows if given else shape[:1]), widths.get((component, layer), shape[-1])]
        if shape != expected:
            raise InvalidOption(
                f"The tensor for {component} of layer {layer} must have the shape {expected}: a site there holds "
                f"{expected[-1]} numbers. It has the shape {shape}."
            )


def check_patterns(write: Write, pair: TokenPair) -> None:
    """Raises InvalidPair where patterns, which go over all tokens of a run, have another size than what is written."""
    prompts = [len(prompt.tokens) for prompt in (pair.clean, pair.corrupt)]
    if write.kind in EXCHANGED and prompts[0] != prompts[1]:
        raise InvalidPair(
            f"pair {pair.id!r}: a pattern goes over all tokens of a prompt, and these have {prompts[0]} and "
            f"{prompts[1]}. Leave pattern out, or give prompts of equal length."
        )
    texts = (*pair.answers, *pair.foils)
    # A text's last token is predicted and never read, so that it takes no place.
    lengths = {length + len(text) - 1 for length in prompts for text in texts}
    for (component, layer), tensor in write.tensors.items():
        width = torch.as_tensor(tensor).shape[-1]
        if component == "pattern" and lengths != {width}:
            raise InvalidPair(
                f"pair {pair.id!r}: the tensor for pattern of layer {layer} is for {width} tokens, and what is run has "
                f"{' and '.join(map(str, sorted(lengths)))}. Leave pattern out, or give a tensor of that size."
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
    # A prompt that is given twice would count twice in a mean, and could be drawn twice.
    fitting = list(dict.fromkeys(tokens for tokens in found if len(tokens) == length))
    if write.kind == "resample":
        # Its own activation changes nothing, and would draw the mean towards no effect.
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
