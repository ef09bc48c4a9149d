"""Maps of paths made by hand: what each sender's path to each receiver brings back, in each of some pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.results.columns import labelled
from causal_tracing.results.measurements import Measurements
from made import measurements

CLEAN, CORRUPT = 11.0, 1.0  # a total effect of 10
EVERY = "every path"
SENDERS = {"z 1.0 @ last": 1, "z 1.1 @ last": 1, "mlp_out 2 @ last": 2}
RECEIVERS = {"q 2.0": 2, "k 2.0": 2, "mlp_out 1": 1, "mlp_out 2": 2, "logits": -1, EVERY: -1}
# Restoration by sender and receiver; the second sender is hidden, and q 2.0 and mlp_out 2 are against it.
TABLE = [
    [0.5, -0.25, 0.125, 1.5, 3.0, 5.0],
    [-1.0, 0.0625, 0.03125, -0.375, 2.0, 0.75],
    [0.0, 0.0, 0.0, 0.0, -1.25, -1.5],
]
ZEROS = [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]


def followed(
    *tables: Any,
    senders: Mapping[str, int] = SENDERS,
    receivers: Mapping[str, int] = RECEIVERS,
    zeros: Any = ZEROS,
    lost: Any = None,
    provenance: Mapping[str, Any] | None = None,
) -> Measurements:
    """A pair for each table [sender, receiver]; disruption is half of restoration unless `lost` says what it is."""
    made = measurements(np.zeros((1, 3)), np.zeros((1, 3)), clean=CLEAN, corrupt=CORRUPT)
    ids, metrics = [f"p{n}" for n in range(len(tables))], made.pairs.metric.values
    back = np.array(tables, float)
    away = back / 2 if lost is None else np.broadcast_to(np.array(lost, float), back.shape)
    axes = ("pair", "component", "sender", "receiver")

    def by_metric(values: np.ndarray) -> Any:
        whole = np.broadcast_to(values[None, :, None], (len(metrics), len(tables), 1, *values.shape[1:]))
        return ("metric", *axes), whole.copy()

    flags = np.broadcast_to(np.array(zeros, bool), back.shape)[:, None]
    data = {"restored": by_metric(CORRUPT + back), "disrupted": by_metric(CLEAN - away)}
    data |= {"structural_zero": (axes, flags.copy())}
    data |= {name: (axes, np.zeros_like(flags)) for name in ("cut", "unpaired")}
    labels: dict[str, Any] = {
        "metric": metrics,
        "pair": ids,
        "component": labelled(["path"]),
        "sender": labelled([*senders]),
        "sender_layer": ("sender", [*senders.values()]),
        "receiver": labelled([*receivers]),
        "receiver_layer": ("receiver", [*receivers.values()]),
    }
    whole = made.pairs.drop_vars("pair").isel(pair=[0] * len(tables)).assign_coords(pair=ids)
    record = {**made.provenance, "pairs": [{"id": id} for id in ids], **(provenance or {})}
    return Measurements(pairs=whole, maps={"paths": xr.Dataset(data, labels)}, provenance=record)
