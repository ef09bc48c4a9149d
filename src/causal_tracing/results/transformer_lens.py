"""TransformerLens' patching results as labelled arrays, with the axes that a trace has. Nothing of theirs is imported.

1. What a result has is read by its names: values [metric?, axes or rows, example?], baseline [metric?, example?].
2. Its axes get the names that a trace's have; rows of an index become axes.
3. Restoration is the patched run's metric minus the corrupt run's (the baseline).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from causal_tracing.errors import InvalidOption

NAMES = {"pos": "position", "head_index": "head", "patch_type": "component"}  # the rest are called the same
NEEDED = ("values", "axis_names", "index_df", "metric_names", "reduced", "baseline", "has_metric_axis")
ROW = "row"
PADDED = ("k", "v")  # of fewer heads than the others, where they are shared: their rest is filled with zeros


def from_transformer_lens(result: Any, *, tokens: Sequence[str] | None = None, clean: Any = None) -> xr.Dataset:
    """`restoration` of a TransformerLens PatchingResult, as `trace.effects` has it: in its metric's own unit.

    The axes are those of the sweep: metric, pair, component (of the `_every` helpers), layer, head, position; where the
    examples were averaged there is one pair. `restored` and `corrupt` are the patched and the corrupt run's metric.

    result: what `generic_activation_patch` and its kin return with baseline=True (TransformerLens 4).
    tokens: the prompt's tokens as texts, a label of the positions.
    clean: the same metric of the clean run, shaped as the baseline; adds `total_effect` and `restored_fraction` (NaN
        where the two runs do not differ).

    Raises InvalidOption for what is no such result, or has no baseline.

    Example:
        result = get_act_patch_attn_out(model, corrupted_tokens, cache, metric, reduce="none", baseline=True)
        ct.from_transformer_lens(result).restoration.sel(layer=9)
    """
    _check(result)
    outer = ["metric"] if result.has_metric_axis else []
    inner = [] if result.reduced else ["pair"]
    axes = [NAMES.get(str(name), str(name)) for name in result.axis_names] or [ROW]
    restored = _array(result.values, [*outer, *axes, *inner], "values")
    if axes == [ROW]:
        index = pd.MultiIndex.from_frame(result.index_df.rename(columns=NAMES))
        restored = restored.assign_coords(xr.Coordinates.from_pandas_multiindex(index, ROW)).unstack(ROW)
    restored = _labelled(restored, result)
    found = xr.Dataset({"restored": restored, "corrupt": _array(result.baseline, [*outer, *inner], "baseline")})
    if clean is not None:
        found["clean"] = _array(clean, [*outer, *inner], "clean=")
    found = found.expand_dims([name for name in ("metric", "pair") if name not in found.dims])
    found = found.assign_coords(
        metric=list(result.metric_names), pair=[f"pair-{n}" for n in range(found.sizes["pair"])]
    )
    found["restoration"] = found.restored - found.corrupt
    if clean is not None:
        found["total_effect"] = found.clean - found.corrupt
        found["restored_fraction"] = found.restoration / found.total_effect.where(found.total_effect != 0)
    if tokens is not None:
        found = found.assign_coords(clean_token=("position", _tokens(tokens, found)))
    order = ("metric", "pair", "component", "layer", "head", "position")
    return found.transpose(*(name for name in order if name in found.dims), ...)


def _check(result: Any) -> None:
    """Raises InvalidOption for what lacks a part of a PatchingResult, or its baseline."""
    missing = [name for name in NEEDED if not hasattr(result, name)]
    if missing:
        raise InvalidOption(
            f"This is {type(result).__name__}, which has no {', '.join(missing)}. A PatchingResult is needed: run the "
            'sweep of TransformerLens 4 with baseline=True and reduce="none".'
        )
    if result.baseline is None:
        raise InvalidOption(
            "This result has no baseline, so that no effect is known. Run the sweep with baseline=True."
        )


def _labelled(restored: xr.DataArray, result: Any) -> xr.DataArray:
    """With numbers along the axes, and what was patched by its name; heads that are not there are NaN."""
    plain = {name: range(size) for name, size in restored.sizes.items() if name not in ("metric", "pair")}
    restored = restored.assign_coords({name: each for name, each in plain.items() if name not in restored.coords})
    if not result.patch_type_names:
        return restored
    restored = restored.assign_coords(component=list(result.patch_type_names))
    if "head" not in restored.dims:
        return restored
    filled = (restored == 0).all([name for name in restored.dims if name not in ("component", "head")])
    return restored.where(~(filled & restored.component.isin(PADDED)))


def _array(values: Any, dims: list[str], called: str) -> xr.DataArray:
    """A tensor of any library with names for its axes. Raises InvalidOption where it has other axes."""
    on_cpu = values.detach().cpu().float() if hasattr(values, "detach") else values
    found = np.asarray(on_cpu, dtype=float)
    if found.ndim != len(dims):
        raise InvalidOption(
            f"{called} has the shape {found.shape}, and its axes should be {dims or 'none (one number)'}. Give it as "
            "the sweep made it."
        )
    return xr.DataArray(found, dims=dims)


def _tokens(tokens: Sequence[str], found: xr.Dataset) -> list[str]:
    """The tokens' texts, one a position. Raises InvalidOption."""
    count = found.sizes.get("position", 0)
    if isinstance(tokens, str) or len(tokens) != count:
        raise InvalidOption(f"tokens= must be {count} texts, one for each position of the sweep; it is {tokens!r:.80}.")
    return [str(token) for token in tokens]
