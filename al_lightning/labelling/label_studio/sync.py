"""Push and pull: what a run asks goes to a project once, and what people answer there comes back once."""

import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from al_lightning.labelling.answers import Answer, as_line, read_answers
from al_lightning.labelling.asked import ANSWERS, ASKED, AskedBatch, AskedPoint, now, read_asked
from al_lightning.labelling.label_studio.client import Project, Task
from al_lightning.labelling.label_studio.config import with_classes
from al_lightning.labelling.label_studio.tasks import new_answers, pulled, shown_as, task_of, tasks_of_points
from al_lightning.labelling.shown import refuse_linked
from al_lightning.records.files import naming, refuse_foreign_lock, write_atomically
from al_lightning.records.foreign import plain_json

IDENTITY = "label_studio.json"
MOST_BYTES = 5_000_000  # of a picture or text, beyond which browsers do not show a data URI
AT_ONCE, BYTES_AT_ONCE = 100, 10_000_000  # tasks of a request and what they show
WAIT_FOR_OTHER = 60.0  # seconds


@dataclass(frozen=True)
class Pushed:
    """Result of a push.

    Args:
        num_added: New tasks.
        num_asked: Points of the batch.
        twice: Points for which the project has several tasks of this round, with these.
    """

    num_added: int
    num_asked: int
    twice: dict[int, list[int]]


@dataclass(frozen=True)
class PulledTo:
    """Result of a pull.

    Args:
        path: The file of answers.
        num_new: Answers that it has appended, those taken back included.
        passed: What is no answer, with the reason.
    """

    path: Path
    num_new: int
    passed: Sequence[str]


def push(folder: Path, batch: AskedBatch, project: Project) -> Pushed:
    """Make a task of each point of a batch, unless the project has it already.

    Killed or cut off at any moment, it is completed by the next call, which looks for what is there first.

    Raises:
        ValueError: If a point cannot be shown, or the project asks something else.
        OSError: If the server or the folder fails.
    """
    with _alone(folder):
        refuse_linked(folder)
        shown = shown_as(batch)
        contents = {point.id: _size(folder, point) for point in batch.points}
        run = _identity(folder, is_new=not was_pushed(folder))
        config = project.label_config()
        if (grown := with_classes(config, batch.classes, shown)) != config:
            project.set_label_config(grown)
        there = tasks_of_points(project.tasks(), run=run, number=batch.round)
        missing = [point for point in batch.points if point.id not in there]
        for points in _portions(missing, contents):
            project.add_tasks([_task(folder, point, run=run, number=batch.round) for point in points])
        twice = {index: numbers for index, numbers in there.items() if len(numbers) > 1}
        return Pushed(len(missing), len(batch.points), twice)


def pull(folder: Path, batch: AskedBatch, project: Project) -> PulledTo:
    """Append the answers of a project that the run folder lacks; see `new_answers`.

    Raises:
        ValueError: If an annotation is no answer of the run. Nothing is written then.
        OSError: If the server or the folder fails.
    """
    path = file_of_project(folder, project)
    with _alone(folder):
        run = _identity(folder, is_new=False)
        tasks = project.tasks()
        there = pulled(tasks, batch, run=run, project=project.number, emails=project.emails())
        written = [
            answer
            for answer in read_answers(folder / ANSWERS, batch.allowed)[0]
            if answer.place.rpartition(":")[0] == str(path)
        ]
        new = new_answers(there, written, now=now())
        if new or path.exists():
            _append(path, new)
        return PulledTo(path, len(new), there.passed)


def file_of_project(folder: Path, project: Project) -> Path:
    """Return the file of a project's answers. Servers that number their projects alike have files of their own."""
    server = re.sub(r"[^A-Za-z0-9.-]+", "_", project.url.partition("://")[2])
    return folder / ANSWERS / f"label-studio-{project.number}_{server}.jsonl"


def asked_by(folder: Path) -> AskedBatch:
    """Return the batch that a run asks for; that it asks for none is a ValueError."""
    batch = read_asked(folder)
    if batch is None:
        raise ValueError(
            f"{folder} asks for nothing: it has no {ASKED}. Look whether it is the folder of a run. One whose batch is "
            "answered asks again with its next `fit`; one that has ended does not."
        )
    return batch


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock under which one push or pull of a run works at a time."""
    if not (folder / ANSWERS).is_dir():
        raise ValueError(f"{folder} has no folder {ANSWERS}, so it is not that of a run that asks people.")
    path = folder / ANSWERS / ".label-studio.lock"
    refuse_foreign_lock(path)
    try:
        with FileLock(path, timeout=WAIT_FOR_OTHER):
            yield
    except Timeout:
        raise TimeoutError(
            f"Another push or pull works on {folder} for more than {WAIT_FOR_OTHER:.0f} s. Let it end, and start again."
        ) from None


def was_pushed(folder: Path) -> bool:
    """Return whether a push of a run has begun, to whatever project."""
    return os.path.lexists(folder / IDENTITY)


def _identity(folder: Path, *, is_new: bool) -> str:
    """Return what tells the run's tasks from those of others; drawn once, before the first task is made."""
    path = folder / IDENTITY
    if is_new:
        write_atomically(path, json.dumps({"run": secrets.token_hex(16)}) + "\n")
    if not path.exists():
        raise ValueError(f"{folder} was never pushed, since it has no {IDENTITY}. `al-lightning push` comes first.")
    try:
        run = plain_json(path.read_text(encoding="utf-8"))["run"]
    except (ValueError, KeyError, TypeError):
        run = None
    if not isinstance(run, str) or not re.fullmatch("[0-9a-f]{32}", run):
        raise ValueError(
            f"{path} is damaged, and says which tasks of Label Studio are this run's. Restore it, from the field `run` "
            'of any task, as {"run": "..."}: without it, all would be asked again.'
        )
    return run


def _size(folder: Path, point: AskedPoint) -> int:
    """Return the bytes of what a point looks like."""
    path = folder / str(point.shown)
    if not path.is_file():
        raise FileNotFoundError(f"{path}, which shows point {point.id}, is missing. `al-lightning fit` writes it anew.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(
            f"{path} has {size / 1e6:.1f} MB, but Label Studio shows at most {MOST_BYTES / 1e6:.0f} MB of a point. Let "
            "`render` return something smaller."
        )
    return size


def _task(folder: Path, point: AskedPoint, *, run: str, number: int) -> Task:
    """Return the task of a point, from its own file and not from whatever a link leads to."""
    with open(folder / str(point.shown), "rb", opener=_no_link) as file:
        return task_of(point, file.read(), run=run, number=number)


def _portions(points: Sequence[AskedPoint], sizes: dict[int, int]) -> Iterator[list[AskedPoint]]:
    """Yield the points in portions that a server takes in a moment."""
    portion, size = list[AskedPoint](), 0
    for point in points:
        if portion and (len(portion) == AT_ONCE or size + sizes[point.id] > BYTES_AT_ONCE):
            yield portion
            portion, size = [], 0
        portion.append(point)
        size += sizes[point.id]
    if portion:
        yield portion


def _append(path: Path, answers: Sequence[Answer]) -> None:
    """Append answers, so that they are on disk when this returns.

    What a killed process has left of a line goes first; but one that lacks only its end gets it, since a run may have
    read it. After an error the file is as it was.
    """
    data = "".join(map(as_line, answers)).encode()
    with naming(path), open(path, "ab+", buffering=0, opener=_no_link) as file:
        kept, size = _end_of_lines(file), file.seek(0, os.SEEK_END)
        if kept < size and _is_whole(file, kept):
            kept, data = size, b"\n" + data
        if kept == size and not data:
            return
        try:
            file.truncate(kept)
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(kept)
            raise


def _end_of_lines(file: FileIO) -> int:
    """Return where the last whole line ends."""
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def _is_whole(file: FileIO, begin: int) -> bool:
    file.seek(begin)
    try:
        return isinstance(plain_json(file.read().decode()), dict)
    except ValueError:
        return False


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
