"""Opens a model: from its name, a folder, a GGUF file, or as it lies in memory; says where it came from.

1. Find out what was named. A repository on the hub is resolved to a commit by one request that fails quickly.
2. Read its configuration and tokenizer, and refuse what cannot be traced before gigabytes are downloaded.
3. Read the weights, every one of them from the files. Code out of a repository runs only where it was asked for.

A model that is handed in from memory is left exactly as it is.
"""

import hashlib
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)

from causal_tracing.errors import (
    InvalidOption,
    ModelError,
    ModelNotFound,
    UnsupportedModel,
    UnsupportedTokenizer,
    nearest,
)
from causal_tracing.models.demo import DEMO, demo_folder, without_bars
from causal_tracing.models.hub import Place, brief, download_weights, explained, known, resolve_commit
from causal_tracing.models.memory import is_out_of_memory, memory_said

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


CHECKSUM_LIMIT = 2_000_000_000  # bytes; more would take longer to read than to load


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
    progress: bool = True,
) -> Opened:
    """The model with its tokenizer, in evaluation mode without gradients, float32 on a GPU if there is one.

    `model` is "demo", a name on the hub, a folder, a .gguf file, or a transformers or nnsight model: those are left
    as they are (an nnsight model is dispatched), so that dtype, device and revision cannot be given with them.
    """
    if not isinstance(model, str | os.PathLike):
        return _handed_in(model, tokenizer, revision=revision, dtype=dtype, device=device, gguf_file=gguf_file)
    kind = _dtype("float32" if dtype is None else dtype)
    target = _device(device)
    if tokenizer is not None:
        _require_offsets(tokenizer, str(model))
    place = _place(model, revision, gguf_file, trust=trust_remote_code, progress=progress)
    with nullcontext() if progress and place.source["kind"] != "embedded" else without_bars():
        return _read(place, tokenizer, kind, target)


def _read(place: Place, tokenizer: Any, dtype: Any, device: torch.device) -> Opened:
    with explained(place):
        config = AutoConfig.from_pretrained(place.where, **place.arguments())
        _require_causal(config, place.name)
        tokenizer = _tokenizer(place) if tokenizer is None else tokenizer
        network = _network(place, config, dtype)
        try:
            network = network.to(device)  # pyright: ignore[reportArgumentType]
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise InvalidOption(f"device={str(device)!r} cannot be used on this machine: {error}") from error
    return Opened(network=network, tokenizer=tokenizer, name=place.name, source=place.source)


def _place(
    model: str | os.PathLike[str], revision: str | None, gguf: str | None, *, trust: bool, progress: bool
) -> Place:
    """Where the named model lies. Raises ModelNotFound, and MachineError where network or disk fail."""
    common: dict[str, Any] = {"trust": trust, "progress": progress}
    name = os.fspath(model)
    path = Path(name).expanduser()
    if model == "demo":
        _refuse({"revision": revision, "gguf_file": gguf}, "the demo model, which is one fixed file")
        source = {"kind": "embedded", "wheel": DEMO.wheel, "wheel_sha256": DEMO.wheel_sha256, "file": DEMO.member}
        return Place(where=str(demo_folder(progress=progress)), name=name, source=source, **common)
    if name and path.exists():
        _refuse({"revision": revision}, f"{name}, which is on this disk")
        return _on_disk(name, path, gguf, common)
    if isinstance(model, os.PathLike) or not HUB_ID.fullmatch(name) or name[0] in "./~" or name.endswith(".gguf"):
        raise ModelNotFound(
            f"There is no folder or file {name} (seen from {Path.cwd()}). Give the path of a folder with config.json "
            'and safetensors files, of a .gguf file, a name on the Hugging Face hub such as "openai-community/gpt2", '
            'or "demo".'
        )
    place = Place(where=name, name=name, source={}, gguf=gguf, **common)
    with explained(place, revision):
        commit, cached = resolve_commit(name, revision, gguf or "config.json")
    source = {"kind": "hub", "id": name, "commit": commit}
    source |= {"revision": revision} if revision else {}
    source |= {"file": gguf} if gguf else {}
    return Place(where=name, name=name, source=source, commit=commit, cached=cached, gguf=gguf, **common)


def _on_disk(name: str, path: Path, gguf: str | None, common: dict[str, Any]) -> Place:
    if path.is_file():
        if path.suffix != ".gguf" or gguf is not None:
            raise ModelNotFound(f"{name} is a file. Give the folder that it lies in, or one .gguf file.")
        path, gguf = path.parent, path.name
    if gguf is not None:
        if not (path / gguf).is_file():
            raise ModelNotFound(f"There is no file {gguf} in {path}: it holds {_listing(path)}.")
        source = {"kind": "gguf", "path": str((path / gguf).resolve()), **_fingerprint([path / gguf])}
        return Place(where=str(path), name=name, source=source, gguf=gguf, **common)
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise UnsupportedModel(
                f"{name} is an adapter of peft, not a model. Merge it into its base once, with "
                "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(another), save "
                "the tokenizer there, and give that folder."
            )
        raise ModelNotFound(
            f"The folder {name} has no config.json, so it is not a saved transformers model: it holds "
            f"{_listing(path)}. Save one with model.save_pretrained(folder), and its tokenizer too."
        )
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    source = {"kind": "folder", "path": str(path.resolve()), **_fingerprint(weights)}
    return Place(where=str(path), name=name, source=source, **common)


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "nothing"


def _fingerprint(files: list[Path]) -> dict[str, str]:
    """The weights' sha256: a file's own, or for several that of the lines `sha256sum` prints. Above 2 GB size and time.

    Reading more would take longer than loading; sizes and times tell versions of a folder apart, not copies of it.
    """
    if not files:
        return {}
    if sum(file.stat().st_size for file in files) > CHECKSUM_LIMIT:
        latest = max(file.stat().st_mtime for file in files)
        size = sum(file.stat().st_size for file in files)
        return {"bytes": str(size), "modified": datetime.fromtimestamp(latest, UTC).isoformat(timespec="seconds")}
    sums = {}
    for file in files:
        with file.open("rb") as stream:
            sums[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    if len(sums) == 1:
        return {"sha256": next(iter(sums.values()))}
    lines = "".join(f"{checksum}  {name}\n" for name, checksum in sums.items())
    return {"sha256": hashlib.sha256(lines.encode()).hexdigest()}


def _dtype(asked: str | torch.dtype) -> Any:
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidOption(f"There is no dtype {name!r} to load a model in. {nearest(name, DTYPES)}")
    return name if name == "auto" else getattr(torch, name)


def _device(asked: str | torch.device | None) -> torch.device:
    if asked is None or asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(asked)
    except RuntimeError as error:
        raise InvalidOption(f'device={asked!r} is none. Valid: "auto", "cpu", "cuda", "cuda:1", "mps", ...') from error


def _refuse(options: dict[str, Any], what: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise InvalidOption(f"{option}={str(value)!r} does not apply to {what}. Leave it out.")


def _tokenizer(place: Place) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.where, **place.arguments())
    except Exception as error:
        raise known(error, place) or UnsupportedTokenizer(
            f"{place.name} has no tokenizer that can be loaded ({brief(error)}). Save it next to the weights with "
            "tokenizer.save_pretrained(folder), or hand one in with tokenizer=."
        ) from error
    _require_offsets(tokenizer, place.name)
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:
        raise UnsupportedTokenizer(
            f"{place.name} has no tokenizer: without files transformers makes an empty one ({len(tokenizer)} tokens). "
            "Save it next to the weights with tokenizer.save_pretrained(folder), or hand one in with tokenizer=."
        )
    return tokenizer


def _require_offsets(tokenizer: Any, name: str) -> None:
    if not hasattr(tokenizer, "is_fast"):
        raise InvalidOption(
            f"tokenizer= of {name} is a {type(tokenizer).__name__}, not a tokenizer. Give what "
            "AutoTokenizer.from_pretrained(...) returns."
        )
    if not tokenizer.is_fast:
        raise UnsupportedTokenizer(
            f"The tokenizer of {name}, a {type(tokenizer).__name__}, cannot say where its tokens lie in the text "
            "(it is not a fast one), so words cannot be found in the prompts. Give one with a tokenizer.json as "
            "tokenizer=, such as AutoTokenizer.from_pretrained(..., use_fast=True)."
        )


def _require_causal(config: Any, name: str) -> None:
    """Raises UnsupportedModel where the configuration alone shows that the model is no causal decoder."""
    mapping: Any = AutoModelForCausalLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    with_images: Any = AutoModelForImageTextToText._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    masked: Any = AutoModelForMaskedLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder with a decoder: its encoder reads the whole prompt at once"
    elif "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return  # its own code says that it is one; the check of the loaded model will see
    elif type(config) not in mapping and type(config) not in with_images:
        reason = "not a language model that predicts the next token"
    elif type(config) in masked and not getattr(config, "is_decoder", False):
        reason = "an encoder: each of its tokens sees the later ones"
    else:
        return
    raise UnsupportedModel(
        f"{name} (model type {config.model_type!r}) cannot be traced: it is {reason}. Give a causal decoder, such as "
        "a gpt2, llama, qwen, gemma or pythia model."
    )


def _network(place: Place, config: Any, dtype: Any) -> PreTrainedModel:
    safe = {"use_safetensors": download_weights(place)} if place.commit and not place.gguf else {}
    causal: Any = AutoModelForCausalLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    by_text = type(config) in causal or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    kind: Any = AutoModelForCausalLM if by_text else AutoModelForImageTextToText  # which reads text alone too
    options = {**safe, **place.arguments()}
    network, report = kind.from_pretrained(place.where, dtype=dtype, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(
            f"The weights files of {place.name} lack {len(missing)} of the parameters of {type(network).__name__}: "
            f"{', '.join(missing[:3])}{more}. They would be random, so the model is not used. Download or save it "
            "again; a model without a language-modelling head cannot be traced."
        )
    return network.eval().requires_grad_(False)


def _refuse_edits(wrapper: Any) -> None:
    """What nnsight makes anew in each of its own traces would be left out of ours."""
    edits = getattr(wrapper, "_edits", ())
    if edits:
        raise UnsupportedModel(
            f"The nnsight {type(wrapper).__name__} holds {len(edits)} stored edit(s). They act in nnsight's own "
            "traces, not on the model inside, which is what is run here: remove them with clear_edits(), or write them "
            "as forward hooks of its modules."
        )


def _has_head(network: PreTrainedModel) -> bool:
    """Whether it, or a language model inside it, says where its vocabulary's logits come from."""
    models = (part for part in network.modules() if isinstance(part, PreTrainedModel))
    return any(part.get_output_embeddings() is not None for part in models)


def _handed_in(model: Any, tokenizer: Any, **options: Any) -> Opened:
    _refuse(options, "a model that is already in memory, which is left as it is")
    network, wrapper = model, {}
    nnsight = sys.modules.get("nnsight")  # only who has imported it can hand in one of its models
    if nnsight is not None and isinstance(model, nnsight.Envoy):
        _refuse_edits(model)
        if not getattr(model, "dispatched", True):
            with memory_said(f"The nnsight {type(model).__name__} does not fit into memory. Give a smaller dtype."):
                model.dispatch()
        network, wrapper = model._module, {"wrapper": f"nnsight {type(model).__name__}"}
        tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    if not isinstance(network, PreTrainedModel):
        raise UnsupportedModel(
            f"A {type(model).__name__} cannot be opened. Give a transformers model (if it is wrapped, the model inside "
            "the wrapper), an nnsight LanguageModel, or a name or path."
        )
    name = network.name_or_path or type(network).__name__
    if getattr(network.config, "is_encoder_decoder", False) or not _has_head(network):
        raise UnsupportedModel(
            f"{name} is a {type(network).__name__}, not a causal language model. Load it with "
            "AutoModelForCausalLM.from_pretrained(...)."
        )
    if all(parameter.is_meta for parameter in network.parameters()):
        raise UnsupportedModel(f"{name} has no weights: all its parameters are on the meta device.")
    if tokenizer is None:
        raise InvalidOption(
            f"{name} was handed in without its tokenizer. Give it too: "
            "load(model, tokenizer=AutoTokenizer.from_pretrained(...))."
        )
    _require_offsets(tokenizer, name)
    source = {"kind": "memory", "class": f"{type(network).__module__}.{type(network).__qualname__}", **wrapper}
    commit = getattr(network.config, "_commit_hash", None)
    return Opened(
        network=network, tokenizer=tokenizer, name=name, source=source | ({"commit": commit} if commit else {})
    )
