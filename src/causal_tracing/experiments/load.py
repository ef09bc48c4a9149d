"""Opens a model and finds out what can be measured on it."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from causal_tracing.models.place import check_remote, files_of, refuse
from causal_tracing.models.spread import spread_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from causal_tracing.models.model import Model


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    dtype: "str | torch.dtype | None" = None,
    device: "str | torch.device | None" = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    device_map: "str | Mapping[str, Any] | None" = None,
    max_memory: "Mapping[int | str, int | str] | None" = None,
    remote: bool | str | None = None,
    progress: bool = True,
) -> "Model":
    """The model, opened and with its anatomy checked: what every other function works on.

    model: "demo", a name on the Hugging Face hub, a folder, a .gguf file, or a transformers or nnsight model, which is
        left as it is: dtype, device and revision cannot be given with it. A GGUF file is dequantised, once; a folder
        or repository that was saved quantised stays so.
    tokenizer: needed with a model from memory; else the one that lies beside the weights.
    revision: a branch, tag or commit of the hub's.
    dtype: float32 (default), bfloat16, float16, float64, or auto (as the weights are stored; the default of what is not
        quantised in a quantised model).
    device: such as "cpu" or "cuda:0" (default: the GPU if there is one).
    device_map: for a model that is larger than a device: "auto", "balanced", "balanced_low_0", "sequential", or a
        mapping from modules to devices, "disk" among them. What does not fit is kept in memory or on disk, and fetched
        layer by layer; the numbers are the same, to the bit on a CPU.
    max_memory: what device_map may use of each device, such as {0: "20GiB", "cpu": "60GiB"}.
    remote: through nnsight instead of this package's own engines (extra [nnsight]): True on the NDIF server that
        nnsight is set up for, with a name on the hub or an undispatched nnsight model, whose weights are not loaded
        here; False in this process; "local" in this process, as a server would do it. Slower, with fewer components
        and no gradients.
    trust_remote_code: run model code that comes with the repository.
    gguf_file: the name of a GGUF file in the folder or repository.
    progress: bars while weights are downloaded and read.

    Raises ModelNotFound, UnsupportedModel, UnsupportedTokenizer, InvalidOption, MachineError.

    Example:
        model = ct.load("openai-community/gpt2", dtype="bfloat16")
    """
    check_remote(remote)
    spread, files = spread_of(device_map, max_memory, device), None
    how = {"dtype": dtype, "device": device, "device_map": device_map, "gguf_file": gguf_file}
    if remote is True:
        return _at_ndif(model, revision, trust_remote_code, how | {"tokenizer": tokenizer})
    if isinstance(model, str | os.PathLike):  # a name that is not there is said before torch is loaded
        options = {"dtype": dtype, "device": device, "trust": trust_remote_code, "progress": progress}
        files = files_of(model, revision, gguf_file, **options)

    from causal_tracing.engine.checks.check import accept
    from causal_tracing.models.open import handed_in, open_files
    from causal_tracing.models.recipe import recipe_of

    if files is None:
        opened = handed_in(model, tokenizer, revision=revision, **how)
    else:
        opened = open_files(files, tokenizer, dtype=dtype, device=device, spread=spread)
    accepted = accept(opened.network, opened.tokenizer, name=opened.name, source=opened.source)
    if remote is not None:
        return _through_nnsight(accepted, model, remote)
    if files is None or tokenizer is not None:  # who loads the model once more would have another one
        return accepted
    return replace(accepted, recipe=recipe_of(files, gguf_file, dtype=dtype, device=device, spread=spread))


def _through_nnsight(accepted: "Model", model: Any, remote: bool | str) -> "Model":
    from causal_tracing.engine.nnsight.open import is_nnsight, on_nnsight

    return on_nnsight(accepted, model if is_nnsight(model) else None, remote)


def _at_ndif(model: Any, revision: str | None, trust_remote_code: bool, given: dict[str, Any]) -> "Model":
    refuse(given, "a model at NDIF (remote=True), which has its own there")
    from causal_tracing.engine.nnsight.open import at_ndif, undispatched

    return at_ndif(*undispatched(model, revision, trust=trust_remote_code))
