import errno
import os
import pickle
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from al_lightning.records.files import append, load_plain, refuse_code, replacing, write_atomically
from al_lightning.records.images import write_thumbnail
from al_lightning.records.journal import Journal, Round
from al_lightning.report import read_runs, write_report
from al_lightning.report.compare.command import main as compare
from al_lightning.rounds.resuming import save_last_states, save_states

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
    unlink, calls = Path.unlink, []

    def lay_again(path, *arguments, **keywords):
        calls.append(path)
        if len(calls) == 1:
            os.symlink(precious, folder / ".file.partial")
        else:
            unlink(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "unlink", lay_again)  # Python 3.10 has bound `os.unlink` in it
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
        with pytest.raises(OSError, match=f"No space left on device: '{folder / 'file'}'"):
            write_atomically(folder / "file", "new and longer")
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(folder / "file", "new and longer")
    assert (folder / "file").read_text() == "old"
    assert os.listdir(folder) == ["file"]


@pytest.mark.long
def test_what_a_killed_process_has_left_is_in_nobodys_way(folder):
    script = f"""
import os, signal
from pathlib import Path
from al_lightning.records.files import replacing
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


@pytest.mark.slow
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


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def bomb(path, *, name="archive/data.pkl", size=2**26):
    torch.save({"w": torch.zeros(3)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))


def test_tensors_and_plain_values_are_read_on_the_cpu(tmp_path):
    content = {"w": torch.randn(3).bfloat16(), "names": ["a", None, 1.5]}
    torch.save(content, tmp_path / "file.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("file.pt", "old.pt"):
        for mmap in (False, True):
            found = load_plain(tmp_path / name, mmap=mmap)
            assert torch.equal(found["w"], content["w"])
            assert found["names"] == content["names"]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there is no such file"),
        (os.mkdir, "there is no such file"),
        (os.mkfifo, "there is no such file"),  # and nobody waits for what comes through it
        (lambda path: torch.save({"w": Trap(path.with_name("ran"))}, path), r"it holds '\w+\.mkdir'"),
        (lambda path: path.write_bytes(pickle.dumps(Trap(path.with_name("ran")), 2)), "it holds code, or is damaged"),
        (lambda path: path.write_bytes(b""), "."),
        (bomb, r"its \d+ bytes would unpack to 67\d+, but `torch.save` does not compress"),
    ],
    ids=["nothing", "folder", "pipe", "trap", "bare trap", "empty", "bomb"],
)
def test_what_is_not_plain_is_refused_and_nothing_of_it_runs(tmp_path, write, words, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    write(tmp_path / "file.pt")
    with pytest.raises(ValueError, match=words) as refused:
        load_plain(tmp_path / "file.pt")
    assert "`False`" not in str(refused.value)  # torch's own words advise to run the code
    with pytest.raises(ValueError, match=r"The checkpoint .*file\.pt cannot be read as tensors and plain.*add_safe_g"):
        refuse_code(tmp_path / "file.pt")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_of_weights_is_one_kind_of_error(tmp_path):
    torch.save([{"w": torch.randn(50)}], tmp_path / "file.pt")
    whole = (tmp_path / "file.pt").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "file.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"\w"):
            load_plain(tmp_path / "file.pt")


def test_code_is_found_wherever_a_checkpoint_lies_but_not_fetched_from_the_web(tmp_path):
    torch.save({"w": Trap(tmp_path / "ran")}, tmp_path / "file.ckpt")
    torch.save({"w": torch.zeros(3)}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"The checkpoint file://.*file\.ckpt cannot be read .*code.*anew"):
        refuse_code(f"file://{tmp_path}/file.ckpt")
    refuse_code(f"file://{tmp_path}/plain.ckpt")
    with pytest.raises(ValueError, match=r"The checkpoint https://a\.b/c\.ckpt is on the web.*Fetch it"):
        refuse_code("https://a.b/c.ckpt")
    assert not (tmp_path / "ran").exists()


class Mine:
    """A class that a user keeps in a checkpoint."""


def test_classes_that_the_user_trusts_are_read(tmp_path):
    torch.save({"mine": Mine()}, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match=r"it holds '.*Mine'"):
        refuse_code(tmp_path / "file.ckpt")
    with torch.serialization.safe_globals([Mine]):
        refuse_code(tmp_path / "file.ckpt")


def test_appending_is_whole_or_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_text("one\n")
    append(path, "zwö\n", size=4)
    assert path.read_text() == "one\nzwö\n"
    with pytest.raises(
        RuntimeError, match=r"lines holds 9 bytes, but this run has written 4: something else has changed it"
    ):
        append(path, "three\n", size=4)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        append(path, "three\n", size=9)
    assert path.read_text() == "one\nzwö\n"


def test_appending_makes_no_file_and_follows_no_link(tmp_path):
    with pytest.raises(FileNotFoundError):
        append(tmp_path / "none", "one\n", size=0)
    (tmp_path / "target").write_text("one\n")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="link"):
        append(tmp_path / "link", "two\n", size=4)
    assert (tmp_path / "target").read_text() == "one\n"
