"""The rounds of a run: known to every rank, kept on disk by rank 0, and found again by the next process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from al_lightning._lightning import LightningModule, Trainer, set_logged_steps
from al_lightning.data import ActiveLearningDataModule, Labels
from al_lightning.journal import Journal, Round, read_journal, run_folder
from al_lightning.ranks import Ranks
from al_lightning.resuming import States, load_states, locked, opened, save_states
from al_lightning.stopping import Limits

FIRST_WEIGHTS = "first_weights.pt"


class Run:
    """What has happened so far. Rank 0 alone reads and writes the folder, which the others need not see.

    Attributes:
        rounds: The records of the finished rounds; the same on every rank.
        folder: Where they are kept; None before `open`, and for a run that leaves no records.
        is_open: Whether this process has looked for earlier rounds.
        ended_before: Whether those that it found are all.
    """

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.folder: Path | None = None
        self.is_open = False
        self.ended_before = False
        self._journal: Journal | None = None
        self._lock: FileLock | None = None

    def open(
        self, ranks: Ranks, header: Mapping[str, Any], *, find_folder: Callable[[], Path] | None, resumes: bool
    ) -> None:
        """Begin the records, or go on with those that the folder holds.

        Args:
            ranks: All processes.
            header: What runs; the same on every rank.
            find_folder: Where the records go; None for a run that leaves none. Only rank 0 asks.
            resumes: Whether the folder may hold earlier rounds of this very run.
        """

        def begun() -> tuple[Path | None, list[Round]]:
            if find_folder is None or ranks.rank != 0:
                return None, []
            folder = find_folder()
            self._lock = locked(folder)
            self._journal, rounds = opened(folder, header) if resumes else (Journal(folder, header), [])
            return folder, rounds

        ranks.same("the data, the initial labels or the settings", header)
        self.folder, self.rounds = ranks.first(ranks.together(begun))
        self.is_open = True

    def commit(self, ranks: Ranks, rounds: Sequence[Round], *, warm: States | None = None) -> None:
        """Let these be the rounds: on disk first, so that what is done with them afterwards is never lost.

        Args:
            ranks: All processes.
            rounds: All rounds so far.
            warm: The weights at the end of the last one, if the next continues from them.
        """

        def written() -> None:
            if self._journal is None:
                return
            number = len(rounds) - 1
            if warm is not None:
                save_states(self._warm_weights(number), warm)
            self._journal.write(rounds)
            if warm is not None and number > 0:
                self._warm_weights(number - 1).unlink(missing_ok=True)

        ranks.together(written)
        self.rounds = list(rounds)

    def save_first_weights(self, ranks: Ranks, states: States) -> None:
        """Keep what every round starts from, once."""

        def saved() -> None:
            if self._journal is not None and not (self._journal.folder / FIRST_WEIGHTS).exists():
                save_states(self._journal.folder / FIRST_WEIGHTS, states)

        ranks.together(saved)

    def first_weights(self, ranks: Ranks) -> States | None:
        """What every round starts from, as the first process had it; None if no process got so far."""
        return self._read(ranks, lambda folder: folder / FIRST_WEIGHTS)

    def warm_weights(self, ranks: Ranks) -> States | None:
        """What the next round continues from with `warm_start`; None before the first round."""
        return self._read(ranks, lambda _: self._warm_weights(len(self.rounds) - 1))

    def _read(self, ranks: Ranks, find: Callable[[Path], Path]) -> States | None:
        def read() -> States | None:
            path = None if self._journal is None else find(self._journal.folder)
            if path is None or not (path.exists() or self.rounds):
                return None
            return load_states(path)

        return ranks.first(ranks.together(read))

    def _warm_weights(self, number: int) -> Path:
        folder = Path() if self.folder is None else self.folder
        return folder / f"warm_weights-{number:03d}.pt"

    def catch_up(self, folder: Path) -> None:
        """Learn what processes that have ended by now did in this folder."""
        header, self.rounds = read_journal(folder)
        self.folder = folder
        self._journal = Journal(folder, header, rounds=self.rounds)

    def release(self) -> None:
        """Let another process write into the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def close(self) -> None:
        """Let a process that this one is going to start open the run."""
        self.release()
        self._journal, self.is_open = None, False


def described(module: LightningModule, datamodule: ActiveLearningDataModule) -> dict[str, Any]:
    """What a header says of the model and the data, so that another of either is noticed."""
    initial = datamodule.labels.initial_indices.tolist()
    return {
        "model": type(module).__name__,
        "datamodule": type(datamodule.inner).__name__,
        "num_points": len(datamodule.labels),
        "initial": initial,
        "initial_targets": datamodule.targets_of(initial),
    }


def begin(
    run: Run,
    trainer: Trainer,
    datamodule: ActiveLearningDataModule,
    header: Mapping[str, Any],
    *,
    folder: Path | None,
    limits: Limits,
) -> None:
    """Open the run, and bring the labels and the loggers to where its records end."""
    leaves_none = trainer.fast_dev_run  # type: ignore[attr-defined]
    run.open(
        Ranks(trainer),
        header,
        find_folder=None if leaves_none else lambda: folder or run_folder(trainer),
        resumes=folder is not None,
    )
    run.rounds = still_finished(run.rounds, limits)
    run.ended_before = bool(run.rounds) and run.rounds[-1].stopped is not None
    datamodule.restore([record.acquired for record in run.rounds], [record.targets for record in run.rounds])
    if run.rounds:
        set_logged_steps(trainer, run.rounds[-1].logged_steps)


def still_finished(rounds: Sequence[Round], limits: Limits) -> list[Round]:
    """Of the rounds on disk those that stand; at most the last is to be run again.

    It is where its test is missing, for which the weights of its fit are gone, and where it ended for a limit that has
    been raised since: it acquired nothing then, so nothing is lost.

    Example:
        >>> ended = Round(round=0, num_labelled=4, num_pool=6, stopped="max_rounds=1 reached")
        >>> len(still_finished([ended], Limits(max_rounds=1))), len(still_finished([ended], Limits(max_rounds=2)))
        (1, 0)
    """
    if not rounds:
        return []
    last = rounds[-1]
    stands = last.complete and (
        last.stopped is None
        or limits.reason(
            num_labelled=last.num_labelled, num_pool=last.num_pool, num_fits=len(rounds), metrics=last.metrics
        )
        is not None
    )
    return list(rounds) if stands else list(rounds[:-1])


def check_checkpoint(path: object, labels: Labels, *, round_index: int) -> None:
    """Refuse to go on inside a round from a checkpoint of another one."""
    of_checkpoint = int(labels.round_of_N.max())
    if path is not None and of_checkpoint != round_index:
        raise ValueError(
            f"`ckpt_path` is {path}, written in round {of_checkpoint}, but the run is in round {round_index}: its "
            "labels and weights belong to another round. Give a checkpoint whose name begins with "
            f"round={round_index:03d}, or none, and the round starts anew."
        )


def check_stepped(trainer: Trainer, steps_before: int) -> None:
    """Refuse to acquire with a model that the fit did not train."""
    if trainer.global_step == steps_before:
        raise RuntimeError(
            "The fit ended without a single training step, so there is nothing to acquire with. A Trainer that has "
            "finished does not train again: use `active_fit`, or a new Trainer. Otherwise look at `max_epochs` and "
            "`max_steps`, and at the batch size against the number of labels."
        )
