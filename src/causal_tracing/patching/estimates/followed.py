"""The paths of one pair in one direction, as estimates take them: which edits send, and which single parts receive."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from causal_tracing.engine.backend import Place, ReadingBackend
from causal_tracing.errors import ComponentNotOffered
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.known import Rules, effective
from causal_tracing.interventions.sites import Site
from causal_tracing.patching.cells import Question, last_of
from causal_tracing.patching.job import Job
from causal_tracing.patching.kinds.receivers import LOGITS, WHOLE
from causal_tracing.patching.kinds.senders import PathGrid, SingleReceiver, Stage


@dataclass(frozen=True, kw_only=True, eq=False)
class Followed:
    """All paths of a grid for one pair: the runs, what each sender writes, and the receivers' single readings."""

    job: Job
    grid: PathGrid
    question: Question
    base: Run
    donor: Run
    changed: tuple[tuple[Edit, ...], ...]  # of each sender; nothing where the pair has no such token

    @cached_property
    def readings(self) -> tuple[SingleReceiver, ...]:
        """Every part that receives anything, once."""
        return tuple(dict.fromkeys(reading for _, each in self.grid.receivers for reading in each))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The components and layers of the readings that are in layers."""
        return tuple(dict.fromkeys((name, layer) for name, layer, _ in self.readings if name != LOGITS))

    @property
    def reads_logits(self) -> bool:
        """Whether the logits are among the receivers."""
        return any(name == LOGITS for name, *_ in self.readings)

    @cached_property
    def backend(self) -> ReadingBackend:
        """The backend, as one that can be asked what parts of layers read. Raises ComponentNotOffered."""
        if not isinstance(self.job.backend, ReadingBackend):
            raise ComponentNotOffered(
                f"Estimates of paths need a backend that reads single parts of layers, and the backend of "
                f"{self.job.model.name} ({self.job.backend.describe().engine!r}) does not: use paths()."
            )
        return self.job.backend

    def parts(self, place: Place) -> int:
        """How many heads a component of a layer has; 1 where it has none."""
        return self.job.model.parts(*place)

    @cached_property
    def reaches(self) -> Bool[np.ndarray, "sender reading"]:
        """Whether a sender's path to a reading can change anything."""
        stream = self.grid.stream
        rules = self.job.backend.describe().rules  # those that were proved of what is read
        stages = [stream.stage(reading) for reading in self.readings]
        open_ = [self._open(rules, position) for position in range(len(self.base.tokens))]
        behind: dict[tuple[Stage, int], np.ndarray] = {}  # many senders begin at the same stage and token
        found = np.zeros((len(self.changed), len(self.readings)), bool)
        for sender, changed in enumerate(self.changed):
            edits = effective(World(self.base, changed, last_of(self.base)), rules)
            for position in sorted({edit.site.position for edit in edits}):
                first = stream.first_behind([edit for edit in edits if edit.site.position == position])
                if (first, position) not in behind:
                    reached = [stage >= first for stage in stages]
                    behind[first, position] = np.array(reached) & open_[position]
                found[sender] |= behind[first, position]
        return found

    def _open(self, rules: Rules, position: int) -> Bool[np.ndarray, " reading"]:
        """Whether what each reading makes of a token can change what is read."""
        last = len(self.base.tokens) - 1
        # What reads as a whole gives something else at later tokens too: at the last one it matters if anywhere.
        matters = {place: self._matters(rules, place, last if place[0] in WHOLE else position) for place in self.places}
        matters[LOGITS, len(self.grid.stream.parts)] = position == last
        return np.array([matters[reading[:2]] for reading in self.readings])

    def _matters(self, rules: Rules, place: Place, position: int) -> bool:
        """Whether what a part of a layer makes there can change what is read."""
        # In part, and from one token whatever this is: nothing is known of what it writes, and it seals nothing off.
        edit = Edit(Site(place[0], place[1], position), From(self.donor, len(self.donor.tokens) - 1), 0.5)
        return bool(effective(World(self.base, (edit,), last_of(self.base)), rules))

    @cached_property
    def members(self) -> Bool[np.ndarray, "reading receiver"]:
        """Which readings each receiver is made of."""
        number = {reading: n for n, reading in enumerate(self.readings)}
        found = np.zeros((len(self.readings), len(self.grid.receivers)), bool)
        for column, (_, each) in enumerate(self.grid.receivers):
            found[[number[reading] for reading in each], column] = True
        return found

    def added_by(self, sender: int) -> Mapping[tuple[str, int, int], tuple[Edit, ...]]:
        """A sender's edits by the part of a layer that they are in, and its layer and position."""
        found: dict[tuple[str, int, int], list[Edit]] = {}
        for edit in self.changed[sender]:
            site = edit.site
            part = self.grid.stream.part(site.component, site.layer)
            found.setdefault((part, site.layer, site.position), []).append(edit)
        return {place: tuple(edits) for place, edits in found.items()}


def followed(job: Job, grid: PathGrid, question: Question) -> Followed:
    """The paths of one pair in the direction of the grid."""
    (arm, *_), pair, contrast = grid.arms, question.pair, question.contrast
    base, donor = contrast.sides(0, restores=arm.restores)
    changed = tuple(grid.sent(sender, pair, contrast, arm, donor) for sender in range(grid.slices))
    return Followed(job=job, grid=grid, question=question, base=base, donor=donor, changed=changed)
