"""A backend without a network: logits are what a function says of a run, so that effects are known by algebra.

1. `FakeBackend` answers what methods ask: it cuts a run behind each token that is read, and hands it to the function.
2. `LinearToy` is such a function: a linear model, in which every token's identity is added up over layers.
3. `fake_model` is a model around any backend, with words for tokens.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import (
    Backend,
    Cost,
    Description,
    Differentiable,
    Evaluation,
    Linearised,
    Measure,
    Place,
    Progress,
    Recording,
)
from causal_tracing.errors import ComponentNotOffered, InvalidEdit
from causal_tracing.interventions.edits import (
    Attending,
    Edit,
    From,
    Given,
    Mean,
    Plus,
    Rewired,
    Run,
    Subspace,
    World,
    Zero,
)
from causal_tracing.interventions.known import Rules, plan
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS
from causal_tracing.models.anatomy import Anatomy
from causal_tracing.models.model import Model
from causal_tracing.testing.toys import ToyTokenizer

Answers = Callable[[Run], Any]
Activations = Callable[[Run, Place], Float[Tensor, "token width"]]
TWO_PARTS = tuple(name for name in COMPONENTS if name != "mixer_out")  # of layers with attention and an MLP


class FakeBackend:
    """A backend (`engine.backend.Backend`) whose logits come from a function of the run, edits and all.

    answers: gives the logits [vocab] after the last token of a run, as a tensor or numbers. It sees the run's tokens
        and edits (its own, then those of a world), and may do with them as it likes. For a token before the last one it
        is asked about the run up to there.
    activations: gives what a run has at a place (component, layer), [token, width]. Without it there are none, and what
        needs them (noise, estimates) is refused by name.
    num_layers: how many layers the sites are counted in.
    components: what is offered to be patched; "z" and other heads, and "neurons", with their number in `counts`.
    name: what provenance calls it.

    `evaluated` and `recorded` list the worlds and runs that it has answered for, in order: those that were dropped as
    structural zeros are not among them.

    Example:
        >>> from causal_tracing.testing import FakeBackend, fake_model
        >>> backend = FakeBackend(lambda run: [float(len(run.edits)), 0.0, 0.0, 0.0])
        >>> model = fake_model(["yes", "no", "on", "off"], backend)
    """

    def __init__(
        self,
        answers: Answers,
        *,
        activations: Activations | None = None,
        num_layers: int = 2,
        components: Sequence[str] = TWO_PARTS,
        counts: Mapping[str, int] | None = None,
        name: str = "fake",
    ) -> None:
        self.answers = answers
        self.activations = activations
        self.components = tuple(components)
        self.counts = dict(counts or {})
        self.rules = Rules(num_layers=num_layers)
        self.name = name
        self.evaluated: list[World] = []
        self.recorded: list[Run] = []

    def describe(self, worlds: Sequence[World] = ()) -> Description:
        """What is offered; of worlds, how many would be run. They take no memory and no time."""
        return Description(
            engine=self.name,
            components=self.components,
            rules=self.rules,
            counts=self.counts,
            cost=self._cost(worlds) if worlds else None,
        )

    def record(self, runs: Sequence[Run], places: Collection[Place] = (), *, keep: int = 1) -> dict[Run, Recording]:
        """Each distinct run's activations and logits. Raises ComponentNotOffered where there are no activations."""
        found = {}
        for run in dict.fromkeys(runs):
            last = range(len(run.tokens) - keep, len(run.tokens))
            activations = {place: self._activations(run, place) for place in places}
            found[run] = Recording(activations=activations, logits=self._logits(run, last))
            self.recorded.append(run)
        return found

    def evaluate(
        self,
        worlds: Sequence[World],
        measure: Measure,
        *,
        prune: bool = True,
        rows: int | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Each world's numbers, one world after the other. Raises InvalidEdit, ComponentNotOffered."""
        if not worlds:
            raise InvalidEdit("There is no world to evaluate: the list is empty.")
        for edit in (edit for world in worlds for edit in world.edits):
            self.describe().require(edit.site.component)
        # By the engines' own plan: what they know without a run is not asked about here.
        planned, values = plan(worlds, self.rules, prune=prune), []
        for world in planned.worlds:
            values.append(measure(self._logits(world.run, world.readout)[None], [world])[0].double())
            self.evaluated.append(world)
            if progress:
                progress(len(values), len(planned.worlds))
        return Evaluation(
            values=torch.stack([values[number] for number in planned.index]).numpy(),
            structural_zero=np.array(planned.structural_zero),
            worlds_run=len(planned.worlds),
        )

    def gradients(
        self,
        runs: Sequence[Run],
        places: Collection[Place],
        measure: Differentiable,
        *,
        donors: Mapping[Run, Recording] | None = None,
        keep: int = 1,
    ) -> Iterator[Linearised]:
        """Raises ComponentNotOffered: a function that is not known has no gradients."""
        raise ComponentNotOffered(f"Gradients are not offered by the backend {self.name!r}.")

    def _logits(self, run: Run, positions: Sequence[int]) -> Float[Tensor, "readout vocab"]:
        rows = [self.answers(_until(run, position)) for position in positions]
        return torch.stack([torch.as_tensor(row, dtype=torch.float32) for row in rows])

    def _activations(self, run: Run, place: Place) -> Float[Tensor, "token width"]:
        if self.activations is None:
            raise ComponentNotOffered(f"The backend {self.name!r} has no activations: give activations=.")
        return self.activations(run, place)

    def _cost(self, worlds: Sequence[World]) -> Cost:
        planned, layers = plan(worlds, self.rules).worlds, self.rules.num_layers
        return Cost(
            worlds_run=len(planned),
            token_layers=sum(len(world.base.tokens) for world in planned) * layers,
            naive_token_layers=sum(len(world.base.tokens) for world in worlds) * layers,
            memory=0,
            seconds=0.0,
        )


def _until(run: Run, position: int) -> Run:
    """The run up to a token, with the edits that this token can depend on."""
    # Causal: what is done to later tokens does not reach this one.
    edits = tuple(edit for edit in run.edits if edit.site.position <= position)
    return Run(run.tokens[: position + 1], edits)


class LinearToy:
    """A linear model: its stream is counts of words, and its logits are the counts at the last token.

    The embedding is 1 for the token's own word. In each layer attention adds the stream of the token before (nothing
    for the first), and the MLP adds what is then there once more. So with n layers the word that stands k tokens before
    the last one has the logit 2ⁿ · C(n, k), and everything in between is a product of such numbers.

    vocabulary: how many words there are.
    num_layers: n.

    Example:
        >>> from causal_tracing.interventions.edits import Run
        >>> LinearToy(3, num_layers=2)(Run((0, 1, 2))).tolist()
        [4.0, 8.0, 4.0]
    """

    def __init__(self, vocabulary: int, num_layers: int = 2) -> None:
        self.vocabulary = vocabulary
        self.num_layers = num_layers

    def __call__(self, run: Run) -> Float[Tensor, " vocab"]:
        """The logits after the run's last token."""
        return self._passed(run)["resid_post", self.num_layers - 1][-1]

    def activations(self, run: Run, place: Place) -> Float[Tensor, "token vocab"]:
        """What the run has there: at "embed" (layer 0), or at a whole component of a layer."""
        return self._passed(run)[place]

    def _passed(self, run: Run) -> dict[Place, Float[Tensor, "token vocab"]]:
        seen: dict[Place, Tensor] = {}

        def at(component: str, layer: int, value: Tensor) -> Tensor:
            for edit in run.edits:
                if (edit.site.component, edit.site.layer) == (component, layer):
                    # What was seen of an earlier component may be this very tensor.
                    value = value.clone()
                    value[edit.site.position] = self._written(value[edit.site.position], edit)
            seen[component, layer] = value
            return value

        stream = at("embed", 0, torch.eye(self.vocabulary)[list(run.tokens)])
        for layer in range(self.num_layers):
            stream = at("resid_pre", layer, stream)
            before = torch.cat([torch.zeros(1, self.vocabulary), stream[:-1]])
            middle = at("resid_mid", layer, stream + at("attn_out", layer, before))
            stream = at("resid_post", layer, middle + at("mlp_out", layer, middle))
        return seen

    def _written(self, current: Float[Tensor, " vocab"], edit: Edit) -> Float[Tensor, " vocab"]:
        new = self._source(current, edit)
        return new if edit.alpha == 1 else (1 - edit.alpha) * current + edit.alpha * new

    def _source(self, current: Float[Tensor, " vocab"], edit: Edit) -> Float[Tensor, " vocab"]:
        place, source = (edit.site.component, edit.site.layer), edit.source

        def read(donor: From) -> Tensor:
            return self.activations(donor.run, place)[donor.position]

        match source:
            case From():
                return read(source)
            case Mean():
                return torch.stack([read(donor) for donor in source.donors]).mean(0)
            case Zero():
                return torch.zeros_like(current)
            case Given():
                return torch.as_tensor(source.tensor).to(current)
            case Plus():
                return current + torch.as_tensor(source.tensor).to(current)
            case Attending() | Rewired():
                raise AssertionError(f"{edit.site} holds no numbers")  # the components of such sites are not offered
            case Subspace():
                # A subspace may be given by any basis of it; only an orthonormal one projects.
                basis = torch.linalg.qr(torch.as_tensor(source.basis).to(current).T)[0]
                return current + basis @ (basis.T @ (read(source.donor) - current))


def fake_model(words: Sequence[str], backend: Backend | None = None, *, name: str = "fake") -> Model:
    """A model without a network, to be traced like any other.

    words: the vocabulary; words between white space are tokens, and a token's number is its place here.
    backend: who answers; a `FakeBackend` of a `LinearToy` of two layers unless it is given. `model.backend` is it.
    name: the model's name.

    Example:
        >>> import causal_tracing as ct
        >>> model = fake_model(["the", "cat", "dog", "ran"])
        >>> pair = ct.Pair(clean="the cat ran", corrupt="the dog ran", answer=" cat", foil=" dog")
        >>> effects = ct.trace(model, pair).effects.sel(metric="logit_diff", pair="pair-0")
        >>> effects.total_effect.item()  # twice 2² · C(2, 1): "cat" stands one token before the last
        16.0
        >>> effects.restored_fraction.sel(component="resid_post", layer=0).values.tolist()
        [0.0, 0.5, 0.5]
        >>> len(model.backend.evaluated) > 0
        True
    """
    if backend is None:
        toy = LinearToy(len(words))
        backend = FakeBackend(toy, activations=toy.activations, num_layers=toy.num_layers)
    described = backend.describe()
    # Refused with a reason, as on a real model: what is left out of both would be taken for offered.
    missing = (one for one in (*COMPONENTS, *MEDIATORS) if one not in described.components)
    anatomy = Anatomy(
        family=described.engine,
        layers="",
        cut=described.rules.cut,
        refused=tuple((component, f"the backend {described.engine!r} has none.") for component in missing),
        counts=tuple(described.counts.items()),
    )
    return Model(network=None, tokenizer=ToyTokenizer(words), name=name, anatomy=anatomy, backend=backend)
