"""Where results can be written: what stands in the way is said beforehand, and nothing is left behind."""

from pathlib import Path

import pytest

from causal_tracing.errors import InvalidResults, MachineError
from causal_tracing.results.storage.places import check_file, check_room, check_run_folder, check_target, parents_of


def test_where_there_is_room_nothing_is_made(tmp_path: Path):
    check_file(tmp_path / "page.html")
    check_room(tmp_path / "a" / "b" / "c")
    assert check_target(tmp_path / "a" / "trace") == tmp_path / "a" / "trace"
    assert check_run_folder(tmp_path / "a" / "run") == tmp_path / "a" / "run"
    assert [*tmp_path.iterdir()] == []


def test_what_stands_in_the_way(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"file/x/y cannot be written: .*/file is no folder\. Choose another place"):
        check_target(tmp_path / "file" / "x" / "y")
    with pytest.raises(MachineError, match="is no folder"):
        check_run_folder(tmp_path / "file" / "x")
    with pytest.raises(InvalidResults, match=r"file exists already\. It is not a saved trace: choose another name"):
        check_target(tmp_path / "file")
    with pytest.raises(MachineError, match=r"file cannot be written"):
        check_run_folder(tmp_path / "file")
    with pytest.raises(MachineError, match="there is no folder .*none"):
        check_file(tmp_path / "none" / "page.html")
    with pytest.raises(MachineError, match="is a folder, and a file is to be written there"):
        check_file(tmp_path)
    with pytest.raises(MachineError, match="cannot be written: File name too long"):
        check_room(tmp_path / (300 * "x"))
    for check in (check_file, check_target, check_run_folder):
        with pytest.raises(MachineError, match="cannot be written: File name too long"):
            check(tmp_path / (300 * "x"))
        with pytest.raises(MachineError, match="cannot be written: embedded null"):
            check(tmp_path / "a\0b")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nobody can write")
def test_a_folder_that_refuses():
    for path in (Path("/proc/trace"), Path("/proc/a/b")):
        with pytest.raises(MachineError, match=r"cannot be written: nothing can be made in /proc \("):
            check_room(path)


def test_folders_that_were_made_for_nothing_are_taken_away(tmp_path: Path):
    def fail() -> None:
        with parents_of(tmp_path / "a" / "b" / "trace"):
            assert (tmp_path / "a" / "b").is_dir()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [*tmp_path.iterdir()] == []
    with parents_of(tmp_path / "a" / "b" / "trace"):
        (tmp_path / "a" / "b" / "trace").mkdir()
    assert (tmp_path / "a" / "b" / "trace").is_dir()
