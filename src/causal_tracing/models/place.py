"""Where a named model lies: in a folder, in a GGUF file, or on the hub at a commit. What is not there is said at once.

Nothing heavy is loaded for it: torch and transformers take seconds, and a wrong name needs neither.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption, ModelNotFound, UnsupportedModel, nearest

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
# What torch and its plugins call devices.
DEVICES = (
    "auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "xla", "mtia", "maia", "mlu", "musa", "gcu", "sdaa", "hip", "ve",
    "ipu", "fpga", "vulkan", "meta", "lazy", "privateuseone",
)  # fmt: skip
CHECKSUM_LIMIT = 2_000_000_000  # bytes; more would take longer to read than to load
ADAPTER = "adapter_config.json"  # of peft; transformers would load its base, with the adapter or without it
SOFT_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
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


def files_of(
    model: str | os.PathLike[str],
    revision: str | None = None,
    gguf: str | None = None,
    *,
    dtype: Any = None,
    device: Any = None,
    trust: bool = False,
    progress: bool = True,
) -> ModelFiles:
    """Where the named model lies. Raises ModelNotFound, and MachineError where network or disk fail.

    A `dtype` or `device` that there is not is said before it is looked for (InvalidOption).
    """
    # Both are asked for their refusals, which need no model.
    dtype_name("float32" if dtype is None else dtype)
    check_device(device)
    common: dict[str, Any] = {"trust": trust, "progress": progress}
    name = os.fspath(model)
    path = Path(name).expanduser()
    if model == "demo":
        refuse({"revision": revision, "gguf_file": gguf}, "the demo model, which is one fixed file")
        from causal_tracing.models.demo import DEMO, demo_folder

        source = {"kind": "embedded", "wheel": DEMO.wheel, "wheel_sha256": DEMO.wheel_sha256, "file": DEMO.member}
        return ModelFiles(where=str(demo_folder(progress=progress)), name=name, source=source, **common)
    if name and os.path.exists(path):  # False of what is too long for a name, where pathlib raises
        refuse({"revision": revision}, f"{name}, which is on this disk")
        try:
            return _on_disk(name, path, gguf, common)
        except OSError as error:
            raise unreadable(name, error) from error
    if isinstance(model, os.PathLike) or not HUB_ID.fullmatch(name) or name[0] in "./~" or name.endswith(".gguf"):
        raise ModelNotFound(
            f"There is no folder or file {name} (seen from {Path.cwd()}). Give the path of a folder with config.json "
            'and safetensors files, of a .gguf file, a name on the Hugging Face hub such as "openai-community/gpt2", '
            'or "demo".'
        )
    return _on_the_hub(name, revision, gguf, common)


def _on_the_hub(name: str, revision: str | None, gguf: str | None, common: dict[str, Any]) -> ModelFiles:
    from causal_tracing.models.hub import explained, resolve_commit

    files = ModelFiles(where=name, name=name, source={}, gguf=gguf, **common)
    with explained(files, revision):
        commit, cached = resolve_commit(name, revision, gguf or "config.json")
    source = {"kind": "hub", "id": name, "commit": commit}
    source |= {"revision": revision} if revision else {}
    source |= {"file": gguf} if gguf else {}
    return ModelFiles(where=name, name=name, source=source, commit=commit, cached=cached, gguf=gguf, **common)


def unreadable(name: str, error: OSError) -> ModelNotFound:
    """The error for files that are there and may not be read."""
    return ModelNotFound(
        f"{name} cannot be read ({error.filename}: {error.strerror}). Ask who owns it to let you (such as by chmod "
        "a+rX), or give another folder."
    )


def _on_disk(name: str, path: Path, gguf: str | None, common: dict[str, Any]) -> ModelFiles:
    if path.is_file():
        if path.suffix != ".gguf" or gguf is not None:
            raise ModelNotFound(f"{name} is a file. Give the folder that it lies in, or one .gguf file.")
        path, gguf = path.parent, path.name
    if gguf is not None:
        if not (path / gguf).is_file():
            raise ModelNotFound(f"There is no file {gguf} in {path}: it holds {_listing(path)}.")
        source = {"kind": "gguf", "path": str((path / gguf).resolve()), **_fingerprint([path / gguf])}
        return ModelFiles(where=str(path), name=name, source=source, gguf=gguf, **common)
    if (path / ADAPTER).is_file():
        raise adapter(name, path / ADAPTER)
    if not (path / "config.json").is_file():
        raise ModelNotFound(
            f"The folder {name} has no config.json, so it is not a saved transformers model: it holds "
            f"{_listing(path)}. Save one with model.save_pretrained(folder), and its tokenizer too."
        )
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    source = {"kind": "folder", "path": str(path.resolve()), **_fingerprint(weights)}
    return ModelFiles(where=str(path), name=name, source=source, **common)


def adapter(name: str, config: Path) -> UnsupportedModel:
    """The error for an adapter of peft, by its configuration: whether it can be made a model, and of what."""
    try:
        said = json.loads(config.read_bytes())
        kind, base = (str(said.get(key) or "") for key in ("peft_type", "base_model_name_or_path"))
    except (OSError, ValueError, AttributeError):
        kind, base = "", ""
    if kind in SOFT_PROMPTS:
        return UnsupportedModel(
            f"{name} is an adapter of peft of the kind {kind}, which puts learned vectors before every prompt: they "
            "are no tokens, and cannot be traced, nor merged into a model. Adapters of weights (such as LoRA) can be."
        )
    of, on = f" ({kind})" if kind else "", f" {base}" if base else ""
    return UnsupportedModel(
        f"{name} is an adapter of peft{of}, not a model. Merge it into its base{on} once, with "
        "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(another), save the "
        "tokenizer there, and give that folder; or hand it in unmerged, from memory: "
        "load(AutoPeftModelForCausalLM.from_pretrained(folder), tokenizer). (Merged into embeddings that are tied to "
        "the head, an adapter changes both.)"
    )


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
    sums = {file.name: sha256_of(file) for file in files}
    if len(sums) == 1:
        return {"sha256": next(iter(sums.values()))}
    lines = "".join(f"{checksum}  {name}\n" for name, checksum in sums.items())
    return {"sha256": hashlib.sha256(lines.encode()).hexdigest()}


def sha256_of(file: Path) -> str:
    """The checksum of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse(options: dict[str, Any], what: str) -> None:
    """Raises InvalidOption for options that do not apply."""
    for option, value in options.items():
        if value is not None:
            raise InvalidOption(f"{option}={str(value)!r} does not apply to {what}. Leave it out.")


def dtype_name(asked: Any) -> str:
    """The name of a dtype to load a model in. Raises InvalidOption."""
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidOption(f"There is no dtype {name!r} to load a model in. {nearest(name, DTYPES)}")
    return name


def check_device(asked: Any) -> None:
    """Raises InvalidOption for a name that is no device's."""
    if isinstance(asked, str) and (not re.fullmatch(r"\w+(:[0-9]+)?", asked) or asked.split(":")[0] not in DEVICES):
        raise no_device(asked)


def no_device(asked: Any) -> InvalidOption:
    """The error for a device that there is not."""
    return InvalidOption(f'device={asked!r} is none. Valid: "auto", "cpu", "cuda", "cuda:1", "mps", ...')


def check_remote(asked: Any) -> None:
    """Raises InvalidOption for a way to run a model that there is not, and where nnsight is not installed."""
    if asked is None:
        return
    if not isinstance(asked, bool) and asked != "local":
        raise InvalidOption(
            f'remote={asked!r} is none. Valid: True (NDIF), False (nnsight in this process), "local". Which server is '
            "asked is said by NDIF_HOST or nnsight's own configuration."
        )
    if find_spec("nnsight") is None:
        raise InvalidOption(f"remote={asked!r} needs nnsight: pip install 'causal-tracing[nnsight]'.")
