import errno
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from al_lightning.comparison.command import main as compare
from al_lightning.files import replacing, write_atomically
from al_lightning.journal import Journal, Round
from al_lightning.report import read_runs, write_report
from al_lightning.resuming import save_last_states, save_states
from al_lightning.tracking.thumbnails import write_thumbnail

PRECIOUS = b"of the user, who never named it\n"


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "precious"
    path.write_bytes(PRECIOUS)
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.mark.parametrize(("content", "data"), [("é\r\n\n", b"\xc3\xa9\r\n\n"), (b"\x00\xff\r\n", b"\x00\xff\r\n")])
def test_text_is_written_as_utf_8_and_bytes_as_they_are(folder, content, data):
    write_atomically(folder / "file", content)
    assert (folder / "file").read_bytes() == data
    assert os.listdir(folder) == ["file"]


@pytest.mark.parametrize("lay", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", ["file", ".file.partial"])
def test_what_a_link_in_the_place_of_a_file_or_its_temporary_points_to_is_left_alone(folder, precious, lay, name):
    lay(precious, folder / name)
    write_atomically(folder / "file", "new")
    assert precious.read_bytes() == PRECIOUS
    assert (folder / "file").read_text() == "new"
    assert not (folder / "file").is_symlink()
    assert os.listdir(folder) == ["file"]


def test_a_link_to_nothing_makes_nothing(folder, tmp_path):
    (folder / ".file.partial").symlink_to(tmp_path / "authorized_keys")
    write_atomically(folder / "file", "new")
    assert not (tmp_path / "authorized_keys").exists()


def test_a_pipe_in_the_place_of_the_temporary_does_not_block(folder):
    os.mkfifo(folder / ".file.partial")
    write_atomically(folder / "file", "new")
    assert (folder / "file").read_text() == "new"


def test_a_link_laid_after_the_old_temporary_is_removed_is_refused(folder, precious, monkeypatch):
    """Another process may be faster than ours."""
    unlink, calls = os.unlink, []

    def lay_again(path, *arguments, **keywords):
        calls.append(path)
        if len(calls) == 1:
            os.symlink(precious, folder / ".file.partial")
        else:
            unlink(path, *arguments, **keywords)

    monkeypatch.setattr("os.unlink", lay_again)
    with pytest.raises(FileExistsError, match=r"\.file\.partial"):
        write_atomically(folder / "file", "new")
    assert precious.read_bytes() == PRECIOUS


@pytest.mark.parametrize("has_third", [False, True])
def test_of_two_that_write_a_file_at_once_one_is_refused_and_the_file_is_whole(folder, has_third):
    def together():
        with replacing(folder / "file") as first:
            first.write(b"first, but")
            write_atomically(folder / "file", "second")
            if has_third:
                (folder / ".file.partial").write_text("of one that has just begun")

    with pytest.raises(FileExistsError, match=r"Another process writes .*file at the same time\. Let one of them end"):
        together()
    assert (folder / "file").read_text() == "second"


@pytest.mark.parametrize("name", ["file", ".file.partial"])
def test_a_folder_in_the_way_is_named(folder, name):
    (folder / name).mkdir()
    with pytest.raises(OSError, match=r"file"):
        write_atomically(folder / "file", "new")
    assert os.listdir(folder) == [name]


def test_a_folder_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    write_atomically(tmp_path / "link" / "file", "new")
    assert (folder / "file").read_text() == "new"


def test_the_mode_is_what_the_umask_says(folder):
    before = os.umask(0o027)
    try:
        write_atomically(folder / "file", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o640


def test_a_write_that_fails_leaves_the_old_file_and_no_other(folder, monkeypatch):
    write_atomically(folder / "file", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(folder / "file", "new and longer")
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(folder / "file", "new and longer")
    assert (folder / "file").read_text() == "old"
    assert os.listdir(folder) == ["file"]


def test_what_a_killed_process_has_left_is_in_nobodys_way(folder):
    script = f"""
import os, signal
from pathlib import Path
from al_lightning.files import replacing
with replacing(Path({str(folder)!r}) / "file") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    write_atomically(folder / "file", "old")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert sorted(os.listdir(folder)) == [".file.partial", "file"]
    assert (folder / "file").read_text() == "old"
    write_atomically(folder / "file", "new")
    assert (folder / "file").read_text() == "new"
    assert os.listdir(folder) == ["file"]


def test_file_and_folder_are_flushed_and_the_file_first(folder, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(stat.S_IFMT(os.fstat(descriptor).st_mode)))
    write_atomically(folder / "file", "new")
    assert flushed == [stat.S_IFREG, stat.S_IFDIR]


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_filesystem_that_cannot_flush_folders_is_no_error_and_a_broken_one_is(
    folder, monkeypatch, number, is_refused
):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "of the folder")

    monkeypatch.setattr("os.fsync", fsync)
    if is_refused:
        with pytest.raises(OSError, match="of the folder"):
            write_atomically(folder / "file", "new")
    else:
        write_atomically(folder / "file", "new")
    assert (folder / "file").read_text() == "new"


def write_report_of(folder):
    source = folder.parent / "source"
    Journal(source, HEADER, rounds=ROUNDS)
    write_report(read_runs([source]), folder)


def compare_into(folder):
    for name in ("A", "B"):
        Journal(folder.parent / name, {**HEADER, "acquisition": f"{name}()"}, rounds=ROUNDS)
    assert (
        compare([str(folder.parent / "A"), str(folder.parent / "B"), "--output", str(folder / "comparison.csv")]) == 0
    )


HEADER = {
    "acquisition": "BALD()",
    "datamodule": "Data",
    "initial": [0],
    "model": "Net",
    "num_points": 4,
    "posterior": "MCDropout()",
    "query_size": 1,
    "seed": 0,
}
ROUNDS = [
    Round(number, 1 + number, 3 - number, acquired=[1 + number], scores=[0.5], targets=[0], metrics={"test_acc": 0.5})
    for number in range(2)
]
WRITERS = {
    "rounds.jsonl": lambda folder: Journal(folder, HEADER, rounds=ROUNDS),
    "rounds.csv": lambda folder: Journal(folder, HEADER, rounds=ROUNDS),
    "acquisitions.csv": lambda folder: Journal(folder, HEADER, rounds=ROUNDS),
    "first_weights.pt": lambda folder: save_states(folder / "first_weights.pt", [{"w": torch.zeros(3)}]),
    "last_weights.pt": lambda folder: save_last_states(folder / "last_weights.pt", [{"w": torch.zeros(3)}]),
    "acquired/7.png": lambda folder: write_thumbnail(folder, 7, np.zeros((4, 4), np.uint8)),
    "report.html": write_report_of,
    "report.csv": write_report_of,
    "method.png": write_report_of,
    "comparison.csv": compare_into,
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_that_the_package_writes_goes_through_a_link(folder, precious, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(precious)
    path.with_name(f".{path.name}.partial").symlink_to(precious)
    WRITERS[name](folder)
    assert precious.read_bytes() == PRECIOUS
    assert path.is_file()
    assert not path.is_symlink()
    assert not list(folder.rglob(".*.partial"))
