"""Models in a wrapper of peft: the network inside, whose layers hold the adapters of weights, if it is the same model.

Nothing here knows the package: a wrapper is told by what it has.
"""

from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.at_rest import at_rest
from causal_tracing.models.calling import called, logits_in, words_of
from causal_tracing.models.offload import device_of

TOKENS = 6  # of the text that both are run on
SAME = 1e-3  # how far their logits may be apart, in shares of the largest


def inside(wrapper: Any) -> Any:
    """The network in a wrapper of peft; None of what is none. Raises UnsupportedModel where the two differ."""
    configs = getattr(wrapper, "peft_config", None)
    if not isinstance(configs, dict) or not isinstance(wrapper, nn.Module):
        return None
    for each in configs.values():
        _refuse_learned(wrapper, each)
    base: Any = getattr(wrapper, "get_base_model", None)
    network = None if base is None else base()
    if network is not None and not _alike(wrapper, network):
        raise UnsupportedModel(
            f"A {type(wrapper).__name__} gives other logits than the network inside it, which is what would be traced: "
            "its adapter does more than change weights. Merge it first (merge_and_unload()), if it can be merged."
        )
    return network


def _refuse_learned(wrapper: Any, config: Any) -> None:
    """Raises UnsupportedModel for what no layer holds: learned prompts, and adapters that some words switch on."""
    kind = str(getattr(config, "peft_type", "")).removeprefix("PeftType.")
    if getattr(config, "is_prompt_learning", False):
        raise UnsupportedModel(
            f"A {type(wrapper).__name__} of the kind {kind} puts learned vectors before every prompt, which are no "
            "tokens, and cannot be traced; the model inside it does without them, and is another one. Models whose "
            "weights were adapted (such as by LoRA) can be traced."
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise UnsupportedModel(
            f"A {type(wrapper).__name__} of the kind {kind} is switched on by some words of a prompt "
            "(alora_invocation_tokens), which the network inside it does not know: it cannot be traced."
        )


def _alike(wrapper: nn.Module, network: Any) -> bool:
    words = network.get_input_embeddings()
    tokens = torch.arange(TOKENS, device=device_of(network, words.weight))[None] % (words_of(words) or 1)
    found: list[Tensor] = []
    for each in (wrapper, network):
        with at_rest(each):
            found.append(logits_in(called(each, tokens)).float())
    return bool((found[0] - found[1]).abs().max() <= SAME * found[1].abs().max())
