"""The backend of a model whose network is here: worlds on the packed engine or on replay, all else by hooks."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import (
    Cost,
    Description,
    Differentiable,
    Donor,
    Evaluation,
    Linearised,
    Measure,
    Place,
    Progress,
    Recording,
)
from causal_tracing.engine.call_size import call_tokens
from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.engine.cost import cost_of, seconds_a_token_layer
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.gradients import linearised, pulled_back
from causal_tracing.engine.hooks.record import donor_recordings, record
from causal_tracing.engine.memory import default_budget, rows_that_fit, too_large
from causal_tracing.engine.packed.base_runs import Tapes
from causal_tracing.engine.packed.engine import read
from causal_tracing.interventions.donors import Kept
from causal_tracing.interventions.edits import Run, World
from causal_tracing.interventions.sites import ATTENTION, PARTED
from causal_tracing.models.memory import in_parts, memory_said
from causal_tracing.models.model import Model

BOTH = 2  # runs of a pair: their gradients are computed together, and apart where they do not fit


class NetworkBackend:
    """A `Backend` on the engine "packed" or "replay", with a budget in bytes a batch (None: what is free allows).

    `call` is how many tokens a call of a layer takes at most (None: as many as are fast on the device).
    """

    def __init__(
        self,
        model: Model,
        engine: str,
        *,
        note: str | None = None,
        budget: int | None = None,
        call: int | None = None,
    ) -> None:
        self.model = model
        self.engine = engine
        self.note = note
        self.budget = budget
        self.call = call
        self._seconds: float | None = None
        self._tapes = Tapes(model) if engine == "packed" else None

    def within(self, budget: int | None, call: int | None = None) -> "NetworkBackend":
        """The same backend with this budget, and so many tokens a call."""
        return NetworkBackend(self.model, self.engine, note=self.note, budget=budget, call=call)

    def describe(self, worlds: Sequence[World] = ()) -> Description:
        """What is offered; with worlds, also what these would take. The first time two forwards are run to time one."""
        model, anatomy, budget = self.model, self.model.anatomy, self.budget or default_budget(self.model)
        return Description(
            engine=self.engine,
            components=(*anatomy.components, *anatomy.asked_for, *([ATTENTION] if anatomy.offers(ATTENTION) else [])),
            rules=model.rules,
            counts={name: anatomy.most(name) for name in anatomy.asked_for if name in PARTED},
            uneven=dict(anatomy.uneven),
            note=self.note,
            dtype=model.dtype,
            device=str(model.device),
            context=model.context,
            budget=budget,
            call_tokens=(self.call or call_tokens(model)) if self.engine == "packed" else None,
            rounding=TWO_FORWARDS[model.dtype],
            gradients=True,
            cost=self._cost(worlds, budget) if worlds else None,
        )

    def record(self, runs: Sequence[Run], places: Collection[Place] = (), *, keep: int = 1) -> dict[Run, Recording]:
        """Each distinct run's activations at the places, and its logits at the last `keep` positions."""
        # A tape has the logits behind the last token alone; any other question is a forward of its own.
        if self._tapes is None or places or keep > 1:
            return record(self.model, runs, places, keep=keep)
        tapes = self._tapes.of(list(dict.fromkeys(runs)))  # they will be wanted again, with worlds behind them
        return {run: Recording(logits=tape.recordings[run].logits) for run, tape in tapes.items()}

    def evaluate(
        self,
        worlds: Sequence[World],
        measure: Measure,
        *,
        prune: bool = True,
        rows: int | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """The numbers that `measure` makes of each world's logits at its readout."""
        more = {"engine": self.engine, "budget": self.budget, "known": self._tapes, "call": self.call}
        return evaluate(self.model, worlds, measure, prune=prune, rows=rows, progress=progress, **more)

    def gradients(
        self,
        runs: Sequence[Run],
        places: Collection[Place],
        measure: Differentiable,
        *,
        donors: Mapping[Run, Recording] | None = None,
        keep: int = 1,
    ) -> Iterator[Linearised]:
        """Activations of runs of equal length, and d measure / d activation, as many runs at a time as fit."""
        model, first = self.model, min(layer for _, layer in places)
        donors = donor_recordings(model, runs) if donors is None else donors
        # Autograd keeps what every layer behind the first place computed: the more of them, the fewer runs at once.
        budget = (self.budget or default_budget(model)) // (model.num_layers - first)
        unasked = len(runs) <= BOTH and self.budget is None
        rows = BOTH if unasked else rows_that_fit(model, len(runs[0].tokens), keep, budget)
        rows = 1 if model.anatomy.alone else rows
        for start in range(0, len(runs), rows):
            work = partial(linearised, model, places=places, measure=measure, donors=donors, keep=keep)
            yield from in_parts(runs[start : start + rows], work, too_large(model, len(runs[0].tokens)))

    def read(self, base: Run, wanted: Mapping[Run, Collection[Kept]]) -> Mapping[Run, Donor]:
        """Single activations of runs that are mostly the base run with more edits."""
        if self._tapes is not None:
            budget = self.budget or default_budget(self.model)
            return read(self.model, base, wanted, budget, self._tapes, self.call)
        # Whole forwards, on which runs can share a batch where the same is kept of them.
        by_places: dict[frozenset[Place], list[Run]] = {}
        for run, kept in wanted.items():
            by_places.setdefault(frozenset(each[:2] for each in kept), []).append(run)
        found: dict[Run, Donor] = {}
        for places, runs in by_places.items():
            found |= record(self.model, runs, places)
        return found

    def pulled_back(
        self, run: Run, slopes: Sequence[Mapping[Place, Float[Tensor, "token width"]]]
    ) -> list[dict[Place, Float[Tensor, "token d_model"]]]:
        """Slopes at parts of layers as slopes at the stream that these read, several times by themselves."""
        with memory_said(too_large(self.model, len(run.tokens))):
            return pulled_back(self.model, run, slopes, donor_recordings(self.model, [run]))

    def _cost(self, worlds: Sequence[World], budget: int) -> Cost:
        if self._seconds is None:
            self._seconds = seconds_a_token_layer(self.model, worlds[0].base)
        return cost_of(self.model, worlds, self.engine, budget, self._seconds)
