"""Where a model's parts are, as values. Runs nothing: `engine.checks` finds them by what a model does."""

from dataclasses import dataclass, replace

from causal_tracing.errors import ComponentNotOffered
from causal_tracing.interventions.sites import ATTENTION, COMPONENTS, HEADS, MEDIATORS, MIXTURE, PARTED

LACKING = {"attn_out": "attention", "resid_mid": "attention and MLP", "neurons": "MLP", "mlp_out": "MLP"}
EVERYTHING = (*COMPONENTS, *MEDIATORS, *MIXTURE, ATTENTION)
NO_MIXTURE = "in its layers no module was found that is called with what a router chose."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """One sum on the way through a layer: `gain` · the stream + each part's output (`attn_out`, ...) times its scale.

    `plain`: the stream goes on from it as it is, and no norm of it stands between.
    """

    gain: float
    parts: tuple[tuple[str, float], ...]
    plain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The parts of one layer, as module paths inside it; None where there is no such part.

    `attn` and `mlp` are the modules whose output, times `attn_scale` and `mlp_scale`, is added to the residual stream;
    `mixer` is the only such module of a layer, of models all of whose layers have one alone. `mid` is the module whose
    input is the stream between attention and MLP: the layer gives back `gain` times that, plus the MLP's side. Where
    layers are normed after each sum, the stream is what comes out of that norm, and `mid` its path (`mid_out`). `z` and
    `neurons` are the last projections of attention and MLP, whose inputs are the heads' outputs and the neurons.
    `experts` is the module that a mixture calls with what is routed, and `experts_alone` says that what it gives is all
    that the MLP adds; `mlp_mixes` that the MLP mixes tokens. `attends` is False in layers without heads, of models in
    which others have some. `sums` are how the layer adds up, in order, where these parts are all that it adds, and the
    MLP mixes no tokens; none elsewhere.
    """

    attn: str | None = None
    mlp: str | None = None
    mixer: str | None = None
    mid: str | None = None
    mid_out: bool = False
    z: str | None = None
    neurons: str | None = None
    experts: str | None = None
    experts_alone: bool = False
    mlp_mixes: bool = False
    attends: bool = True
    attn_scale: float = 1.0
    mlp_scale: float = 1.0
    gain: float = 1.0
    sums: tuple[Sum, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """What the layer adds to the stream, in order, where that is known."""
        return tuple(name for each in self.sums for name, _ in each.parts)

    @property
    def lacks(self) -> tuple[str, ...]:
        """What a layer of one part does not have, in a model whose other layers have two."""
        if self.mixer or len(self.parts) != 1:
            return ()
        return ("attn_out", "resid_mid") if self.parts == ("mlp_out",) else ("resid_mid", "neurons", "mlp_out")

    @property
    def attention(self) -> str:
        """What its attention adds is called: mixer_out where that is all that the layer adds."""
        return "mixer_out" if self.mixer else "attn_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A model's layers and the layout of each, with the reason for every component that is not offered.

    `layers` is what they are called together, the path of their list or the names of all; `paths` says where each
    is that is no member 0, 1, ... of such a list.

    `idle` are the layers that a prompt of text alone does not pass through. `lanes` says where a stream of several
    lanes has them: "last" is [batch, token, lane, width], "first" [lane, batch, token, width]; they are folded into
    the width. "turned" is a stream of one lane, [token, batch, width]. `cut` is False for models whose layers read
    something besides the residual stream, `anywhere` for those where what follows the last layer depends on a
    token's place. `mixing` are the components whose edits reach later tokens within their own layer, `tokenwise`
    those that in layer 0 follow from the token and its position alone: what was not proved is neither inside its
    token nor tokenwise. `gathers` are those through which alone a token gets anything from other tokens in a layer
    (`Rules`). `counts` says how many heads (of queries, of keys and values), neurons and experts a layer has at
    most, and `uneven` how many each layer has, where layers differ (0 where it has none). `few_logits` says whether
    the model can be asked for the last tokens' logits, and computes all tokens in its layers all the same.
    `alone`: what is run beside a run changes it, so that each is made in a forward of its own.
    """

    family: str
    layers: str
    paths: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    idle: tuple[int, ...] = ()
    lanes: str | None = None
    cut: bool = True
    anywhere: bool = True
    mixing: tuple[str, ...] = EVERYTHING
    tokenwise: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    uneven: tuple[tuple[str, tuple[int, ...]], ...] = ()
    few_logits: bool = False
    alone: bool = False

    def made_alone(self) -> "Anatomy":
        """The same of a model whose runs are made one at a time; what was concluded of rows side by side is not."""
        return replace(self, alone=True, mixing=EVERYTHING, tokenwise=(), gathers=())

    def path(self, layer: int) -> str:
        """Where a layer is in the network."""
        return self.paths[layer] if self.paths else f"{self.layers}.{layer}"

    @property
    def components(self) -> tuple[str, ...]:
        """The whole components that can be offered, in computation order."""
        refused = dict(self.refused)
        return tuple(name for name in COMPONENTS if name not in refused)

    @property
    def missed(self) -> tuple[tuple[str, str], ...]:
        """What a user may miss, and why: that layers with attention and an MLP are no single mixers goes unsaid."""
        return tuple((name, reason) for name, reason in self.refused if name != "mixer_out")

    @property
    def mediators(self) -> tuple[str, ...]:
        """Those that can be offered of the components that have heads or neurons, in computation order."""
        refused = dict(self.refused)
        return tuple(name for name in MEDIATORS if name not in refused)

    @property
    def mixture(self) -> tuple[str, ...]:
        """What is offered of a mixture of experts, in computation order; nothing where no layer is one."""
        return tuple(name for name in MIXTURE if self.offers(name))

    @property
    def asked_for(self) -> tuple[str, ...]:
        """All that is proved when it is asked for: of heads, neurons and mixtures what can be offered."""
        return (*self.mediators, *self.mixture)

    def has(self, component: str, layer: int) -> bool:
        """Whether a layer has what the model offers.

        Not every layer of a mixture has experts, or of a hybrid heads; and some have attention or an MLP alone.
        """
        if layer in self.idle:
            return False
        layout = self.layouts[layer]
        if component in MIXTURE:
            return bool(layout.experts)
        if component in (*HEADS, ATTENTION):
            return layout.attends
        return component not in layout.lacks

    @property
    def added_from(self) -> int:
        """The layer from which on each one gives the stream and what its parts add to it, and nothing else is done."""
        # From the end: a world may be held from some layer on only where every layer behind it is such a sum.
        first = len(self.layouts)
        while first and (sums := self.layouts[first - 1].sums) and all(each.plain for each in sums):
            first -= 1
        return first

    def count(self, component: str, layer: int | None = None) -> int:
        """How many heads, neurons or experts a component has in a layer; 1 where it has no such parts.

        Raises ComponentNotOffered where no layer is given, and they have different numbers.
        """
        # How queries attend is told by the queries' heads, as their patterns are.
        each = dict(self.uneven).get("pattern" if component == ATTENTION else component)
        if each is None or not self.offers(component):
            return self.most(component)
        if layer is None:
            raise ComponentNotOffered(
                f"This needs layers that have equally many of {component}, and those of this model ({self.family}) "
                f"have {', '.join(map(str, each))}."
            )
        return each[layer]

    def most(self, component: str) -> int:
        """The most heads, neurons or experts that a component has in any layer; 1 where it has no such parts."""
        if component not in (*PARTED, ATTENTION):
            return 1
        self.require(component)
        return dict(self.counts)["pattern" if component == ATTENTION else component]

    def require_layer(self, layer: int, component: str | None = None) -> None:
        """Raises ComponentNotOffered for a layer that a text alone does not pass, or that has not this component."""
        if layer in self.idle:
            raise ComponentNotOffered(
                f"A prompt of text alone does not pass layer {layer} of this model ({self.family}). Leave it out."
            )
        if component is not None and 0 <= layer < len(self.layouts) and not self.has(component, layer):
            having = [number for number in range(len(self.layouts)) if self.has(component, number)]
            lacking = LACKING.get(component, "experts" if component in MIXTURE else "attention heads")
            raise ComponentNotOffered(
                f"{component} is not there in layer {layer} of this model ({self.family}), which has no {lacking}. "
                f"Layers that have: {', '.join(map(str, having))}."
            )

    def require(self, component: str) -> None:
        """Raises ComponentNotOffered, with the reason, for a component that this model does not have."""
        reason = self._against(component)
        if reason:
            offered = ", ".join((*self.components, *self.asked_for))
            raise ComponentNotOffered(
                f"{component} is not offered on this model ({self.family}): {reason} Offered: {offered}."
            )

    def offers(self, component: str) -> bool:
        """Whether this model has a component, so far as it was looked at."""
        return self._against(component) is None

    def _against(self, component: str) -> str | None:
        """Why it is refused; attention is told otherwise where its patterns can be."""
        refused = dict(self.refused)
        if component in MIXTURE and not any(layout.experts for layout in self.layouts):
            return refused.get(component, NO_MIXTURE)
        return refused.get(component) or (refused.get("pattern") if component == ATTENTION else None)

    def refuse(self, component: str, reason: str) -> "Anatomy":
        """The same anatomy without a component."""
        return replace(self, refused=(*self.refused, (component, reason)))
