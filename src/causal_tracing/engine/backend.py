"""The seam between methods and models: what a backend is asked, and what it answers. Values only: nothing runs here.

Methods see models through the four questions of `Backend` and cannot tell who answers: the packed engine, replay, or a
backend that a model brings along (`Model.backend`). `causal_tracing.testing.FakeBackend` answers without a network.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from causal_tracing.errors import ComponentNotOffered
from causal_tracing.interventions.donors import Kept
from causal_tracing.interventions.edits import Run, World
from causal_tracing.interventions.known import Rules

Place = tuple[str, int]  # a component of a layer
Measure = Callable[[Float[Tensor, "world readout vocab"], Sequence[World]], Float[Tensor, "world metric"]]


@runtime_checkable
class Portable(Protocol):
    """A measure that can be taken where the logits are, elsewhere, so that numbers alone come back.

    It gives function(logits, *data(worlds)). The function is plain torch, to its annotations, and so is all that it
    calls, functions among the data too: their source is sent.
    """

    @property
    def function(self) -> Callable[..., Tensor]:
        """Logits [world, readout, vocab] and the data -> [world, metric]."""
        ...

    def data(self, worlds: Sequence[World]) -> tuple[Any, ...]:
        """What the function needs to know of these worlds: tensors, plain values and functions."""
        ...


@runtime_checkable
class Sparing(Protocol):
    """A measure that looks at few words of the vocabulary: a backend need not compute the others' logits."""

    def __call__(self, logits: Float[Tensor, "world readout vocab"], worlds: Sequence[World]) -> Tensor:
        """The numbers, of all logits."""
        ...

    def words(self, worlds: Sequence[World]) -> tuple[int, ...] | None:
        """The tokens that it looks at in these worlds, in rising order; None: all."""
        ...

    def of_words(
        self, logits: Float[Tensor, "world readout word"], worlds: Sequence[World], words: Sequence[int]
    ) -> Float[Tensor, "world metric"]:
        """The numbers, of these words' logits alone."""
        ...


@runtime_checkable
class Collecting(Protocol):
    """A backend that asks elsewhere for numbers, and can collect what a killed process asked for."""

    def keep_jobs(self, file: Path) -> None:
        """From now on what is asked for is noted in this file, and what is noted there is collected."""
        ...


def whole(logits: Float[Tensor, "world readout vocab"], worlds: Sequence[World]) -> Tensor:
    """A measure: the logits as they are."""
    return logits


Differentiable = Callable[[Float[Tensor, "run keep vocab"]], Tensor]  # logits after the last tokens -> one a run
Progress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What worlds would take. A token-layer is one token in one layer: a naive loop computes every one of every world.

    `worlds_run` are those that are left when what is known to be zero is dropped, and equal ones are run once. `memory`
    is in bytes above the loaded model; `seconds` is a guess.
    """

    worlds_run: int
    token_layers: int
    naive_token_layers: int
    memory: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a backend offers.

    `engine` is its name ("packed", "replay", or that of a model's own backend); `note` says why it is not the packed
    one, where that was to be expected. `components` can be read and written; `counts` says how many heads or neurons
    a layer has, for those that have such parts, and `uneven` how many each has, where they differ. `budget` is in
    bytes a batch (None: it has none), `call_tokens` how many tokens go through a layer at a time (None: whole
    prompts), `context` the longest prompt in tokens (None: not known). `rounding` is how far apart two right answers
    may be, in shares of the largest logit (None: not known). `gradients` says whether they can be asked for, and
    `cost` is that of the worlds asked about.
    """

    engine: str
    components: tuple[str, ...]
    rules: Rules
    counts: Mapping[str, int] = field(default_factory=dict)
    uneven: Mapping[str, Sequence[int]] = field(default_factory=dict)
    note: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    context: int | None = None
    budget: int | None = None
    call_tokens: int | None = None
    rounding: float | None = None
    gradients: bool = False
    cost: Cost | None = None

    def parts(self, component: str, layer: int) -> int:
        """How many heads or neurons a layer has; 1 for the components that have no such parts."""
        return self.uneven[component][layer] if component in self.uneven else self.counts.get(component, 1)

    def require(self, component: str) -> None:
        """Raises ComponentNotOffered, with what is offered."""
        if component not in self.components:
            raise ComponentNotOffered(
                f"{component} is not offered by the backend {self.engine!r}. Offered: {', '.join(self.components)}."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What one run left behind: its activations at places [token, width], and logits [readout, vocab].

    The width is d_model in the stream, parts · size of a part for heads and neurons. Activations are the module's own
    outputs, before the layer's scale.
    """

    activations: Mapping[Place, Float[Tensor, "token width"]] = field(default_factory=dict)
    logits: Float[Tensor, "readout vocab"]

    def at(self, place: Place, position: int) -> Float[Tensor, " width"]:
        """The activation of one token."""
        return self.activations[place][position]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Each world's numbers, whether it was known to equal its base run, and how many worlds were really run.

    `furthest` is of worlds that shared calls of a layer: how long the longest call was, in tokens, and which world's
    tokens came last there. Where a layer is wrong about what lies far back, that world shows it. None where none did.
    """

    values: Float[np.ndarray, "world metric"]
    structural_zero: Bool[np.ndarray, " world"]
    worlds_run: int
    furthest: tuple[int, int] | None = None


class Linearised(NamedTuple):
    """Activations of some runs at places, and the gradients of a measure there; both [run, token, width]."""

    values: Mapping[Place, Float[Tensor, "run token width"]]
    gradients: Mapping[Place, Float[Tensor, "run token width"]]


@runtime_checkable
class Backend(Protocol):
    """How methods ask a model: nothing else of it is known to them.

    An implementation needs these four, and no base class. What it does not offer it refuses by name
    (ComponentNotOffered); it leaves the model as it was, whatever happens.
    """

    def describe(self, worlds: Sequence[World] = ()) -> Description:
        """What is offered; with worlds, also what these would take (which may run a forward to time it)."""
        ...

    def record(self, runs: Sequence[Run], places: Collection[Place] = (), *, keep: int = 1) -> Mapping[Run, Recording]:
        """Each distinct run's activations at the places (component, layer), and its logits at the last `keep` tokens.

        Runs may differ in length. Raises ComponentNotOffered, InvalidEdit.
        """
        ...

    def evaluate(
        self,
        worlds: Sequence[World],
        measure: Measure,
        *,
        prune: bool = True,
        rows: int | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """The numbers that `measure` makes of each world's logits at its readout, [world, metric].

        `measure` gets the logits [world, readout, vocab] of some worlds that read equally many positions, and these
        worlds; of a `Portable` one, a backend elsewhere uses the function and the data, of a `Sparing` one a backend
        may compute few words' logits. It may depend on a world
        through its base run, its readout and its `pair` only. With `prune` a world that is known to equal its base run
        gets that run's numbers, and equal worlds are run once. `rows` caps a batch.

        `progress` is told (steps done, steps in all) as often as the backend can, never less than before, and at the
        end that all are done. What it raises stops the work at once. It must not run the model itself.
        Raises InvalidEdit, ComponentNotOffered, CannotPack, OutOfMemory.
        """
        ...

    def gradients(
        self,
        runs: Sequence[Run],
        places: Collection[Place],
        measure: Differentiable,
        *,
        donors: Mapping[Run, Recording] | None = None,
        keep: int = 1,
    ) -> Iterator[Linearised]:
        """Activations of runs of equal length at the places, and d measure / d activation there.

        In the order of the runs, as many at a time as fit the memory. `measure` makes one number a run of the logits
        at its last `keep` tokens [run, keep, vocab]. `donors` are recordings of what the runs' edits read, where they
        are there already. Raises ComponentNotOffered, also where `describe().gradients` is False.
        """
        ...


@runtime_checkable
class Donor(Protocol):
    """What is known of a run that edits read from."""

    def at(self, place: Place, position: int) -> Float[Tensor, " width"]:
        """The activation that it has at a place, of one token."""
        ...


@runtime_checkable
class ReadingBackend(Protocol):
    """A backend that says what single parts of layers make of what they read. Estimates of paths need one."""

    def read(self, base: Run, wanted: Mapping[Run, Collection[Kept]]) -> Mapping[Run, Donor]:
        """Single activations of runs, most of them the base run with more edits. Raises as `Backend.evaluate`."""
        ...

    def pulled_back(
        self, run: Run, slopes: Sequence[Mapping[Place, Float[Tensor, "token width"]]]
    ) -> Sequence[Mapping[Place, Float[Tensor, "token d_model"]]]:
        """Slopes at parts of layers as slopes at the stream that these read, through nothing but their own layer.

        Several times by themselves, each at some parts, and each then by the places of the stream: (resid_pre, layer),
        or (resid_mid, layer) of an MLP that reads behind attention. Raises ComponentNotOffered.
        """
        ...
