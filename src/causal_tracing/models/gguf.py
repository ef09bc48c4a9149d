"""GGUF files: dequantised once, and kept in the cache by their sha256.

Transformers dequantises such a file anew each time, which takes most of the time that loading does.
"""

import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption, ModelError
from causal_tracing.models.cache import MANIFEST, MEGABYTE, Entry, cache_home, is_whole, say
from causal_tracing.models.place import ModelFiles, sha256_of

PREFIX, SUFFIX = "gguf-", "-float32-1"  # of folders in the cache; another suffix when the conversion changes
LIMIT_VARIABLE, LIMIT = "CAUSAL_TRACING_CACHE_LIMIT", 20_000 * MEGABYTE


def converted(files: ModelFiles, file: Path) -> ModelFiles:
    """The same model as transformers saves it; the files as they are where that would be larger than the limit.

    The cache holds at most $CAUSAL_TRACING_CACHE_LIMIT bytes of such models (20 GB unless said otherwise): those that
    were not used for longest make room. Raises MachineError.
    """
    space, most = _space(files, file), limit()
    # It would push everything else out, and itself not fit.
    if space > most:
        return files
    # By its bytes: the same file under another name, or on the hub, is converted once.
    checksum = files.source.get("sha256") or sha256_of(file)
    entry = Entry(name=f"{PREFIX}{checksum}{SUFFIX}", what=f"{file.name} in float32", space=space)
    if not is_whole(cache_home() / entry.name):
        _make_room(most - space)
        say(files.progress, f"converting {file.name} to float32, once ...")

    def make(_: Path, folder: Path) -> Mapping[str, Any]:
        convert(file, folder)
        return {"gguf": file.name, "sha256": checksum}

    folder = entry.kept(make, progress=files.progress)
    os.utime(folder / MANIFEST)  # when it was used last
    return replace(files, where=str(folder), gguf=None, commit=None, cached=False)


def limit() -> int:
    """How many bytes of converted models are kept at most. Raises InvalidOption."""
    said = os.environ.get(LIMIT_VARIABLE)
    if said and not said.isdecimal():
        raise InvalidOption(f"{LIMIT_VARIABLE} is {said!r}; it must be a number of bytes, such as {LIMIT}.")
    return int(said) if said else LIMIT


def kept() -> list[tuple[Path, int]]:
    """The converted models in the cache, and their bytes; the one that was not used for longest comes first."""
    folders = [each for each in cache_home().glob(f"{PREFIX}*") if (each / MANIFEST).is_file()]
    found = [(each, sum(file.stat().st_size for file in each.iterdir())) for each in folders]
    return sorted(found, key=lambda each: (each[0] / MANIFEST).stat().st_mtime)


def clear() -> int:
    """Takes the converted models out of the cache; gives how many bytes that were. The demo model stays."""
    found = kept()
    for folder, _ in found:
        shutil.rmtree(folder)
    return sum(size for _, size in found)


def _make_room(most: int) -> None:
    """Takes out what was not used for longest, until the rest is no more than this."""
    found = kept()
    total = sum(size for _, size in found)
    for folder, size in found:
        if total > most:
            shutil.rmtree(folder)
            total -= size


def _space(files: ModelFiles, file: Path) -> int:
    """Bytes of all its numbers in float32. Raises ModelError where it is no such file, or not whole."""
    from gguf import GGUFReader

    try:
        return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors) * 4
    except (ValueError, IndexError, EOFError) as error:
        raise ModelError(
            f"The GGUF file of {files.name} is damaged or not whole ({error}). Download or copy it again."
        ) from error


def convert(gguf: Path, folder: Path) -> None:
    """Writes config, float32 weights and tokenizer of a GGUF file into the folder, to the bit as transformers reads it.

    A model that says it is quantised cannot be saved, so the weights move into one that does not say so.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": gguf.name}
    with without_bars():
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        config = deepcopy(quantised.config)
        vars(config).pop("quantization_config", None)
        with torch.device("meta"):  # no random weights are drawn
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps progress bars, which are redrawn with carriage returns, off stderr; all else is let through at the end."""
    caught = io.StringIO()
    try:
        with redirect_stderr(caught):
            yield
    finally:
        lines = [line for line in caught.getvalue().split("\n") if line and "\r" not in line]
        print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
