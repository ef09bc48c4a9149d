"""The logit lens of a trace: what was read of the stream behind each layer, pair by pair and over pairs.

`Measurements.lens` holds over (pair, run, layer, token), for the word that comes after each token:

    top, top_id, top_prob       the first choice; "" and −1 of several draws, and behind a prompt's end
    answer_logit, foil_logit    logits; of a set, the logarithm of the sum of exp(logit)
    answer_prob, foil_prob      probabilities; of a set their sum
    answer_rank, foil_rank      how many tokens have a larger logit than the likeliest of it: 0 is the first choice

A run is "clean" or "corrupt", with its own tokens (of noise, the mean over draws); layer −1 is what goes into the first
one. Of a text of several tokens the first one is read. It is a readout, and no effect: nothing is patched.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from causal_tracing.errors import InvalidOption
from causal_tracing.prompts.tokens import ROLES, Column
from causal_tracing.results.columns import labelled
from causal_tracing.results.means import LEVEL, RESAMPLES, NoMean, clusters_of
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.once import once
from causal_tracing.results.statistics.bootstrap import cluster_codes, cluster_means, mean_interval

LENS, EMBEDDING, RUNS = "lens", -1, ("clean", "corrupt")
AVERAGED = ("logit_diff", "answer_prob")
TEXTS = ("pair", "run", "role", "text", "top")  # of the table's columns


def lens_of(measurements: Measurements) -> xr.Dataset:
    """All that was read, with `logit_diff` (answer minus foil, logits) and each run's tokens (`text`) and roles.

    NaN where there is no foil, and behind a prompt's end. Raises InvalidOption where nothing was read.
    """
    lens = measurements.lens
    if lens is None:
        raise InvalidOption("This trace has no logit lens. Read it with trace(..., lens=True).")
    axes, found = ("pair", "run", "token"), {"logit_diff": lens.answer_logit - lens.foil_logit}
    for name, source in (("text", "token"), ("role", "role")):
        each = [measurements.pairs[f"{run}_{source}"].transpose("pair", "token").values for run in RUNS]
        found[name] = xr.DataArray(np.stack(each, 1), dims=axes)
    return lens.assign(found)


def lens_table(measurements: Measurements) -> pd.DataFrame:
    """A row for each pair, run, layer and token of its prompt, with all that was read. Raises InvalidOption.

    Columns of text are categories. The units of the others: `answer_logit`, `foil_logit`, `logit_diff` in logits.
    """
    found = lens_of(measurements)
    there = found.role.copy(data=np.zeros(found.role.shape, bool))
    for n, run in enumerate(RUNS):
        length = measurements.pairs[f"{run}_length"].values
        there[:, n] = np.arange(found.sizes["token"]) < length[:, None]
    order = ["pair", "run", "layer", "token"]
    rows = np.broadcast_to(there.values[:, :, None], [found.sizes[name] for name in order]).reshape(-1)
    names = ["role", "text", *(name for name in found.data_vars if name not in ("role", "text"))]
    columns = {name: xr.broadcast(found[name], found.top)[0].transpose(*order).values.reshape(-1) for name in names}
    labels = np.meshgrid(found.pair, found.run, found.layer, range(found.sizes["token"]), indexing="ij")
    named = dict(zip(("pair", "run", "layer", "position"), (each.reshape(-1) for each in labels), strict=True))
    table = pd.DataFrame({name: each[rows] for name, each in (named | columns).items()})
    return table.astype(dict.fromkeys(TEXTS, "category"))


def layer_from(layers: Sequence[int], holds: Sequence[bool]) -> int | None:
    """The first layer from which on something holds behind every layer; None where it does not behind the last."""
    found = None
    for layer, each in zip(reversed(layers), reversed(holds), strict=True):
        if not each:
            break
        found = layer
    return found


def at_the_end(measurements: Measurements, pair: str) -> xr.Dataset:
    """One pair's lens at the token that is read, each run's last one, over (run, layer). Raises InvalidOption."""
    found, lengths = lens_of(measurements).sel(pair=pair), measurements.pairs.sel(pair=pair)
    last = [found.sel(run=run).isel(token=int(lengths[f"{run}_length"]) - 1) for run in RUNS]
    return xr.concat(last, "run")


def mean_at_the_end(measurements: Measurements) -> xr.Dataset:
    """The means over pairs there, over (run, layer). Raises as `mean_lens`."""
    means = mean_lens(measurements)
    lengths = [int(measurements.pairs[f"{run}_length"].values[0]) for run in RUNS]
    # Where columns are tokens, all pairs are as long as the first.
    ends = ["last" if "last" in means.position.values else length - 1 for length in lengths]
    last = [means.sel(run=run, position=end) for run, end in zip(RUNS, ends, strict=True)]
    return xr.concat([each.drop_vars("position") for each in last], "run")


@once
def mean_lens(measurements: Measurements, *, seed: int = 0) -> xr.Dataset:
    """Means over pairs of `logit_diff` (logits) and `answer_prob`, with 95 % intervals, over (run, layer, position).

    Positions are tokens where all pairs have the same roles in the same places, else roles (each pair's tokens of a
    role averaged); without subjects only the last token means the same in each pair. Pairs of one cluster count once;
    with fewer than 8 clusters there is no interval. `clusters` says how many have the cell.
    Raises InvalidOption, NoMean (one pair; infinite numbers).
    """
    found = lens_of(measurements)
    if found.sizes["pair"] < 2:
        raise NoMean("One pair has no mean over pairs: ask for its own numbers.")
    codes = cluster_codes(clusters_of(measurements, found.pair.values))
    columns, at = _columns(found.role.values)
    dims, cells = ("run", "layer", "position"), {}
    for name in AVERAGED:
        values = _by_column(found[name].transpose("pair", "run", "layer", "token").values.astype(float), at)
        if np.isinf(values).any():
            raise NoMean(f"{name} of the lens is infinite somewhere.")
        by_cluster = cluster_means(values, codes)
        interval = mean_interval(by_cluster, level=LEVEL, resamples=RESAMPLES, seed=seed)
        cells |= {name: (dims, interval.estimate)}
        cells |= {f"{name}_low": (dims, interval.low), f"{name}_high": (dims, interval.high)}
        cells["clusters"] = (dims, (~np.isnan(by_cluster)).sum(0))
    return xr.Dataset(cells, {"run": found.run, "layer": found.layer, "position": labelled(columns)})


def _columns(roles: np.ndarray) -> tuple[list[Column], list[np.ndarray]]:
    """What means the same in each pair, and where it is in each pair and run: [pair, run, token] a column."""
    if (roles == roles[:1]).all():
        places = np.arange(roles.shape[-1])
        return places.tolist(), [np.broadcast_to(places == place, roles.shape) for place in places]
    present = [role for role in ROLES if (roles == role).any()]
    return [*present], [roles == role for role in present]


def _by_column(values: np.ndarray, at: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers [pair, run, layer, token] as [pair, run, layer, column]: the mean over the column's tokens."""
    found = np.full((*values.shape[:-1], len(at)), np.nan)
    for n, mask in enumerate(at):
        here = mask[:, :, None] & ~np.isnan(values)
        counts = here.sum(-1)
        sums = np.where(here, values, 0.0).sum(-1)
        np.divide(sums, counts, out=found[..., n], where=counts > 0)
    return found
