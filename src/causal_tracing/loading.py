"""Opens a model: from its name, a folder, a GGUF file, or as it lies in memory; says where it came from.

1. Find out what was named. A repository on the hub is resolved to a commit by one request that fails quickly.
2. Read its configuration and tokenizer, and refuse what cannot be traced before gigabytes are downloaded.
3. Read the weights, every one of them from the files. Code out of a repository runs only where it was asked for.

A model that is handed in from memory is left exactly as it is.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from causal_tracing.embedded import DEMO, demo_folder, without_bars
from causal_tracing.engine.check import accept
from causal_tracing.errors import (
    CausalTracingError,
    InvalidOption,
    MachineError,
    ModelError,
    ModelNotFound,
    UnsupportedModel,
    UnsupportedTokenizer,
    nearest,
)
from causal_tracing.model import Model

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CHECKSUM_LIMIT = 2_000_000_000  # bytes; more would take longer to read than to load
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A network with its tokenizer, before anything is known about its parts. `source` says where it came from."""

    network: Any
    tokenizer: Any
    name: str
    source: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where files are read: a folder, or a repository at a commit."""

    where: str
    name: str
    source: dict[str, str]
    commit: str | None = None  # of a repository
    cached: bool = False  # the hub does not answer: only what was downloaded before
    gguf: str | None = None
    trust: bool = False
    progress: bool = True

    def arguments(self) -> dict[str, Any]:
        """What every from_pretrained is called with."""
        gguf = {"gguf_file": self.gguf} if self.gguf else {}
        local = {"local_files_only": self.cached, "revision": self.commit} if self.commit else {}
        return {"trust_remote_code": self.trust, **gguf, **local}


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


def _read(place: _Place, tokenizer: Any, dtype: Any, device: torch.device) -> Opened:
    with _explained(place):
        config = AutoConfig.from_pretrained(place.where, **place.arguments())
        _require_causal(config, place.name)
        tokenizer = _tokenizer(place) if tokenizer is None else tokenizer
        network = _network(place, dtype)
        try:
            network = network.to(device)  # pyright: ignore[reportArgumentType]
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InvalidOption(f"device={str(device)!r} cannot be used on this machine: {error}") from error
    return Opened(network=network, tokenizer=tokenizer, name=place.name, source=place.source)


# --- what was named ---


def _place(
    model: str | os.PathLike[str], revision: str | None, gguf: str | None, *, trust: bool, progress: bool
) -> _Place:
    """Where the named model lies. Raises ModelNotFound, and MachineError where network or disk fail."""
    common: dict[str, Any] = {"trust": trust, "progress": progress}
    name = os.fspath(model)
    path = Path(name).expanduser()
    if model == "demo":
        _refuse({"revision": revision, "gguf_file": gguf}, "the demo model, which is one fixed file")
        source = {"kind": "embedded", "wheel": DEMO.wheel, "wheel_sha256": DEMO.wheel_sha256, "file": DEMO.member}
        return _Place(where=str(demo_folder(progress=progress)), name=name, source=source, **common)
    if name and path.exists():
        _refuse({"revision": revision}, f"{name}, which is on this disk")
        return _on_disk(name, path, gguf, common)
    if isinstance(model, os.PathLike) or not HUB_ID.fullmatch(name) or name[0] in "./~" or name.endswith(".gguf"):
        raise ModelNotFound(
            f"There is no folder or file {name} (seen from {Path.cwd()}). Give the path of a folder with config.json "
            'and safetensors files, of a .gguf file, a name on the Hugging Face hub such as "openai-community/gpt2", '
            'or "demo".'
        )
    place = _Place(where=name, name=name, source={}, gguf=gguf, **common)
    with _explained(place, revision):
        commit, cached = _commit(name, revision, gguf or "config.json")
    source = {"kind": "hub", "id": name, "commit": commit}
    source |= {"revision": revision} if revision else {}
    source |= {"file": gguf} if gguf else {}
    return _Place(where=name, name=name, source=source, commit=commit, cached=cached, gguf=gguf, **common)


def _on_disk(name: str, path: Path, gguf: str | None, common: dict[str, Any]) -> _Place:
    if path.is_file():
        if path.suffix != ".gguf" or gguf is not None:
            raise ModelNotFound(f"{name} is a file. Give the folder that it lies in, or one .gguf file.")
        path, gguf = path.parent, path.name
    if gguf is not None:
        if not (path / gguf).is_file():
            raise ModelNotFound(f"There is no file {gguf} in {path}: it holds {_listing(path)}.")
        source = {"kind": "gguf", "path": str((path / gguf).resolve()), **_fingerprint([path / gguf])}
        return _Place(where=str(path), name=name, source=source, gguf=gguf, **common)
    if not (path / "config.json").is_file():
        raise ModelNotFound(
            f"The folder {name} has no config.json, so it is not a saved transformers model: it holds "
            f"{_listing(path)}. Save one with model.save_pretrained(folder), and its tokenizer too."
        )
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    source = {"kind": "folder", "path": str(path.resolve()), **_fingerprint(weights)}
    return _Place(where=str(path), name=name, source=source, **common)


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


# --- the hub ---


def _commit(repository: str, revision: str | None, file: str) -> tuple[str, bool]:
    """The commit that a revision stands for now, and whether only the cache could say so (the hub did not answer)."""
    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
        path = hf_hub_download(repository, file, revision=revision)  # the cache remembers the revision's commit
        silent = False
    except RemoteEntryNotFoundError as error:
        raise ModelNotFound(
            f"The repository {repository} has no {file}. If it holds GGUF files, give the name of one as gguf_file=; "
            "else it is not a transformers model."
        ) from error
    except Exception as error:
        path = try_to_load_from_cache(repository, file, revision=revision or "main") if _no_answer(error) else None
        if not isinstance(path, str):
            raise
        silent = True
    parts = Path(path).parts
    return parts[len(parts) - parts[::-1].index("snapshots")], silent


def _fetch(place: _Place, file: str) -> Path | None:
    """A file of the repository, whole, in the hub's cache; None where the repository has no such file."""
    known = try_to_load_from_cache(place.where, file, revision=place.commit)
    if isinstance(known, str):
        return Path(known)
    if place.cached:
        return None
    try:
        # Asked once, briefly: where the hub stalls, hf_hub_download itself would go on asking for minutes.
        about = get_hf_file_metadata(hf_hub_url(place.where, file, revision=place.commit))
        size = f" ({about.size / 1e6:,.0f} MB)" if about.size else ""
        if place.progress:
            print(f"causal-tracing: downloading {place.where}/{file}{size} ...", file=sys.stderr, flush=True)
        return Path(hf_hub_download(place.where, file, revision=place.commit))
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _download_weights(place: _Place) -> bool:
    """Fetches the weights of a repository: whether they are safetensors. One format only, shards one by one."""
    for file in WEIGHTS:
        found = _fetch(place, file)
        if found is None:
            continue
        shards = set(json.loads(found.read_bytes())["weight_map"].values()) if file.endswith(".json") else ()
        for shard in sorted(shards):
            if _fetch(place, shard) is None:
                raise ModelError(f"{place.name} lists the weights file {shard}, but does not have it.")
        return "safetensors" in file
    if place.cached:
        raise ConnectionError("the weights were not downloaded before")
    raise ModelError(
        f"{place.name} has none of the weights files {', '.join(WEIGHTS)}. If it holds GGUF files, name one of them "
        "with gguf_file=."
    )


# --- reading ---


def _tokenizer(place: _Place) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.where, **place.arguments())
    except Exception as error:
        raise _known(error, place) or UnsupportedTokenizer(
            f"{place.name} has no tokenizer that can be loaded ({_brief(error)}). Save it next to the weights with "
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
    masked: Any = AutoModelForMaskedLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder with a decoder: its encoder reads the whole prompt at once"
    elif "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return  # its own code says that it is one; the check of the loaded model will see
    elif type(config) not in mapping:
        reason = "not a language model that predicts the next token"
    elif type(config) in masked and not getattr(config, "is_decoder", False):
        reason = "an encoder: each of its tokens sees the later ones"
    else:
        return
    raise UnsupportedModel(
        f"{name} (model type {config.model_type!r}) cannot be traced: it is {reason}. Give a causal decoder, such as "
        "a gpt2, llama, qwen, gemma or pythia model."
    )


def _network(place: _Place, dtype: Any) -> PreTrainedModel:
    safe = {"use_safetensors": _download_weights(place)} if place.commit and not place.gguf else {}
    read: Any = AutoModelForCausalLM.from_pretrained
    network, report = read(place.where, dtype=dtype, output_loading_info=True, **safe, **place.arguments())
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(
            f"The weights files of {place.name} lack {len(missing)} of the parameters of {type(network).__name__}: "
            f"{', '.join(missing[:3])}{more}. They would be random, so the model is not used. Download or save it "
            "again; a model without a language-modelling head cannot be traced."
        )
    return network.eval().requires_grad_(False)


# --- what goes wrong ---


@contextmanager
def _explained(place: _Place, revision: str | None = None) -> Iterator[None]:
    """Turns whatever transformers and the hub raise into an error that says what to do."""
    try:
        yield
    except CausalTracingError:
        raise
    except Exception as error:
        raise _known(error, place, revision) or ModelError(
            f"{place.name} could not be loaded: {_brief(error)}"
        ) from error


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _no_answer(error: BaseException) -> bool:
    """Whether the network is at fault, not what was asked for."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    foreign = type(error).__module__.startswith(("httpx", "hf_xet")) or type(error).__name__ == "XetDownloadError"
    return foreign or isinstance(error, ConnectionError | TimeoutError | FileMetadataError | LocalEntryNotFoundError)


def _known(error: BaseException | None, place: _Place, revision: str | None = None) -> CausalTracingError | None:
    """The first error in the chain whose cause is plain, in our words."""
    while error is not None:
        text = str(error)
        found = _of_the_hub(error, place, revision) or _of_the_machine(error, place)
        if found is not None:
            return found
        if "trust_remote_code" in text:
            return ModelError(
                f"{place.name} needs Python code out of its own files, which is not run unless it is asked for. Read "
                "that code, and if you trust it give trust_remote_code=True."
            )
        if type(error).__name__ == "SafetensorError" or "magic bytes" in text:
            return ModelError(
                f"A weights file of {place.name} is damaged or not whole ({_brief(error)}). Download or copy it again."
            )
        if "does not recognize this architecture" in text or "Unrecognized model" in text:
            return UnsupportedModel(f"transformers does not know the kind of model that {place.name} is: {text[:200]}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _of_the_hub(error: BaseException, place: _Place, revision: str | None) -> CausalTracingError | None:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    log_in = "log in with `hf auth login`, or set HF_TOKEN."
    if _no_answer(error) or "Consistency check failed" in str(error):
        return MachineError(
            f"The Hugging Face hub could not deliver {place.name} ({_brief(error)}). Check the network, the proxy and "
            'HF_ENDPOINT, and try again: a download resumes where it broke off. "demo" and folders need no hub.'
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return ModelNotFound(f"{place.name} is gated: ask for access on its page on the hub, then {log_in}")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{place.name} has no branch, tag or commit {revision or place.commit!r}.")
    if isinstance(error, RemoteEntryNotFoundError):
        return None
    if isinstance(error, RepositoryNotFoundError | HFValidationError) or status in (401, 404):
        return ModelNotFound(
            f"There is no repository {place.name} on the Hugging Face hub that can be seen from here, and no folder of "
            f"that name in {Path.cwd()}. Check the name; if it is private, {log_in}"
        )
    return None if status is None else ModelNotFound(f"The hub refused {place.name} ({_brief(error)}).")


def _of_the_machine(error: BaseException, place: _Place) -> MachineError | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"The disk is full: {place.name} could not be kept. Make room, or set HF_HOME elsewhere.")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return MachineError(f'{place.name} does not fit into memory. Give dtype="bfloat16", or a smaller model.')
    return None


# --- from memory ---


def _handed_in(model: Any, tokenizer: Any, **options: Any) -> Opened:
    _refuse(options, "a model that is already in memory, which is left as it is")
    network, wrapper = model, {}
    nnsight = sys.modules.get("nnsight")  # only who has imported it can hand in one of its models
    if nnsight is not None and isinstance(model, nnsight.Envoy):
        if not getattr(model, "dispatched", True):
            model.dispatch()
        network, wrapper = model._module, {"wrapper": f"nnsight {type(model).__name__}"}
        tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    if not isinstance(network, PreTrainedModel):
        raise UnsupportedModel(
            f"A {type(model).__name__} cannot be opened. Give a transformers model (if it is wrapped, the model inside "
            "the wrapper), an nnsight LanguageModel, or a name or path."
        )
    name = network.name_or_path or type(network).__name__
    if getattr(network.config, "is_encoder_decoder", False) or network.get_output_embeddings() is None:
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


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    progress: bool = True,
) -> Model:
    """The model, opened as `open_model` does and with its anatomy checked: what every other function works on."""
    opened = open_model(
        model,
        tokenizer,
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        gguf_file=gguf_file,
        progress=progress,
    )
    return accept(opened.network, opened.tokenizer, name=opened.name, source=opened.source)
