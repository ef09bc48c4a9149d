"""Shards of one run, put together to the whole. Needs no torch."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidResults
from causal_tracing.results.storage.places import check_room
from causal_tracing.results.storage.run_folder import (
    Store,
    begun,
    differences,
    read_manifest,
    threads_of,
    write_manifest,
)


def merge(target: Path, sources: Sequence[Path]) -> list[int]:
    """Puts the rows of shards of one run together; gives the chunks that none of them has.

    Raises InvalidResults where they are not of one run, or hold other numbers for a pair.
    """
    manifests = [read_manifest(source) for source in sources]
    _require_one_run(manifests, sources)
    check_room(target)
    _require_new(target)
    first = manifests[0]
    whole = Store(target, first["spec_sha256"])
    shards = [Store(source, first["spec_sha256"]) for source in sources]
    with begun(target):
        try:
            for shard in shards:
                shard.rows()  # held against their sha256
                whole.take(shard)
            record = first["provenance"] | {"command": _of_the_whole(first, target)}
            write_manifest(target, first | {"shard": [0, 1], "provenance": record})
        except Exception:
            whole.path.unlink(missing_ok=True)  # a part of the whole is none
            raise
    chunks = range(math.ceil(len(first["pairs"]) / first["spec"]["chunk"]))
    return sorted({*chunks} - {*whole.chunks()})


def _require_one_run(manifests: Sequence[Mapping[str, Any]], sources: Sequence[Path]) -> None:
    """Raises InvalidResults where one is of another run than the first."""
    for source, manifest in zip(sources, manifests, strict=True):
        if threads_of(manifest) != threads_of(manifests[0]):
            raise InvalidResults(
                f"{source} was run on {threads_of(manifest)} threads and {sources[0]} on {threads_of(manifests[0])}: "
                "the last bits of their numbers depend on it. Run one of them again in a new folder, with "
                "OMP_NUM_THREADS set to the same number for both."
            )
        differ = list(differences(manifests[0]["spec"], manifest["spec"]))
        if differ:
            raise InvalidResults(f"{source} is no shard of the same run as {sources[0]}: {'; '.join(differ)}.")


def _require_new(target: Path) -> None:
    """Raises InvalidResults where something is there already."""
    if target.exists() and not target.is_dir():
        raise InvalidResults(f"{target} is a file. Name a new folder for the whole.")
    if target.exists() and any(target.iterdir()):
        raise InvalidResults(f"{target} is not empty. Name a new folder for the whole.")


def _of_the_whole(manifest: Mapping[str, Any], target: Path) -> str | None:
    """The command of the whole run, as one that was never cut into shards; None where a shard does not say (0.1.0)."""
    command = manifest.get("whole_command")
    return command and f"{command} --out {shlex.quote(target.name)}"
