"""Where the parts of a model are whose weights are elsewhere: by the names of its modules, and by sums made there.

What a layer adds must be what its attention and its MLP give, or the norms behind them; if it is not, the parts are not
offered, and the layers alone are.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import nn

from causal_tracing.engine.checks.bounds import ONE_FORWARD
from causal_tracing.engine.nnsight import block
from causal_tracing.engine.nnsight.asked import Asked
from causal_tracing.engine.nnsight.backend import Transport
from causal_tracing.engine.nnsight.jobs import JobFailed
from causal_tracing.engine.random_prompts import short_prompts
from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.anatomy import Anatomy, Layout

ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
NOT_ADDING_UP = "by their names no parts were found that add up to what a layer adds."


def anatomy_by_names(network: Any, tokenizer: Any, transport: Transport) -> tuple[Anatomy, str]:
    """The anatomy as far as the sums hold, and the model's type where it runs. Raises UnsupportedModel."""
    config = network.config.get_text_config()
    path = _path_of_layers(network, config.num_hidden_layers)
    anatomy = Anatomy(family=str(network.config.model_type), layers=path, cut=True, tokenwise=())
    tokens = short_prompts(network, tokenizer)[0].tokens
    dtype = _sums(transport, tokens, path, [Layout()] * config.num_hidden_layers)[1]
    said = ""
    # Attention's and the MLP's own outputs are tried first, then those of norms that may stand behind them.
    for layouts in _candidates(network.get_submodule(path), config):
        try:
            apart, _ = _sums(transport, tokens, path, layouts)
        except JobFailed as error:  # a part that is not passed, or in another order; what else it may be is said
            said = f" {error}"
            continue
        if apart <= ONE_FORWARD[dtype]:
            found = _counted(replace(anatomy, layouts=tuple(layouts)), network, config)
            return _proved(found, transport, tokens, ONE_FORWARD[dtype]), dtype
    anatomy = replace(anatomy, layouts=(Layout(),) * config.num_hidden_layers)
    for component in ("attn_out", "mlp_out", "z", "neurons"):
        anatomy = anatomy.refuse(component, NOT_ADDING_UP + said)
    return anatomy, dtype


def _path_of_layers(network: nn.Module, count: int) -> str:
    found = [
        name for name, module in network.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise UnsupportedModel(
            f"The network has no list of {count} layers by its configuration's num_hidden_layers, and without its "
            "weights nothing else says where they are. Load the model itself."
        )
    # The outermost: a layer may hold a list of as many experts.
    return min(found, key=lambda name: name.count("."))


def _candidates(layers: nn.Module, config: Any) -> Iterator[list[Layout]]:
    """What could be the layers' parts: attention and MLP, or the norms that are named to stand behind them."""
    names = [set(dict(layer.named_children())) for layer in layers.children()]
    common = set.intersection(*names)
    attention = next((name for name in ATTENTIONS if name in common), None)
    mlp = next((name for name in MLPS if name in common), None)
    if attention is None or mlp is None:
        return
    norms = sorted(name for name in common if "norm" in name and "post" in name)
    behind_attention = [attention, *(name for name in norms if "att" in name)]
    behind_mlp = [mlp, *(name for name in norms if "feed" in name or "mlp" in name or "ff" in name)]
    scale = float(getattr(config, "residual_multiplier", None) or 1.0)
    inside = [(_last(layer.get_submodule(attention)), _last(layer.get_submodule(mlp))) for layer in layers.children()]
    for attn_out, mlp_out in product(behind_attention, behind_mlp):
        yield [
            Layout(
                attn=attn_out, mlp=mlp_out, attn_scale=scale, mlp_scale=scale,
                z=z and f"{attention}.{z}", neurons=neurons and f"{mlp}.{neurons}",
            )
            for z, neurons in inside
        ]  # fmt: skip


def _last(module: nn.Module) -> str | None:
    """The projection that is named last; None where there are not several. It is proved where the model runs."""
    projections = {
        name: _shape(each) for name, each in module.named_modules() if len(_shape(each)) == 2 and "." not in name
    }
    # A single matrix may be all of the module, and its input then is no heads or neurons.
    if len(projections) < 2:
        return None
    *_, name = projections
    return name


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    return () if weight is None or "norm" in type(module).__name__.lower() else tuple(weight.shape)


def _counted(anatomy: Anatomy, network: Any, config: Any) -> Anatomy:
    """With how many heads and neurons a layer has, where every layer has as many."""
    counts = []
    for component, count in (("z", config.num_attention_heads), ("neurons", None)):
        widths = {_width(network, anatomy, layer, component) for layer in range(len(anatomy.layouts))}
        width = widths.pop() if len(widths) == 1 else None
        if width is None or width % (count or width):
            anatomy = anatomy.refuse(component, "its projection was not found by name in every layer.")
        else:
            counts.append((component, count or width))
    return replace(anatomy, counts=tuple(counts))


def _proved(anatomy: Anatomy, transport: Transport, tokens: tuple[int, ...], bound: float) -> Anatomy:
    """Without heads or neurons whose projection does not give what its module gives: then it is not the last one."""
    inputs = {"input_ids": torch.tensor([tokens]), "use_cache": False}
    for component in (name for name, _ in anatomy.counts):
        paths = [f"{anatomy.layers}.{n}.{getattr(layout, component)}" for n, layout in enumerate(anatomy.layouts)]
        pairs = [(path, path.rpartition(".")[0]) for path in paths]
        try:
            apart = transport.answer(Asked(inputs=inputs, function=block.inside, arguments=(pairs,))).max().item()
        except JobFailed as error:
            anatomy = anatomy.refuse(component, f"its projection was not found by name. {error}")
            continue
        if not apart <= bound:
            reason = f"the projection that is named last does not give what its module gives ({apart:.1e} apart)."
            anatomy = anatomy.refuse(component, reason)
    return anatomy


def _width(network: Any, anatomy: Anatomy, layer: int, component: str) -> int | None:
    path = getattr(anatomy.layouts[layer], component)
    if path is None:
        return None
    module = network.get_submodule(f"{anatomy.layers}.{layer}.{path}")
    conv = type(module).__name__ == "Conv1D"  # its weight is transposed
    return module.weight.shape[0 if conv else 1]


def _sums(transport: Transport, tokens: tuple[int, ...], path: str, layouts: list[Layout]) -> tuple[float, str]:
    """How far what the layers add is from their parts' sums, in shares, and the type of the stream."""
    layers = []
    for number, layout in enumerate(layouts):
        parts = [(layout.attn, layout.attn_scale), (layout.mlp, layout.mlp_scale)]
        there = [(name, scale) for name, scale in parts if name]
        layers.append((f"{path}.{number}", [name for name, _ in there], [scale for _, scale in there]))
    inputs = {"input_ids": torch.tensor([tokens]), "use_cache": False}
    apart, dtype = transport.answer(Asked(inputs=inputs, function=block.sums, arguments=(layers,)))
    return apart.max().item(), dtype.removeprefix("torch.")
