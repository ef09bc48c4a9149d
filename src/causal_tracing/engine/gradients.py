"""How a measure of the logits would move if an activation did: one forward and one backward for all places.

1. Every place gets a tap. The first on each way through the model is where autograd begins: what lies before it is
   run without a graph, and parameters have no gradients at all.
2. The value at a tap flows on as a copy, so that what a model changes in place is not what is differentiated by.
3. One backward gives the gradient of the measure at every tap. The runs of a batch do not mix.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.edits import Run
from causal_tracing.engine.forward import shown
from causal_tracing.engine.record import donor_recordings
from causal_tracing.engine.taps import Place
from causal_tracing.engine.writes import Recording
from causal_tracing.errors import InvalidEdit
from causal_tracing.model import Model

Scalar = Callable[[Float[Tensor, "run vocab"]], Float[Tensor, " run"]]  # the logits at the last position, to a number


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gradients:
    """The measure's value for each run, and at each place its gradient by the activation, and the activation itself.

    Like recordings, both are of the modules' own outputs, before a layer's scale; in the model's own dtype.
    """

    values: Float[Tensor, " run"]
    gradients: Mapping[Place, Float[Tensor, "run token width"]]
    activations: Mapping[Place, Float[Tensor, "run token width"]]


def gradients(
    model: Model,
    runs: Sequence[Run],
    places: Collection[Place],
    measure: Scalar,
    *,
    donors: Mapping[Run, Recording] | None = None,
) -> Gradients:
    """∂measure/∂activation at the places of the runs (equally long), in the measure's unit by the activation's.

    Of an edited run it is the gradient behind its edits. `donors` holds a recording of every run that an edit reads
    from; without it they are recorded. Zero where nothing of the measure depends on a place. Raises InvalidEdit,
    ComponentNotOffered.
    """
    if len({len(run.tokens) for run in runs}) != 1:
        raise InvalidEdit("Gradients need runs of equally many tokens, and at least one run.")
    donors = donor_recordings(model, runs) if donors is None else donors
    tapped: dict[Place, Tensor] = {}

    def tap(place: Place, value: Tensor) -> Tensor:
        tapped[place] = value if value.requires_grad else value.detach().requires_grad_()
        return tapped[place].clone()

    with model.differentiable():
        values = measure(shown(model, runs, donors, places, tap, keep=1)[:, -1])
        # Not backward(): that would leave gradients on whatever else autograd finds.
        found = torch.autograd.grad(values.sum(), list(tapped.values()), allow_unused=True, materialize_grads=True)
    return Gradients(
        values=values.detach(),
        gradients=dict(zip(tapped, found, strict=True)),
        activations={place: value.detach() for place, value in tapped.items()},
    )
