"""The decoder's layers, found by what they do: a list of modules that hand the stream on, one to the next.

Neither what their path is called nor what the configuration counts decides: a text is run once, and of every list of
modules it is noted who is called, with what, and what comes out.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.engine.checks.logits import MASKED, apart, largest
from causal_tracing.engine.hooks.modules import first_tensor, stream_in
from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.at_rest import at_rest
from causal_tracing.models.calling import called, logits_in, words_of
from causal_tracing.models.memory import is_out_of_memory
from causal_tracing.models.offload import device_of
from causal_tracing.models.open import has_head
from causal_tracing.models.quantised import stream_dtype
from causal_tracing.models.spread import refuse_parted

SHOWN = 200  # characters of another library's error
ONE = 1e-2  # how far a sum of probabilities may be from 1, in half precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Where the layers are, which of them a prompt of text alone does not reach, and where the stream's lanes lie.

    `others` are the lists of further layers that the stream passes before or behind these, or in their midst.
    """

    path: str
    idle: tuple[int, ...]
    lanes: str | None
    others: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Passed:
    """What passed through the members of one list, in the order of the calls; `gave` is what no stream came out of."""

    path: str
    size: int
    gave: dict[int, str] = field(default_factory=dict)
    calls: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    elsewhere: int | str | None = None  # which argument is what the last member gave, where it is not the first

    @property
    def members(self) -> list[int]:
        """Who was called, in order."""
        return [number for number, _, _ in self.calls]

    @property
    def once(self) -> bool:
        """Whether every call was another member's, in the order of the list, and the stream kept its shape."""
        alike = {value.shape for _, *both in self.calls for value in both}
        return self.members == sorted({*self.members}) and len(alike) == 1

    @property
    def handed_on(self) -> int:
        """How often what came out of one member went into the next."""
        pairs = zip(self.calls, self.calls[1:], strict=False)
        return sum(_equal(before[2], after[1]) for before, after in pairs)


def require_words(network: Any, name: str) -> None:
    """Raises UnsupportedModel where tokens are not read by one table of words: some audio models have several."""
    try:
        words = network.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        raise UnsupportedModel(
            f"{name} cannot be traced: it does not say which of its modules reads the tokens. Give its class a "
            "get_input_embeddings() that returns it."
        ) from None
    if isinstance(getattr(words, "weight", None), Tensor):
        return
    raise UnsupportedModel(
        f"{name} cannot be traced: its tokens are read by a {type(words).__name__}, such as one table for each "
        "codebook, and not by one table of words."
    )


def find_layers(network: nn.Module, tokens: Sequence[int], name: str) -> Layers:
    """The list of layers that a text passes. Raises UnsupportedModel where there is none, or no text can be run."""
    passed, logits = _watched(network, tokens, name)
    # Lists inside their members are parts of layers, which were no layers to us.
    wrapped = next((one for one in passed if len(one.gave) > 1), None)
    passed = [one for one in passed if one.calls and not (wrapped and one.path.startswith(f"{wrapped.path}."))]
    if not passed:
        also = f": members of {wrapped.path} give a {wrapped.gave.popitem()[1]}, and no stream" if wrapped else ""
        raise UnsupportedModel(
            f"{type(network).__name__} has no list of layers that a text passes{also}. Layers are members of one "
            "nn.ModuleList or nn.Sequential, and give the stream, or a tuple, dict or dataclass that begins with it."
        )
    outermost = [*_outermost(passed)]
    found = [one for one in outermost if one.once]
    if not found:
        _refuse_order(network, max(outermost, key=lambda one: len(one.calls)), name)
    # Other lists may be passed in order too: the layers are those whose members hand on most.
    best = max(found, key=lambda one: (one.handed_on, len(one.calls)))
    _refuse_elsewhere(best, name)
    _refuse_infinite(network, best, logits, name)
    _refuse_no_logits(logits, name)
    called = {*best.members}
    idle = tuple(number for number in range(best.size) if number not in called)
    others = tuple(one.path for one in found if one is not best and _goes_on(network, one, best))
    return Layers(path=best.path, idle=idle, lanes=_lanes(best.calls[0][1], len(tokens), name), others=others)


def _goes_on(network: nn.Module, one: _Passed, best: _Passed) -> bool:
    """Whether these are layers too, which hand on the same stream: each is made of modules, as none of norms is."""
    whole = all(any(member.children()) for member in network.get_submodule(one.path).children())
    linked = _equal(best.calls[-1][2], one.calls[0][1]) or _equal(one.calls[-1][2], best.calls[0][1])
    return whole and one.calls[0][1].shape == best.calls[0][1].shape and (linked or one.handed_on > 0)


def _watched(network: Any, tokens: Sequence[int], name: str) -> tuple[list[_Passed], Tensor]:
    """What passed through every list, and the logits."""
    lists = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module)
    }
    passed = [_Passed(path, len(module)) for path, module in lists.items()]
    with at_rest(network), ExitStack() as stack:
        for one in passed:
            for number, member in enumerate(lists[one.path]):
                handle = member.register_forward_hook(partial(_note, one, number), with_kwargs=True)
                stack.callback(handle.remove)
        logits = logits_in(run_text(network, as_batch(network, tokens), name))
    if logits.shape[1] != len(tokens):
        advice = " Let its forward give those of every token, also where it is called with the tokens alone."
        raise UnsupportedModel(
            f"{name} cannot be traced: for {len(tokens)} tokens it gives the logits of {logits.shape[1]}."
            f"{advice if logits.shape[1] < len(tokens) else ''}"
        )
    words = words_of(network.get_input_embeddings())
    if words is not None and logits.shape[-1] < words and not has_head(network):
        raise UnsupportedModel(
            f"{name} cannot be traced: it reads {words} words, and gives {logits.shape[-1]} numbers for each token, "
            "which are no logits of words."
        )
    return passed, logits


def as_batch(network: Any, tokens: Sequence[int], rows: int = 1) -> Tensor:
    """The tokens [row, token], where the network wants them."""
    return torch.tensor([list(tokens)] * rows, device=device_of(network, network.get_input_embeddings().weight))


def run_text(network: nn.Module, tokens: Tensor, name: str, **options: Any) -> Any:
    """The model's output for text alone. Raises UnsupportedModel, with what the model says."""
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
        said = f"{type(error).__name__}: {error}".splitlines()[0][:SHOWN].rstrip(".")
        if "Double" in str(error) and _experts(network) not in (None, "eager"):
            raise UnsupportedModel(
                f"{name} cannot be run in float64 as it is: its experts' products are not made for it ({said}). Call "
                'set_experts_implementation("eager") on it first, or load it by name with dtype="float64".'
            ) from error
        raise UnsupportedModel(
            f"{name} cannot be run on text alone: a prompt of {tokens.shape[1]} random tokens ends in {said}. Such "
            "prompts are what a model is checked by; hooks of your own must bear them too."
        ) from error


def _experts(network: Any) -> str | None:
    """How a mixture computes its experts; None of what has none."""
    return getattr(network.config.get_text_config(), "_experts_implementation", None)


def gives_few_logits(network: nn.Module, layers: Layers, tokens: Sequence[int], name: str) -> bool:
    """Whether it can be asked for the last token's logits alone, gives the same ones, and computes every token."""
    if "logits_to_keep" not in inspect.signature(network.forward).parameters:
        return False
    seen: list[int] = []
    with at_rest(network), ExitStack() as stack:
        for layer in network.get_submodule(layers.path).children():
            hook = layer.register_forward_hook(lambda _, __, output: seen.append(_size(output)))
            stack.callback(hook.remove)
        few = logits_in(run_text(network, as_batch(network, tokens), name, logits_to_keep=1))[0, -1]
        drops = len({*seen}) > 1  # some models do so in the last layer, which has not all activations then
        whole = logits_in(run_text(network, as_batch(network, tokens), name))[0, -1]
    # What counts tokens behind the layers, such as a hook on the head, counts fewer of them.
    bound = TWO_FORWARDS[str(stream_dtype(network)).removeprefix("torch.")] * largest(whole)
    return not drops and apart(few, whole).item() <= bound


def _size(output: Any) -> int:
    value = first_tensor(output)
    return 0 if value is None else value.numel()


def _note(
    passed: _Passed, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    before, after = stream_in(args, kwargs), first_tensor(output)
    if before is not None and passed.calls and not _equal(before, handed := passed.calls[-1][2]):
        given = (*enumerate(args), *kwargs.items())
        passed.elsewhere = next((where for where, each in given if _equal(each, handed)), passed.elsewhere)
    if before is not None and after is not None:
        # Clones, since some models add to the stream in place.
        passed.calls.append((number, before.clone(), after.clone()))
    elif before is not None:
        passed.gave[number] = type(output).__name__


def _equal(value: Any, tensor: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == tensor.shape and torch.equal(value, tensor)


def _outermost(passed: Sequence[_Passed]) -> Iterator[_Passed]:
    """The lists that lie in no other list's member: a layer's own lists are parts of it."""
    for one in passed:
        if not any(one is not other and one.path.startswith(f"{other.path}.") for other in passed):
            yield one


def _refuse_order(network: nn.Module, passed: _Passed, name: str) -> NoReturn:
    """Raises UnsupportedModel with the reason why these members are no layers, each called once with one stream."""
    members = [*network.get_submodule(passed.path).children()]
    if len(members) < passed.size:  # one module in two places would be patched in both at once
        raise UnsupportedModel(
            f"{type(network).__name__} uses one module as several layers: of {passed.size} entries of {passed.path}, "
            f"{len(members)} are modules of their own. A patch in one would be made in all."
        )
    _refuse_elsewhere(passed, name)
    if passed.members == sorted({*passed.members}):
        first = passed.calls[0][1].shape
        odd = next(call for call in passed.calls if not call[1].shape == call[2].shape == first)
        raise UnsupportedModel(
            f"{name} cannot be traced layer by layer: member {odd[0]} of {passed.path} is given {[*odd[1].shape]} "
            f"numbers and gives {[*odd[2].shape]}, the first one is given {[*first]}. Layers take and give one stream, "
            "before all else, and have a list of their own."
        )
    raise UnsupportedModel(
        f"{name} cannot be traced layer by layer: in one run its {passed.path} are called {len(passed.calls)} times, "
        f"in the order {_shortly(passed.members)}. A layer that runs more than once has no activation of its own."
    )


def _refuse_elsewhere(passed: _Passed, name: str) -> None:
    """Raises UnsupportedModel for layers that are given something else before the stream: it would be taken for it."""
    if passed.elsewhere is not None and not passed.handed_on:
        raise UnsupportedModel(
            f"{name} cannot be traced layer by layer: what one of its {passed.path} gives is the next one's argument "
            f"{passed.elsewhere!r}, and other floating-point numbers come before it. Let them take the stream first, "
            "or call it hidden_states."
        )


def _refuse_infinite(network: nn.Module, best: _Passed, logits: Tensor, name: str) -> None:
    """Where the first number arises that is none, and by what; words that are masked have logits of −inf."""
    place = next((f"layer {n} of {best.path}" for n, _, after in best.calls if not after.isfinite().all()), None)
    if place is None and not (logits.isnan() | logits.isposinf()).any():
        return
    for path, weight in network.named_parameters():
        if not weight.is_meta and weight.is_floating_point() and not weight.isfinite().all():
            raise UnsupportedModel(f"{name} cannot be traced: its weight {path} holds numbers that are not finite.")
    dtype = str(best.calls[0][2].dtype).removeprefix("torch.")
    other = ' Load it with dtype="bfloat16" or dtype="float32".' if dtype == "float16" else ""
    raise UnsupportedModel(
        f"{name} cannot be traced in {dtype}: in a prompt of random tokens, what {place or 'its head'} gives is not "
        f"finite.{other}"
    )


def _refuse_no_logits(logits: Tensor, name: str) -> None:
    """Raises UnsupportedModel for numbers of words that are no logits: zeros, probabilities, or too large to tell."""
    if not logits.any():
        raise UnsupportedModel(
            f"{name} cannot be traced: in a prompt of random tokens all of its logits are 0, so that nothing would be "
            "seen of what is changed. Load trained weights, with their head."
        )
    if logits.max() > -MASKED:
        raise UnsupportedModel(
            f"{name} cannot be traced: in a prompt of random tokens its logits are as large as {logits.max():.1e}. "
            "Probabilities are 0 or 1 there, and words with such logits below 0 cannot be told from those that a model "
            "masks. Give it norms, or smaller weights."
        )
    # Above 0, as softmax leaves them: shares that a program written by hand counts have zeros, and are its logits.
    if (logits > 0).all() and ((logits.float().sum(-1) - 1).abs() < ONE).all():
        raise UnsupportedModel(
            f"{name} cannot be traced: what its forward gives of each token adds up to 1, as probabilities do. Let it "
            "give logits, without the softmax behind them."
        )


def _lanes(stream: Tensor, length: int, name: str) -> str | None:
    if stream.ndim == 3 and stream.shape[:2] == (1, length):
        return None
    if stream.ndim == 4 and stream.shape[:2] == (1, length):
        return "last"
    if stream.ndim == 4 and stream.shape[1:3] == (1, length):
        return "first"
    raise UnsupportedModel(
        f"{name} cannot be traced by tokens: for {length} tokens its layers are given {list(stream.shape)} numbers."
    )


def _shortly(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
