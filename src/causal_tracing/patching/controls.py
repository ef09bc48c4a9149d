"""Controls: the same measurement where there is nothing to find, for what the method alone would show.

random-weights  the numbers of every parameter in random order: a model of the same shape that has learned nothing
                (after the sanity checks of Adebayo et al. 2018, arXiv 1810.03292).
shuffled-pairs  every pair is asked for another pair's answer and foil: the runs are the same, the question is not.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from causal_tracing.engine.choose import accept_again
from causal_tracing.errors import InvalidOption
from causal_tracing.models.memory import memory_said
from causal_tracing.models.model import Model
from causal_tracing.models.offload import is_offloaded
from causal_tracing.prompts.pairs import Pair


def randomised(model: Model, seed: int) -> Model:
    """A copy of the model in which each parameter's numbers stand in random order; the model itself is left alone.

    Raises InvalidOption where a backend of the model's own runs it, or where weights are offloaded: there are no
    parameters here to put in order.
    """
    if model.backend is not None:
        raise InvalidOption(
            f"control='random-weights' reorders a network's parameters, and {model.name} is run by a backend of its "
            "own. Use control='shuffled-pairs'."
        )
    if is_offloaded(model.network):
        raise InvalidOption(
            f"control='random-weights' reorders a network's parameters, and accelerate keeps some of {model.name}'s "
            "elsewhere, in memory or on disk. Use control='shuffled-pairs', or load the model without offloading."
        )
    with memory_said(
        f"A copy of {model.name} with other weights does not fit into memory beside it. Or trace "
        "control='shuffled-pairs'."
    ):
        network = copy.deepcopy(model.network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # tied ones come once
            # By each parameter's own name: its order does not depend on which others there are.
            named = hashlib.sha256(f"{seed} {name}".encode()).digest()
            order = np.random.default_rng(int.from_bytes(named[:8], "big")).permutation(parameter.numel())
            flat = parameter.detach().reshape(-1)
            parameter.copy_(flat[torch.from_numpy(order).to(flat.device)].reshape(parameter.shape))
    return accept_again(model, network)


def shuffled(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs, each with the answer and foil of another that has others than its own.

    Raises InvalidOption where that cannot be: where more than half of the pairs share answer and foil.
    """
    asked = [(pair.answer, pair.foil) for pair in pairs]
    common, most = Counter(asked).most_common(1)[0]
    # So many pairs with one answer cannot all get another one.
    if 2 * most > len(pairs):
        raise InvalidOption(
            f"control='shuffled-pairs' gives every pair another answer, and {most} of {len(pairs)} pairs have the same "
            f"one ({common[0]!r}, foil {common[1]!r}). Give pairs with other answers, or use 'random-weights'."
        )
    random = np.random.default_rng(seed)
    places = dict(zip(dict.fromkeys(asked), random.permutation(len(set(asked))), strict=True))
    order = sorted(random.permutation(len(pairs)), key=lambda n: places[asked[n]])
    # Pairs that share an answer stand together, so that so many places further on there is another one.
    others = dict(zip(order, [*order[most:], *order[:most]], strict=True))
    return [replace(pair, answer=asked[others[n]][0], foil=asked[others[n]][1]) for n, pair in enumerate(pairs)]
