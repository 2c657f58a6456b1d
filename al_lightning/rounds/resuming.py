"""Files of a run beside its records, from which the same command resumes where it was killed.

* `first_weights.pt`: the weights that every round starts from; another process initialises others.
* `warm_weights-NNN.pt`: with `warm_start`, the weights at the end of round NNN; of the last three rounds, because two
  of them may be run again (see `still_finished`).
* `asked_weights.pt`: with people, the weights with which the batch was chosen that they are asked for.
* `last_weights.pt`: of an ended run, the model of its last round, or each member; the same command loads them again.
* `config.yaml`: from the command line, its resolved configuration.
* `.lock`: held by the process that writes; the system frees it when that process ends, however it ends.
"""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from al_lightning._lightning import rank_zero_warn
from al_lightning.labelling.asked import ANSWERS, ASKED
from al_lightning.records.files import refuse_foreign_lock, replacing, write_atomically
from al_lightning.records.foreign import printable
from al_lightning.records.header import names_of, other_hyper_parameters, what_differs
from al_lightning.records.journal import Journal, read_journal
from al_lightning.records.lines import SCHEMA_VERSION
from al_lightning.records.round import Round
from al_lightning.records.weights import States
from al_lightning.rounds.limits import POOL_IS_EMPTY, Limits

FIRST_WEIGHTS, LAST_WEIGHTS, ASKED_WEIGHTS = "first_weights.pt", "last_weights.pt", "asked_weights.pt"
WRITTEN = re.compile(rb"# The resolved configuration of this run, by al-lightning \((\w{8})\)[^\n]*\n(.*)", re.DOTALL)
"""A configuration that a run has written, with the check sum of the text below the first line."""


def locked(folder: Path) -> FileLock:
    """Take the lock of a run folder, which is held until released or the process ends."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_foreign_lock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"Another process writes into the run folder {folder}, and two runs would overwrite each other's records. "
            "Wait for it or stop it, or give this run a folder of its own with `ActiveLearning(folder=...)`."
        ) from error
    except OSError as error:
        raise OSError(
            f"The run folder {folder} cannot be written ({error}). Choose another with `ActiveLearning(folder=...)` or "
            "`Trainer(default_root_dir=...)`."
        ) from error
    return lock


def opened(folder: Path, header: Mapping[str, Any]) -> tuple[Journal, list[Round]]:
    """Return the journal of a folder and its rounds: none if it is new, else those of this very run.

    An attempt that ended before its first round holds nothing that could be lost: another run may begin in its place.
    """
    if not (folder / "rounds.jsonl").exists():
        return Journal(folder, header), []
    before, rounds = read_journal(folder)
    header = _as_before_growth(_as_drawn_before(header, before), before)
    is_current = before["version"] == SCHEMA_VERSION
    if not rounds and (not is_current or what_differs(before, header)) and not has_answers(folder):
        (folder / FIRST_WEIGHTS).unlink(missing_ok=True)
        return Journal(folder, header, rounds=[]), []
    if not is_current:
        raise ValueError(
            f"{folder} holds a run with records of version {before['version']}, which this version of al_lightning "
            f"reads and reports, but does not continue: it writes version {SCHEMA_VERSION}, with what that one did not "
            "record. Go on with the version that began it, or start anew in another folder with "
            "`ActiveLearning(folder=...)`."
        )
    refuse_other_run(before, header, folder)
    refuse_other_classes(before, header, folder)
    header = _with_earlier_names(header, before)
    if rounds:
        _warn_of_other_hyper_parameters(before, header, folder)
    has_weights = bool(rounds) or (folder / FIRST_WEIGHTS).exists()
    has_begun = bool(rounds) or (folder / ASKED).exists()
    weights = ["first_weights", "later_weights"] if has_weights else []
    stays = {*weights, *(names_of(on_restart="first") if has_begun else [])}
    now = {**header, **{name: before[name] for name in stays if name in before}}
    in_the_order_of_before = {name: now[name] for name in [*before, *now] if name in now}
    return Journal(folder, in_the_order_of_before, rounds=rounds), rounds


def _as_drawn_before(header: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take a run's initial labels where they are drawn as before: after a correction the same draw gives others.

    The targets of all labelled points show whether the data are the same.
    """
    is_same_draw = before.get("initial_draw") is not None and before["initial_draw"] == header.get("initial_draw")
    return {**header, "initial": before["initial"]} if is_same_draw else header


def _as_before_growth(header: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take a run's number of points where people label and points were appended since; the rounds record how many."""
    has_grown = header.get("asks_people") and header["num_points"] > before["num_points"]
    return {**header, "num_points": before["num_points"]} if has_grown else header


def has_answers(folder: Path) -> bool:
    """Return whether people were asked, or have answered, in a run folder."""
    return (folder / ASKED).exists() or any((folder / ANSWERS).glob("*"))


def refuse_other_classes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise unless the classes are those of the run, renamed or with further ones at the end.

    Example:
        >>> before = {"classes": ["cat", "dog"]}
        >>> refuse_other_classes(before, {"classes": ["kitty", "dog", "ant"], "renamed": {"cat": "kitty"}}, Path("a"))
        >>> refuse_other_classes(before, {"classes": ["dog", "cat"]}, Path("a"))
        Traceback (most recent call last):
        ValueError: a holds a run with the classes cat, dog, but `classes` begins with dog, cat. ...
    """
    known, classes, renamed = before.get("classes") or [], now.get("classes") or [], now.get("renamed") or {}
    expected = [renamed.get(name, name) for name in known]
    if classes[: len(known)] != expected:
        begins = ", ".join(classes[: len(known)]) or "nothing"
        raise ValueError(
            f"{folder} holds a run with the classes {', '.join(known)}, but `classes` begins with {begins}. Their "
            "numbers are what the model has learned: append new ones at the end, and give a new name as "
            "`renamed={'old': 'new'}`."
        )
    numbers = _numbers(now)
    for name, number in _numbers(before).items():
        if numbers.get(name, number) != number:
            raise ValueError(
                f"{folder} holds a run in which {name!r} is a name of {classes[number]!r}, and now it is one of "
                f"{classes[numbers[name]]!r}: the answers that say {name!r} would change their class. Take a name that "
                "the run has not had."
            )


def _numbers(header: Mapping[str, Any]) -> dict[str, int]:
    """Return the class of each name, earlier and other ones included."""
    numbers = {name: number for number, name in enumerate(header.get("classes") or [])}
    others = {old: numbers[new] for old, new in (header.get("renamed") or {}).items() if new in numbers}
    return {**others, **numbers}


def _with_earlier_names(header: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keep all names that the classes of a run have had: none of them may come to mean another class."""
    classes = header.get("classes") or []
    names = {name: classes[number] for name, number in {**_numbers(before), **_numbers(header)}.items()}
    return {**header, "renamed": {old: new for old, new in names.items() if old not in classes} or None}


def _warn_of_other_hyper_parameters(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    pairs = other_hyper_parameters(before, now).items()
    if different := [f"{name} was {one}, and is {other} now" for name, (one, other) in pairs]:
        rank_zero_warn(
            f"The run in {folder} resumes with other hyper-parameters than it began with: {'; '.join(different)}. Its "
            "rounds are then not of one experiment, and the records of those that follow say so. Set them back, or "
            "start anew in another folder."
        )


def refuse_other_run(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise if the records of a folder are of another run; only the limits may have changed.

    Example:
        >>> refuse_other_run({"seed": 1, "max_rounds": 3}, {"seed": 1, "max_rounds": 9}, Path("runs/a"))
        >>> refuse_other_run({"seed": 1}, {"seed": 2}, Path("runs/a"))
        Traceback (most recent call last):
        ValueError: runs/a holds another run: its `seed` is 1, and this run's is 2. ...
    """
    different = what_differs(before, now)
    if not different and not now.get("asks_people") and before.get("reject") != now.get("reject"):
        ones, others = (header.get("reject") or "set_aside" for header in (before, now))
        different = f"its `reject` is {ones!r}, and this run's is {others!r}"  # people may change it: they paid
    if different:
        answers = f", where `AskPeople(answers_from=['{folder / ANSWERS}'])` takes the answers along"
        raise ValueError(
            f"{folder} holds another run: {different}. Its rounds cannot be continued by this one: give this run a "
            f"folder of its own with `ActiveLearning(folder=...)`{answers if now.get('asks_people') else ''}, or start "
            "the earlier command again. (Only the limits may change: `max_labelled`, `max_rounds`, `monitor`, "
            "`target`, `mode`.)"
        )


def still_finished(rounds: Sequence[Round], limits: Limits, *, query_size: int) -> list[Round]:
    """Return the rounds on disk that remain valid; at most the last two must be repeated.

    The last must where it ended for a limit that has been raised since: it acquired nothing then, so nothing is lost.
    The one before it must where that limit cut its batch, which is chosen again, now whole.

    Example:
        >>> ended = Round(round=0, num_labelled=4, num_pool=6, stopped="max_rounds=1 reached")
        >>> [len(still_finished([ended], Limits(max_rounds=most), query_size=2)) for most in (1, 2)]
        [1, 0]
    """

    def stands(record: Round) -> bool:
        if record.stopped is None:
            sizes = {"num_labelled": record.num_paid, "num_pool": record.num_pool}
            return len(record.acquired) >= limits.batch_size(query_size, **sizes)
        return limits.reason_after(record) is not None

    return list(takewhile(stands, rounds))


def still_paid(rounds: Sequence[Round], limits: Limits, *, num_appended: int = 0) -> list[Round]:
    """Return the rounds on disk after which a run with people resumes: none that holds a label is withdrawn.

    The last is run again where it ended without a batch, for a limit that has been raised since, or for a pool to which
    `num_appended` points were added. One that ended with labels is followed by further rounds then.

    Example:
        >>> ended = Round(round=0, num_labelled=4, num_pool=6, stopped="max_rounds=1 reached")
        >>> [len(still_paid([ended], Limits(max_rounds=most))) for most in (1, 2)]
        [1, 0]
    """
    if not rounds or rounds[-1].stopped is None:
        return list(rounds)
    last = rounds[-1]
    is_used_up = last.stopped == POOL_IS_EMPTY and num_appended == 0
    if is_used_up or limits.reason_after(replace(last, num_pool=last.num_pool + num_appended)) is not None:
        return list(rounds)
    return [*rounds[:-1], *([replace(last, stopped=None)] if last.asked or last.answers else [])]


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Name the folder in an error of the disk, and how the run resumes."""
    try:
        yield
    except OSError as error:
        if not (folder / "rounds.jsonl").is_file():
            raise OSError(
                f"The run folder {folder} is no longer there, or no longer holds rounds.jsonl ({error}): something "
                "has moved or deleted it while the run went on. Put it back, and start the same command again; it goes "
                "on after the rounds in it. Without it the run must start anew."
            ) from error
        raise OSError(
            f"The run folder {folder} cannot be written ({error}). The rounds that it holds are whole: make room, and "
            "start the same command again with `ActiveLearning(folder=...)`; it resumes after them."
        ) from error


def save_configuration(path: Path, text: str) -> None:
    """Write a configuration; a file that is the user's, or was changed by hand, stays as it is.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_configuration(Path(folder) / "config.yaml", "seed: 0")
        ...     save_configuration(Path(folder) / "config.yaml", "seed: 1")
        ...     print((Path(folder) / "config.yaml").read_text())
        # The resolved configuration of this run, by al-lightning (10e55796); written anew unless changed by hand.
        seed: 1
    """
    data = text.encode(errors="backslashreplace")
    line = f"# The resolved configuration of this run, by al-lightning ({zlib.crc32(data):08x}); "
    content = line.encode() + b"written anew unless changed by hand.\n" + data
    with writing_into(path.parent):
        there = None if path.is_dir() or not path.exists() else path.read_bytes()
        if there == content:
            return
        if path.exists() and not _is_written(there):
            rank_zero_warn(
                printable(
                    f"{path} was not written by a run, or was changed by hand, and stays as it is, so the run does not "
                    "keep its configuration beside its records: move the file elsewhere, and it will."
                )
            )
            return
        write_atomically(path, content)


def _is_written(content: bytes | None) -> bool:
    """Return whether a run has written this configuration, and nobody has changed it since; None is no file."""
    found = None if content is None else WRITTEN.fullmatch(content)
    return found is not None and f"{zlib.crc32(found[2]):08x}".encode() == found[1]


def save_states(path: Path, states: States) -> None:
    """Write weights; either the old file or the whole new one survives a crash."""
    with replacing(path) as file:
        torch.save([dict(state) for state in states], file)


def save_last_states(path: Path, states: States) -> None:
    """Write the weights at the end of a run, or warn where the disk is full: the model itself still has them."""
    try:
        save_states(path, states)
    except OSError as error:
        if not path.parent.is_dir():
            raise
        path.unlink(missing_ok=True)  # of an earlier end, with fewer labels
        rank_zero_warn(
            f"{path} cannot be written ({error}), so another process cannot load the weights that the run ended with. "
            "The records are whole, and the model of this process has them: save it elsewhere."
        )
