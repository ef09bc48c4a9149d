"""What attention that is told otherwise gives, by hand: from an attention written out, and nothing of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attending import BASE, LAYERS, LENGTH, LONGER
from bare_hooks import PATHS, Paths, attention_written_out
from causal_tracing.interventions.edits import Attending, Edit, Run
from causal_tracing.models.model import Model

# The projection that the heads' outputs go into, where it has another name.
PROJECTIONS = {
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "gpt_neox-sequential": "attention.dense",
    "opt": "self_attn.out_proj",
    "opt-350m": "self_attn.out_proj",
    "phi": "self_attn.dense",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A layer's weights [head, query, key] and, for every query head, its values [head, key, size]."""

    weights: Tensor
    values: Tensor


def of_query_heads(value: Tensor, heads: int) -> Tensor:
    """Heads of keys or values [head, token, size], each as often as query heads share it."""
    return value.repeat_interleave(heads // len(value), 0)


@cache
def seen(model: Model) -> dict[int, Seen]:
    """What the base run's layers see."""
    if model.name == "gpt_oss":  # sinks are not in the attention that is written out
        return seen_with_sinks(model)
    found: dict[tuple[int, str], Tensor] = {}

    def look(layer: int, name: str, value: Tensor) -> Tensor:
        found[layer, name] = value[0]
        return value

    with attention_written_out(model.network, look), torch.no_grad():
        model.network(input_ids=torch.tensor([BASE.tokens]), use_cache=False)
    return {layer: of_heads(found[layer, "pattern"], found[layer, "v"]) for layer in LAYERS}


def seen_with_sinks(model: Model) -> dict[int, Seen]:
    values: dict[int, Tensor] = {}
    layers = model.network.get_submodule("model.layers")
    handles = [
        block.get_submodule("self_attn.v_proj").register_forward_hook(
            lambda _, __, output, layer=layer: values.update({layer: output[0].unflatten(1, (2, -1)).transpose(0, 1)})
        )
        for layer, block in enumerate(layers.children())
    ]
    with torch.no_grad():
        ids = torch.tensor([BASE.tokens])
        weights = model.network(input_ids=ids, use_cache=False, output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    return {layer: of_heads(weights[layer][0], values[layer]) for layer in LAYERS}


def of_heads(weights: Tensor, values: Tensor) -> Seen:
    return Seen(weights=weights, values=of_query_heads(values, len(weights)))


Z = tuple[int, int, int, Tensor]  # layer, query, head, and the head's output there


def projection(model: Model, layer: int) -> nn.Module:
    """The module whose input are the heads' outputs."""
    layers = PATHS.get(model.name, Paths()).layers
    return model.network.get_submodule(f"{layers}.{layer}.{PROJECTIONS.get(model.name, 'self_attn.o_proj')}")


def with_z(model: Model, rows: Sequence[Z]) -> np.ndarray:
    """[row, position, vocab] of the base run where, in each row, one head's output at one query is what is given."""

    def write(layer: int, _: Any, args: Any) -> Any:
        changed = args[0].reshape(len(rows), LENGTH, -1).clone()
        for row, (at, query, head, value) in enumerate(rows):
            if at == layer:
                changed[row, query, head * len(value) : (head + 1) * len(value)] = value
        return (changed.reshape(args[0].shape), *args[1:])

    handles = [projection(model, layer).register_forward_pre_hook(partial(write, layer)) for layer in LAYERS]
    with torch.no_grad():
        found = model.network(input_ids=torch.tensor([BASE.tokens] * len(rows)), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return found.double().numpy()


def z_by_hand(model: Model, edit: Edit) -> Z:
    """One head's row: softmax of the scores by algebra, in whatever scale and cap the model has.

    Rows do not see each other: a key that is there for all queries does to this one what it does to it alone. A score
    by another query is that of the key with this query's share of it exchanged.
    """
    site, how = edit.site, edit.source
    assert isinstance(how, Attending)
    assert site.part is not None
    layer, row, head = site.layer, site.position, site.part
    there = inside(model, LONGER, layer)
    query: list[Tensor] = []
    seen_here: dict[str, Tensor] = {}

    def change(at: int, name: str, value: Tensor) -> Tensor:
        if at != layer:
            return value
        if name == "q":
            query.append(value[0, head, row])
        if name in ("k", "v"):
            value = of_query_heads(value[0], model.parts("q"))[None].clone()
            for key, donor in getattr(how, name):
                value[0, head, key] = there[name][head, donor.position]
        for key, donor in how.q if name == "k" else ():
            apart = (there["q"][head, donor.position] - query[0]) @ value[0, head, key]
            value[0, head, key] += query[0] * apart / query[0].square().sum()
        seen_here[name] = value[0]
        return value

    with attention_written_out(model.network, change), torch.no_grad():
        model.network(input_ids=torch.tensor([BASE.tokens]), use_cache=False)
    weights = seen_here["pattern"][head, row].clone()
    weights[list(how.blocked)] = 0
    weights /= weights.sum()
    weights[list(how.zeroed)] = 0
    return layer, row, head, weights @ seen_here["v"][head]


@cache
def inside(model: Model, run: Run, layer: int) -> dict[str, Tensor]:
    """A layer's q, k and v of a run [head, token, size], one for each query head."""
    found: dict[str, Tensor] = {}

    def look(at: int, name: str, value: Tensor) -> Tensor:
        if at == layer and name != "pattern":
            found[name] = of_query_heads(value[0], model.parts("q"))
        return value

    with attention_written_out(model.network, look), torch.no_grad():
        model.network(input_ids=torch.tensor([run.tokens]), use_cache=False)
    return found
