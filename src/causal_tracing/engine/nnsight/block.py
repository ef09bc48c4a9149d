"""What runs inside a trace: edits written as rows of one batch pass their places, and numbers made of the logits.

A server has torch and nnsight, and nothing of this package: it is sent the source of these functions. So they take
plain values, and use nothing but torch.

A batch holds worlds and their donors as rows of equal length. A place is (path of a module, "input" or "output", parts,
steps, wanted): `parts` is how many heads or neurons stand side by side, `wanted` which rows' values are given back. A
step is a dict of what some rows write there, all at once, in the order in which rows depend on each other:

    rows, positions [write]       where
    part [write] or None          which part, or the whole
    donor_rows, donor_positions, weights [write, donor]    a weighted sum of what rows have there
    keep [write]                  so much of what is there already
    constant [write, size], basis [write, rank, size] or None    a tensor that is added; a subspace that is written in
"""

import torch
from torch import Tensor


def patched(model, batch, places, rows, readout, function, data):
    """The numbers that `function` makes of some rows' logits at their readouts, and the values that are wanted.

    `model` is nnsight's, run on `batch` rows; `rows` [world] and `readout` [world, position], counted from the end
    (−1 is the last).
    """
    kept = []
    for path, side, parts, steps, wanted in places:
        envoy = _envoy(model, path)
        whole = envoy.input if side == "input" else envoy.output
        first = _first(whole)
        value = first.reshape(batch, -1, first.shape[-1])
        if steps:
            # Written into by index, which a view of the model's own tensor would pass on.
            value = value.clone(memory_format=torch.contiguous_format)
            for step in steps:
                _write(value, parts, step)
            new = value.reshape(first.shape)
            if isinstance(whole, (tuple, list)):
                new = type(whole)((new, *whole[1:]))
            if side == "input":
                envoy.input = new
            else:
                envoy.output = new
        if wanted is not None:
            kept.append(value[wanted.to(value.device)].cpu())
    logits = model.output.logits
    taken = logits[rows.to(logits.device)[:, None], readout.to(logits.device) + logits.shape[1]]
    numbers = taken if function is None else function(taken, *data)
    return numbers.cpu(), kept


def picked(logits: Tensor, words: Tensor) -> Tensor:
    """Some words' logits at every readout, and what all logits add up to: [world, readout · (words + 1)]."""
    logits = logits.float()
    return torch.cat([logits[..., words.to(logits.device)], logits.logsumexp(-1, keepdim=True)], -1).flatten(1)


def sums(model, layers):
    """For each layer (path, parts, scales): how far what it adds is from its parts' sum, in shares; and the type.

    The share is of the largest number that the layer gives.
    """
    apart, dtype = [], ""
    for path, parts, scales in layers:
        layer = _envoy(model, path)
        before = _first(layer.input)
        added = [_first(_envoy(layer, part).output) for part in parts]
        after = _first(layer.output)
        for each, scale in zip(added, scales, strict=True):
            before = before + each.reshape(before.shape) * scale
        apart.append(((after - before).abs().max() / after.abs().max()).float().cpu())
        dtype = str(after.dtype)
    return torch.stack(apart), dtype


def inside(model, pairs):
    """For each (projection, module) how far what the module gives is from what its projection gives, in shares."""
    apart = []
    for projection, module in pairs:
        given, whole = (_first(_envoy(model, path).output) for path in (projection, module))
        apart.append(((whole - given.reshape(whole.shape)).abs().max() / whole.abs().max()).float().cpu())
    return torch.stack(apart)


def _first(whole):
    return whole[0] if isinstance(whole, (tuple, list)) else whole


def _envoy(model, path):
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def _write(value: Tensor, parts: int, step: dict) -> None:
    """Writes a step into the value [row, token, width]."""
    step = {name: each if each is None else each.to(value.device) for name, each in step.items()}
    shaped = value if step["part"] is None else value.view(*value.shape[:2], parts, -1)
    inner = () if step["part"] is None else (step["part"],)
    there = shaped[(step["rows"], step["positions"], *inner)]
    donors = tuple(each[:, None] for each in inner)
    read = shaped[(step["donor_rows"], step["donor_positions"], *donors)]
    weights = step["weights"].to(value.dtype)[..., None]
    # Where, because 0 · an infinite number is NaN, and rows that are not read may hold anything.
    new = torch.where(weights == 0, 0, weights * read).sum(1)
    if step["basis"] is not None:
        basis = step["basis"].to(value.dtype)
        new = (basis.transpose(1, 2) @ (basis @ (new - there)[..., None])).squeeze(-1)
    keep = step["keep"].to(value.dtype)[:, None]
    new = new + torch.where(keep == 0, 0, keep * there)
    if step["constant"] is not None:
        new = new + step["constant"].to(value.dtype)
    shaped[(step["rows"], step["positions"], *inner)] = new
