"""The gate of readers and the writing of files: pipes and devices are not read, and links are not written through."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

from score_sde.storage import reading, writing
from score_sde.storage.reading import Refused


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def folder(path):
    path.mkdir()


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(10**12)


REFUSED = {
    pipe: "it is a pipe and not a regular file",
    endless: "it is a device and not a regular file",
    listening: "it is a socket and not a regular file",
    folder: "Is a directory",
    sparse: "it has 1,000,000,000,000 bytes, of 100 allowed",
}


@pytest.mark.parametrize("make", REFUSED)
def test_only_a_regular_file_of_a_limited_size_is_opened(tmp_path, make):
    before = set(os.listdir("/proc/self/fd"))
    make(tmp_path / "a")
    with pytest.raises(OSError, match=REFUSED[make]) as caught:
        reading.open_file(tmp_path / "a", 100)
    assert caught.value.filename == str(tmp_path / "a")
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_file_is_read_through_a_link_up_to_its_limit(tmp_path):
    (tmp_path / "a").write_text("é")
    (tmp_path / "b").symlink_to("a")
    assert reading.read_text(tmp_path / "b", 2) == "é"
    with pytest.raises(Refused, match="it has 2 bytes, of 1 allowed"):
        reading.read_bytes(tmp_path / "b", 1)


def test_a_file_has_the_permissions_of_the_user_and_leaves_no_temporary_file(tmp_path):
    writing.write_text(tmp_path / "a" / "b", "new")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_target_that_is_a_link_is_replaced_and_its_file_kept(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a").symlink_to("theirs")
    writing.write_text(tmp_path / "a", "new")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text() == "new"


def test_temporary_names_are_unpredictable(tmp_path):
    names = []

    def note(file):
        names.extend(name for name in os.listdir(tmp_path) if name.startswith(".a."))

    for _ in range(3):
        writing.replace(tmp_path / "a", note)
    assert len(set(names)) == 3


@pytest.mark.parametrize("make", [pipe, endless, lambda path: path.symlink_to("theirs")])
def test_nothing_is_appended_to_a_link_or_a_pipe(tmp_path, make):
    (tmp_path / "theirs").write_text("theirs")
    make(tmp_path / "a")
    with pytest.raises(Refused, match="it is a"):
        writing.append(tmp_path / "a", "new")
    assert (tmp_path / "theirs").read_text() == "theirs"


def fill_half(target):
    with writing.replacing_folder(target) as partial:
        writing.create(partial / "c", b"half")
        raise ZeroDivisionError


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    writing.write_text(tmp_path / "a", "old")

    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        writing.replace(tmp_path / "a", fail)
    with pytest.raises(ZeroDivisionError):
        fill_half(tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_leftovers_are_deleted_unless_their_writer_is_running(tmp_path):
    names = ("a.00000001", "b.00000002", "step_00000008", "theirs", "a.00000005")
    dead, alive, former, other, link = (tmp_path / f".{name}.partial" for name in names)
    for file in (dead, alive, other):
        file.touch()
    former.mkdir()
    link.symlink_to(other.name)
    with open(alive) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writing.write_text(tmp_path / "c", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"c", alive.name, other.name, link.name}


def test_a_file_deleted_as_a_leftover_is_created_again(tmp_path, monkeypatch):
    """Another command may delete it between its creation and its lock."""
    lock, deleted = writing._lock, []

    def lock_late(descriptor, wait=False):
        if not deleted:
            deleted.extend(tmp_path.iterdir())
            deleted[0].unlink()
        return lock(descriptor, wait)

    monkeypatch.setattr(writing, "_lock", lock_late)
    writing.write_text(tmp_path / "a", "new")
    assert len(deleted) == 1
    assert (tmp_path / "a").read_text() == "new"


def test_a_folder_deleted_before_it_is_opened_is_created_again(tmp_path, monkeypatch):
    """``mkdir`` returns no descriptor: another command may delete the folder before it is opened and locked."""
    make, swept = Path.mkdir, []

    def make_and_sweep(path, *args, **options):
        make(path, *args, **options)
        if writing.is_leftover(path) and not swept:
            swept.append(path)
            writing.sweep(tmp_path)

    monkeypatch.setattr(Path, "mkdir", make_and_sweep)
    with writing.replacing_folder(tmp_path / "f") as partial:
        assert partial.is_dir()
        assert swept
        assert partial not in swept
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_file_do_not_interfere(tmp_path):
    def nested(file):
        writing.write_text(tmp_path / "a", "inner")
        file.write(b"outer")

    writing.replace(tmp_path / "a", nested)
    assert (tmp_path / "a").read_text() == "outer"
    with writing.replacing_folder(tmp_path / "f") as outer:
        with writing.replacing_folder(tmp_path / "f") as inner:
            writing.create(inner / "x", b"")
        assert outer.is_dir()
    assert os.listdir(tmp_path) == ["a"]


ACTIONS = {
    "replace": lambda path: writing.write_text(path / "new", "x"),
    "append": lambda path: writing.append(path / "new", "x"),
    "make_folder": lambda path: writing.make_folder(path / "new"),
    "create": lambda path: writing.create(path / "new", b"x"),
    "remove": lambda path: writing.remove(path / "theirs"),
    "rename": lambda path: writing.rename(path / "theirs", path / "new"),
    "replacing_folder": lambda path: writing.replacing_folder(path / "new").__enter__(),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("linked", [True, False], ids=["linked folder", "outside"])
def test_nothing_is_written_or_deleted_outside_a_run(tmp_path, action, linked):
    theirs, run = tmp_path / "theirs", tmp_path / "run"
    theirs.mkdir()
    run.mkdir()
    (theirs / "theirs").write_text("theirs")
    (run / "checkpoints").symlink_to(theirs)
    with (
        writing.confined(run),
        pytest.raises(Refused, match="a link inside the run" if linked else "writes nowhere else"),
    ):
        ACTIONS[action](run / "checkpoints" if linked else theirs)
    assert os.listdir(theirs) == ["theirs"]


@pytest.mark.parametrize("action", ACTIONS)
def test_the_folder_of_a_run_may_be_a_link(tmp_path, action):
    (tmp_path / "disk" / "x").mkdir(parents=True)
    (tmp_path / "disk" / "x" / "theirs").touch()
    (tmp_path / "run").symlink_to("disk")
    with writing.confined(tmp_path / "run"):
        ACTIONS[action](tmp_path / "run" / "x")


def test_a_link_is_removed_without_its_file(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "a").symlink_to("theirs")
    writing.remove(tmp_path / "a")
    writing.remove(tmp_path / "a")
    assert os.listdir(tmp_path) == ["theirs"]
