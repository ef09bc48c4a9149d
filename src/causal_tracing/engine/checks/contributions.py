"""What each layer adds to the stream, and which modules it comes from: searched layer by layer, on noised values.

1. One text is run. Noise is added to what every smallest module gives, so that all of them contribute something, and
   none by chance what another does. Of each layer's modules it is kept what goes in and what comes out.
2. From the stream into a layer on to the stream behind it, sums are sought: c · stream + s · output = what another
   module reads, or what the layer gives. The shortest way is the layout; layers that norm their sums are
   followed through the norm.
3. The same factors must hold of another text (`refuted`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.checks.layers import Layers
from causal_tracing.engine.checks.texts import as_batch, run_text
from causal_tracing.engine.hooks.modules import (
    as_before,
    bears_hooks,
    by_token_of,
    first_tensor,
    on_input,
    stream_in,
    with_first,
)
from causal_tracing.models.at_rest import at_rest

SEED = 1
SHARES = (1.0, 0.1, 0.01)  # of the noise that shows best, the first without overflow
NOTHING = 1e-3  # of the largest number of a sum: less is no part of it
Numbers = Float[np.ndarray, "token width"]


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """Numbers of the stream's size that passed a layer at one time: a module's input, or its output; [token, width]."""

    path: str  # "" is the layer itself
    output: bool
    time: int
    numbers: Numbers
    norm: bool = False  # a smallest module with weights of one axis at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One sum in a layer: `gain` · the stream + the outputs of modules, each times its scale = what `reader` reads.

    `parts` are these modules (two in parallel layers) with their scales. `base` says which value the stream is: the
    module whose input it is, or whose output (a norm of the sum before). `reader` is None where the sum is what the
    layer gives; `normed` says that the stream goes on as the norm of the sum.
    """

    base: tuple[str, bool]
    gain: float
    parts: tuple[tuple[str, float], ...]
    reader: str | None
    normed: bool = False


Way = tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """How a layer comes from its stream to its output; `whole` says that nothing else adds to it.

    `in_turn`: of what stands in one sum one is made from the other.
    """

    way: Way
    whole: bool
    in_turn: bool = False


def explained(network: nn.Module, layers: Layers, tokens: Sequence[int], name: str, bound: float) -> list[Explained]:
    """For each layer the shortest way from its input to its output, for idle ones nothing.

    Sums hold where both sides differ by no more than `bound`, in shares of the largest number.
    """
    found: dict[int, Explained] = {}
    members = layers.members(network)

    def solve(number: int, values: Sequence[Value]) -> None:
        found[number] = _solved(values, members[number], bound)

    _noised(network, layers, tokens, name, solve)
    return [found.get(number, Explained(way=(), whole=False)) for number in range(len(members))]


def _noised(
    network: nn.Module, layers: Layers, tokens: Sequence[int], name: str, see: Callable[[int, Sequence[Value]], None]
) -> None:
    """Two runs: as the text is, and with noise on what the smallest modules give; `see` gets each layer's values.

    The noised one is given the other's stream at each layer. Where it makes half floats overflow, there is less of it.
    """
    for share in SHARES:
        overflowed: list[int] = []

        def seen(number: int, values: Sequence[Value], overflowed: list[int] = overflowed) -> None:
            if all(np.isfinite(value.numbers).all() for value in values):
                see(number, values)
            else:
                overflowed.append(number)

        _run_noised(network, layers, tokens, name, share, seen)
        if not overflowed:
            return


def _run_noised(
    network: nn.Module,
    layers: Layers,
    tokens: Sequence[int],
    name: str,
    share: float,
    see: Callable[[int, Sequence[Value]], None],
) -> None:
    generator = torch.Generator().manual_seed(SEED)
    with at_rest(network), ExitStack() as stack:
        for number, layer in enumerate(layers.members(network)):
            watch = _Watch(generator, layers.lanes, share)
            stack.enter_context(on_input(layer, watch.begin))
            for path, part in layer.named_modules():
                if path and bears_hooks(part):
                    stack.callback(part.register_forward_pre_hook(partial(watch.enter, path), with_kwargs=True).remove)
                    stack.callback(part.register_forward_hook(partial(watch.leave, path)).remove)
            stack.callback(layer.register_forward_hook(partial(watch.end, partial(see, number))).remove)
        # Both in one batch: row 0 as it is, so that each layer of row 1 can be given its stream.
        run_text(network, as_batch(network, tokens, rows=2), name)


@dataclass(slots=True, eq=False)
class _Watch:
    """Notes what passes the modules of one layer while it runs, and forgets it with its end."""

    generator: torch.Generator
    lanes: str | None
    share: float  # of the noise that shows best
    stream: Tensor | None = None  # of both runs: [2, token, width]
    time: int = 0
    calls: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    values: list[Value] = field(default_factory=list)

    def begin(self, value: Tensor) -> Tensor:
        shaped = by_token_of(value, 2, self.lanes)
        self.stream = shaped[:1].repeat(2, 1, 1)  # in memory of its own: some layers view it in another shape
        self._keep("", self.stream, output=False, norm=False)
        return as_before(self.stream, value, self.lanes)

    def enter(self, path: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls[path] += 1
        self._note(path, stream_in(args, kwargs), output=False, norm=_is_norm(part))

    def leave(self, path: str, part: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        value, given = first_tensor(output), output
        # Noise goes where something is computed: what wraps it has it already, and dropout only hands it on.
        smallest = not any(part.children()) and not isinstance(part, (nn.Dropout, nn.Identity))
        if smallest and value is not None and self._fits(value):
            value = self._with_noise(value)
            given = with_first(output, value)
        self._note(path, value, output=True, norm=_is_norm(part))
        return given

    def end(self, see: Callable[[Sequence[Value]], None], _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self._note("", first_tensor(output), output=True)
        # A module that is called twice has no single output in the layer's sum.
        see([value for value in self.values if not value.path or self.calls[value.path] == 1])
        self.stream, self.values = None, []

    def _fits(self, value: Tensor) -> bool:
        if self.stream is None or not value.is_floating_point() or value.numel() != self.stream.numel():
            return False
        return value.shape[-1] == self.stream.shape[-1] or (value.ndim == 4 and self.lanes is not None)

    def _with_noise(self, value: Tensor) -> Tensor:
        """As large as the value, and at least as what most of the stream's dimensions hold: it shows in half floats."""
        assert self.stream is not None
        # The median, since a few dimensions of the stream may be a thousand times the others.
        size = torch.maximum(_size(value).square().mean().sqrt(), _size(self.stream).median()).clamp(min=0.01)
        size = size * self.share
        shaped = by_token_of(value, 2, self.lanes)
        # Drawn in float32 on the CPU: the same on every device and in every type.
        noise = torch.randn(shaped[1].shape, generator=self.generator, dtype=torch.float32).to(value.device) * size
        return as_before(torch.stack([shaped[0], shaped[1] + noise.to(value.dtype)]), value, self.lanes)

    def _note(self, path: str, value: Tensor | None, *, output: bool, norm: bool = False) -> None:
        self.time += 1
        if value is not None and self._fits(value):
            self._keep(path, by_token_of(value.detach(), 2, self.lanes), output, norm)

    def _keep(self, path: str, shaped: Float[Tensor, "run token width"], output: bool, norm: bool) -> None:
        assert self.stream is not None
        numbers = shaped[1].to("cpu", torch.float64, copy=True)  # falcon adds to outputs in place
        self.values.append(Value(path, output, self.time, numbers.reshape(self.stream.shape[1:]).numpy(), norm))


def _size(value: Tensor) -> Float[Tensor, " width"]:
    """The root mean square of each dimension."""
    return value.float().flatten(0, -2).square().mean(0).sqrt()


def _is_norm(part: nn.Module) -> bool:
    return not any(part.children()) and all(each.ndim < 2 for each in part.parameters(recurse=False))


def _solved(values: Sequence[Value], layer: nn.Module, bound: float) -> Explained:
    """The shortest way from the layer's input to its output; else the first sum alone, and the last."""
    values = _different(values)
    if not values or values[0].path or values[0].output or values[-1].path:
        return Explained(way=(), whole=False)
    search = _Search(values, _scalars(layer), bound)
    # One module in a sum first: of two there are far more combinations, and a chance fit among them is likelier.
    for at_once in (1, 2):
        way = search.way(at_once)
        if way is not None:
            return Explained(way=way, whole=True)
    return Explained(way=search.ends(), whole=False)


def _different(values: Sequence[Value]) -> list[Value]:
    """Of equal outputs the outermost module's, of equal inputs the first reader's; norms' and the layer's own stay."""
    kept: list[Value] = []
    for value in values:
        alike = (n for n, one in enumerate(kept) if one.output == value.output and not one.norm)
        same = next((n for n in alike if np.array_equal(kept[n].numbers, value.numbers)), None)
        if same is None or not value.path or value.norm:
            kept.append(value)
        elif value.output and value.path.count(".") < kept[same].path.count("."):
            kept[same] = value
    return kept


def _dimensions(values: Sequence[Value]) -> Float[np.ndarray, " width"]:
    """The size of each dimension of the stream: a few of them are often a thousand times the others."""
    both = np.concatenate([value.numbers for value in values if not value.path])
    return np.sqrt((both**2).mean(0)).clip(1e-30)


def _scalars(layer: nn.Module) -> list[float]:
    """The single numbers that a layer holds: what it multiplies by is likely one of them."""
    found = [1.0]
    for part in layer.modules():
        found += [value for value in vars(part).values() if isinstance(value, float)]
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        found += [each.item() for each in own if each.numel() == 1 and each.is_floating_point() and not each.is_meta]
    return found


class _Search:
    """Ways through one layer, over sums of what passed through it."""

    def __init__(self, values: Sequence[Value], scalars: Sequence[float], bound: float) -> None:
        self.values = values
        self.scalars = scalars
        self.bound = bound
        # Each dimension by its size, or the few large ones would decide every fit alone.
        self.stack = np.stack([(value.numbers / _dimensions(values)).ravel() for value in values])
        self.gram = self.stack @ self.stack.T
        self.end = len(values) - 1
        self.addends = [n for n, value in enumerate(values) if value.output and value.path]
        self.sums = [n for n, value in enumerate(values) if not value.output and value.path] + [self.end]

    def way(self, at_once: int) -> Way | None:
        """The shortest way from the layer's input to its output, with so many modules in a sum."""
        ways: list[tuple[int, Way]] = [(start, ()) for start in (0, *self._normed_at_once())]
        reached = {start for start, _ in ways}
        for at, way in ways:  # grows while it is walked: the shortest ways come first
            last: Step | None = None
            for target, step in self.steps(at, at_once):
                for onward, taken in self._onward(target, step):
                    if onward == self.end and not taken.normed:
                        return (*way, taken)
                    if onward == self.end:  # the sum may be it too, where what reads it hands it on
                        last = last or taken
                    elif onward not in reached:
                        reached.add(onward)
                        ways.append((onward, (*way, taken)))
            if last is not None:
                return (*way, last)
        return None

    def ends(self) -> Way:
        """The first sum, and the last, where no way leads all through."""
        first = [step for start in (0, *self._normed_at_once()) for _, step in self.steps(start, 1)]
        last = [
            step
            for base in self.sums[:-1]
            for target, step in self.steps(base, 1)
            if any(onward == self.end for onward, _ in self._onward(target, step))
        ]
        return (*first[:1], *last[:1])

    def steps(self, base: int, at_once: int) -> Iterator[tuple[int, Step]]:
        """The sums of this base and so many modules' outputs, in the order in which they are read."""
        addends = [n for n in self.addends if self.values[n].time > self.values[base].time]
        for count in range(1, at_once + 1):
            yield from self._sums(base, [(base, *parts) for parts in combinations(addends, count)])

    def _sums(self, base: int, combined: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, Step]]:
        """Those of these sums that some module reads: sought in all at once, by what the values' products say."""
        time, terms = self.values[base].time, np.array(combined)
        targets = np.array([n for n in self.sums if self.values[n].time > time and n != base])
        if not terms.size or not targets.size:
            return
        inner = self.gram[terms[:, :, None], terms[:, None, :]]
        # Two outputs may be the same, and the equations would then have no single solution.
        inner = inner + 1e-13 * np.trace(inner, axis1=1, axis2=2)[:, None, None] * np.eye(terms.shape[1])
        right = self.gram[terms[:, :, None], targets]
        left = self.gram[targets, targets] - (np.linalg.solve(inner, right) * right).sum(1)
        # By products alone half of the digits are lost: what is likely is fitted again.
        likely = left <= max((self.bound * 3) ** 2, 1e-10) * self.gram[targets, targets]
        for number, which in sorted(zip(*(axis.tolist() for axis in likely.T.nonzero()), strict=True)):
            step = self._step(int(targets[number]), [int(each) for each in terms[which]])
            if step is not None:
                yield int(targets[number]), step

    def _step(self, target: int, terms: Sequence[int]) -> Step | None:
        """The sum of the terms, if it is the target, and none of them is nothing or comes too late."""
        rows, goal = self.stack[list(terms)], self.stack[target]
        if self.values[target].time < max(self.values[term].time for term in terms):
            return None
        factors = np.linalg.lstsq(rows.T, goal)[0]
        # Else any sum could be had with one more term that adds nothing.
        if (abs(factors) * abs(rows).max(1)).min() < NOTHING * abs(goal).max():
            return None
        snapped = [self._snapped(each) for each in factors.tolist()]
        if abs(goal - np.array(snapped) @ rows).max() > self.bound * abs(goal).max():
            return None
        base = self.values[terms[0]]
        paths = [self.values[term].path for term in terms[1:]]
        return Step(
            base=(base.path, base.output),
            gain=snapped[0],
            parts=tuple(zip(paths, snapped[1:], strict=True)),
            reader=self.values[target].path or None,
        )

    def _normed_at_once(self) -> list[int]:
        """The norms of the layer's input: some layers go on from there, not from the input itself."""
        own = self.values[0].numbers
        readers = {one.path for one in self.values if one.norm and not one.output and np.array_equal(one.numbers, own)}
        return [number for number, one in enumerate(self.values) if one.output and one.path in readers]

    def _onward(self, target: int, step: Step) -> Iterator[tuple[int, Step]]:
        """Where the stream goes on from a sum: as it is, or as the norm that reads it gives it."""
        yield target, step
        reader = self.values[target]
        if reader.norm:
            for number, value in enumerate(self.values):
                if value.output and value.path == reader.path:
                    gives_it = np.array_equal(value.numbers, self.values[self.end].numbers)
                    yield (self.end if gives_it else number), replace(step, normed=True)

    def _snapped(self, factor: float) -> float:
        """The factor, or the number of the layer's own that it is up to rounding."""
        nearest = min(self.scalars, key=lambda scalar: abs(scalar - factor))
        # To the last bit, since the stream is added up anew with it (`resid_mid`, held layers).
        return nearest if abs(nearest - factor) <= self.bound * abs(factor) else factor


def refuted(
    network: nn.Module,
    layers: Layers,
    tokens: Sequence[int],
    name: str,
    ways: Mapping[int, Way],
) -> dict[int, float]:
    """How far each layer's sums are from what they should be on another text, in shares of the largest number."""
    apart: dict[int, float] = {}

    def compare(number: int, values: Sequence[Value]) -> None:
        apart[number] = max((_off(values, step) for step in ways[number]), default=0.0)

    _noised(network, layers, tokens, name, compare)
    return {number: apart[number] for number in ways if number in apart}


def _off(values: Sequence[Value], step: Step) -> float:
    """The largest difference between a sum's two sides; NaN where something did not pass."""
    sizes = _dimensions(values)
    found = {(value.path, value.output): value.numbers / sizes for value in values}
    try:
        total = step.gain * found[step.base]
        for path, scale in step.parts:
            total = total + scale * found[path, True]
        target = found[step.reader, False] if step.reader else found["", True]
    except KeyError:
        return float("nan")
    return float(abs(target - total).max() / max(abs(target).max(), 1e-30))
