"""Opens a model: from its name, a folder, a GGUF file, or as it lies in memory; says where it came from.

1. Find out what was named. A repository on the hub is resolved to a commit by one request that fails quickly.
2. Read its configuration and tokenizer, and refuse what cannot be traced before gigabytes are downloaded.
3. Read the weights, every one of them from the files. Code out of a repository runs only where it was asked for.

A model that is handed in from memory is left exactly as it is.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)

from causal_tracing.errors import InvalidOption, ModelError, UnsupportedModel, UnsupportedTokenizer, some_of
from causal_tracing.models.adapters import inside
from causal_tracing.models.gguf import converted, without_bars
from causal_tracing.models.hub import brief, download_weights, explained, gguf_file, known
from causal_tracing.models.memory import is_out_of_memory, memory_said
from causal_tracing.models.offload import absent
from causal_tracing.models.place import ModelFiles, check_device, dtype_name, files_of, no_device, refuse
from causal_tracing.models.quantised import explained_by, method_of, require_known, stream_dtype
from causal_tracing.models.spread import Spread, refuse_parted

OTHERS = "Give a causal decoder, such as a gpt2, llama, qwen, gemma or pythia model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A network with its tokenizer, before anything is known about its parts. `source` says where it came from."""

    network: Any
    tokenizer: Any
    name: str
    source: dict[str, str]


def open_model(
    model: Any,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    spread: Spread | None = None,
    progress: bool = True,
) -> Opened:
    """The model with its tokenizer, in evaluation mode without gradients, float32 on a GPU if there is one.

    `model` is "demo", a name on the hub, a folder, a .gguf file, or a transformers or nnsight model: those are left
    as they are (an nnsight model is dispatched), so that dtype, device and revision cannot be given with them. `spread`
    is for a model on several devices.
    """
    if not isinstance(model, str | os.PathLike):
        return handed_in(model, tokenizer, revision=revision, dtype=dtype, device=device, gguf_file=gguf_file)
    if tokenizer is not None:
        _require_tokenizer(tokenizer, str(model))
    target = _device(device)
    files = files_of(model, revision, gguf_file, dtype=dtype, device=device, trust=trust_remote_code, progress=progress)
    return open_files(files, tokenizer, dtype=dtype, device=target, spread=spread)


def open_files(
    files: ModelFiles,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    spread: Spread | None = None,
) -> Opened:
    """The model that lies there."""
    if tokenizer is not None:
        _require_tokenizer(tokenizer, files.name)
    kind, target = None if dtype is None else _dtype(dtype), _device(device)
    # The demo model is read in a second, of which no bar need tell.
    with nullcontext() if files.progress and files.source["kind"] != "embedded" else without_bars():
        return _read(files, tokenizer, kind, spread or target)


def _read(files: ModelFiles, tokenizer: Any, dtype: Any, where: torch.device | Spread) -> Opened:
    with explained(files):
        file = gguf_file(files)
        files = files if file is None else converted(files, file)
        config = AutoConfig.from_pretrained(files.where, **files.arguments())
        # Before the weights, which may be gigabytes.
        _require_causal(config, files.name)
        tokenizer = tokenizer_of(files) if tokenizer is None else tokenizer
        method = method_of(config)
        require_known(config, files.name)
        asked = dtype or ("auto" if method else torch.float32)  # what is not quantised stays as it was saved
        if isinstance(where, Spread):
            with _on_this_machine(f"device_map={where.device_map!r}"), explained_by(method, files.name):
                network = _network(files, config, asked, where)
            refuse_parted(network, files.name)
        else:
            with explained_by(method, files.name):
                network = _network(files, config, asked)
            with _on_this_machine(f"device={str(where)!r}"):
                network = network.to(where)  # pyright: ignore[reportArgumentType]
    if method and isinstance(dtype, torch.dtype):
        _require_dtype(network, dtype, method, files.name)
    return Opened(network=network, tokenizer=tokenizer, name=files.name, source=files.source | _quantised(method))


def _quantised(method: str) -> dict[str, str]:
    return {"quantised": method} if method else {}


def _require_dtype(network: Any, asked: torch.dtype, method: str, name: str) -> None:
    """Raises InvalidOption where a quantised model is not in the type that was asked for."""
    found = stream_dtype(network)
    if found != asked:
        raise InvalidOption(
            f"dtype={dtype_name(asked)!r} does not apply to {name}: its weights are quantised ({method}), and what is "
            f"not stays as it was saved, in {dtype_name(found)}. Leave it out."
        )


@contextmanager
def _on_this_machine(what: str) -> Iterator[None]:
    """Raises InvalidOption for a device that this machine does not have."""
    try:
        yield
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise InvalidOption(f"{what} cannot be used on this machine: {error}") from error


def _dtype(asked: str | torch.dtype) -> Any:
    name = dtype_name(asked)
    return name if name == "auto" else getattr(torch, name)


def _device(asked: str | torch.device | None) -> torch.device:
    check_device(asked)
    if asked is None or asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(asked)
    except RuntimeError as error:
        raise no_device(asked) from error


def tokenizer_of(files: ModelFiles) -> Any:
    """The tokenizer that lies there. Raises UnsupportedTokenizer, ModelNotFound, MachineError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.where, **files.arguments())
    except Exception as error:
        raise known(error, files) or UnsupportedTokenizer(
            f"{files.name} has no tokenizer that can be loaded ({brief(error)}). Save it next to the weights with "
            "tokenizer.save_pretrained(folder), or hand one in with tokenizer=."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:
        raise UnsupportedTokenizer(
            f"{files.name} has no tokenizer: without files transformers makes an empty one ({len(tokenizer)} tokens). "
            "Save it next to the weights with tokenizer.save_pretrained(folder), or hand one in with tokenizer=."
        )
    return tokenizer


def _require_tokenizer(tokenizer: Any, name: str) -> None:
    """Raises InvalidOption for what is no tokenizer. One that is not fast is refused where spans are asked for."""
    if isinstance(tokenizer, type) or not hasattr(tokenizer, "is_fast"):
        raise InvalidOption(
            f"tokenizer= of {name} is a {type(tokenizer).__name__}, not a tokenizer. Give what "
            "AutoTokenizer.from_pretrained(...) returns."
        )


def _require_causal(config: Any, name: str) -> None:
    """Raises UnsupportedModel where the configuration alone shows that the model is no causal decoder."""
    reason = _not_causal(config)
    if reason:
        raise UnsupportedModel(f"{name} (model type {config.model_type!r}) cannot be traced: it is {reason}. {OTHERS}")


def _causal_by_name(config: Any) -> bool:
    """Whether transformers, or code that comes with the model, has a class of causal decoders for it."""
    mapping: Any = AutoModelForCausalLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    return type(config) in mapping or _has_own_code(config)


def _has_own_code(config: Any) -> bool:
    """Whether a causal decoder's code comes with the model."""
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _not_causal(config: Any) -> str:
    """What a model of this configuration is, where it is no causal decoder; empty where it may be one."""
    with_images: Any = AutoModelForImageTextToText._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    masked: Any = AutoModelForMaskedLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder with a decoder: its encoder reads the whole prompt at once"
    if _has_own_code(config):
        return ""  # its own code says that it is one; the check of the loaded model will see
    # Models of images and text read text alone too.
    if not _causal_by_name(config) and type(config) not in with_images:
        return "not a language model that predicts the next token"
    if type(config) in masked and not getattr(config, "is_decoder", False):
        return "an encoder: each of its tokens sees the later ones"
    return ""


def _network(files: ModelFiles, config: Any, dtype: Any, spread: Spread | None = None) -> PreTrainedModel:
    safe = {"use_safetensors": download_weights(files)} if files.commit and not files.gguf else {}
    # What is made for images and text reads text alone too.
    kind: Any = AutoModelForCausalLM if _causal_by_name(config) else AutoModelForImageTextToText
    options = {"dtype": dtype, "output_loading_info": True, **safe, **files.arguments()}
    if dtype is torch.float64:  # grouped products of experts are not made for it
        options["experts_implementation"] = "eager"
    read: Callable[..., Any] = kind.from_pretrained if spread is None else partial(spread.load, kind.from_pretrained)
    # What files lack transformers fills with random numbers, and says so in a log line only.
    network, report = read(files.where, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights files of {files.name} lack {len(missing)} of the parameters of {type(network).__name__}: "
            f"{some_of(missing, 3)}. They would be random, so the model is not used. Download or save it "
            "again; a model without a language-modelling head cannot be traced."
        )
    return network.eval().requires_grad_(False)


def _require_weights(network: nn.Module, name: str) -> None:
    """Raises UnsupportedModel where parameters have no numbers. Those that accelerate keeps elsewhere have."""
    missing, total = absent(network), len(list(network.parameters()))
    if not missing:
        return
    what = "has no weights: all" if len(missing) == total else f"lacks weights: {len(missing)} of"
    raise UnsupportedModel(
        f"{name} {what} its {total} parameters are on the meta device ({some_of(missing, 3)}), and no hook of "
        "accelerate's says where their numbers are kept. Load it with from_pretrained(...)."
    )


def _refuse_edits(wrapper: Any) -> None:
    """What nnsight makes anew in each of its own traces would be left out of ours."""
    edits = getattr(wrapper, "_edits", ())
    if edits:
        raise UnsupportedModel(
            f"The nnsight {type(wrapper).__name__} holds {len(edits)} stored edit(s). They act in nnsight's own "
            "traces, not on the model inside, which is what is run here: remove them with clear_edits(), or write them "
            "as forward hooks of its modules."
        )


def has_head(network: nn.Module) -> bool:
    """Whether it, or a language model inside it, says where its vocabulary's logits come from."""
    models = (part for part in network.modules() if isinstance(part, PreTrainedModel))
    return any(part.get_output_embeddings() is not None for part in models)


def handed_in(model: Any, tokenizer: Any, **options: Any) -> Opened:
    """A model from memory, as it is."""
    refuse(options, "a model that is already in memory, which is left as it is")
    if isinstance(model, nn.Module):
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps: it is run as it was written
    network, tokenizer, wrapper = _unwrapped(model, tokenizer)
    if not isinstance(network, PreTrainedModel):
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be opened: it is no model of transformers. Give one (if it is wrapped, the "
            "model inside the wrapper), an nnsight LanguageModel, or a name or path."
        )
    name = network.name_or_path or type(network).__name__
    _require_head(network, name)
    _require_weights(network, name)
    if tokenizer is None:
        raise InvalidOption(
            f"{name} was handed in without its tokenizer. Give it too: "
            "load(model, tokenizer=AutoTokenizer.from_pretrained(...))."
        )
    _require_tokenizer(tokenizer, name)
    source = {"kind": "memory", "class": f"{type(network).__module__}.{type(network).__qualname__}", **wrapper}
    commit = getattr(network.config, "_commit_hash", None)
    return Opened(
        network=network,
        tokenizer=tokenizer,
        name=name,
        source=source | ({"commit": commit} if commit else {}) | _quantised(method_of(network.config)),
    )


def _unwrapped(model: Any, tokenizer: Any) -> tuple[Any, Any, dict[str, str]]:
    """The network of a model of peft's or nnsight's, dispatched, its tokenizer and what is recorded; else the given."""
    if (adapted := inside(model)) is not None:
        return adapted, tokenizer, {"wrapper": f"peft {type(model).__name__}"}
    nnsight = sys.modules.get("nnsight")  # only who has imported it can hand in one of its models
    if nnsight is None or not isinstance(model, nnsight.Envoy):
        return model, tokenizer, {}
    _refuse_edits(model)
    if not getattr(model, "dispatched", True):
        with memory_said(f"The nnsight {type(model).__name__} does not fit into memory. Give a smaller dtype."):
            model.dispatch()
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    return model._module, tokenizer, {"wrapper": f"nnsight {type(model).__name__}"}


def _require_head(network: PreTrainedModel, name: str) -> None:
    """Raises UnsupportedModel for a network that does not predict the next token."""
    # A class written by hand need not name its head: what it gives will show whether it has one.
    own = not type(network).__module__.startswith("transformers.")
    if getattr(network.config, "is_encoder_decoder", False) or not (own or has_head(network)):
        if _not_causal(network.config):
            _require_causal(network.config, f"{name}, a {type(network).__name__},")
        raise UnsupportedModel(
            f"{name} is a {type(network).__name__}, which has no head that predicts the next token. Load the model "
            "with one: AutoModelForCausalLM.from_pretrained(...)."
        )
