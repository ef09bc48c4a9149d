"""The sweep as other tools do it: `resid_post` of the clean run restored at every (layer, position) of the corrupt run.

`PEERS[name](network, tokenizer)` sets a peer up, which is not to be timed, and returns its sweep, which is: a function
of a task that records the clean run, runs one patch a cell, and returns the logit difference, answer minus foil, at the
last position as a float64 array of [layers, positions]. Given a list of cells it runs those only and leaves nan in the
others. Peers that change the modules they are given work on a twin of the network, which has modules of its own and
shares the weights. All of them take networks whose decoder layers are `model.layers` and put out a tensor.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

Cell = tuple[int, int]

INVOKES = 10
BATCH = 32


@dataclass(frozen=True, slots=True)
class Task:
    """A clean and a corrupt prompt of one length, in tokens, and the two tokens whose logits are compared."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answer: int
    foil: int

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupt):
            raise ValueError(
                f"Prompts of {len(self.clean)} and {len(self.corrupt)} tokens: they must be of one length."
            )


class Sweep(Protocol):
    """What a peer does with a task: the table of [layers, positions], or these cells of it."""

    def __call__(self, task: Task, cells: Sequence[Cell] | None = None) -> np.ndarray: ...


Run = Callable[[Task, Sequence[Cell]], Sequence[float]]


# What the peers share


def all_cells(layers: int, task: Task) -> list[Cell]:
    """Every (layer, position), layer by layer."""
    return list(product(range(layers), range(len(task.corrupt))))


def agreement(results: Mapping[str, np.ndarray]) -> float:
    """The largest difference between any two results, over the cells that both of them ran."""
    return max((_difference(first, second) for first, second in combinations(results.values(), 2)), default=0.0)


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    both = ~np.isnan(first) & ~np.isnan(second)
    if not both.any():
        raise ValueError("Two results have no cell in common.")
    return float(np.abs(first - second)[both].max())


def _sweep(run: Run, layers: int) -> Sweep:
    """The sweep of a peer that knows how to run a list of cells."""

    @torch.no_grad()
    def sweep(task: Task, cells: Sequence[Cell] | None = None) -> np.ndarray:
        cells = all_cells(layers, task) if cells is None else list(cells)
        values = np.asarray(run(task, cells), dtype=np.float64)
        if values.shape != (len(cells),) or not np.isfinite(values).all():
            raise ValueError(f"{len(cells)} cells gave {values}.")
        table = np.full((layers, len(task.corrupt)), np.nan)
        table[tuple(np.transpose(cells))] = values
        return table

    return sweep


def _chunks(cells: Sequence[Cell], size: int) -> Iterator[Sequence[Cell]]:
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _ids(tokens: Sequence[int], network: nn.Module) -> torch.Tensor:
    return torch.tensor([tokens], device=next(network.parameters()).device)


def _contrast(logits: torch.Tensor, task: Task) -> float:
    """Answer minus foil at the last position of logits of [1, positions, vocabulary]."""
    return (logits[0, -1, task.answer] - logits[0, -1, task.foil]).item()


def _twin(network: nn.Module) -> Any:
    """The network with modules of its own and the same weights."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


# nnsight


def nnsight_loop(network: Any, tokenizer: Any) -> Sweep:
    """The loop of the recipe page: one trace a patch."""
    model = _traceable(network, tokenizer)

    def run(task: Task, cells: Sequence[Cell]) -> list[float]:
        source_hiddens = _source_hiddens(model, task)
        base_prompt = _ids(task.corrupt, model._module)
        values = []
        for layer_idx, pos_idx in cells:
            with model.trace(base_prompt):
                model.model.layers[layer_idx].output[:, pos_idx, :] = source_hiddens[layer_idx][:, pos_idx, :]
                patched_logits = model.lm_head.output.save()
            values.append(_contrast(patched_logits, task))
        return values

    return _sweep(run, len(network.model.layers))


def nnsight_invokes(network: Any, tokenizer: Any) -> Sweep:
    """Ten patches a trace, each in an invoke of its own."""
    model = _traceable(network, tokenizer)

    def run(task: Task, cells: Sequence[Cell]) -> list[float]:
        source_hiddens = _source_hiddens(model, task)
        base_prompt = _ids(task.corrupt, model._module)
        values = []
        for chunk in _chunks(cells, INVOKES):
            patched_logits = []
            with model.trace() as tracer:
                for layer_idx, pos_idx in chunk:
                    with tracer.invoke(base_prompt):
                        model.model.layers[layer_idx].output[:, pos_idx, :] = source_hiddens[layer_idx][:, pos_idx, :]
                        patched_logits.append(model.lm_head.output.save())
            values += [_contrast(logits, task) for logits in patched_logits]
        return values

    return _sweep(run, len(network.model.layers))


def _traceable(network: Any, tokenizer: Any) -> Any:
    from nnsight.modeling.transformers import TransformersModel

    # nnsight wraps the `forward` of every module for good, and sets the tokenizer to pad on the left.
    return TransformersModel(_twin(network), task="text-generation", tokenizer=copy.deepcopy(tokenizer))


def _source_hiddens(model: Any, task: Task) -> Sequence[torch.Tensor]:
    import nnsight

    with model.trace(_ids(task.clean, model._module)):
        source_hiddens = nnsight.save([layer.output for layer in model.model.layers])
    return source_hiddens  # noqa: RET504 (a trace's body cannot return)


# TransformerLens


def transformer_lens(network: Any, tokenizer: Any) -> Sweep:
    """TransformerLens' own `generic_activation_patch` over a bridge to the network, as it comes."""
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter

    model = TransformerBridge.boot_transformers(
        network.config._name_or_path, hf_model=_twin(network), tokenizer=copy.deepcopy(tokenizer)
    )

    def run(task: Task, cells: Sequence[Cell]) -> list[float]:
        _, clean_cache = model.run_with_cache(_ids(task.clean, network))
        patched = generic_activation_patch(
            model,
            _ids(task.corrupt, network),
            clean_cache,
            lambda logits: logits[0, -1, task.answer] - logits[0, -1, task.foil],
            patch_setter=layer_pos_patch_setter,
            activation_name="resid_post",
            index_df=pd.DataFrame(cells, columns=["layer", "pos"]),
        )
        return patched.tolist()

    return _sweep(run, len(network.model.layers))


# Bare hooks


def bare_hooks(network: Any, tokenizer: Any) -> Sweep:
    """A forward hook that writes, and one forward a patch."""
    layers = network.model.layers

    def run(task: Task, cells: Sequence[Cell]) -> list[float]:
        clean = _record(network, layers, task)
        ids = _ids(task.corrupt, network)
        values = []
        for layer, position in cells:
            with _hooks({layers[layer]: partial(_write, position=position, donor=clean[layer])}):
                values.append(_contrast(network(ids).logits, task))
        return values

    return _sweep(run, len(layers))


def bare_hooks_batched(network: Any, tokenizer: Any) -> Sweep:
    """Forward hooks that write each to rows of its own: 32 patches a forward, logits of the last position only."""
    layers = network.model.layers

    def run(task: Task, cells: Sequence[Cell]) -> list[float]:
        clean = _record(network, layers, task)
        ids = _ids(task.corrupt, network)
        values: list[float] = []
        for chunk in _chunks(cells, BATCH):
            with _hooks(_row_writes(chunk, layers, clean)):
                logits = network(ids.expand(len(chunk), -1), use_cache=False, logits_to_keep=1).logits[:, -1]
            values += (logits[:, task.answer] - logits[:, task.foil]).tolist()
        return values

    return _sweep(run, len(layers))


def _record(network: Any, layers: nn.ModuleList, task: Task) -> list[torch.Tensor]:
    """What every layer put out in the clean run."""
    outputs: list[torch.Tensor] = []
    with _hooks(dict.fromkeys(layers, lambda module, args, output: outputs.append(output))):
        network(_ids(task.clean, network))
    return outputs


def _row_writes(cells: Sequence[Cell], layers: nn.ModuleList, clean: list[torch.Tensor]) -> dict[nn.Module, Callable]:
    """For every layer of these cells the hook that writes to their rows."""
    rows: dict[int, list[int]] = {}
    for row, (layer, _) in enumerate(cells):
        rows.setdefault(layer, []).append(row)
    return {
        layers[layer]: partial(_write_rows, rows=mine, positions=[cells[row][1] for row in mine], donor=clean[layer])
        for layer, mine in rows.items()
    }


def _write(module: nn.Module, args: Any, output: torch.Tensor, *, position: int, donor: torch.Tensor) -> torch.Tensor:
    output = output.clone()
    output[:, position] = donor[:, position]
    return output


def _write_rows(
    module: nn.Module, args: Any, output: torch.Tensor, *, rows: list[int], positions: list[int], donor: torch.Tensor
) -> torch.Tensor:
    output = output.clone()
    output[rows, positions] = donor[0, positions]
    return output


@contextmanager
def _hooks(hooks: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Forward hooks for as long as the context lasts."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


PEERS: dict[str, Callable[[Any, Any], Sweep]] = {
    "nnsight_loop": nnsight_loop,
    "nnsight_invokes": nnsight_invokes,
    "transformer_lens": transformer_lens,
    "bare_hooks": bare_hooks,
    "bare_hooks_batched": bare_hooks_batched,
}
