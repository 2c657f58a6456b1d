"""The rounds of a run: known to every rank, kept on disk by rank 0, and found again by the next process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from al_lightning._lightning import LightningModule, Trainer, set_logged_steps
from al_lightning.data import ActiveLearningDataModule, Labels
from al_lightning.journal import Journal, Round, read_journal, run_folder
from al_lightning.posterior import Members
from al_lightning.ranks import Ranks
from al_lightning.resuming import (
    START_AGAIN,
    States,
    load_states,
    locked,
    opened,
    save_last_states,
    save_states,
    still_finished,
    writing_into,
)
from al_lightning.stopping import Limits

FAST_DEV_ROUNDS = 2  # enough to see a fit, an acquisition, and a fit on what was acquired
FIRST_WEIGHTS, LAST_WEIGHTS = "first_weights.pt", "last_weights.pt"
BEGIN_ANEW = "delete it: the model then has the weights that the run began with"
NUM_WARM_KEPT = 3  # two rounds may be run again, and the first of them continues from the one before


class Run:
    """What has happened so far. Rank 0 alone reads and writes the folder, which the others need not see.

    Attributes:
        rounds: The records of the finished rounds; the same on every rank.
        folder: Where they are kept; None before `open`, and for a run that leaves no records.
        header: What runs; empty before `open`.
        is_open: Whether this process has looked for earlier rounds.
        ended_before: Whether those that it found are all.
    """

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.folder: Path | None = None
        self.header: Mapping[str, Any] = {}
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
        self.header = header
        self.is_open = True

    def go_on_after(self, rounds: Sequence[Round]) -> None:
        """Let these be the rounds until the next is committed; those beyond them on disk are run again."""
        self.rounds = list(rounds)
        self.ended_before = bool(rounds) and rounds[-1].stopped is not None

    def commit(
        self, ranks: Ranks, rounds: Sequence[Round], *, states: States | None = None, is_warm: bool = False
    ) -> None:
        """Let these be the rounds: on disk first, so that what is done with them afterwards is never lost.

        Args:
            ranks: All processes.
            rounds: All rounds so far.
            states: The weights at the end of the last one, which are kept if the run ends with it; None if they are.
            is_warm: Whether the next round continues from them, so that they are kept for it.
        """

        def written() -> None:
            if self._journal is None:
                return
            number, last = len(rounds) - 1, self._journal.folder / LAST_WEIGHTS
            has_ended = states is not None and rounds[-1].stopped is not None
            with writing_into(self._journal.folder):
                if states is not None and is_warm:
                    save_states(self._warm_weights(number), states)
                if has_ended:
                    last.unlink(missing_ok=True)  # of an earlier end, with fewer labels
                self._journal.write(rounds)
            if states is not None and has_ended:
                save_last_states(last, states)
            if is_warm and number >= NUM_WARM_KEPT:
                self._warm_weights(number - NUM_WARM_KEPT).unlink(missing_ok=True)

        ranks.together(written)
        self.rounds = list(rounds)

    def save_first_weights(self, ranks: Ranks, states: States) -> None:
        """Keep what every round starts from, once."""

        def saved() -> None:
            if self._journal is not None and not (self._journal.folder / FIRST_WEIGHTS).exists():
                with writing_into(self._journal.folder):
                    save_states(self._journal.folder / FIRST_WEIGHTS, states)

        ranks.together(saved)

    def first_weights(self, ranks: Ranks) -> States | None:
        """What every round starts from, as the first process had it; None if no process got so far."""
        return self._read(ranks, lambda folder: folder / FIRST_WEIGHTS)

    def warm_weights(self, ranks: Ranks) -> States | None:
        """What the next round continues from with `warm_start`; None before the first round."""
        return self._read(ranks, lambda _: self._warm_weights(len(self.rounds) - 1))

    def last_weights(self, ranks: Ranks) -> States | None:
        """What an ended run ended with; None if the folder has it no more, or an older version did not keep it."""
        return self._read(ranks, lambda folder: folder / LAST_WEIGHTS, or_else=BEGIN_ANEW, is_needed=False)

    def _read(
        self, ranks: Ranks, find: Callable[[Path], Path], *, or_else: str = START_AGAIN, is_needed: bool = True
    ) -> States | None:
        def read() -> States | None:
            path = None if self._journal is None else find(self._journal.folder)
            if path is None or not (path.exists() or (is_needed and self.rounds)):
                return None
            return load_states(path, or_else=or_else)

        return ranks.first(ranks.together(read))

    def _warm_weights(self, number: int) -> Path:
        folder = Path() if self.folder is None else self.folder
        return folder / f"warm_weights-{number:03d}.pt"

    def catch_up(self, folder: Path) -> None:
        """Learn what processes that have ended by now did in this folder."""
        self.header, self.rounds = read_journal(folder)
        self.folder = folder
        self._journal = Journal(folder, self.header, rounds=self.rounds)

    def release(self) -> None:
        """Let another process write into the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def close(self) -> None:
        """Let a process that this one is going to start open the run."""
        self.release()
        self._journal, self.is_open = None, False


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
    aside = set(run.rounds[-1].set_aside) if run.rounds else set()  # by the last round too, if it is to be run again
    run.go_on_after(still_finished(run.rounds, limits, query_size=header["query_size"]))
    datamodule.set_aside(sorted(aside - set(datamodule.labels.set_aside_indices.tolist())))
    datamodule.restore([record.acquired for record in run.rounds], [record.targets for record in run.rounds])
    if run.rounds:
        set_logged_steps(trainer, run.rounds[-1].logged_steps)


def reason_to_stop(
    trainer: Trainer, limits: Limits, labels: Labels, *, num_fits: int, metrics: Mapping[str, float | None]
) -> str | None:
    """Why no round follows the fit that has just ended, or None."""
    if trainer.fast_dev_run and num_fits >= FAST_DEV_ROUNDS:  # type: ignore[attr-defined]
        return f"fast_dev_run ends after {FAST_DEV_ROUNDS} rounds"
    return limits.reason(num_labelled=labels.num_labelled, num_pool=labels.num_pool, num_fits=num_fits, metrics=metrics)


def check_checkpoint(path: object, labels: Labels, *, due_N: Tensor) -> None:
    """Refuse to go on inside a round from a checkpoint of another one, or of another run.

    Args:
        path: The checkpoint that Lightning has loaded, if any.
        labels: As they are now.
        due_N: What `labels.round_of_N` was before Lightning has loaded it.
    """
    if path is not None and not torch.equal(labels.round_of_N, due_N):
        of_checkpoint, due = int(labels.round_of_N.max()), int(due_N.max())
        raise ValueError(
            f"`ckpt_path` is {path}, written in round {of_checkpoint} with {labels.num_labelled} labels, but the run "
            f"is in round {due} with {int((due_N >= 0).sum())}, and not with the same ones: the weights belong to "
            f"another round or run. Give a checkpoint of this run whose name begins with round={due:03d}, or none, and "
            "the round starts anew."
        )


def keep_member(trainer: Trainer, module: LightningModule, members: Members, member: int) -> None:
    """Remember a member as rank 0 has it: each rank's BatchNorm has seen its own batches."""
    Ranks(trainer).send_buffers(module)
    members.keep(module, member)


def check_stepped(trainer: Trainer, steps_before: int) -> None:
    """Refuse to acquire with a model that the fit did not train."""
    if trainer.global_step == steps_before:
        raise RuntimeError(
            "The fit ended without a single training step, so there is nothing to acquire with. A Trainer that has "
            "finished does not train again: use `active_fit`, or a new Trainer. Otherwise look at `max_epochs` and "
            "`max_steps`, and at the batch size against the number of labels."
        )
