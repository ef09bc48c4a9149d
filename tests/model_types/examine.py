"""One model type: built, described by the oracle, traced by the package, and every cell compared.

The result is a dictionary that JSON can hold; `verdict` sums it up:

    exact          all components that were asked for agree
    partial        what the tool offers agrees; the rest it refuses, with its reason
    refused        the tool takes no component of this type, or not the type at all
    WRONG          a cell differs, or the tool has other layers than run
    TRACEBACK      an exception that is not the package's own
    not buildable  transformers itself does not make this type here
"""

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

import causal_tracing as ct
from causal_tracing.errors import CausalTracingError
from model_types.anatomy import FITTED, HELD_OUT, LENGTH, Found, find
from model_types.attention import NAMES, Cell, Miscounted, NotFound
from model_types.mixture import MIXTURE
from model_types.oracle import METRICS, WHOLE, Answers, Oracle
from model_types.prompts import ANSWER, BOTH, FOIL, TOKENIZER, Prompts, random_prompt, text
from model_types.recipes import build

HEADS = ("z", *NAMES)
ASKED = (*WHOLE, *HEADS, "neurons", *MIXTURE)
THREE = ("attn_out", "mlp_out", "resid_post")
BOUND = 2e-5  # of the largest logit: rounding in float32

Result = dict[str, Any]


@dataclass(eq=False)
class Memory:
    """What the oracle has worked out of a type: none of it depends on the package."""

    found: Found | None = None
    why: str = ""
    answers: Answers = field(default_factory=dict)

    def described(self, network: Any) -> Result:
        """What was found, in short words; looked for once."""
        if self.found is None and not self.why:
            try:
                self.found = find(network, [random_prompt(LENGTH, seed=seed) for seed in range(FITTED + HELD_OUT)])
            except Exception as error:
                self.why = f"{told(error)} ({place_of(error)})"
        return described(self.found) if self.found else {"why": self.why}


def examine(name: str, memory: Memory | None = None, pairs: Sequence[Prompts] = BOTH) -> Result:
    """Everything that is known of one type or variant."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = Result(type=name) | _examined(name, memory or Memory(), pairs)
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def _examined(name: str, memory: Memory, pairs: Sequence[Prompts]) -> Result:
    try:
        network = build(name)
    except Exception as error:
        return Result(verdict="not buildable", why=told(error))
    result = Result(network=type(network).__name__)
    result["oracle"] = memory.described(network)
    found = memory.found
    try:
        model = ct.load(network, tokenizer=TOKENIZER, progress=False)
    except CausalTracingError as error:
        return result | {"verdict": "refused", "why": told(error)}
    except Exception as error:
        return result | {"verdict": "TRACEBACK", "why": f"{told(error)} ({place_of(error)})"}
    result["components"] = {component: {"prompts": {}} for component in ASKED}
    for prompts in pairs:
        compare(model, found and Oracle(network, found, prompts, memory.answers), prompts, result)
    return result | summary(result)


def told(error: BaseException) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    return words if isinstance(error, CausalTracingError) else f"{type(error).__name__}: {words}"[:400]


def place_of(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"


def described(found: Found) -> Result:
    """What the oracle found, in short words."""
    layers = found.layers
    return {
        "layers": len(layers),
        "path": layers[0].call if layers else "",
        "causal": found.causal,
        "repeatable": found.repeatable,
        "notes": list(found.notes),
        "split": sorted({split_of(layer) for layer in layers}),
        "attn_out": sum(bool(layer.attn) for layer in layers),
        "mlp_out": sum(bool(layer.mlp) for layer in layers),
        "resid_mid": sum(layer.middle for layer in layers),
    }


def split_of(layer: Any) -> str:
    """Such as "self_attn, mlp": attention's modules, the MLP's, with their factors."""

    def side(terms: Sequence[Any]) -> str:
        return " + ".join(factored(term.factor) + term.spot.path.removeprefix(f"{layer.call}.") for term in terms)

    kept = {None: "sums are normed; ", 1: ""}.get(layer.kept, f"{layer.kept or 0:.3g} input; ")
    return f"{kept}{side(layer.attn) or '–'}, {side(layer.mlp) or '–'}" if layer.attn or layer.mlp else "none"


def factored(factor: float | str) -> str:
    if isinstance(factor, str):
        return "(a channel) "
    return "" if abs(factor - 1) < 1e-4 else f"{factor:.3g} "


# The package


def trace_of(model: Any, prompts: Prompts, **what: Any) -> ct.Trace:
    pair = ct.Pair(
        clean=text(prompts.clean),
        corrupt=text(prompts.corrupt),
        answer=" " + text((ANSWER,)),
        foil=" " + text((FOIL,)),
    )
    return ct.trace(model, pair, metrics="all", progress=False, **what)


Request = Callable[[Any, Prompts, Sequence[str]], tuple[ct.Trace, str]]


def traced_whole(model: Any, prompts: Prompts, components: Sequence[str]) -> tuple[ct.Trace, str]:
    return trace_of(model, prompts, components=list(components)), "blocks"


def traced_heads(model: Any, prompts: Prompts, components: Sequence[str]) -> tuple[ct.Trace, str]:
    return trace_of(model, prompts, components=["resid_post"], heads=list(components)), "heads"


def traced_neurons(model: Any, prompts: Prompts, _: Sequence[str]) -> tuple[ct.Trace, str]:
    return trace_of(
        model, prompts, components=["resid_post"], neurons=True, neuron_positions=[prompts.length - 1]
    ), "neurons"


def traced_experts(model: Any, prompts: Prompts, _: Sequence[str]) -> tuple[ct.Trace, str]:
    last = [prompts.length - 1]
    return trace_of(model, prompts, components=["resid_post"], experts=True, expert_positions=last), "experts"


REQUESTS: tuple[tuple[Sequence[str], Request], ...] = (
    (WHOLE, traced_whole),
    (HEADS, traced_heads),
    (("neurons",), traced_neurons),
    (("router", "experts_in"), traced_whole),
    (("experts",), traced_experts),
)


@dataclass(frozen=True)
class Offered:
    """The map that holds a component, and the engine that made it; or why there is none."""

    component: str
    numbers: xr.Dataset | None = None
    engine: str = ""
    path: str = ""  # of the layers
    refused: str = ""
    crashed: str = ""


def offered(model: Any, prompts: Prompts) -> Iterator[Offered]:
    """Each component, asked for with its likes that the model offers, and alone where one of them is refused."""
    for components, request in REQUESTS:
        likely = [component for component in components if model.anatomy.offers(component)]
        together = list(asked(model, prompts, likely, request)) if likely else []
        alone = [component for component in components if component not in likely]
        if all(one.numbers is not None for one in together):
            yield from together
        else:
            alone = components
        for component in alone:
            yield from asked(model, prompts, [component], request)


def asked(model: Any, prompts: Prompts, components: Sequence[str], request: Request) -> Iterator[Offered]:
    try:
        trace, kind = request(model, prompts, components)
    except CausalTracingError as error:
        yield from (Offered(component, refused=told(error)) for component in components)
    except Exception as error:
        why = f"{told(error)} ({place_of(error)})"
        yield from (Offered(component, crashed=why) for component in components)
    else:
        engine = str(trace.measurements.provenance["engine"])
        numbers = trace.measurements.numbers(kind).sel(metric=list(METRICS)).isel(pair=0)
        for component in components:
            yield Offered(component, numbers.sel(component=component), engine, model.anatomy.layers)


# The comparison


def compare(model: Any, oracle: Oracle | None, prompts: Prompts, result: Result) -> None:
    """Adds what one pair of prompts shows of every component."""
    for one in offered(model, prompts):
        entry = result["components"][one.component]
        if one.numbers is None:
            kind = "crashed" if one.crashed else "refused"
            entry[kind] = one.crashed or one.refused
            continue
        result["engine"] = result.get("engine", {}) | {prompts.name: one.engine}
        # Experts and heads may be in some layers alone.
        result["layers"] = max(result.get("layers", 0), one.numbers.sizes["layer"])
        if oracle is None:
            entry["prompts"][prompts.name] = {"unchecked": "the oracle found nothing"}
            continue
        found = [held_against(reading, prompts, one) for reading in oracle.readings(one.component)]
        entry["prompts"][prompts.name] = min(found, key=lambda each: each.get("worst", np.inf))


def held_against(oracle: Oracle, prompts: Prompts, one: Offered) -> Result:
    """The worst difference of a component's cells, in shares of the largest logit; or why they were not compared."""
    numbers = one.numbers
    assert numbers is not None
    try:
        layers = numbering(oracle.found, one.path, numbers.layer.values.tolist())
    except NotFound as error:
        return {"layers": str(error)}
    worst, effect, cells, where, unchecked, rounded = 0.0, 0.0, 0, "", set(), []
    for direction, other in (("restored", "corrupt"), ("disrupted", "clean")):
        base = oracle.unedited(other)
        worst = max(worst, float(np.abs(numbers[other].values - base).max()) / oracle.largest_logit)
        table, zero = arrays(numbers, direction)
        for at, cell in chosen(table, prompts, one.component, layers):
            said = base if zero[at] else table[at]  # a zero that is declared counts as one that was measured
            try:
                expected = oracle.patched(direction, cell)
            except NotFound as error:
                if np.isfinite(said).any():  # else both find nothing
                    unchecked.add(str(error))
                continue
            except Miscounted as error:
                return {"worst": np.inf, "where": str(error)}
            difference = float(np.nan_to_num(np.abs(said - expected).max(), nan=np.inf)) / oracle.largest_logit
            if BOUND < difference <= oracle.last_place(direction, cell) / oracle.largest_logit:
                rounded.append(difference)
            elif difference > worst:
                worst, where = difference, f"{direction} {cell.component}({cell.layer}) token {cell.position}"
            effect, cells = max(effect, float(np.abs(expected - base).max()) / oracle.largest_logit), cells + 1
    found = {"worst": worst, "effect": effect, "cells": cells, "engine": one.engine}
    found |= {"where": where} if not worst <= BOUND else {}
    found |= {"rounded": {"cells": len(rounded), "largest": max(rounded)}} if rounded else {}
    return found | ({"unchecked": "; ".join(sorted(unchecked))[:300]} if unchecked else {})


def arrays(numbers: xr.Dataset, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """[layer, position, part, metric] of a component's map, and where its effects are declared to be zero."""
    part = [axis for axis in ("head", "neuron", "expert") if axis in numbers[direction].dims]
    table = numbers[direction].transpose("layer", "position", *part, "metric").values
    zero = numbers.structural_zero.broadcast_like(numbers[direction].isel(metric=0)).transpose(
        "layer", "position", *part
    )
    return (table, zero.values) if part else (table[:, :, None], zero.values[:, :, None])


def numbering(found: Found, path: str, numbers: Sequence[int]) -> dict[int, int]:
    """From the rows of the tool's map to the oracle's layers: the same modules. Raises NotFound."""
    places = {layer.call: number for number, layer in enumerate(found.layers)}
    rows = {row: places.get(f"{path}.{number}") for row, number in enumerate(numbers)}
    missing = [numbers[row] for row, place in rows.items() if place is None]
    if missing:
        raise NotFound(f"the tool's layers are {path}, and the oracle found no step of the stream in its {missing}")
    return {row: place for row, place in rows.items() if place is not None}


def chosen(
    table: np.ndarray, prompts: Prompts, component: str, layers: dict[int, int]
) -> Iterator[tuple[tuple[int, ...], Cell]]:
    """The cells that are compared: all of the short prompt's, some of the long one's, some heads and neurons."""
    # Keys and values have fewer heads than the map has rows, and some layers fewer than others.
    parts = np.isfinite(table).any((1, 3)).sum(1).clip(1).tolist()
    single = max(parts) == 1
    if component in ("neurons", "experts"):
        positions = {0: prompts.length - 1}
    else:
        wanted = prompts.positions if single and prompts.positions else range(table.shape[1])
        positions = {column: column for column in wanted}
    sites = [(layer, at, part) for layer in layers for at in positions for part in range(parts[layer])]
    if not single:
        random = np.random.default_rng(len(component))
        sites = [sites[number] for number in random.permutation(len(sites))[: prompts.sites]]
    for layer, at, part in sites:
        cell = Cell(component=component, layer=layers[layer], position=positions[at], part=part, parts=parts[layer])
        yield (layer, at, part), cell


def summary(result: Result) -> Result:
    """The verdict, and in one line why it is not better."""
    entries: dict[str, Result] = result["components"]
    crashed = {name: each["crashed"] for name, each in entries.items() if "crashed" in each}
    if crashed:
        return {"verdict": "TRACEBACK", "why": "; ".join(f"{name}: {why}" for name, why in crashed.items())}
    wrong = {
        f"{name}, {pair}": found
        for name, each in entries.items()
        for pair, found in each["prompts"].items()
        if "layers" in found or not found.get("worst", 0.0) <= BOUND
    }
    if wrong:
        return {"verdict": "WRONG", "why": "; ".join(f"{name}: {blame(found)}" for name, found in wrong.items())}
    refused = {name: each["refused"] for name, each in entries.items() if "refused" in each}
    if len(refused) == len(ASKED):
        return {"verdict": "refused", "why": next(iter(refused.values()))}
    if "mixer_out" not in refused and "resid_post" not in refused:  # layers of one part have it in the place of two
        return {"verdict": "exact", "why": ""}
    if any(name in refused for name in THREE):
        return {"verdict": "partial", "why": "; ".join(f"{name}: {refused[name]}" for name in THREE if name in refused)}
    return {"verdict": "exact", "why": ""}


def blame(found: Result) -> str:
    return found.get("layers") or f"{found['worst']:.1e} at {found.get('where', '')}"
