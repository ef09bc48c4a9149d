"""One way to a backend: what is asked of it is proved first, and the engine is chosen by what both engines give."""

from collections.abc import Hashable, MutableMapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from torch import nn

from causal_tracing.engine.backend import Backend
from causal_tracing.engine.checks.agreement import choose, room_for_checks
from causal_tracing.engine.checks.check import accept, prove
from causal_tracing.engine.checks.texts import as_batch, run_text
from causal_tracing.engine.final_norm import final_norm
from causal_tracing.engine.network import NetworkBackend
from causal_tracing.engine.random_prompts import LEAST, random_prompts
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.sites import ATTENTION, FINAL_SCALE, MEDIATORS, MIXTURE, WIRING
from causal_tracing.models.anatomy import Anatomy
from causal_tracing.models.model import Agreement, Model

AS_LONG = "Yours are as long: give prompts of another length."
# How long prompts were that each network was run on, by its circumstances, and without a reference to it.
_RUN: MutableMapping[nn.Module, set[Hashable]] = WeakKeyDictionary()
# What was proved of each network: anatomy and agreement, by all that they depend on.
_PROVED: MutableMapping[nn.Module, dict[Hashable, tuple[Anatomy, Agreement | None]]] = WeakKeyDictionary()


def open_backend(
    model: Model, components: Sequence[str], asked: str = "auto", budget: int | None = None, *, length: int = 0
) -> Backend:
    """The backend that answers for a model, with these components proved on it; `describe().note` says what hinders.

    `asked` is "auto" (the packed engine where it agrees with replay on these components), "packed" or "replay";
    `budget` is in bytes a batch, `length` that of the longest prompt, in tokens. A model that brings a backend along
    has no other. Raises ComponentNotOffered, CannotPack, InvalidOption.

    Example:
        backend = open_backend(model, ["resid_post", "z"])
        backend.record([Run(tokens)], [("resid_post", 3)])
    """
    if model.backend is not None:
        return _own(model, components, asked, budget)
    model.require_as_loaded()
    if FINAL_SCALE in components:
        # Asked for its refusal: before a job begins, and not in its middle.
        final_norm(model)
    # Both are no activations of a module, so that the anatomy knows neither.
    components = list(dict.fromkeys(name for name in components if name not in (FINAL_SCALE, WIRING)))
    for component in components:
        model.anatomy.require(component)
    mediators = [name for name in components if name in (*MEDIATORS, *MIXTURE, ATTENTION)]
    if mediators:
        model = proved(model, mediators)
        # What the proofs have refused meanwhile is not offered any more.
        for component in mediators:
            model.anatomy.require(component)
    choice = choose(model, components, asked, length)
    return NetworkBackend(model, choice.engine, note=choice.note, budget=budget)


def require_length(model: Model, length: int) -> None:
    """Raises UnsupportedModel where the network fails on so many tokens, and does not say how many it takes."""
    if model.backend is not None or model.context is not None or length < LEAST:
        return
    known = _RUN.setdefault(model.network, set())
    if (model.circumstances, length) not in known:
        run = random_prompts(model.network, model.tokenizer, length)[0]
        with model.at_rest(), room_for_checks(model.name):
            run_text(model.network, as_batch(model.network, run.tokens), model.name, AS_LONG)
        known.add((model.circumstances, length))


def plain_backend(model: Model) -> Backend:
    """The plainest way to run a model, by which others are checked: replay, or the backend that it brings along."""
    return NetworkBackend(model, "replay") if model.backend is None else model.backend


def on_replay(backend: Backend, note: str) -> Backend:
    """The same model on replay, with the reason; a backend that a model brought along stays."""
    if not isinstance(backend, NetworkBackend):
        return backend
    return NetworkBackend(backend.model, "replay", note=note, budget=backend.budget)


def alone(backend: Backend, note: str) -> Backend | None:
    """The same model on replay, each run in a forward of its own; None where it is so already, or cannot be."""
    if not isinstance(backend, NetworkBackend) or backend.model.anatomy.alone:
        return None
    model = replace(backend.model, anatomy=backend.model.anatomy.made_alone())
    return NetworkBackend(model, "replay", note=note, budget=backend.budget)


def within(backend: Backend, budget: int | None, call: int | None = None) -> Backend:
    """The same backend with this budget in bytes a batch, and so many tokens a call; one of a model's own stays."""
    return backend.within(budget, call) if isinstance(backend, NetworkBackend) else backend


def accept_again(model: Model, network: nn.Module) -> Model:
    """The model with another network in the place of its own, its anatomy found and checked anew."""
    return accept(network, model.tokenizer, name=model.name, source=dict(model.source))


def proved(model: Model, mediators: Sequence[str]) -> Model:
    """The model with these heads' components and such proved on it, without those that are not what they are called.

    Once, as long as its network lives and nothing about it has changed.
    """
    # By the anatomy as it was asked with: the proofs give another one.
    known = _PROVED.setdefault(model.network, {})
    key = (model.anatomy, model.circumstances, tuple(mediators))
    if key not in known:
        proved, _ = prove(model, mediators)
        known[key] = proved.anatomy, proved.agreement
    anatomy, agreement = known[key]
    return replace(model, anatomy=anatomy, agreement=agreement)


def _own(model: Model, components: Sequence[str], asked: str, budget: int | None) -> Backend:
    described = model.backend.describe()
    # Neither would have any effect, and a user who gives them believes otherwise.
    if asked != "auto" or budget is not None:
        raise InvalidOption(
            f"{model.name} is run by a backend of its own, {described.engine!r}: leave engine= and budget= out."
        )
    for component in components:
        described.require(component)
    return model.backend
