"""A model over several devices: some layers here, some there, the rest in memory or on disk until it is called."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from causal_tracing.errors import InvalidOption, UnsupportedModel, nearest
from causal_tracing.models.place import check_device

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What accelerate is asked: a map from modules to devices ("disk" is one), or how to make it, within some sizes."""

    device_map: str | Mapping[str, Any]
    max_memory: Mapping[int | str, int | str] | None = None

    def load(self, from_pretrained: Callable[..., Any], where: str, **options: Any) -> Any:
        """What `from_pretrained` gives, spread out. What lies on disk is deleted with the network."""
        folder = tempfile.mkdtemp(prefix="causal-tracing-")
        chosen = dict(self.device_map) if isinstance(self.device_map, Mapping) else self.device_map
        sizes = None if self.max_memory is None else dict(self.max_memory)
        try:
            found = from_pretrained(where, device_map=chosen, max_memory=sizes, offload_folder=folder, **options)
        except BaseException:
            shutil.rmtree(folder)
            raise
        weakref.finalize(found[0] if isinstance(found, tuple) else found, shutil.rmtree, folder, ignore_errors=True)
        return found


def spread_of(device_map: Any, max_memory: Any, device: Any = None) -> Spread | None:
    """What was asked; None for a model on one device. Raises InvalidOption for what is no map."""
    if device_map is None:
        if max_memory is not None:
            raise InvalidOption("max_memory= says what a device_map may use of each device: give device_map= too.")
        return None
    if device is not None:
        raise InvalidOption("device= is for a model on one device, device_map= for one over several: give one of them.")
    if max_memory is not None and not isinstance(max_memory, Mapping):
        raise InvalidOption(
            f'max_memory= is sizes by device, such as {{0: "20GiB", "cpu": "60GiB"}}, not {max_memory!r}.'
        )
    if isinstance(device_map, Mapping):
        for where in device_map.values():
            if where != "disk" and not isinstance(where, int):
                check_device(str(where))
    elif device_map not in MAPS:
        raise InvalidOption(
            f"There is no device_map {device_map!r}. {nearest(str(device_map), MAPS)} Or give a mapping from modules "
            'to devices, such as {"model.layers.0": 0, "model.layers.1": "disk", ...}.'
        )
    return Spread(device_map=device_map, max_memory=max_memory)


def refuse_parted(network: Any, name: str) -> None:
    """Raises UnsupportedModel where a weight that is used twice lies on two devices: for one use it is not there."""
    places: Mapping[str, Any] = getattr(network, "hf_device_map", None) or {}
    for tied, weight in (getattr(network, "all_tied_weights_keys", None) or {}).items():
        here, there = _place(tied, places), _place(weight, places)
        if here != there:
            raise UnsupportedModel(
                f"{name} has one weight for {weight.rpartition('.')[0]} and {tied.rpartition('.')[0]}, and its "
                f"device_map puts them on {there} and {here}. Put both on one device."
            )


def _place(weight: str, places: Mapping[str, Any]) -> Any:
    """Where the map puts a weight: by the longest path that leads to it."""
    leading = [path for path in places if path == "" or f"{weight}.".startswith(f"{path}.")]
    return places[max(leading, key=len)] if leading else None
