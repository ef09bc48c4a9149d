"""A network's answer to a text alone, or why it gives none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.calling import called
from causal_tracing.models.memory import is_out_of_memory
from causal_tracing.models.offload import device_of
from causal_tracing.models.spread import refuse_parted

SHOWN = 200  # characters of another library's error
CHECKED = "Such prompts are what a model is checked by; hooks of your own must bear them too."


def as_batch(network: Any, tokens: Sequence[int], rows: int = 1) -> Tensor:
    """The tokens [row, token], where the network wants them."""
    return torch.tensor([list(tokens)] * rows, device=device_of(network, network.get_input_embeddings().weight))


def run_text(network: nn.Module, tokens: Tensor, name: str, why: str = CHECKED, **options: Any) -> Any:
    """The model's output for text alone. Raises UnsupportedModel, with what the model says; `why` it was asked."""
    try:
        return called(network, tokens, **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # That is how accelerate fails where a tied weight lies on two devices.
        if isinstance(error, KeyError):
            refuse_parted(network, name)
        if getattr(network.config, "return_dict", True) is False:
            raise UnsupportedModel(
                f"The configuration of {name} says return_dict=False, with which its outputs have no names. Set "
                "model.config.return_dict = True."
            ) from error
        rows, length = tokens.shape
        many = f"a batch of {rows} prompts" if rows > 1 else "a prompt"
        said = f"{type(error).__name__}: {error}".splitlines()[0][:SHOWN].rstrip(".")
        if "Double" in str(error) and _experts(network) not in (None, "eager"):
            raise UnsupportedModel(
                f"{name} cannot be run in float64 as it is: its experts' products are not made for it ({said}). Call "
                'set_experts_implementation("eager") on it first, or load it by name with dtype="float64".'
            ) from error
        raise UnsupportedModel(
            f"{name} cannot be run on text alone: {many} of {length} random tokens ends in {said}. {why}"
        ) from error


def _experts(network: Any) -> str | None:
    """How a mixture computes its experts; None of what has none."""
    return getattr(network.config.get_text_config(), "_experts_implementation", None)
