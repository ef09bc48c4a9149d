"""The decoder's layers, found by what they do: modules that mix tokens, and hand the stream on, one to the next.

Neither what their path is called nor what the configuration counts decides: a text is run once, and of every list of
modules it is noted who is called, with what, and what comes out (`passed.py`); of other modules where no list is one of
layers (`chains.py`).
"""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.engine.checks.chains import beside, finer
from causal_tracing.engine.checks.logits import MASKED, apart, largest
from causal_tracing.engine.checks.passed import Passed, by_tokens, lanes_of, linked, lists_in, mixers, watching
from causal_tracing.engine.checks.texts import as_batch, run_text
from causal_tracing.engine.hooks.modules import first_tensor
from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.at_rest import at_rest
from causal_tracing.models.calling import logits_in, words_of
from causal_tracing.models.open import has_head
from causal_tracing.models.quantised import stream_dtype

ONE = 1e-2  # how far a sum of probabilities may be from 1, in half precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Where the layers are, which of them a prompt of text alone does not reach, and where the stream's lanes lie.

    `width` is how many numbers a token's stream has, in all of its lanes.
    `path` is what they are called together, `apart` the path of each where they are not the members 0, 1, ... of that.
    `others` are the lists of further layers that the stream passes before or behind these, or in their midst.
    """

    path: str
    apart: tuple[str, ...] = ()
    idle: tuple[int, ...]
    lanes: str | None
    width: int
    others: tuple[str, ...] = ()

    def members(self, network: nn.Module) -> list[nn.Module]:
        """The layers, first to last."""
        if self.apart:
            return [network.get_submodule(path) for path in self.apart]
        return [*network.get_submodule(self.path).children()]


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
    """The layers that a text passes. Raises UnsupportedModel where there are none, or no text can be run."""
    passed, logits = _watched(network, tokens, name)
    outermost = [*_outermost(passed)]
    found = [one for one in outermost if one.once]
    mixing = mixers(network, found, tokens, name)
    # Other lists may be passed in order too: the layers are those that mix tokens, and hand on most.
    best = max(found, key=lambda one: (not mixing.isdisjoint(one.members), *_size(one)), default=None)
    if best is None or mixing.isdisjoint(best.members):
        chain, chains = beside(network, tokens, name)
        best, passed = (chain, chains) if chain else (best, passed)
        # Of what mixes nothing, only what holds modules may be a layer: norms in a list are none.
        best = best if best and (best not in found or _made_of_modules(network, best)) else None
    if best is None:
        _refuse_no_layers(network, outermost, name)
    _refuse_put_together(network, best, found, mixing, name)
    _refuse_elsewhere(best, name)
    _refuse_infinite(best, network, logits, name)
    _refuse_no_logits(logits, name)
    if not by_tokens(best.calls[0][1], len(tokens)):
        raise UnsupportedModel(
            f"{name} cannot be traced by tokens: for {len(tokens)} tokens its layers are given "
            f"{[*best.calls[0][1].shape]} numbers."
        )
    best = finer(network, best, passed, tokens, name)
    listed = tuple(f"{best.path}.{number}" for number in range(len(best.members)))
    others = tuple(one.path for one in found if not _within(one, best) and _goes_on(network, one, best))
    return Layers(
        path=best.path,
        apart=() if listed == best.members else best.members,
        idle=tuple(number for number in range(len(best.members)) if number not in {*best.order}),
        lanes=lanes_of(best.calls[0][1], len(tokens)),
        width=best.calls[0][1].numel() // len(tokens),
        others=others,
    )


def _size(one: Passed) -> tuple[int, int]:
    return one.handed_on, len(one.calls)


def _within(one: Passed, best: Passed) -> bool:
    """Whether it is these layers themselves, or what one of them holds."""
    return one.path == best.path or any(f"{one.path}.".startswith(f"{member}.") for member in best.members)


def _goes_on(network: nn.Module, one: Passed, best: Passed) -> bool:
    """Whether these are layers too, which hand on the same stream: each is made of modules, as none of norms is."""
    near = linked(best, one) or linked(one, best) or one.handed_on > 0
    return _made_of_modules(network, one) and one.calls[0][1].shape == best.calls[0][1].shape and near


def _made_of_modules(network: nn.Module, one: Passed) -> bool:
    return all(any(network.get_submodule(member).children()) for member in one.members)


def _watched(network: Any, tokens: Sequence[int], name: str) -> tuple[list[Passed], Tensor]:
    """What passed through every list, and the logits."""
    lists = lists_in(network)
    with at_rest(network), ExitStack() as stack:
        watching(network, lists, stack)
        logits = logits_in(run_text(network, as_batch(network, tokens), name))
    _refuse_shape(network, logits, len(tokens), name)
    # Lists inside their members are parts of layers, which were no layers to us.
    wrapped = next((one for one in lists if len(one.gave) > 1), None)
    if wrapped and not any(one.calls and not one.path.startswith(f"{wrapped.path}.") for one in lists):
        raise _no_layers(network, f": members of {wrapped.path} give a {wrapped.gave.popitem()[1]}, and no stream")
    there = [one for one in lists if one.calls and not (wrapped and one.path.startswith(f"{wrapped.path}."))]
    # Members of lists in a list are layers of one stack only where the stream passes them as such.
    return [one for one in there if not one.nested or (one.chained and _made_of_modules(network, one))], logits


def _no_layers(network: nn.Module, also: str = "") -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(network).__name__} has no list of layers that a text passes{also}. Layers are members of one "
        "nn.ModuleList or nn.Sequential, or modules beside one another, that are called (by their forward alone, or "
        "compiled by torch.jit.script, they pass no hook); each gives the next one the stream, or a tuple, dict or "
        "dataclass that begins with it."
    )


def _refuse_shape(network: Any, logits: Tensor, length: int, name: str) -> None:
    """Raises UnsupportedModel where there are not logits of words for every token."""
    if logits.shape[1] != length:
        advice = " Let its forward give those of every token, also where it is called with the tokens alone."
        raise UnsupportedModel(
            f"{name} cannot be traced: for {length} tokens it gives the logits of {logits.shape[1]}."
            f"{advice if logits.shape[1] < length else ''}"
        )
    words = words_of(network.get_input_embeddings())
    if words is not None and logits.shape[-1] < words and not has_head(network):
        raise UnsupportedModel(
            f"{name} cannot be traced: it reads {words} words, and gives {logits.shape[-1]} numbers for each token, "
            "which are no logits of words."
        )


def gives_few_logits(network: nn.Module, layers: Layers, tokens: Sequence[int], name: str) -> bool:
    """Whether it can be asked for the last token's logits alone, gives the same ones, and computes every token."""
    if "logits_to_keep" not in inspect.signature(network.forward).parameters:
        return False
    seen: list[int] = []
    with at_rest(network), ExitStack() as stack:
        for layer in layers.members(network):
            hook = layer.register_forward_hook(lambda _, __, output: seen.append(_numbers(output)))
            stack.callback(hook.remove)
        few = logits_in(run_text(network, as_batch(network, tokens), name, logits_to_keep=1))[0, -1]
        drops = len({*seen}) > 1  # some models do so in the last layer, which has not all activations then
        whole = logits_in(run_text(network, as_batch(network, tokens), name))[0, -1]
    # What counts tokens behind the layers, such as a hook on the head, counts fewer of them.
    bound = TWO_FORWARDS[str(stream_dtype(network)).removeprefix("torch.")] * largest(whole)
    return not drops and apart(few, whole).item() <= bound


def _numbers(output: Any) -> int:
    value = first_tensor(output)
    return 0 if value is None else value.numel()


def _outermost(passed: Sequence[Passed]) -> Iterator[Passed]:
    """The lists that lie in no other list's member: a layer's own lists are parts of it."""
    for one in passed:
        if not any(one is not other and one.path.startswith(f"{other.path}.") for other in passed):
            yield one


def _refuse_no_layers(network: nn.Module, outermost: Sequence[Passed], name: str) -> NoReturn:
    """Raises UnsupportedModel with the reason why no modules are layers, each called once with one stream."""
    outermost = [one for one in outermost if any(any(network.get_submodule(each).children()) for each in one.members)]
    if all(one.once for one in outermost):
        raise _no_layers(network)
    passed = max(outermost, key=lambda one: len(one.calls))
    members = {network.get_submodule(member) for member in passed.members}
    if len(members) < len(passed.members):  # one module in two places would be patched in both at once
        raise UnsupportedModel(
            f"{type(network).__name__} uses one module as several layers: of {len(passed.members)} entries of "
            f"{passed.path}, {len(members)} are modules of their own. A patch in one would be made in all."
        )
    _refuse_elsewhere(passed, name)
    if passed.order == sorted({*passed.order}):
        first = passed.calls[0][1].shape
        odd = next(call for call in passed.calls if not call[1].shape == call[2].shape == first)
        raise UnsupportedModel(
            f"{name} cannot be traced layer by layer: member {odd[0]} of {passed.path} is given {[*odd[1].shape]} "
            f"numbers and gives {[*odd[2].shape]}, the first one is given {[*first]}. Layers take and give one stream, "
            "before all else, and have a list of their own."
        )
    raise UnsupportedModel(
        f"{name} cannot be traced layer by layer: in one run its {passed.path} are called {len(passed.calls)} times, "
        f"in the order {_shortly(passed.order)}. A layer that runs more than once has no activation of its own."
    )


def _refuse_put_together(
    network: nn.Module, best: Passed, found: Sequence[Passed], mixing: Collection[str], name: str
) -> None:
    """Raises UnsupportedModel where each layer is a list of parts: no module is given its stream, or gives it."""
    holder = best.path.rpartition(".")[0] if best in found else ""
    alike = [one for one in found if one.path.rpartition(".")[0] == holder]
    if not isinstance(network.get_submodule(holder), nn.ModuleList) or len(alike) < 2:
        return
    if not {member for one in alike for member in one.members} <= {*mixing}:
        raise UnsupportedModel(
            f"{name} cannot be traced layer by layer: members of its {holder} are lists of modules, which the network "
            "itself makes layers of. Let each layer be a module that takes the stream and gives it."
        )


def _refuse_elsewhere(passed: Passed, name: str) -> None:
    """Raises UnsupportedModel for layers that are given something else before the stream: it would be taken for it."""
    if passed.elsewhere is not None and not passed.handed_on:
        raise UnsupportedModel(
            f"{name} cannot be traced layer by layer: what one of its {passed.path} gives is the next one's argument "
            f"{passed.elsewhere!r}, and other floating-point numbers come before it. Let them take the stream first, "
            "or call it hidden_states."
        )


def _refuse_infinite(best: Passed, network: nn.Module, logits: Tensor, name: str) -> None:
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


def _shortly(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
