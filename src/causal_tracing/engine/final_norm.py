"""The final norm: which module it is, what it divides by, and how that is held as another run has it.

1. A short run shows which module reads the stream behind the last layer.
2. It is a norm where, but for an offset, it is affine once multiplied by a scale: the root of the mean square of what
   comes in (RMSNorm), or of what is left of it without its mean (LayerNorm). Another one is refused by name.
3. The scale is a number a token, read and written as an activation of the last layer (`FINAL_SCALE`).
"""

import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.hooks.modules import bears_hooks, first_tensor, stream_in
from causal_tracing.engine.random_prompts import short_prompts
from causal_tracing.errors import ComponentNotOffered
from causal_tracing.models.calling import called
from causal_tracing.models.model import Model

SEED, STATES, SMALL = 4, 6, 1e-2
# How far the norm may be from affine once its scale is held, in shares of the largest number: rounding, by dtype.
AFFINE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
LARGEST = 1.0  # of what a norm adds to the variance, which is about 1 here
THROUGH = (nn.Identity, nn.Dropout)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalNorm:
    """The final norm, by its path in the network: what it takes from the stream before, and what it divides by."""

    path: str
    centred: bool
    eps: float

    def scale(self, stream: Float[Tensor, "*state d_model"]) -> Float[Tensor, "*state 1"]:
        """What it divides each state by, in float32 at least."""
        return _scale(stream, centred=self.centred, eps=self.eps)


# By network, without a reference to it.
_FOUND: MutableMapping[nn.Module, FinalNorm] = WeakKeyDictionary()


def final_norm(model: Model) -> FinalNorm:
    """The model's final norm. Raises ComponentNotOffered where what reads the stream is another kind of module."""
    if model.network not in _FOUND:
        _FOUND[model.network] = _found(model)
    return _FOUND[model.network]


@contextmanager
def scale_shown(model: Model, see: Callable[[Float[Tensor, "*state 1"]], Tensor]) -> Iterator[None]:
    """Shows what the final norm divides by to `see`, which gives what it divides by instead, for as long as it lasts.

    Where `see` gives the same back, what comes out stays to the bit.
    """
    norm = final_norm(model)
    module, seen = model.network.get_submodule(norm.path), []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(norm.scale(_stream(args, kwargs)))

    def divide(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # The norm's own call has just been noted: both hooks belong to one call.
        own = seen.pop()
        new = see(own)
        if new is own:
            return output
        offset = module.forward(torch.zeros_like(output)).to(own)  # past the hooks: this is no run
        # The norm is affine in its input over its scale: another scale multiplies all but the offset.
        held = offset + (output.to(own) - offset) * (own / new)
        return torch.where(new == own, output, held.to(output.dtype))

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(divide).remove)
        yield


def _scale(stream: Tensor, *, centred: bool, eps: float) -> Tensor:
    # Half precision cannot hold the square of a large state.
    wide = stream if stream.dtype == torch.float64 else stream.float()
    wide = wide - wide.mean(-1, keepdim=True) if centred else wide
    return (wide.square().mean(-1, keepdim=True) + eps).sqrt()


def _stream(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found = stream_in(args, kwargs)
    assert found is not None  # it was found by what it reads
    return found


def _found(model: Model) -> FinalNorm:
    path = _reader(model)
    module = model.network.get_submodule(path) if path else None
    with model.at_rest():
        known = module and _recognised(module, model)
    if not path or known is None:
        read = f"a {type(module).__name__} ({path})" if module else "nothing that was found"
        raise ComponentNotOffered(
            f"The final norm of this model ({model.anatomy.family}) cannot be frozen: the stream behind the last layer "
            f'is read by {read}, which is neither an RMSNorm nor a LayerNorm. Use direct_norm="live".'
        )
    return FinalNorm(path=path, centred=known[0], eps=known[1])


def _reader(model: Model) -> str:
    """The path of the first smallest module that reads what the last layer gives; "" where there is none."""
    behind: list[Tensor] = []
    readers: list[str] = []

    def note(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = stream_in(args, kwargs)
        if behind and value is not None and value.shape == behind[-1].shape and torch.equal(value, behind[-1]):
            readers.append(path)

    run = short_prompts(model.network, model.tokenizer)[0]
    last = model.layer(model.active[-1])
    # Smallest ones: a module around the norm reads the same stream, and divides by nothing itself.
    smallest = {path: part for path, part in model.network.named_modules() if not any(part.children())}
    inside = {part for layer in model.layers for part in layer.modules()}
    outside = {path: part for path, part in smallest.items() if part not in inside and bears_hooks(part)}
    with model.at_rest(), ExitStack() as stack:
        keep = last.register_forward_hook(lambda _, __, output: behind.append(_clone(output)))
        stack.callback(keep.remove)
        for path, part in outside.items():
            stack.callback(part.register_forward_pre_hook(partial(note, path), with_kwargs=True).remove)
        called(model.network, torch.tensor([run.tokens], device=model.device))
    # These hand the stream on as it is, and the norm reads it behind them.
    return next((path for path in readers if not isinstance(outside[path], THROUGH)), "")


def _clone(output: Any) -> Tensor:
    found = first_tensor(output)
    assert found is not None
    return found.clone()


def _recognised(module: nn.Module, model: Model) -> tuple[bool, float] | None:
    """Whether it takes the mean away, and what it adds to the variance: by what leaves it the most nearly affine."""
    like = next((each for each in module.parameters() if not each.is_meta), torch.empty(0, device=model.device))
    drawn = torch.randn(STATES, model.width, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    states = drawn.to(like.device, like.dtype)
    # The constant beside the variance is one of the module's own numbers, whatever it is called there.
    constants = sorted({value for value in vars(module).values() if isinstance(value, float)})
    kinds = [*product((False, True), constants)]
    kinds += [(centred, _eps(module, states, centred=centred)) for centred in (False, True)]  # where it is not kept
    # Beside a huge constant any map would be affine: it divides by no more than that.
    kinds = [(centred, eps) for centred, eps in kinds if eps < LARGEST]
    apart = [_from_affine(module, states, centred=centred, eps=eps) for centred, eps in kinds]
    best = min(range(len(kinds)), key=apart.__getitem__, default=None)
    return kinds[best] if best is not None and apart[best] <= AFFINE[model.dtype] else None


def _eps(module: nn.Module, states: Float[Tensor, "state d_model"], *, centred: bool) -> float:
    """What is added to the variance, by how much less a small state is divided by than a large one."""
    offset = module(torch.zeros_like(states[:1])).float()
    # A norm divides a state by √(v + eps), and a hundredth of it by √(v/10,000 + eps): the share of both gives eps.
    large, small = ((module(each).float() - offset).norm() for each in (states[:1], states[:1] * SMALL))
    square = float(_scale(states[:1], centred=centred, eps=0.0).square())
    share = float((SMALL * large / small).square())
    return max(0.0, square * (share - SMALL**2) / (1 - share)) if math.isfinite(share) and share < 1 else 0.0


def _from_affine(module: nn.Module, states: Float[Tensor, "state d_model"], *, centred: bool, eps: float) -> float:
    """How far the module times this scale is from linear, but for an offset, in shares of the largest number."""
    offset = module(torch.zeros_like(states[:1])).float()

    def times_scale(value: Tensor) -> Tensor:
        return (module(value).float() - offset) * _scale(value, centred=centred, eps=eps).float()

    single = times_scale(states)
    # Sums to sums and a hundredth to a hundredth: a map that keeps both is linear.
    parts: Sequence[tuple[Tensor, Tensor]] = [
        (times_scale(states[:-1] + states[1:]), single[:-1] + single[1:]),
        (times_scale(states * SMALL) / SMALL, single),
    ]
    apart = max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) for one, other in parts)
    return apart if math.isfinite(apart) else math.inf
