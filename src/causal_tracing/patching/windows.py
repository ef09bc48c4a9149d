"""Windows of layers: which layers are patched together in a cell.

A window of width w is centred on layer l: layers l − (w−1)//2 to l + w//2 (for 10, l − 4 to l + 5, as ROME's paper
says), and only whole windows count. ROME's code has l − w//2 to l + (w−1)//2, cut at the edges: `rome=True`. Layers
that a prompt of text alone does not pass are not counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, nearest

Window = int | Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How wide each component's windows are (1: single layers), among the layers that a text passes."""

    widths: Mapping[str, int]
    among: tuple[int, ...]
    rome: bool = False

    def layers(self, component: str, layer: int) -> tuple[int, ...]:
        """The layers that are patched together around this one; none where there is no whole window."""
        width, place = self.widths[component], self.among.index(layer)
        if self.rome:
            first, last = max(0, place - width // 2), place + (width - 1) // 2
        else:
            first, last = place - (width - 1) // 2, place + width // 2
            # A window that is cut at an edge patches fewer layers, and its effect is not comparable with the others'.
            if first < 0 or last >= len(self.among):
                return ()
        return self.among[first : last + 1]

    @property
    def wide(self) -> bool:
        """Whether any component's cells are more than single layers."""
        return max(self.widths.values()) > 1


def check_widths(components: Sequence[str], window: Window) -> Mapping[str, int]:
    """The widths by component. Raises InvalidOption for what is no width, or a component that is not traced."""
    named = window if isinstance(window, Mapping) else dict.fromkeys(components, window)
    for component, width in named.items():
        if component not in components:
            raise InvalidOption(f"There is no window for {component!r}. {nearest(str(component), components)}")
        validation.whole(f"The window of {component}", width, least=1)
    return named


def plan_windows(components: Sequence[str], window: Window, among: Sequence[int], *, rome: bool = False) -> Windows:
    """The windows that an option describes, `among` these layers: one width for all components, or by component.

    Raises InvalidOption for a width that no window of this model has, or a component that is not traced.
    """
    named = check_widths(components, window)
    for component, width in named.items():
        if width > len(among) and not rome:  # ROME's are cut at the edges: they fit any model
            raise InvalidOption(
                f"A window of {width} layers ({component}) is not possible: the model has {len(among)} layers. "
                f"Use 1 to {len(among)}."
            )
    widths = {component: named.get(component, 1) for component in components}
    return Windows(widths=widths, among=tuple(among), rome=rome)
