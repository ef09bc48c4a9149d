"""One way to a backend: what is asked of it is proved first, and the engine is chosen by what both engines give."""

from collections.abc import Sequence

from torch import nn

from causal_tracing.engine.backend import Backend
from causal_tracing.engine.checks.agreement import choose
from causal_tracing.engine.checks.check import accept, prove
from causal_tracing.engine.network import NetworkBackend
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.sites import MEDIATORS
from causal_tracing.models.model import Model


def open_backend(model: Model, components: Sequence[str], asked: str = "auto", budget: int | None = None) -> Backend:
    """The backend that answers for a model, with these components proved on it; `describe().note` says what hinders.

    `asked` is "auto" (the packed engine where it agrees with replay on these components), "packed" or "replay";
    `budget` is in bytes a batch. A model that brings a backend along has no other. Raises ComponentNotOffered,
    CannotPack, InvalidOption.

    Example:
        backend = open_backend(model, ["resid_post", "z"])
        backend.record([Run(tokens)], [("resid_post", 3)])
    """
    if model.backend is not None:
        return _own(model, components, asked, budget)
    components = list(dict.fromkeys(components))
    for component in components:
        model.anatomy.require(component)
    mediators = [name for name in components if name in MEDIATORS]
    if mediators:
        model, _ = prove(model, mediators)
        for component in mediators:
            model.anatomy.require(component)
    choice = choose(model, components, asked)
    return NetworkBackend(model, choice.engine, note=choice.note, budget=budget)


def plain_backend(model: Model) -> Backend:
    """The plainest way to run a model, by which others are checked: replay, or the backend that it brings along."""
    return NetworkBackend(model, "replay") if model.backend is None else model.backend


def within(backend: Backend, budget: int | None) -> Backend:
    """The same backend with this budget in bytes a batch; one that a model brought along keeps its own."""
    return backend.within(budget) if isinstance(backend, NetworkBackend) else backend


def accept_again(model: Model, network: nn.Module) -> Model:
    """The model with another network in the place of its own, its anatomy found and checked anew."""
    return accept(network, model.tokenizer, name=model.name, source=dict(model.source))


def _own(model: Model, components: Sequence[str], asked: str, budget: int | None) -> Backend:
    described = model.backend.describe()
    if asked != "auto" or budget is not None:
        raise InvalidOption(
            f"{model.name} is run by a backend of its own, {described.engine!r}: leave engine= and budget= out."
        )
    for component in components:
        described.require(component)
    return model.backend
