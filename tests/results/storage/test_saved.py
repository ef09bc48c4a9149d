"""Law 42: save → open loses nothing; what is damaged, half-written or too new is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from causal_tracing import Trace, open_trace
from causal_tracing.errors import InvalidResults, MachineError
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.saved import save
from made import measurements


def example() -> Measurements:
    made = measurements([[2.0, np.nan], [1 / 3, -0.0]], [[1.0, np.inf], [3.0, 5e-324]], cut=[[1, 0], [0, 0]])
    made.numbers()["clean_token"].values[0] = ["a\0", "</script> 東\udce9\n".replace("\udce9", "é")]
    made.numbers()["answer"].values[0] = "𝕐 \0"
    return made


def test_nothing_is_lost(tmp_path: Path):
    before = example()
    after = open_trace(save(before, tmp_path / "deep" / "colosseum")).measurements
    assert after.pairs.identical(before.pairs)
    assert after.maps["blocks"].identical(before.maps["blocks"])
    for data, same in ((after.pairs, before.pairs), (after.maps["blocks"], before.maps["blocks"])):
        assert {name: data[name].dtype for name in data} == {name: same[name].dtype for name in data}
    assert np.signbit(after.maps["blocks"].restored.values[0, 0, 0, 1, 1])
    assert after.provenance == before.provenance
    assert Trace(after).summary() == Trace(before).summary()
    assert Trace(after).effects.identical(Trace(before).effects)


def test_no_pickle_is_written_or_read(tmp_path: Path):
    folder = save(example(), tmp_path / "trace")
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "pairs.jsonl", "trace.json"]
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fib" for name in arrays)


def test_a_folder_that_is_there_is_not_overwritten_unless_asked(tmp_path: Path):
    target = tmp_path / "trace"
    save(example(), target)
    with pytest.raises(InvalidResults, match=r"trace exists already. Overwrite it \(overwrite=True, --overwrite\)"):
        save(example(), target)
    changed = measurements([[9.0]], [[9.0]])
    save(changed, target, overwrite=True)
    assert open_trace(target).measurements.numbers().identical(changed.numbers())
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(InvalidResults, match="It is not a saved trace"):
        save(changed, other, overwrite=True)
    assert (other / "precious.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis", "trace"]


def test_what_lies_beside_a_trace_is_not_taken_away_with_it(tmp_path: Path):
    target = save(example(), tmp_path / "trace")
    (target / "report.html").write_text("the page")
    (target / ".hidden").write_text("of a file manager")
    save(example(), target, overwrite=True)
    (target / "notes.md").write_text("mine")
    with pytest.raises(InvalidResults, match=r"trace holds notes\.md beside the saved trace, and would go with it"):
        save(example(), target, overwrite=True)
    assert (target / "notes.md").read_text() == "mine"
    assert open_trace(target).measurements.pairs.identical(example().pairs)


def test_a_mark_that_editors_put_first_is_no_damage(tmp_path: Path):
    target = save(example(), tmp_path / "trace")
    text = (target / "trace.json").read_bytes()
    (target / "trace.json").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert open_trace(target).measurements.pairs.identical(example().pairs)


def test_a_disk_that_refuses_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = save(example(), tmp_path / "trace")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MachineError, match="could not be written: .*No space left"):
        save(measurements([[9.0]], [[9.0]]), target, overwrite=True)
    with pytest.raises(MachineError):
        save(example(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]
    assert open_trace(target).measurements.numbers().identical(example().numbers())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_trace_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    target, replace = save(example(), tmp_path / "trace"), os.replace

    def refused(source: Path, place: Path) -> None:
        """What is new gets no name; what is old may be moved."""
        if Path(source).name == "new":
            raise error
        replace(source, place)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises((MachineError, KeyboardInterrupt)):
        save(measurements([[9.0]], [[9.0]]), target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]
    assert open_trace(target).measurements.numbers().identical(example().numbers())


@pytest.mark.parametrize("name", ["trace.json", "arrays.npz"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_refused_by_name(tmp_path: Path, name: str, damage: str):
    path = save(example(), tmp_path / "trace") / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        at = content.index(b"the clean prompt") if name == "trace.json" else len(content) // 2
        content[at] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.raises(InvalidResults, match=r"damaged|cannot be read|not a saved trace"):
        open_trace(tmp_path / "trace")


def test_what_is_missing_or_too_new_is_refused(tmp_path: Path):
    with pytest.raises(InvalidResults, match="none is not there"):
        open_trace(tmp_path / "none")
    with pytest.raises(InvalidResults, match="has no trace.json"):
        open_trace(tmp_path)
    path = save(example(), tmp_path / "trace") / "trace.json"
    text = json.loads(path.read_text()) | {"schema": 99}
    path.write_text(json.dumps(text))
    with pytest.raises(InvalidResults, match="written by a newer version .schema 99; this one reads 2"):
        open_trace(tmp_path / "trace")


@pytest.mark.parametrize("text", ['{"schema": "two"}', '{"schema": null}', "[]", "null", "", 100_000 * "[", "\xff"])
def test_what_is_no_record_is_damage(tmp_path: Path, text: str):
    path = save(example(), tmp_path / "trace") / "trace.json"
    whole = json.loads(path.read_text())
    changed = json.dumps(whole | json.loads(text)) if text.startswith("{") else text
    path.write_bytes(changed.encode("latin-1"))
    with pytest.raises(InvalidResults, match=r"trace\.json is damaged"):
        open_trace(tmp_path / "trace")


@pytest.mark.parametrize("folder", ["a\0b", 300 * "x"])
def test_what_can_be_no_folder_is_no_saved_trace(folder: str):
    with pytest.raises(InvalidResults, match="is not there"):
        open_trace(folder)
