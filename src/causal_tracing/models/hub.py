"""Files of repositories on the hub, fetched whole or not at all, and what can go wrong on the way, in our words."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

from causal_tracing.errors import (
    CausalTracingError,
    MachineError,
    ModelError,
    ModelNotFound,
    OutOfMemory,
    UnsupportedModel,
)
from causal_tracing.models.cache import say
from causal_tracing.models.memory import is_out_of_memory
from causal_tracing.models.place import ADAPTER, ModelFiles, adapter, unreadable

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve_commit(repository: str, revision: str | None, file: str) -> tuple[str, bool]:
    """The commit that a revision stands for now, and whether only the cache could say so (the hub did not answer)."""
    try:
        # One request that fails quickly, before the download that would go on asking a hub that is silent.
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
        path = hf_hub_download(repository, file, revision=revision)  # the cache remembers the revision's commit
        silent = False
    except RemoteEntryNotFoundError as error:
        if file == "config.json" and (said := _adapter(repository, revision)) is not None:
            raise adapter(repository, said) from None
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
    # The hub's cache keeps a file as .../snapshots/COMMIT/FILE.
    return parts[len(parts) - parts[::-1].index("snapshots")], silent


def _adapter(repository: str, revision: str | None) -> Path | None:
    """The configuration of the adapter that a repository without a model may hold."""
    try:
        return Path(hf_hub_download(repository, ADAPTER, revision=revision))
    except RemoteEntryNotFoundError:
        return None


def gguf_file(files: ModelFiles) -> Path | None:
    """The GGUF file of these files, fetched if need be; None where there is none."""
    if files.gguf is None:
        return None
    return Path(files.where) / files.gguf if files.commit is None else _fetch(files, files.gguf)


def _fetch(files: ModelFiles, file: str) -> Path | None:
    """A file of the repository, whole, in the hub's cache; None where the repository has no such file."""
    known = try_to_load_from_cache(files.where, file, revision=files.commit)
    if isinstance(known, str):
        return Path(known)
    if files.cached:
        return None
    try:
        # Asked once, briefly: where the hub stalls, hf_hub_download itself would go on asking for minutes.
        about = get_hf_file_metadata(hf_hub_url(files.where, file, revision=files.commit))
        size = f" ({about.size / 1e6:,.0f} MB)" if about.size else ""
        say(files.progress, f"downloading {files.where}/{file}{size} ...")
        return Path(hf_hub_download(files.where, file, revision=files.commit))
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def download_weights(files: ModelFiles) -> bool:
    """Fetches the weights of a repository: whether they are safetensors. One format only, shards one by one."""
    # Many repositories have the same weights in several formats: the first of these alone is fetched.
    for file in WEIGHTS:
        found = _fetch(files, file)
        if found is None:
            continue
        shards = set(json.loads(found.read_bytes())["weight_map"].values()) if file.endswith(".json") else ()
        for shard in sorted(shards):
            if _fetch(files, shard) is None:
                raise ModelError(f"{files.name} lists the weights file {shard}, but does not have it.")
        return "safetensors" in file
    if files.cached:
        raise ConnectionError("the weights were not downloaded before")
    if (said := _fetch(files, ADAPTER)) is not None:
        raise adapter(files.name, said)
    raise ModelError(
        f"{files.name} has none of the weights files {', '.join(WEIGHTS)}. If it holds GGUF files, name one of them "
        "with gguf_file=."
    )


@contextmanager
def explained(files: ModelFiles, revision: str | None = None) -> Iterator[None]:
    """Turns whatever transformers and the hub raise into an error that says what to do."""
    try:
        yield
    except CausalTracingError:
        raise
    except Exception as error:
        raise known(error, files, revision) or ModelError(
            f"{files.name} could not be loaded: {brief(error)}"
        ) from error


def brief(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _no_answer(error: BaseException) -> bool:
    """Whether the network is at fault, not what was asked for."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    foreign = type(error).__module__.startswith(("httpx", "hf_xet")) or type(error).__name__ == "XetDownloadError"
    return foreign or isinstance(error, ConnectionError | TimeoutError | FileMetadataError | LocalEntryNotFoundError)


def known(error: BaseException | None, files: ModelFiles, revision: str | None = None) -> CausalTracingError | None:
    """The first error in the chain whose cause is plain, in our words."""
    while error is not None:
        text = str(error)
        # transformers wraps what the hub raised, often in words about something else: the first plain cause counts.
        found = _of_the_hub(error, files, revision) or _of_the_machine(error, files)
        if found is not None:
            return found
        if "trust_remote_code" in text:
            return ModelError(
                f"{files.name} needs Python code out of its own files, which is not run unless it is asked for. Read "
                "that code, and if you trust it give trust_remote_code=True."
            )
        if type(error).__name__ == "SafetensorError" or "magic bytes" in text:
            return ModelError(
                f"A weights file of {files.name} is damaged or not whole ({brief(error)}). Download or copy it again."
            )
        if "does not recognize this architecture" in text or "Unrecognized model" in text:
            return UnsupportedModel(f"transformers does not know the kind of model that {files.name} is: {text[:200]}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _of_the_hub(error: BaseException, files: ModelFiles, revision: str | None) -> CausalTracingError | None:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    log_in = "log in with `hf auth login`, or set HF_TOKEN."
    if _no_answer(error) or "Consistency check failed" in str(error):
        return MachineError(
            f"The Hugging Face hub could not deliver {files.name} ({brief(error)}). Check the network, the proxy and "
            'HF_ENDPOINT, and try again: a download resumes where it broke off. "demo" and folders need no hub.'
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return ModelNotFound(f"{files.name} is gated: ask for access on its page on the hub, then {log_in}")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{files.name} has no branch, tag or commit {revision or files.commit!r}.")
    if isinstance(error, RemoteEntryNotFoundError):
        return None
    if isinstance(error, RepositoryNotFoundError | HFValidationError) or status in (401, 404):
        return ModelNotFound(
            f"There is no repository {files.name} on the Hugging Face hub that can be seen from here, and no folder of "
            f"that name in {Path.cwd()}. Check the name; if it is private, {log_in}"
        )
    return None if status is None else ModelNotFound(f"The hub refused {files.name} ({brief(error)}).")


def _of_the_machine(error: BaseException, files: ModelFiles) -> CausalTracingError | None:
    if isinstance(error, PermissionError) and files.commit is None:
        return unreadable(files.name, error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"The disk is full: {files.name} could not be kept. Make room, or set HF_HOME elsewhere.")
    if is_out_of_memory(error):
        return OutOfMemory(f'{files.name} does not fit into memory. Give dtype="bfloat16", or a smaller model.')
    return None
