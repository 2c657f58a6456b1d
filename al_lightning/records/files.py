"""Files of a run folder, written whole and read without trust: somebody else may have made or sent them.

What is written is whole or not there at all, and never goes through a link: a temporary file of a known name may be
there already, as a link to any file of the user's. What is read runs no code and unpacks to no more than there is.
"""

import errno
import os
import pickle
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import torch

_CANNOT_SYNC_FOLDERS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})  # some network filesystems


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that names none, as one of a full disk.

    Example:
        >>> with naming(Path("runs/a/asked.json")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'runs/a/asked.json'
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new binary file that replaces `path` at the end of the block, unless the block raises.

    Either the old file or the whole new one survives a crash, of the machine too. What `path` links to stays as it is;
    its folder may be a link. A temporary file beside it, `.NAME.partial`, is new each time: whatever had its name is
    removed, be it a link or what a killed process has left.

    Raises:
        OSError: If it cannot be written, with the path. The old file is still there then, and no temporary one.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        with naming(path), open(temporary, "xb", opener=_open_new) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _refuse_another(temporary, file, path=path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file by one with this content, text as UTF-8, or escaped where it has none; see `replacing`."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


def append(path: Path, text: str, *, size: int) -> None:
    """Append text to a file, so that it survives a crash of the machine once this has returned.

    A process that is killed meanwhile may leave a part of it. After an error the file is as it was.

    Args:
        path: A file, and not a link.
        text: What to append, as UTF-8.
        size: The bytes that the file holds; with another number something else has written it, which is refused.

    Raises:
        OSError: If it cannot be written, with the path.
        RuntimeError: If its size is another.
    """
    data = text.encode()
    with naming(path), open(path, "ab", buffering=0, opener=_open_there) as file:
        if (found := os.fstat(file.fileno()).st_size) != size:
            raise RuntimeError(
                f"{path} holds {found} bytes, but this run has written {size}: something else has changed it. "
                "Restore the file, and start the same command again; the run resumes after the rounds in it."
            )
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def load_plain(path: str | Path, *, mmap: bool = False) -> Any:  # noqa: ANN401 - whatever the file holds
    """Load tensors and plain values that `torch.save` wrote, on the CPU; code in the file does not run.

    Args:
        path: A file on this machine.
        mmap: Leave the tensors in the file until they are used.

    Raises:
        ValueError: If it holds anything else or is damaged, with the reason; the caller knows what to do then.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError("there is no such file")
    try:
        is_archive = _is_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_archive)
    except pickle.UnpicklingError as error:
        raise ValueError(_unsafe(path) or _reason(error)) from error
    except Exception as error:  # a damaged file can make any error
        raise ValueError(_reason(error)) from error


def _is_archive(path: Path) -> bool:
    """Tell an archive, as torch writes it, from a bare pickle.

    One that would unpack to more than it is is refused, and one of which a part does not have its check sum: torch
    itself would read other values without a word.
    """
    if not zipfile.is_zipfile(path):
        return False
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise ValueError(f"its {size} bytes would unpack to {unpacked}, but `torch.save` does not compress")
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"its part {broken} is damaged")
    return True


def _unsafe(path: Path) -> str:
    """Name the classes and functions in a file that are neither tensors nor plain values."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - a bare pickle, or a damaged one: the first error stands
        return ""
    return f"it holds {', '.join(map(repr, names))}" if names else ""


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # whose own words advise to run the code
        return "it holds code, or is damaged"
    return str(error).partition("\n")[0] or type(error).__name__


def refuse_code(path: str | Path) -> None:
    """Refuse a checkpoint that holds more than tensors and plain values, before somebody loads it less carefully.

    Classes that are allowed with `torch.serialization.add_safe_globals` count as plain.
    """
    if str(path).startswith(("http:", "https:")):
        raise ValueError(
            f"The checkpoint {path} is on the web, and loading it from there may run code in it. Fetch it."
        )
    try:
        if "://" in str(path):
            with fsspec.open(str(path), "rb") as file:
                torch.load(file, map_location="cpu", weights_only=True)
        else:
            load_plain(path, mmap=True)
    except (ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"The checkpoint {path} cannot be read as tensors and plain values alone ({_reason(error)}), and "
            "loading anything else may run code in it. Without a checkpoint the round starts anew. If you trust the "
            "file, allow the classes that it names: `torch.serialization.add_safe_globals([...])`."
        ) from error


def refuse_foreign_lock(path: Path) -> None:
    """Refuse a path that is not a lock file: taking the lock could empty it."""
    if not os.path.lexists(path):
        return
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > 0:
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "not an empty file"
        raise FileExistsError(
            f"{path} is {kind}, so it is not the lock of a run, and something else has put it there. Look at it, move "
            "it away, and start again."
        )


def _open_there(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT | getattr(os, "O_NOFOLLOW", 0))


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _refuse_another(temporary: Path, file: BinaryIO, *, path: Path) -> None:
    if not os.path.lexists(temporary) or not os.path.samestat(os.fstat(file.fileno()), temporary.lstat()):
        raise FileExistsError(f"Another process writes {path} at the same time. Let one of them end first.")


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that the new name of a file survives a crash of the machine, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(descriptor)
