"""Opens a model and finds out what can be measured on it."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from causal_tracing.models.place import place_of

if TYPE_CHECKING:
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
    progress: bool = True,
) -> "Model":
    """The model, opened as `open_model` does and with its anatomy checked: what every other function works on."""
    place = None
    if isinstance(model, str | os.PathLike):  # a name that is not there is said before torch is loaded
        options = {"dtype": dtype, "device": device, "trust": trust_remote_code, "progress": progress}
        place = place_of(model, revision, gguf_file, **options)

    from causal_tracing.engine.checks.check import accept
    from causal_tracing.models.open import handed_in, open_place
    from causal_tracing.models.recipe import recipe_of

    if place is None:
        given = {"revision": revision, "dtype": dtype, "device": device, "gguf_file": gguf_file}
        opened = handed_in(model, tokenizer, **given)
        return accept(opened.network, opened.tokenizer, name=opened.name, source=opened.source)
    opened = open_place(place, tokenizer, dtype=dtype, device=device)
    accepted = accept(opened.network, opened.tokenizer, name=opened.name, source=opened.source)
    if tokenizer is not None:  # who loads the model once more would have another one
        return accepted
    return replace(accepted, recipe=recipe_of(place, gguf_file, dtype=dtype, device=device))
