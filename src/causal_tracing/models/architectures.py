"""Where a model's parts are: a table of known families, and detection for the rest. Runs nothing.

What a table or a guess says is never trusted: `engine.check` accepts an anatomy by what the model does.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from causal_tracing.errors import ComponentNotOffered, UnsupportedModel
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The parts of one layer, as module paths inside it; None where there is no such part.

    `attn` and `mlp` are the modules whose output, times the layer's own `scale`, is added to the residual stream;
    `mid` is the module whose input is the residual stream between the two (sequential layers only). `z` and
    `neurons` are the last projections of attention and MLP, whose inputs are the heads' outputs and the neurons.
    """

    attn: str | None = None
    mlp: str | None = None
    mid: str | None = None
    z: str | None = None
    neurons: str | None = None
    scale: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A model's layers and their layout, with the reason for every component that is not offered.

    `cut` is False for models whose layers read something besides the residual stream. `counts` says how many heads
    (of queries, of keys and values) and neurons a layer has.
    """

    family: str
    layers: str
    layout: Layout
    detected: bool = False
    cut: bool = True
    refused: tuple[tuple[str, str], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """The whole components that can be offered, in computation order."""
        refused = dict(self.refused)
        return tuple(name for name in COMPONENTS if name not in refused)

    @property
    def mediators(self) -> tuple[str, ...]:
        """Those that can be offered of the components that have heads or neurons, in computation order."""
        refused = dict(self.refused)
        return tuple(name for name in MEDIATORS if name not in refused)

    def count(self, component: str) -> int:
        """How many heads or neurons a component has in a layer; 1 where it has no such parts."""
        if component not in MEDIATORS:
            return 1
        self.require(component)
        return dict(self.counts)[component]

    def require(self, component: str) -> None:
        """Raises ComponentNotOffered, with the reason, for a component that this model does not have."""
        reason = dict(self.refused).get(component)
        if reason:
            offered = ", ".join((*self.components, *self.mediators))
            raise ComponentNotOffered(
                f"{component} is not offered on this model ({self.family}): {reason} Offered: {offered}."
            )

    def refuse(self, component: str, reason: str) -> "Anatomy":
        """The same anatomy without a component."""
        return replace(self, refused=(*self.refused, (component, reason)))


_LLAMA = Layout(
    attn="self_attn", mlp="mlp", mid="post_attention_layernorm", z="self_attn.o_proj", neurons="mlp.down_proj"
)
_NORMS_AFTER = replace(_LLAMA, attn="post_attention_layernorm", mlp="post_feedforward_layernorm")
_GPT2 = Layout(attn="attn", mlp="mlp", mid="ln_2", z="attn.c_proj", neurons="mlp.c_proj")
_NEOX = Layout(
    attn="attention",
    mlp="mlp",
    mid="post_attention_layernorm",
    z="attention.dense",
    neurons="mlp.dense_4h_to_h",
)
_PHI = Layout(attn="self_attn", mlp="mlp", z="self_attn.dense", neurons="mlp.fc2")

# model type -> path of the layers, layout of a sequential layer (`mid` is dropped where the layers are parallel)
TABLE: dict[str, tuple[str, Layout]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo", "stablelm"), ("model.layers", _LLAMA)),
    **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss"), ("model.layers", replace(_LLAMA, neurons=None))),
    "granite": ("model.layers", replace(_LLAMA, scale="residual_multiplier")),
    "cohere": ("model.layers", replace(_LLAMA, mid=None)),
    "gemma": ("model.layers", _LLAMA),
    "gemma2": ("model.layers", replace(_NORMS_AFTER, mid="pre_feedforward_layernorm")),
    "gemma3_text": ("model.layers", replace(_NORMS_AFTER, mid="pre_feedforward_layernorm")),
    "gemma3": ("model.language_model.layers", replace(_NORMS_AFTER, mid="pre_feedforward_layernorm")),
    "olmo2": ("model.layers", replace(_NORMS_AFTER, mid="mlp")),
    "phi": ("model.layers", _PHI),
    "gpt2": ("transformer.h", _GPT2),
    "gpt_neo": ("transformer.h", replace(_GPT2, attn="attn.attention.out_proj", z="attn.attention.out_proj")),
    "gptj": ("transformer.h", replace(_GPT2, mid=None, z="attn.out_proj", neurons="mlp.fc_out")),
    "gpt_neox": ("gpt_neox.layers", _NEOX),
    "falcon": ("transformer.h", replace(_NEOX, attn="self_attention", z="self_attention.dense")),
    "bloom": (
        "transformer.h",
        replace(_NEOX, attn="self_attention.dense", mlp="mlp.dense_4h_to_h", z="self_attention.dense"),
    ),
    "mpt": (
        "transformer.blocks",
        Layout(attn="attn", mlp="ffn.down_proj", mid="norm_2", z="attn.out_proj", neurons="ffn.down_proj"),
    ),
    "opt": (
        "model.decoder.layers",
        Layout(attn="self_attn", mlp="fc2", mid="final_layer_norm", z="self_attn.out_proj", neurons="fc2"),
    ),
}


def candidates(network: nn.Module) -> Iterator[Anatomy]:
    """The anatomies to try, likeliest first: the table's, then guesses, then the layers alone.

    Raises UnsupportedModel where no list of layers can be found.
    """
    family = str(getattr(network.config, "model_type", type(network).__name__))
    if family in TABLE:
        path, layout = TABLE[family]
        if _find(network, path) is not None:
            yield Anatomy(
                family=family,
                layers=path,
                layout=layout if _sequential(network.config) else replace(layout, mid=None),
            )
    path = _layers_path(network)
    layer = network.get_submodule(path)[0]  # pyright: ignore[reportIndexIssue]
    for layout in _guesses(layer):
        yield Anatomy(family=family, layers=path, layout=layout, detected=True)
    yield Anatomy(family=family, layers=path, layout=Layout(), detected=family not in TABLE)


def _sequential(config: Any) -> bool:
    """Whether the MLP reads what attention wrote, for the families whose configuration decides it."""
    if getattr(config, "use_parallel_residual", False):  # gpt_neox, stablelm
        return False
    return not (getattr(config, "new_decoder_architecture", False) or getattr(config, "parallel_attn", False))  # falcon


def _layers_path(network: nn.Module) -> str:
    config: Any = network.config
    count = config.get_text_config().num_hidden_layers
    lists = [
        name for name, module in network.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    decoders = [name for name in lists if not any(word in name for word in ("vision", "audio", "encoder"))]
    if not decoders:
        raise UnsupportedModel(
            f"{type(network).__name__} has no list of {count} layers (num_hidden_layers of its configuration): "
            "its layers cannot be found."
        )
    return decoders[0]


def _guesses(layer: nn.Module) -> Iterator[Layout]:
    """Layouts that a layer's names suggest, every combination of what could be the contribution of each part."""
    names = [name for name, _ in layer.named_children()]
    norms = [name for name in names if "norm" in name or name.startswith("ln")]
    parts = [name for name in names if name not in norms]
    attentions = [
        name for name in parts if any(word in name.lower() for word in ("attn", "attention", "mixer", "mamba"))
    ]
    mlps = [
        name for name in parts if any(word in name.lower() for word in ("mlp", "feed", "ffn", "moe", "expert", "fc2"))
    ]
    after_attention = [name for name in norms if "post" in name and ("attention" in name or "attn" in name)]
    after_mlp = [name for name in norms if "post" in name and any(word in name for word in ("feed", "mlp", "ffn"))]
    for attn, mlp in itertools.product(attentions + after_attention, mlps + after_mlp):
        # What cannot be a reader of the middle fails its check, which costs one comparison.
        for mid in [*(name for name in norms if name not in (attn, mlp)), *mlps, None]:
            yield Layout(attn=attn, mlp=mlp, mid=mid)


def _find(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None
