"""Where one can read and write: a component of a layer, at a position."""

from dataclasses import dataclass

from causal_tracing.errors import InvalidOption, nearest

# In computation order: of two edits at one token in one layer, the later one acts on what the earlier one left.
COMPONENTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A component of one layer (0-based) at one token position (0-based)."""

    component: str
    layer: int
    position: int

    def __post_init__(self) -> None:
        if self.component not in COMPONENTS:
            raise InvalidOption(f"There is no component {self.component!r}. {nearest(self.component, COMPONENTS)}")

    @property
    def place(self) -> "Site":
        """The site under one name: `resid_post` of a layer is `resid_pre` of the next."""
        if self.component == "resid_post":
            return Site("resid_pre", self.layer + 1, self.position)
        return self

    def __str__(self) -> str:
        return f"{self.component} of layer {self.layer} at position {self.position}"
