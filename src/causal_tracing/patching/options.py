"""The options of a trace."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from causal_tracing.patching.ablation import (
    Write,
    checked_write,
)
from causal_tracing.patching.columns import Column
from causal_tracing.patching.grid import Grid, Neurons
from causal_tracing.patching.noise import Noise
from causal_tracing.patching.windows import Window

COMPONENTS = ("resid_post", "attn_out", "mlp_out")
ENGINES = ("auto", "packed", "replay")
PRESETS = ("rome",)
ROME_NOISE = Noise(scale=3.0, draws=10, seed=1, rome=True)
ROME_WINDOWS = {"attn_out": 10, "mlp_out": 10}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a trace, as `tracing.trace` explains them."""

    components: Sequence[str] = COMPONENTS
    layers: Sequence[int] | None = None
    positions: str | Sequence[Column] = "each"
    metric: str | None = None
    directions: Sequence[str] | None = None
    align: str = "strict"
    noise: Noise | None = None
    window: Window = 1
    window_sums: bool = True
    sever: Sequence[str] = ()
    preset: str | None = None
    write: str | Write = "donor"
    control: str | None = None
    heads: bool | Sequence[str] = False
    head_positions: str | Sequence[Column] = "each"
    neurons: Neurons = False
    neuron_positions: str | Sequence[Column] = ("last",)
    engine: str = "auto"
    budget: int | None = None
    seed: int = 0
    spot_checks: int = 8

    def to_dict(self, blocks: Grid) -> dict[str, Any]:
        """The options as JSON holds them, with what the grid of blocks made of them; heads and neurons if asked."""
        found: dict[str, Any] = {
            "components": list(blocks.components),
            "layers": list(blocks.layers),
            "positions": self.positions,
            "metric": self.metric,
            "directions": [arm.name for arm in blocks.arms if arm.is_direction],
            "align": self.align,
            "noise": asdict(self.noise) if self.noise else None,
            "window": self.window,
            "window_sums": self.window_sums,
            "sever": [arm.severed for arm in blocks.arms if arm.severed],
            "preset": self.preset,
            "write": checked_write(self.write).to_dict(),
            "control": self.control,
        }
        if self.heads:
            found["heads"] = ["z"] if self.heads is True else self.heads
            found["head_positions"] = self.head_positions
        if self.neurons:
            found["neurons"] = self.neurons
            found["neuron_positions"] = self.neuron_positions
        return _plain(found | {name: getattr(self, name) for name in ("engine", "budget", "seed", "spot_checks")})


def _plain(value: Any) -> Any:
    """Lists and numbers of any library as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(each) for each in value]
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
