"""A model that can be traced: the network as it is, its tokenizer, and what is known about its parts."""

from collections.abc import Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from causal_tracing.errors import InvalidOption, UnsupportedModel
from causal_tracing.interventions.known import Rules
from causal_tracing.models.anatomy import Anatomy, Layout
from causal_tracing.models.at_rest import alone, at_rest
from causal_tracing.models.calling import words_of
from causal_tracing.models.offload import device_of, devices_of
from causal_tracing.models.paths import around, module_at
from causal_tracing.models.quantised import stream_dtype
from causal_tracing.models.recipe import Recipe


def require_model(model: object) -> None:
    """Raises InvalidOption for what has not been loaded: a name, or a bare network."""
    if not isinstance(model, Model):
        raise InvalidOption(
            f"A model that was loaded is needed, and this is a {type(model).__name__}. Load it first: "
            "model = causal_tracing.load(...)."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the packed engine's logits are from replay's, by component, in shares of the largest logit.

    `reason` says why it cannot run at all; `circumstances` are those under which it was measured, on prompts of
    `length` tokens.
    """

    differences: Mapping[str, float]
    bound: float
    reason: str
    circumstances: tuple[Any, ...]
    length: int

    def against(self, components: Iterable[str]) -> str | None:
        """What speaks against the packed engine for these components; None where nothing does."""
        if self.reason:
            return self.reason
        for component in components:
            difference = self.differences.get(component, float("nan"))
            # Written so that NaN, of what was not compared or failed, speaks against it.
            if not difference <= self.bound:
                return (
                    f"on a prompt of {self.length} tokens its logits differ from replay's by {difference:.1e} of the "
                    f"largest ({component}; {self.bound:.0e} would be rounding)."
                )
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A causal language model whose anatomy has been checked. `source` says where it came from.

    `agreement` says on which components the packed engine may be used. `backend` answers for the model where it brings
    one along (`engine.backend.Backend`): then there need be no network. `recipe` is how the same model is loaded once
    more elsewhere; None of one that exists in this memory alone.
    """

    network: Any
    tokenizer: Any
    name: str
    anatomy: Anatomy
    source: Mapping[str, str] = field(default_factory=dict)
    agreement: Agreement | None = None
    backend: Any = None
    recipe: Recipe | None = None

    def require_as_loaded(self) -> None:
        """Raises UnsupportedModel where the network is no longer what was loaded."""
        if self.backend is not None:
            return
        # Somebody may have pruned it since: layers would be patched under other numbers.
        if len(self.layers) != len(self.anatomy.layouts):
            before, now = len(self.anatomy.layouts), len(self.layers)
            raise UnsupportedModel(
                f"{self.name} had {before} layers when it was loaded, and has {now} now: load it again."
            )
        if self.device.type == "meta":
            raise UnsupportedModel(
                f"{self.name} has lost its weights since it was loaded (meta device): load it again."
            )

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, first to last."""
        if not self.anatomy.paths:
            return [*self.network.get_submodule(self.anatomy.layers)]
        return list(filter(None, (module_at(self.network, path) for path in self.anatomy.paths)))

    @property
    def num_layers(self) -> int:
        """How many decoder layers there are."""
        return self.rules.num_layers if self.backend is not None else len(self.layers)

    @property
    def active(self) -> tuple[int, ...]:
        """The layers that a prompt of text alone passes."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.anatomy.idle)

    def having(self, component: str) -> tuple[int, ...]:
        """The layers that have a component: all that a text passes, but of a mixture or hybrid those with its parts."""
        if not self.anatomy.layouts:  # of a backend that does not say
            return self.active
        return tuple(layer for layer in self.active if self.anatomy.has(component, layer))

    @property
    def rules(self) -> Rules:
        """What may be concluded about its worlds without running them."""
        if self.backend is not None:
            return self.backend.describe().rules
        known = self.anatomy
        return Rules(
            num_layers=len(self.layers),
            cut=known.cut,
            anywhere=known.anywhere,
            mixing=known.mixing,
            tokenwise=known.tokenwise,
            gathers=known.gathers,
        )

    @property
    def config(self) -> Any:
        """The configuration of the text decoder."""
        return self.network.config.get_text_config()

    @property
    def vocabulary(self) -> int | None:
        """How many tokens have an embedding; None where that is not known."""
        if self.backend is not None:
            return None
        return words_of(self.network.get_input_embeddings())

    @property
    def width(self) -> int:
        """The width of the stream, by what an embedding holds where the configuration does not say."""
        weight = self.network.get_input_embeddings().weight
        return getattr(self.config, "hidden_size", None) or weight.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        if self.backend is not None:
            return torch.device(self.backend.describe().device)
        return device_of(self.network, self.network.get_input_embeddings().weight)

    @property
    def devices(self) -> frozenset[torch.device]:
        """Every device that something of it computes on."""
        return frozenset({self.device, *devices_of(self.network)})

    @property
    def dtype(self) -> str:
        """The parameters' type, such as "float32"; of a quantised model that of what is not quantised."""
        if self.backend is not None:
            return self.backend.describe().dtype
        return str(stream_dtype(self.network)).removeprefix("torch.")

    @property
    def attention(self) -> str:
        """The attention implementation in use, such as "sdpa"; "own" where it is not transformers'."""
        if self.backend is not None:
            return "own"
        return str(getattr(self.config, "_attn_implementation", None) or "own")

    @property
    def context(self) -> int | None:
        """The longest prompt that the model takes, in tokens; None where its configuration does not say."""
        if self.backend is not None:
            return self.backend.describe().context
        return getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "max_seq_len", None)

    @property
    def beyond_context(self) -> bool:
        """Whether it runs on longer prompts too: rotary and ALiBi positions are computed, learned ones are a table."""
        if self.backend is not None:
            return False
        decoder = around(self.network, [self.anatomy.path(layer) for layer in self.active])  # and not what sees images
        computed = any(name.endswith("inv_freq") for name, _ in decoder.named_buffers())
        words = self.network.get_input_embeddings()
        tables = [each for each in decoder.modules() if isinstance(each, nn.Embedding) and each is not words]
        return (computed or bool(getattr(self.config, "alibi", False))) and not tables

    @property
    def circumstances(self) -> tuple[Hashable, ...]:
        """What can change how the layers behave once a model is loaded: its attention, type, place, and hooks."""
        with alone:  # hooks of another thread's work are not the model's own
            modules = list(self.network.modules())
            hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
            # A wrapper may set a forward on a module, which the number of hooks does not show.
            own = sum("forward" in module.__dict__ for module in modules)
        return self.attention, self.dtype, self.device, hooks, own

    def layer(self, number: int) -> nn.Module:
        """One of the decoder layers."""
        return self.network.get_submodule(self.anatomy.path(number))

    def part(self, layer: int, path: str) -> nn.Module:
        """A module inside a layer, by its path."""
        return self.layer(layer).get_submodule(path)

    def parts(self, component: str, layer: int | None = None) -> int:
        """How many heads, neurons or experts a layer has; 1 for the components that have no such parts.

        Grouped keys and values have fewer heads than queries. Raises ComponentNotOffered, too where no layer is given
        and they have different numbers.
        """
        return self.anatomy.count(component, layer)

    def layout(self, layer: int) -> Layout:
        """Where a layer's parts are."""
        return self.anatomy.layouts[layer]

    def at_rest(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients, uncompiled, in its own types; other threads wait."""
        return at_rest(self.network)
