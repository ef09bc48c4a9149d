"""How a model is loaded once more, by another process or on another machine: what `load` was given, and no branch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causal_tracing.models.place import ModelFiles
from causal_tracing.models.spread import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The arguments of `load` that give the same model again: a repository at its commit, a folder from anywhere."""

    model: str
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    gguf_file: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    max_memory: Mapping[int | str, int | str] | None = None

    def arguments(self) -> dict[str, Any]:
        """What to call `load` with; it stays silent."""
        return asdict(self) | {"progress": False}


def recipe_of(
    files: ModelFiles, gguf_file: str | None, *, dtype: Any, device: Any, spread: Spread | None = None
) -> Recipe:
    """How the model of these files is loaded once more."""
    on_disk = files.source["kind"] in ("folder", "gguf")
    return Recipe(
        model=str(Path(files.name).expanduser().resolve()) if on_disk else files.name,
        revision=files.commit,
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        device=None if device is None else str(device),
        trust_remote_code=files.trust,
        gguf_file=gguf_file,
        device_map=spread and spread.device_map,
        max_memory=spread and spread.max_memory,
    )
