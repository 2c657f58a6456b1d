"""What a run keeps in its folder beside the records, so that the same command goes on where it was killed.

* `first_weights.pt`: the weights that every round starts from; another process initialises others.
* `warm_weights-NNN.pt`: with `warm_start`, the weights at the end of round NNN; of the last three rounds, because two
  of them may be run again (see `still_finished`).
* `last_weights.pt`: of an ended run, the model of its last round, or each member; the same command loads them again.
* `.lock`: held by the process that writes; the system frees it when that process ends, however it ends.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from al_lightning._lightning import rank_zero_warn
from al_lightning.journal import Journal, Round, read_journal, what_differs
from al_lightning.stopping import Limits

States = Sequence[Mapping[str, Tensor]]
"""Parameters and buffers by name: of the model, or of each member of an ensemble."""


def locked(folder: Path) -> FileLock:
    """The lock of a run folder, taken; it is held until released, or until the process ends."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    """The journal of a folder and the rounds that it holds: none if it is new, else those of this very run."""
    if not (folder / "rounds.jsonl").exists():
        return Journal(folder, header), []
    before, rounds = read_journal(folder)
    refuse_other_run(before, header, folder)
    return Journal(folder, header, rounds=rounds), rounds


def refuse_other_run(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise if the records of a folder are of another run; only the limits may have changed.

    Example:
        >>> refuse_other_run({"seed": 1, "max_rounds": 3}, {"seed": 1, "max_rounds": 9}, Path("runs/a"))
        >>> refuse_other_run({"seed": 1}, {"seed": 2}, Path("runs/a"))
        Traceback (most recent call last):
        ValueError: runs/a holds another run: its `seed` is 1, and this run's is 2. ...
    """
    if different := what_differs(before, now):
        raise ValueError(
            f"{folder} holds another run: {different}. Its rounds cannot be continued by this one: give this run a "
            "folder of its own with `ActiveLearning(folder=...)`, or start the earlier command again. (Only the limits "
            "may change: `max_labelled`, `max_rounds`, `monitor`, `target`, `mode`.)"
        )


def still_finished(rounds: Sequence[Round], limits: Limits, *, query_size: int) -> list[Round]:
    """Of the rounds on disk those that stand; at most the last two are to be run again.

    The last is where its test is missing, for which the weights of its fit are gone, and where it ended for a limit
    that has been raised since: it acquired nothing then, so nothing is lost. The one before it is where that limit cut
    its batch, which is chosen again, now whole.

    Example:
        >>> ended = Round(round=0, num_labelled=4, num_pool=6, stopped="max_rounds=1 reached")
        >>> [len(still_finished([ended], Limits(max_rounds=most), query_size=2)) for most in (1, 2)]
        [1, 0]
    """

    def stands(record: Round) -> bool:
        sizes = {"num_labelled": record.num_labelled, "num_pool": record.num_pool}
        if record.stopped is None:
            return record.complete and len(record.acquired) >= limits.batch_size(query_size, **sizes)
        reason = limits.reason(**sizes, num_fits=record.round + 1, metrics=record.metrics)
        return record.complete and reason is not None

    return list(takewhile(stands, rounds))


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Say which folder a full disk has held up, and how the run goes on."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"The run folder {folder} cannot be written ({error}). The rounds that it holds are whole: make room, and "
            "start the same command again with `ActiveLearning(folder=...)`; it goes on after them."
        ) from error


def save_states(path: Path, states: States) -> None:
    """Either the old file or the whole new one survives a crash."""
    temporary = _partial(path)
    with temporary.open("wb") as file:
        torch.save([dict(state) for state in states], file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def save_last_states(path: Path, states: States) -> None:
    """`save_states` of a run whose records are whole: where the disk is full, the model itself still has them."""
    try:
        save_states(path, states)
    except OSError as error:
        _partial(path).unlink(missing_ok=True)
        rank_zero_warn(
            f"{path} cannot be written ({error}), so another process cannot load the weights that the run ended with. "
            "The records are whole, and the model of this process has them: save it elsewhere."
        )


START_AGAIN = "start again in another folder with `ActiveLearning(folder=...)`: the run cannot go on as it began"


def load_states(path: Path, *, or_else: str = START_AGAIN) -> States:
    """What `save_states` wrote."""
    try:
        states: States = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}). Restore the file, or {or_else}.") from error
    return states
