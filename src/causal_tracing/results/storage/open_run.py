"""What a run folder holds, as Measurements: its rows in the order of the file, and what is known of the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidResults, some_of
from causal_tracing.results import devices
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS
from causal_tracing.results.spot_checks import together
from causal_tracing.results.storage.join import joined
from causal_tracing.results.storage.run_folder import DROPPED, FAILED, OK, Row, Store, read_manifest
from causal_tracing.results.storage.saved import from_parts


def open_run(folder: str | Path) -> Measurements:
    """All pairs that are done. Raises InvalidResults where there is none, or something is damaged."""
    manifest = read_manifest(folder)
    store = Store(Path(folder), manifest["spec_sha256"])
    rows, chunks = store.rows(), store.chunks()
    ids = [pair["id"] for pair in manifest["pairs"]]
    strange = sorted({*rows} - {*ids})
    if strange:
        raise InvalidResults(f"{store.path} has rows of pairs that are not in the manifest: {some_of(strange)}.")
    done = [rows[id] for id in ids if id in rows and rows[id].status == OK]
    if not done:
        reasons = [row.reason for row in rows.values() if row.reason]
        if len(rows) == len(ids):
            raise InvalidResults(f"None of the {len(ids)} pairs of {folder} was measured. The first: {reasons[0]}")
        why = f" The first pair that failed: {reasons[0]}" if reasons else ""
        raise InvalidResults(f"{folder} holds no measured pair yet.{why} Run the same command again to go on.")
    records = [record for chunk in sorted(chunks) for record in _records(chunks[chunk])]
    provenance = _provenance(manifest, done, rows, records)
    found = joined([_measurements(row, provenance) for row in done], provenance)
    # Only of a run that is done: until then a longer pair may still come.
    left_out = len(rows) == len(ids) and any(row.status == DROPPED for row in rows.values())
    return _reached(found, manifest["spec"]["options"]) if left_out else found


def _records(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What is recorded of a chunk, and of those of its pairs that were measured again."""
    if "started" in record:
        yield record
    yield from record.get("again", ())


def _reached(found: Measurements, options: Mapping[str, Any]) -> Measurements:
    """Without the positions that only pairs have which were left out: each token of every pair was asked for."""
    longest, maps = int(found.pairs.clean_length.max()), dict(found.maps)
    for kind in found.kinds:
        if options.get(KINDS[kind].columns) == "each":
            maps[kind] = maps[kind].isel(position=slice(longest))
    tokens = max(longest, int(found.pairs.corrupt_length.max()))
    lens = None if found.lens is None else found.lens.isel(token=slice(tokens))
    return replace(found, pairs=found.pairs.isel(token=slice(tokens)), maps=maps, lens=lens)


def _measurements(row: Row, provenance: Mapping[str, Any]) -> Measurements:
    assert row.texts is not None
    assert row.arrays is not None
    return from_parts(row.texts["tables"], row.arrays, provenance)


def _provenance(
    manifest: Mapping[str, Any], done: Sequence[Row], rows: Mapping[str, Row], chunks: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest's, with what was recorded of each chunk added up, and every pair accounted for."""
    by_id = {pair["id"]: pair for pair in manifest["pairs"]}
    left_out = {
        status: {row.pair: row.reason for row in rows.values() if row.status == status} for status in (FAILED, DROPPED)
    }
    return manifest["provenance"] | {
        "noise": _noise(manifest["provenance"]["noise"], done),
        "pairs": [by_id[row.pair] for row in done],
        "pairs_asked": len(by_id),
        "pairs_missing": len(by_id) - len(rows),
        "shard": manifest["shard"],
        "keep": manifest["spec"]["keep"],
        **left_out,
        "started": min((chunk["started"] for chunk in chunks), default=None),
        **{name: sum(chunk[name] for chunk in chunks) for name in ("seconds", "worlds", "worlds_skipped")},
        "spot_checks": together([chunk["spot_checks"] for chunk in chunks]),
        **({"devices": known} if (known := devices.together(chunks)) else {}),
    }


def _noise(noise: Mapping[str, Any] | None, done: Sequence[Row]) -> dict[str, Any] | None:
    """What is recorded of noise, with each pair's own."""
    if noise is None:
        return None
    drawn = [row.texts["noise"] for row in done if row.texts is not None]
    return dict(noise) | {name: [each[name] for each in drawn] for name in drawn[0]}
