"""What a network is made of, found by its behaviour alone: its layers, and what each adds to the residual stream.

1. Layers. Every call of every module is recorded. An element is a call of a member of a list of modules that gives
   out a tensor as large as one that it took in. Elements are linked where one gives out what the next takes in; the
   longest chain of links is the stack of layers, each as often as it is called.
2. Contributions. Over several random prompts at once, out − in of a layer is written as the sum of as few outputs of
   modules inside it as possible, each with a factor of its own (a number; else one a channel). A factor of the
   input itself may differ from 1. Else the same is tried from norm to norm, where each takes in the sum of what the
   last gave out and a contribution. What was found has to hold on one more prompt.
3. Which is which. The first token is changed; what the layer takes in at later tokens, and all other contributions,
   are held as they were: whatever changes at later tokens is attention's side (it mixes tokens), the rest the MLP's.
4. Projections. The last module with a matrix that runs within a contribution, if all of it goes through there:
   attention's heads, or the MLP's neurons, are what it takes in.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from model_types.spots import Call, Change, Place, Spot, look, record, run, token_axis

LENGTH = 9  # of the prompts that are looked at: a number that no other axis has
FITTED, HELD_OUT = 3, 1
EXACT = 1e-5  # of the largest change: rounding in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A module's output that is added to the stream, and its factor there ("a channel": one each)."""

    spot: Spot
    factor: float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One step of the stack; without terms where no split was found.

    `kept` is the factor of its input in its output, None where the sum is normed.
    """

    call: str
    turn: int
    before: Spot
    after: Spot
    kept: float | None = 1.0
    attn: tuple[Term, ...] = ()
    mlp: tuple[Term, ...] = ()
    middle: bool = False  # the MLP reads what attention added
    z: Spot | None = None
    neurons: Spot | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of a network; `notes` say what is unusual."""

    layers: tuple[Layer, ...]
    causal: bool
    repeatable: bool
    listed: tuple[int, ...]  # the layers' numbers in the list that holds them
    notes: tuple[str, ...] = field(default=())


def find(network: nn.Module, prompts: Sequence[Sequence[int]]) -> Found:
    """The anatomy, from prompts of `LENGTH` tokens: those that are fitted, and the last to verify."""
    runs = [record(network, prompt) for prompt in prompts[: FITTED + HELD_OUT]]
    links = chain(runs[0])
    layers = [examined(network, prompts[0], runs, before, after) for before, after in links]
    first, again = (run(network, prompts[0], {}) for _ in range(2))
    other = run(network, [*prompts[0][:-1], prompts[1][-1]], {})
    scale = float(first.abs().max())
    return Found(
        layers=tuple(layers),
        causal=bool((first[:-1] - other[:-1]).abs().max() <= EXACT * scale),
        repeatable=bool(torch.equal(first, again)),
        listed=tuple(int(before.path.rpartition(".")[2]) for before, _ in links),
        notes=tuple(unusual(links)),
    )


def unusual(links: Sequence[tuple[Spot, Spot]]) -> list[str]:
    """What the table says beside a stack of layers."""
    paths = [before.path for before, _ in links]
    lists = sorted({path.rpartition(".")[0] for path in paths})
    notes = [] if len(lists) < 2 else [f"layers in {len(lists)} lists"]
    if len(set(paths)) < len(paths):
        notes.append(f"{len(set(paths))} modules make {len(paths)} layers")
    return notes


# 1. Layers


def stream_like(values: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    """The tensors with an axis of tokens."""
    return {place: value for place, value in values.items() if LENGTH in value.shape and value.ndim > 1}


def is_element(call: Call) -> bool:
    """A member of a list that hands on a tensor as large as one that it takes."""
    if not call.path.rpartition(".")[2].isdigit() or call.end - call.begin == 1:  # nothing is called inside
        return False
    taken = {value.numel() for value in stream_like(call.inputs).values()}
    return any(value.numel() in taken for value in stream_like(call.outputs).values())


def link(one: Call, other: Call) -> tuple[Place, Place] | None:
    """Where the first gives out what the second takes in."""
    for place, given in stream_like(one.outputs).items():
        for there, taken in stream_like(other.inputs).items():
            if given.numel() == taken.numel() and torch.equal(given.flatten(), taken.flatten()):
                return place, there
    return None


def chain(calls: Sequence[Call]) -> list[tuple[Spot, Spot]]:
    """Each layer's input and output. Empty where no two modules are linked."""
    elements = sorted((call for call in calls if is_element(call)), key=lambda call: call.begin)
    best: list[tuple[Spot, Spot]] = []
    while elements:
        outermost = [one for one in elements if not any(other.holds(one) for other in elements)]
        found = longest(outermost)
        if len(found) > len(best):
            best = found
        elements = [one for one in elements if one not in outermost]
    return best


def longest(elements: Sequence[Call]) -> list[tuple[Spot, Spot]]:
    """The longest stretch of elements, each linked to the next; of equal ones the last."""
    links = [link(one, other) for one, other in itertools.pairwise(elements)]
    best, start = (0, 0), 0
    for number, found in enumerate([*links, None]):
        if found is None:
            if number - start >= max(best[1] - best[0], 1):
                best = (start, number)
            start = number + 1
    first, last = best
    if first == last:
        return []
    outs, ins = zip(*[places for places in links[first:last] if places], strict=True)
    start, end = elements[first], elements[last]
    befores = (like(start.inputs, ins[0], start.outputs[outs[0]]), *ins)
    afters = (*outs, like(end.outputs, outs[-1], end.inputs[ins[-1]]))
    return [
        (call.spot("in", before), call.spot("out", after))
        for call, before, after in zip(elements[first : last + 1], befores, afters, strict=True)
    ]


def like(values: Mapping[Place, Tensor], place: Place, model: Tensor) -> Place:
    """This place, or where it holds nothing of that size, the first that does."""
    fitting = [each for each, value in values.items() if value.numel() == model.numel()]
    return place if place in fitting else fitting[0]


# 2. Contributions


def examined(
    network: nn.Module, prompt: Sequence[int], runs: Sequence[Sequence[Call]], before: Spot, after: Spot
) -> Layer:
    """A layer with what it adds, where that can be told apart."""
    bare = Layer(call=before.path, turn=before.turn, before=before, after=after)
    pool = candidates(runs, before, after)
    into, out = (stack([value_at(calls, spot) for calls in runs]) for spot in (before, after))
    split = explain(into, out, pool) or explain_normed(network, runs, before, into, out, pool)
    if not split:
        return bare
    kept, terms = split
    mixing = mixers(network, prompt, before, terms)
    attn = tuple(term for term, mixes in zip(terms, mixing, strict=True) if mixes)
    mlp = tuple(term for term, mixes in zip(terms, mixing, strict=True) if not mixes)
    return Layer(
        call=before.path,
        turn=before.turn,
        before=before,
        after=after,
        kept=kept,
        attn=attn,
        mlp=mlp,
        middle=bool(attn and mlp) and reads(network, prompt, attn, mlp),
        z=projection(network, prompt, runs[0], before, attn, mlp),
        neurons=projection(network, prompt, runs[0], before, mlp, attn),
    )


def value_at(calls: Sequence[Call], spot: Spot) -> Tensor:
    call = call_of(calls, spot)
    return (call.inputs if spot.side == "in" else call.outputs)[spot.place]


def stack(values: Sequence[Tensor]) -> np.ndarray:
    """[prompt, everything of a run in one line]."""
    return np.stack([value.flatten().double().numpy() for value in values])


def candidates(runs: Sequence[Sequence[Call]], before: Spot, after: Spot) -> dict[Spot, np.ndarray]:
    """Outputs of modules inside a layer that are as large as its stream, each once (the outermost that gives it)."""
    into, out = (value_at(runs[0], spot) for spot in (before, after))
    layer = call_of(runs[0], before)
    inside = sorted((call for call in runs[0] if layer.holds(call)), key=lambda call: -call.end)
    seen, pool = [into.flatten(), out.flatten()], {}
    for call in inside:
        for place, value in call.outputs.items():
            line = value.flatten()
            if line.numel() != out.numel() or not line.any() or any(torch.equal(line, other) for other in seen):
                continue
            spot = call.spot("out", place)
            try:
                pool[spot] = stack([value_at(calls, spot) for calls in runs])
            except (StopIteration, KeyError, ValueError):  # not there, or of another size, in every run
                continue
            seen.append(line)
    return pool


def explain(
    into: np.ndarray, out: np.ndarray, pool: Mapping[Spot, np.ndarray]
) -> tuple[float, tuple[Term, ...]] | None:
    """The fewest candidates that add up to what a layer adds: (the factor of its input, the terms)."""
    for fitting, kept, most in ((fit, True, 3), (fit, False, 3), (fit_channels, True, 2), (fit_channels, False, 2)):
        for count in range(1, most + 1):
            for spots in itertools.combinations(pool, count):
                found = fitting(into, out, [pool[spot] for spot in spots], kept)
                if found is None:
                    continue
                own, factors = found
                ordered = sorted(zip(spots, factors, strict=True), key=lambda each: list(pool).index(each[0]))
                return own, tuple(Term(spot=spot, factor=factor) for spot, factor in ordered)
    return None


def explain_normed(
    network: nn.Module,
    runs: Sequence[Sequence[Call]],
    before: Spot,
    into: np.ndarray,
    out: np.ndarray,
    pool: Mapping[Spot, np.ndarray],
) -> tuple[None, tuple[Term, ...]] | None:
    """The same for layers that norm their sums: what is added before each norm, up to the layer's output."""
    layer = call_of(runs[0], before)
    stream, terms = into, []
    norms = [call for call in runs[0] if layer.holds(call) and is_norm(network.get_submodule(call.path), call)]
    for norm in sorted(norms, key=lambda call: call.begin):
        place, given = next(iter(norm.inputs)), next(iter(norm.outputs))
        summed = stack([value_at(calls, norm.spot("in", place)) for calls in runs])
        if summed.shape != into.shape:
            continue
        earlier = {spot: value for spot, value in pool.items() if call_of(runs[0], spot).end < norm.begin}
        if not close(stream, summed, summed):
            split = explain(stream, summed, earlier)
            if not split:
                continue
            terms += split[1]
        stream = stack([value_at(calls, norm.spot("out", given)) for calls in runs])
    if not close(stream, out, out):
        split = explain(stream, out, pool)
        terms = [*terms, *split[1]] if split else []
    return (None, tuple(terms)) if terms else None


def is_norm(module: nn.Module, call: Call) -> bool:
    """A module of gains alone that gives out as much as it takes in."""
    gains = [each.ndim for each in module.parameters()]
    sizes = [value.numel() for value in (*call.inputs.values(), *call.outputs.values())]
    return set(gains) == {1} and len(sizes) > 1 and len(set(sizes)) == 1


def fit(
    into: np.ndarray, out: np.ndarray, columns: Sequence[np.ndarray], kept: bool
) -> tuple[float, list[float]] | None:
    """One factor each, from all runs but the last, if they hold on the last; the input's is 1 if it is kept."""
    wanted = out - into if kept else out
    columns = columns if kept else [into, *columns]
    table = np.stack([column[:FITTED].ravel() for column in columns], axis=1)
    factors = np.linalg.lstsq(table, wanted[:FITTED].ravel(), rcond=None)[0]
    made = np.tensordot(factors, np.stack(columns), 1)
    if np.abs(factors).min() < 1e-3 or not close(made, wanted, out - into):
        return None
    return (1.0, factors.tolist()) if kept else (float(factors[0]), factors[1:].tolist())


def fit_channels(
    into: np.ndarray, out: np.ndarray, columns: Sequence[np.ndarray], kept: bool, width: int = 32
) -> tuple[float, list[str]] | None:
    """One factor a channel each."""
    if out.shape[1] % width:
        return None
    goal = ((out - into) if kept else out).reshape(len(out), -1, width)
    columns = columns if kept else [into, *columns]
    parts = np.stack([column.reshape(goal.shape) for column in columns], axis=-1)
    table = parts[:FITTED].reshape(-1, width, len(columns)).swapaxes(0, 1)  # [channel, prompt and token, column]
    factors = np.linalg.pinv(table) @ goal[:FITTED].reshape(-1, width).T[..., None]
    made = (parts * factors[..., 0]).sum(-1)
    if np.abs(factors).max(0).min() < 1e-3 or not close(made, goal, (out - into).reshape(goal.shape)):
        return None
    return (1.0 if kept else float(factors[:, 0].mean())), ["a channel"] * (len(columns) - (not kept))


def close(made: np.ndarray, wanted: np.ndarray, change: np.ndarray) -> bool:
    return bool(np.abs(made - wanted).max() <= EXACT * max(np.abs(change).max(), 1e-2 * np.abs(wanted).max()))


# 3. Which is which


def with_later(value: Tensor) -> Change:
    """Keeps a run's own first token, and writes this value's later ones."""

    def change(own: Tensor) -> Tensor:
        changed = value.clone()
        axis = token_axis(value, LENGTH)
        changed.narrow(axis, 0, 1).copy_(own.narrow(axis, 0, 1))
        return changed

    return change


def later(value: Tensor) -> Tensor:
    """A tensor without its first token, whatever its layout."""
    axis = token_axis(value, LENGTH) if LENGTH in value.shape else 0
    return value.narrow(axis, 1, value.shape[axis] - 1)


def mixers(network: nn.Module, prompt: Sequence[int], before: Spot, terms: Sequence[Term]) -> list[bool]:
    """Which terms see earlier tokens: the first word is another, the layer's later input and all other terms are held.

    Not by changing the layer's own first input alone: keys can come from another layer.
    """
    spots = [term.spot for term in terms]
    unmoved = look(network, prompt, [before, *spots])
    other_first = [prompt[1], *prompt[1:]]
    mixing = []
    for spot in spots:
        held: dict[Spot, Change] = {other: holding(unmoved[other]) for other in spots if other != spot}
        seen = changed_run(network, other_first, {before: with_later(unmoved[before]), **held}, spot)
        mixing.append(differs(later(seen), later(unmoved[spot])))
    return mixing


def reads(network: nn.Module, prompt: Sequence[int], attn: Sequence[Term], mlp: Sequence[Term]) -> bool:
    """Whether the MLP's side changes with attention's."""
    unmoved = look(network, prompt, [term.spot for term in mlp])
    changes: dict[Spot, Change] = {term.spot: jolted for term in attn}
    return any(differs(changed_run(network, prompt, changes, term.spot), unmoved[term.spot]) for term in mlp)


def jolted(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return value + value.std() * torch.randn(value.shape, generator=generator).to(value.dtype)


def holding(value: Tensor) -> Change:
    return lambda _: value


def changed_run(network: nn.Module, prompt: Sequence[int], changes: Mapping[Spot, Change], spot: Spot) -> Tensor:
    """What a run with changes holds at one more spot."""
    seen: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        seen.append(value.detach().clone())
        return value

    run(network, prompt, {**changes, spot: note})
    return seen[0]


def differs(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > EXACT * other.abs().max())


# 4. Projections


def projection(
    network: nn.Module,
    prompt: Sequence[int],
    calls: Sequence[Call],
    before: Spot,
    terms: Sequence[Term],
    others: Sequence[Term],
) -> Spot | None:
    """What the last matrix within a contribution takes in; None where not all goes through it, or there are several."""
    if len(terms) != 1:
        return None
    last = call_of(calls, terms[0].spot)
    layer = call_of(calls, before)
    given = last.outputs[terms[0].spot.place].numel()
    start = max([ended for other in others if (ended := call_of(calls, other.spot).end) < last.end], default=0)
    fitting = [
        call
        for call in calls
        if layer.holds(call)
        and start < call.begin
        and call.end <= last.end
        and has_matrix(network.get_submodule(call.path))
        and any(value.numel() == given for value in call.outputs.values())
    ]
    if not fitting:
        return None
    final = max(fitting, key=lambda call: call.end)
    place, taken = next(iter(final.inputs.items()))
    spot = final.spot("in", place)
    if LENGTH not in taken.shape:
        return None
    emptied = changed_run(network, prompt, {spot: torch.zeros_like}, terms[0].spot)
    rows = emptied.reshape(LENGTH, -1)
    return spot if not rows.any() or not differs(rows, rows[:1]) else None


def call_of(calls: Sequence[Call], spot: Spot) -> Call:
    """The call that a spot belongs to. Raises StopIteration where this run has none."""
    return next(call for call in calls if (call.path, call.turn) == (spot.path, spot.turn))


def has_matrix(module: nn.Module) -> bool:
    return any(name == "weight" and each.ndim == 2 for name, each in module.named_parameters(recurse=False))
