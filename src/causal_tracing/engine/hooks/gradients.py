"""How a metric would move with an activation: gradients at every place of a run, in one forward and one backward.

A probe of zeros is added at each place. It changes no number, and the metric's gradient with respect to it is the
gradient with respect to the activation, everything behind it included.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Differentiable, Linearised, Place, Recording
from causal_tracing.engine.hooks.forward import watched
from causal_tracing.engine.hooks.record import donor_recordings
from causal_tracing.errors import UnsupportedModel
from causal_tracing.interventions.edits import Run
from causal_tracing.models.model import Model
from causal_tracing.models.quantised import method_of, without_gradients

# By a sign in torch's error, what a network does that gradients of activations cannot pass.
AGAIN = "saved otherwise than as they are"  # as checkpoints are: edits and probes would not be there when it runs again
_WITHOUT = {
    "modified by an inplace operation": "writes over numbers that they need, as x += y does",
    AGAIN: "is run again on the way back (torch.utils.checkpoint), where no activation is looked at",
}


def gradients(
    model: Model, runs: Sequence[Run], places: Collection[Place], measure: Differentiable
) -> Mapping[Place, Float[Tensor, "run token width"]]:
    """d measure / d activation at each place, for runs of equal length.

    Activations are the modules' own outputs, before a layer's scale. Raises ComponentNotOffered.
    """
    return linearised(model, runs, places, measure).gradients


def linearised(
    model: Model,
    runs: Sequence[Run],
    places: Collection[Place],
    measure: Differentiable,
    *,
    donors: Mapping[Run, Recording] | None = None,
    keep: int = 1,
) -> Linearised:
    """The activations at each place, and the gradients there, of the same forward; both [run, token, width].

    `donors` holds a recording of every run that an edit reads from; without it they are recorded. `measure` is given
    the logits after the last `keep` tokens. Raises UnsupportedModel where no gradients pass.
    """
    if any(parameter.is_inference() for parameter in model.network.parameters()):
        raise UnsupportedModel(
            f"{model.name} was made inside torch.inference_mode(), where nothing can have gradients. Load it outside."
        )
    _require_products(model)
    donors = donor_recordings(model, runs) if donors is None else donors
    values: dict[Place, Tensor] = {}
    probes: dict[Place, Tensor] = {}

    def probe(place: Place, value: Tensor) -> Tensor:
        # The value goes on in the graph, so that a place before this one has its gradient through it too.
        values[place], probes[place] = value.detach(), torch.zeros_like(value, requires_grad=True)
        return value + probes[place]

    with _differentiating(model):
        # The runs are rows that do not meet: the gradient of the sum is each row's own.
        measured = measure(watched(model, runs, donors, places, probe, keep=keep)).sum()
        if not measured.requires_grad:
            raise UnsupportedModel(
                f"{model.name} has no gradients: its forward turns them off, as torch.no_grad() and inference_mode() "
                "do. Use trace(), which needs none, or a network without that."
            )
        # What nothing depends on, such as a place behind a constant, has the gradient zero.
        found = torch.autograd.grad(measured, [probes[place] for place in places], materialize_grads=True)
    return Linearised(values, dict(zip(places, found, strict=True)))


def pulled_back(
    model: Model,
    run: Run,
    slopes: Sequence[Mapping[Place, Float[Tensor, "token width"]]],
    donors: Mapping[Run, Recording],
) -> list[dict[Place, Float[Tensor, "token d_model"]]]:
    """Slopes at parts of layers as slopes at the stream that they read, through nothing but their own layer.

    The graph is cut where layers read: so none passes through another layer, one forward serves all slopes, and each
    costs no more than the parts that it is at. Raises ComponentNotOffered.
    """
    _require_products(model)
    wanted = dict.fromkeys(place for each in slopes for place in each)
    streams = {place: read_at(model, place) for place in wanted}
    cuts: dict[Place, Tensor] = {}
    ends: dict[Place, Tensor] = {}

    def cut(place: Place, value: Tensor) -> Tensor:
        if place in wanted:
            ends[place] = value
        else:
            # A leaf here ends the way back: the layer's own reading is behind it, everything earlier is cut off.
            value = cuts[place] = value.detach().requires_grad_()
        return value

    def back(each: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
        made, given = [ends[place] for place in each], [slope[None].to(ends[place]) for place, slope in each.items()]
        read = dict.fromkeys(streams[place] for place in each)
        at = [cuts[stream] for stream in read]
        found = torch.autograd.grad(made, at, given, retain_graph=True, materialize_grads=True)
        return {stream: slope[0] for stream, slope in zip(read, found, strict=True)}

    with _differentiating(model):
        watched(model, [run], donors, [*dict.fromkeys(streams.values()), *wanted], cut, keep=1)
        return [back(each) for each in slopes]


def read_at(model: Model, place: Place) -> Place:
    """Where a part of a layer reads the stream: at the layer's input, or an MLP behind attention.

    Raises ComponentNotOffered where that cannot be told.
    """
    component, layer = place
    sums = model.layout(layer).sums
    behind = component == "mlp_out" and len(sums) > 1 and [name for name, _ in sums[0].parts] == ["attn_out"]
    if behind:
        model.anatomy.require("resid_mid")
    return "resid_mid" if behind else "resid_pre", layer


@contextmanager
def _differentiating(model: Model) -> Iterator[None]:
    """The model at rest, for gradients of activations: a caller's inference mode would make tensors without any.

    Raises UnsupportedModel where a kernel has none, as flex attention on a CPU, or where the network writes over what
    the way back needs.
    """
    with model.at_rest(), _without_weights(model), torch.inference_mode(False), torch.enable_grad():
        try:
            with torch.autograd.graph.disable_saved_tensors_hooks(AGAIN):
                yield
        except NotImplementedError as error:
            said = str(error).rstrip(".")
            raise UnsupportedModel(
                f"{model.name} has no gradients here: {said}. Use trace(), which needs none, or another attention: "
                'model.set_attn_implementation("sdpa").'
            ) from error
        except RuntimeError as error:
            reason = next((reason for sign, reason in _WITHOUT.items() if sign in f"{type(error)} {error}"), None)
            if reason is None:
                raise
            raise UnsupportedModel(
                f"{model.name} has no gradients here: its forward {reason}. Use trace(), which needs none, or a "
                "network without that."
            ) from error


def _require_products(model: Model) -> None:
    """Raises UnsupportedModel where gradients do not pass the quantised weights: torch goes on with zeros."""
    method = method_of(model.network.config)
    if method and (product := without_gradients(model.network)):
        raise UnsupportedModel(
            f"{model.name} has no gradients here: none pass its quantised weights ({method}), such as those of "
            f"{product}. Use trace(), which needs none, or load it without quantisation, or on another device."
        )


@contextmanager
def _without_weights(model: Model) -> Iterator[None]:
    """No gradients of the weights: they would take most of the memory. What they were is put back."""
    # By name: a forward puts new parameters in the place of those whose weights are kept elsewhere.
    wanted = [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]
    for name in wanted:
        model.network.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for name in wanted:
            model.network.get_parameter(name).requires_grad_(True)
