"""Files that the package writes: whole or not at all, and never through a link that somebody has laid.

Who can write into a run folder, or sends one, could otherwise have any file of the user's overwritten: a temporary file
of a known name may be there already, as a link to it.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CANNOT_SYNC_FOLDERS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})  # some network filesystems


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new binary file that takes the place of `path` at the end of the block, if that does not raise.

    Either the old file or the whole new one survives a crash, of the machine too. What `path` links to stays as it is;
    its folder may be a link. A temporary file beside it, `.NAME.partial`, is new each time: whatever had its name is
    removed, be it a link or what a killed process has left.

    Raises:
        OSError: If it cannot be written, with the path. The old file is still there then, and no temporary one.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb", opener=_open_new) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _refuse_another(temporary, file, path=path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file by one with this content, text as UTF-8; see `replacing`."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _refuse_another(temporary: Path, file: BinaryIO, *, path: Path) -> None:
    if not os.path.lexists(temporary) or not os.path.samestat(os.fstat(file.fileno()), temporary.lstat()):
        raise FileExistsError(f"Another process writes {path} at the same time. Let one of them end first.")


def _sync_folder(folder: Path) -> None:
    """Let the new name of a file survive a crash of the machine too, where the system can say so for a folder."""
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
