"""A model that is traced through nnsight: opened here, or known by its configuration alone."""

import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nnsight

from causal_tracing.engine.checks.check import prove
from causal_tracing.engine.nnsight.backend import Known, NnsightBackend, Transport
from causal_tracing.engine.nnsight.check import checked
from causal_tracing.engine.nnsight.here import Here
from causal_tracing.engine.nnsight.named import anatomy_by_names
from causal_tracing.engine.nnsight.ndif import Ndif
from causal_tracing.errors import EngineNote, InvalidOption, UnsupportedModel, warn
from causal_tracing.interventions.sites import MIXTURE
from causal_tracing.models.anatomy import Anatomy
from causal_tracing.models.hub import explained
from causal_tracing.models.model import Model
from causal_tracing.models.open import tokenizer_of
from causal_tracing.models.place import files_of, refuse

NOT_SHOWN = {
    "resid_mid": "no module has the stream between attention and MLP as its input or output.",
    "mixer_out": "it is not offered through nnsight.",
    **dict.fromkeys(("q", "k", "v", "pattern"), "it is inside attention, which nnsight does not show."),
    **dict.fromkeys(MIXTURE, "what experts are called with is not offered through nnsight."),
}


def is_nnsight(model: Any) -> bool:
    """Whether it is an nnsight model."""
    return isinstance(model, nnsight.Envoy)


def undispatched(model: Any, revision: str | None, *, trust: bool) -> tuple[Any, str]:
    """The nnsight model of that name, without weights, and its name; one that is there is left as it is.

    Raises InvalidOption, ModelNotFound, MachineError.
    """
    if is_nnsight(model):
        refuse({"revision": revision}, "an nnsight model, which has its own")
        return model, getattr(model, "repo_id", None) or type(model._module).__name__
    if not isinstance(model, str | os.PathLike) or model == "demo" or Path(model).expanduser().exists():
        raise InvalidOption(
            f"remote=True runs a model that a server has: give its name on the Hugging Face hub, or an nnsight model. "
            f"{model if isinstance(model, str) else type(model).__name__} is here."
        )
    files = files_of(model, revision, trust=trust)
    given = {"trust_remote_code": True} if trust else {}
    with explained(files, revision):
        model = nnsight.TransformersModel(
            files.name, revision=files.commit, tokenizer=tokenizer_of(files), task="text-generation", **given
        )
    return model, files.name


def on_nnsight(model: Model, wrapped: Any, remote: bool | str) -> Model:
    """The accepted model, traced through nnsight in this process: `remote` is False, or "local".

    `wrapped` is the nnsight model that it came from, None where one is still to be made.
    """
    if model.anatomy.lanes:
        raise UnsupportedModel(f"{model.name} has a stream of several lanes, and is not traced through nnsight.")
    if wrapped is None:
        wrapped = nnsight.TransformersModel(model.network, tokenizer=model.tokenizer, task="text-generation")
    offered = [name for name in model.anatomy.mediators if name not in NOT_SHOWN]
    proved, _ = prove(model, offered)
    known = Known(dtype=model.dtype, few_logits=model.anatomy.few_logits)
    source = {**model.source, "nnsight": "local" if remote else "here"}
    return _with_backend(replace(proved, agreement=None, recipe=None, source=source), Here(wrapped, remote), known)


def at_ndif(wrapped: Any, name: str) -> Model:
    """The nnsight model, undispatched: everything runs on the server that nnsight is set up for.

    Raises UnsupportedModel, MachineError.
    """
    network, transport = wrapped._module, Ndif(wrapped)
    warn(
        f"Prompts, answers and what is patched are sent to {transport.host}, and what it sends back is unpickled by "
        "nnsight, which can run code: use a host that you trust.",
        EngineNote,
    )
    anatomy, dtype = anatomy_by_names(network, wrapped.tokenizer, transport)
    few_logits = "logits_to_keep" in inspect.signature(network.forward).parameters
    source = {"kind": "ndif", "host": transport.host, "key": transport.key}
    source |= {"commit": wrapped.revision} if wrapped.revision else {}
    model = Model(network=network, tokenizer=wrapped.tokenizer, name=name, anatomy=anatomy, source=source)
    return _with_backend(model, transport, Known(dtype=dtype, few_logits=few_logits))


def _with_backend(model: Model, transport: Transport, known: Known) -> Model:
    model = replace(model, anatomy=_shown(model.anatomy))
    backend = checked(NnsightBackend(model, transport, known))
    return replace(model, anatomy=backend.model.anatomy, backend=backend)


def _shown(anatomy: Anatomy) -> Anatomy:
    """The anatomy without what nnsight does not show."""
    for component, reason in NOT_SHOWN.items():
        if anatomy.offers(component) or component in MIXTURE:
            anatomy = anatomy.refuse(component, reason)
    return anatomy
