"""Models whose weights are quantised: how, in which type they hand on what they compute, and what else decides it.

Nothing here knows a package: it is told by the configuration, and by what modules hold beside their parameters.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.errors import CausalTracingError, UnsupportedModel
from causal_tracing.models.memory import is_out_of_memory

# Where bitsandbytes says, for each product of each forward, that it computes in another type.
REPEATING = "bitsandbytes.autograd._functions"


def method_of(config: Any) -> str:
    """How a configuration says that the weights are quantised, such as "gptq" or "bitsandbytes 8 bit"; else empty."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return ""
    known = found if isinstance(found, dict) else found.to_dict()
    method = known.get("quant_method", "an unnamed method")
    bits = next((f" {bits} bit" for bits in (8, 4) if known.get(f"load_in_{bits}bit")), "")
    return f"{getattr(method, 'value', method)}{bits}"


def stream_dtype(network: Any) -> torch.dtype:
    """The type of the stream: the embedding's, or where that is kept as bytes the one that is not quantised."""
    kept = network.get_input_embeddings().weight.dtype
    return kept if kept.is_floating_point else network.dtype


def products(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of a quantised network whose product with a matrix is not torch's own, by their paths."""
    for path, module in network.named_modules():
        # By shape and not by class: packages have products of their own, and none need be installed here.
        if type(module) is not nn.Linear and isinstance(getattr(module, "in_features", None), int):
            yield path, module


def beside_parameters(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What else fixes the numbers of a quantised network, such as scales; of others nothing."""
    if not method_of(getattr(network, "config", None)):
        return
    yield from network.named_buffers()
    for path, module in products(network):
        # bitsandbytes keeps them beside the weight, and of 8 bits moves them in the first forward.
        weight, state = getattr(module, "weight", None), getattr(module, "state", None)
        absolute = getattr(weight, "quant_state", None)
        for holder in (weight, state, absolute, getattr(absolute, "state2", None)):
            for name in ("SCB", "absmax", "offset", "threshold"):
                value = getattr(holder, name, None)
                if isinstance(value, Tensor | float):
                    yield f"{path}.{name}", torch.as_tensor(value)


def why_beside_others(network: nn.Module) -> str:
    """Why what a network makes of a prompt depends on what is run beside it, and what to do; empty if not known."""
    thresholds = {float(getattr(getattr(module, "state", None), "threshold", 0.0)) for _, module in products(network)}
    if not any(thresholds):
        return ""
    return (
        f" Its 8-bit layers tell outliers over all tokens of a batch, later ones included "
        f"(llm_int8_threshold={max(thresholds):g}). Load it with BitsAndBytesConfig(load_in_8bit=True, "
        "llm_int8_threshold=0.0), or set that to 0.0 in the quantization_config of its config.json: then each token is "
        "quantised by itself. In 4 bits it is too."
    )


def without_gradients(network: nn.Module) -> str | None:
    """The first product through which no gradient passes, of each kind one is tried; None where all are right.

    Some packages have none, and torch then goes on with zeros. A product's gradient is its transpose: what it gives
    for x, times the product itself, is the product's square. 8 bits round x, so that both are a percent apart.
    """
    tried: set[tuple[type, int, int]] = set()
    for path, module in products(network):
        kind = type(module), module.in_features, module.out_features
        if kind in tried:
            continue
        tried.add(kind)
        share = _gradient_share(module, stream_dtype(network))
        if not 0.9 <= share <= 1.1:
            return f"{path} ({type(module).__name__})"
    return None


def _gradient_share(module: Any, dtype: torch.dtype) -> float:
    """What the gradient says of a product, as a share of the product: 1 where it is right, 0 where there is none."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 1, module.in_features, generator=generator).to(module.weight.device, dtype)
    with torch.inference_mode(False), torch.no_grad():
        product = (module(drawn) - module(-drawn)) / 2  # without the bias
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that an operation may have no gradient: here it is measured
        given = drawn.clone().requires_grad_()
        found = module(given)
        if not found.requires_grad:
            return 0.0
        (slope,) = torch.autograd.grad(found, given, product, materialize_grads=True)
    return ((slope.float() * drawn.float()).sum() / product.float().square().sum()).item()


def require_known(config: Any, name: str) -> None:
    """Raises UnsupportedModel for a method that transformers does not know: it would take codes for weights."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = method_of(config)
    if method and method.partition(" ")[0] not in {"bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING}:
        raise UnsupportedModel(
            f"The weights of {name} are quantised ({method}), and cannot be read here: the installed transformers does "
            "not know this method. Install a version that does, or give the same model without quantisation."
        )


@contextmanager
def explained_by(method: str, name: str) -> Iterator[None]:
    """Raises UnsupportedModel, with the method's name, for what hinders that a model quantised by it is read."""
    try:
        yield
    except CausalTracingError:
        raise
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        if not method or is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise UnsupportedModel(
            f"The weights of {name} are quantised ({method}), and cannot be read here: {said}. Install what is named "
            "there, or give the same model without quantisation."
        ) from error


class _Once(logging.Filter):
    """Lets each message through once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it was not said before."""
        message = record.getMessage()
        new = message not in self.said
        self.said.add(message)
        return new


def say_once() -> None:
    """What a quantised product says at each call is said once: a trace makes thousands."""
    logger = logging.getLogger(REPEATING)
    if not any(isinstance(each, _Once) for each in logger.filters):
        logger.addFilter(_Once())
