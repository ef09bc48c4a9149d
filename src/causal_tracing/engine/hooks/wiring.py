"""What a rewired world needs to know of its readers and senders: places, rows, cuts, writes. Runs nothing."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Place
from causal_tracing.engine.hooks.apply import Write
from causal_tracing.engine.hooks.gradients import read_at
from causal_tracing.interventions.edits import Rewired, World
from causal_tracing.models.model import Model

LOGITS = "resid_post"  # of the last layer: what the logits read


def rewired_in(world: World) -> Rewired | None:
    """How a world is rewired; None where it is not."""
    source = world.edits[0].source if world.edits else None
    return source if isinstance(source, Rewired) else None


def rows_of(model: Model, world: World) -> int:
    """How many rows a world takes of a forward: more than one where it is rewired."""
    rewired = rewired_in(world)
    return Wiring(model, rewired).rows if rewired else 1


@dataclass(eq=False)
class Wiring:
    """Where each reader of a world reads, in which of its rows, and what the edits write where."""

    model: Model
    rewired: Rewired

    @cached_property
    def groups(self) -> dict[Place, dict[bytes, int]]:
        """At each place of reading the different cuts, with a row each (from 1 on); what cuts nothing has none."""
        found: dict[Place, dict[bytes, int]] = defaultdict(dict)
        for (component, layer, _), cut in zip(self.rewired.readers, self.rewired.cut, strict=True):
            if cut.any():
                here = found[self._read_at(component, layer)]
                here.setdefault(cut.tobytes(), 1 + len(here))
        return dict(found)

    @cached_property
    def rows(self) -> int:
        """How many rows the world takes."""
        return 1 + max((len(cuts) for place, cuts in self.groups.items() if place[0] != LOGITS), default=0)

    @cached_property
    def received(self) -> dict[Place, list[tuple[int | None, int]]]:
        """At each component that reads, which of its parts are taken from which row."""
        found: dict[Place, list[tuple[int | None, int]]] = defaultdict(list)
        for (component, layer, part), cut in zip(self.rewired.readers, self.rewired.cut, strict=True):
            if cut.any() and component != LOGITS:
                row = self.groups[self._read_at(component, layer)][cut.tobytes()]
                found[component, layer].append((part, row))
        return dict(found)

    @cached_property
    def cuts(self) -> dict[Place, Float[Tensor, "cut sender"]]:
        """At each place of reading its different cuts, as numbers."""
        return {
            place: torch.stack([torch.frombuffer(bytearray(cut), dtype=torch.bool) for cut in cuts]).to(self.dtype)
            for place, cuts in self.groups.items()
        }

    @cached_property
    def senders(self) -> dict[Place, list[tuple[int, int | None]]]:
        """At each component that sends, which of its parts are which senders."""
        found: dict[Place, list[tuple[int, int | None]]] = defaultdict(list)
        for number, (component, layer, part) in enumerate(self.rewired.senders):
            found[component, layer].append((number, part))
        return dict(found)

    @cached_property
    def writes(self) -> dict[Place, list[Write]]:
        """What the edits write at each component, token by token."""
        found: dict[Place, list[Write]] = defaultdict(list)
        for edit in self.rewired.edits:
            found[edit.site.component, edit.site.layer].append((edit.site.position, edit))
        return dict(found)

    @cached_property
    def places(self) -> list[Place]:
        """All that is looked at on the way."""
        added = [(part, layer) for layer in self.model.active for part in self.model.layout(layer).parts]
        return list(dict.fromkeys([*self.groups, *self.received, *self.senders, *added]))

    @property
    def dtype(self) -> torch.dtype:
        """In which sums are made: not in half precision."""
        return torch.promote_types(getattr(torch, self.model.dtype), torch.float32)

    def _read_at(self, component: str, layer: int) -> Place:
        return (LOGITS, layer) if component == LOGITS else read_at(self.model, (component, layer))
