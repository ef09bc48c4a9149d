"""The kinds of device that a result was computed on, as its record holds them. None are known of what 0.1.0 wrote."""

from collections.abc import Iterable, Mapping
from typing import Any


def together(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each kind once, of several parts."""
    found: list[dict[str, Any]] = []
    for device in (device for record in records for device in record.get("devices", ())):
        if device not in found:
            found.append(device)
    return sorted(found, key=lambda device: (device["name"], device["short_products"]))
