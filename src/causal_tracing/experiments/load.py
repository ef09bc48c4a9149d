"""Opens a model and finds out what can be measured on it."""

from typing import Any

import torch

from causal_tracing.engine.checks.check import accept
from causal_tracing.models.model import Model
from causal_tracing.models.open import open_model


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
