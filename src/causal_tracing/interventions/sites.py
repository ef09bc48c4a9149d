"""Where one can read and write: a component of a layer, at a position, whole or one of its parts."""

from dataclasses import dataclass

from causal_tracing.errors import InvalidOption, nearest

# Blocks: a vector of the stream's width; mixer_out is what a layer of one part adds. Heads: as attention sees them (q
# and k after rotary embedding and norms; z is a head's output before the output projection). A part is one head, one
# neuron, or one expert.
COMPONENTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "mixer_out", "resid_post")
HEADS = ("q", "k", "v", "pattern", "z")
MEDIATORS = (*HEADS, "neurons")
# Of a mixture of experts: the router's weights (which experts, and how much), what the experts read (what their
# functions make of it), and what each expert adds to their sum. The first two are whole.
ROUTED = ("router", "experts_in")
MIXTURE = (*ROUTED, "experts")
WHOLE = (*COMPONENTS, *ROUTED)
PARTED = (*MEDIATORS, "experts")
PART_WORDS = {"neurons": "neuron", "experts": "expert"}  # of all others a part is a head
# How one query attends: which keys it sees, and whose queries, keys and values. It can be changed, not read.
ATTENTION = "attention"
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")

# In computation order: of two edits at one token in one layer, the later one acts on what the earlier one left.
# "embed" is what the embedding gives, layer 0: a run can be noised there, but it is nothing that is traced.
IN_ATTENTION = ("q", "k", "v", ATTENTION, "pattern", "z")
# What the final norm divides by, told at the last layer: it can be held as another run has it, but is never traced.
FINAL_SCALE = "final_scale"
# Who reads what of whom, in a whole run: told at layer 0 and position 0.
WIRING = "wiring"
ORDER = (
    *("embed", "resid_pre", *IN_ATTENTION, "attn_out", "resid_mid"),
    *("neurons", *MIXTURE, "mlp_out", "mixer_out", "resid_post", FINAL_SCALE, WIRING),
)


def first_behind(component: str, layer: int, part: str) -> int:
    """The first layer whose `part` (attn_out, mlp_out, mixer_out) comes behind a component of this layer."""
    return layer if ORDER.index(part) > ORDER.index(component) else layer + 1


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A component of one layer (0-based) at one token position (0-based).

    Of heads, neurons and experts one part, or all.
    """

    component: str
    layer: int
    position: int
    part: int | None = None

    def __post_init__(self) -> None:
        if self.component not in ORDER:
            # embed, the first of them, is not proposed: nothing can be traced there.
            raise InvalidOption(f"There is no component {self.component!r}. {nearest(self.component, ORDER[1:])}")
        if self.part is not None and self.component not in (*PARTED, ATTENTION):
            raise InvalidOption(f"{self.component} has no heads, neurons or experts: leave part={self.part} out.")

    @property
    def place(self) -> "Site":
        """The site under one name: `resid_post` of a layer is `resid_pre` of the next."""
        if self.component == "resid_post":
            return Site("resid_pre", self.layer + 1, self.position, self.part)
        return self

    def __str__(self) -> str:
        part = "" if self.part is None else f" ({PART_WORDS.get(self.component, 'head')} {self.part})"
        return f"{self.component}{part} of layer {self.layer} at position {self.position}"
