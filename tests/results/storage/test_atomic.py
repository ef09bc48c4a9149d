"""Files that appear whole: who may read them is the umask's to say, or that of what was there."""

import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from causal_tracing.errors import MachineError
from causal_tracing.results.storage.atomic import write_text, write_whole
from causal_tracing.results.storage.places import check_file
from causal_tracing.results.storage.run_folder import RESULTS, Row, Store


@pytest.fixture(params=[0o077, 0o002, 0o022])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_file_has_the_mode_that_the_umask_says(umask, tmp_path):
    write_text(tmp_path / "new.json", "{}")
    assert mode(tmp_path / "new.json") == 0o666 & ~umask
    Store(tmp_path, "spec").add(0, [Row(pair="a", status="failed", reason="x")], {})
    assert mode(tmp_path / RESULTS) == 0o666 & ~umask


def test_a_file_that_was_there_keeps_its_mode(umask, tmp_path):
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "old.json").chmod(0o664)
    write_text(tmp_path / "old.json", "new")
    assert (mode(tmp_path / "old.json"), (tmp_path / "old.json").read_text()) == (0o664, "new")


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    for name in ("old.json", "new.json"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
    (tmp_path / "far" / "old.json").write_text("old")
    for name in ("old.json", "new.json"):
        write_text(tmp_path / name, "written")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "far" / name).read_text() == "written"


def test_a_device_or_a_pipe_is_left_as_it_is(tmp_path):
    """A whole file put in its place would take it away: of /dev/null, from the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for refused in (partial(write_text, pipe, "x"), partial(check_file, pipe), partial(check_file, Path("/dev/null"))):
        with pytest.raises(MachineError, match="is a device or a pipe, and not a file"):
            refused()
    assert pipe.is_fifo()


def test_what_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "old.json").write_text("old")

    def fill(scratch: Path) -> None:
        scratch.write_text("half")
        raise sqlite3.OperationalError

    with pytest.raises(sqlite3.OperationalError):
        write_whole(tmp_path / "old.json", fill)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(MachineError, match="could not be written"):
        write_text(tmp_path / "none" / "new.json", "x")
