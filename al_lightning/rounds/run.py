"""The rounds of a run: known to every rank, kept on disk by rank 0, and found again by the next process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from al_lightning._lightning import LightningModule, Trainer, set_logged_steps
from al_lightning.data import IN_POOL, SET_ASIDE, ActiveLearningDataModule, Labels
from al_lightning.distributed import Ranks
from al_lightning.posterior import Members
from al_lightning.records.journal import Journal, read_journal, run_folder
from al_lightning.records.replay import Recorded, recorded
from al_lightning.records.round import Change, Round
from al_lightning.records.weights import States, digest_of, read_states
from al_lightning.rounds.limits import Limits
from al_lightning.rounds.resuming import (
    FIRST_WEIGHTS,
    LAST_WEIGHTS,
    locked,
    opened,
    save_last_states,
    save_states,
    still_finished,
    writing_into,
)

FAST_DEV_ROUNDS = 2  # enough to see a fit, an acquisition, and a fit on what was acquired
START_AGAIN = "start again in another folder with `ActiveLearning(folder=...)`: the run cannot go on as it began"
BEGIN_ANEW = "delete it: the model then has the weights that the run began with"
NUM_WARM_KEPT = 3  # two rounds may be run again, and the first of them continues from the one before


class Run:
    """State of a run: finished rounds and the folder that holds them. Only rank 0 touches the folder.

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

        def begun() -> tuple[Path | None, Mapping[str, Any], list[Round]]:
            if find_folder is None or ranks.rank != 0:
                return None, header, []
            folder = find_folder()
            self._lock = locked(folder)
            self._journal, rounds = opened(folder, header) if resumes else (Journal(folder, header), [])
            return folder, self._journal.header, rounds

        shared = {name: value for name, value in header.items() if name != "hyper_parameters"}
        ranks.same("the data, the initial labels or the settings", shared)
        self.folder, self.header, self.rounds = ranks.first(ranks.together(begun))
        self.is_open = True

    def go_on_after(self, rounds: Sequence[Round]) -> None:
        """Let these be the rounds until the next is committed; those beyond them on disk are run again."""
        self.rounds = list(rounds)
        self.ended_before = bool(rounds) and rounds[-1].stopped is not None

    def commit(
        self, ranks: Ranks, rounds: Sequence[Round], *, states: States | None = None, is_warm: bool = False
    ) -> None:
        """Commit `rounds`: write them to disk, then update memory.

        Args:
            ranks: All processes.
            rounds: All rounds so far.
            states: The weights at the end of the last one, which are kept if the run ends with it; None if they are.
            is_warm: Whether the next round continues from them, so that they are kept for it.
        """

        def written() -> Round:
            record = rounds[-1]
            if self._journal is None:
                return record
            number, last = len(rounds) - 1, self._journal.folder / LAST_WEIGHTS
            has_ended = states is not None and record.stopped is not None
            with writing_into(self._journal.folder):
                if states is not None and (is_warm or has_ended):
                    record = replace(record, weights=digest_of(states))
                if states is not None and is_warm:
                    save_states(self._warm_weights(number), states)
                if has_ended:
                    last.unlink(missing_ok=True)  # of an earlier end, with fewer labels
                self._journal.write([*rounds[:-1], record])
            if states is not None and has_ended:
                save_last_states(last, states)
            if is_warm and number >= NUM_WARM_KEPT:
                self._warm_weights(number - NUM_WARM_KEPT).unlink(missing_ok=True)
            return record

        self.rounds = [*rounds[:-1], ranks.first(ranks.together(written))]

    def save_first_weights(self, ranks: Ranks, states: States) -> None:
        """Keep what every round starts from, once: the file first, and then its hash, without which it is none."""

        def saved() -> str | None:
            if (journal := self._journal) is None:
                return None
            digest: str | None = journal.header.get("first_weights")
            if digest is None:
                with writing_into(journal.folder):
                    save_states(journal.folder / FIRST_WEIGHTS, states)
                    digest = digest_of(states)
                    journal.header = {**journal.header, "first_weights": digest}
                    journal.write(self.rounds)
            return digest

        self.header = {**self.header, "first_weights": ranks.first(ranks.together(saved))}

    def forget_first_weights(self) -> None:
        """Drop those of an attempt that finished no round, for the model's own."""
        self.header = {name: value for name, value in self.header.items() if name != "first_weights"}
        if self._journal is not None:
            self._journal.header = self.header

    def first_weights(self, ranks: Ranks) -> States | None:
        """Read the weights that every round starts from; None if no process has kept them yet."""
        return self._read(ranks, FIRST_WEIGHTS, digest=self.header.get("first_weights"))

    def warm_weights(self, ranks: Ranks) -> States | None:
        """Read the weights that the next round continues from with `warm_start`; None before the first round."""
        if not self.rounds:
            return None
        return self._read(ranks, self._warm_weights(len(self.rounds) - 1).name, digest=self.rounds[-1].weights)

    def last_weights(self, ranks: Ranks) -> States | None:
        """Read the weights that an ended run ended with; None if the folder has them no more."""
        digest = self.rounds[-1].weights if self.rounds else None
        return self._read(ranks, LAST_WEIGHTS, digest=digest, way_out=BEGIN_ANEW, is_needed=False)

    def _read(
        self, ranks: Ranks, name: str, *, digest: str | None, way_out: str = START_AGAIN, is_needed: bool = True
    ) -> States | None:
        def read() -> States | None:
            path = None if self._journal is None else self._journal.folder / name
            if path is None or digest is None or not (is_needed or path.exists()):
                return None
            return read_states(path, digest=digest, way_out=way_out)

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
    """Open the run, and bring the labels and the loggers to where its records end.

    Points that the user has moved since (in a new process: taken out of the pool) stay so, if the records that another
    process has added do not contradict it.
    """
    known = recorded(run.header, run.rounds) if run.header else None
    leaves_none = trainer.fast_dev_run  # type: ignore[attr-defined]
    run.open(
        Ranks(trainer),
        header,
        find_folder=None if leaves_none else lambda: folder or run_folder(trainer),
        resumes=folder is not None,
    )
    on_disk = run.rounds
    run.go_on_after(still_finished(on_disk, limits, query_size=header["query_size"]))
    base, now = recorded(run.header, []) if known is None else known, recorded(run.header, run.rounds)
    moved = _moved_by_hand(datamodule, base, now, is_new_process=known is None)
    catch_up_labels(run, datamodule, withdrawn=on_disk[len(run.rounds) :])
    _move(datamodule, moved, base=base, now=now)
    if moved and run.rounds:  # the round that is due begins with them, even if it is run again
        complete = replace(run.rounds[-1], changed_after=[*run.rounds[-1].changed_after, *moved])
        run.commit(Ranks(trainer), [*run.rounds[:-1], complete])
    if run.rounds:
        set_logged_steps(trainer, run.rounds[-1].logged_steps)


def catch_up_labels(run: Run, datamodule: ActiveLearningDataModule, *, withdrawn: Sequence[Round] = ()) -> None:
    """Bring the labels to where the records of a run end.

    Args:
        run: An open run.
        datamodule: Whose labels.
        withdrawn: Rounds that are to be run again; the corrections that they recorded are accepted, to these targets.
    """
    state = recorded(run.header, run.rounds)
    accepted = {index: new for record in withdrawn for index, _, new in record.corrections}
    expected = {index: accepted.get(index, target) for index, target in state.target_of.items()}
    datamodule.restore(state.state_of, expected)


def _moved_by_hand(
    datamodule: ActiveLearningDataModule, base: Recorded, now: Recorded, *, is_new_process: bool
) -> list[Change]:
    """Return what the user has changed since `base`, unless the records have it; a new process only excludes points."""
    changes = datamodule.changes_since(base.state_of)
    new = [change for change in changes if now.state_of.get(int(change[0] or 0), IN_POOL) != change[1]]
    if not is_new_process:
        return new
    if labelled := [index for index, state, _ in new if state is not None and state > 0]:
        raise ValueError(
            f"The points {labelled[:5]} ({len(labelled)} in all) were labelled before the run was started, and its "
            "records do not have them. Begin a run with a new data module and `initial=[...]`; to label points by "
            "hand in a run, call `label` in a callback's `on_fit_start`."
        )
    return [change for change in new if change[1] == SET_ASIDE]


def _move(datamodule: ActiveLearningDataModule, moved: Sequence[Change], *, base: Recorded, now: Recorded) -> None:
    """Repeat what the user has changed since `base`, where the run has left these points alone."""
    states = {int(index): int(state) for index, state, _ in moved if index is not None and state is not None}
    taken = [index for index in states if base.state_of.get(index) != now.state_of.get(index)]
    if taken:
        raise ValueError(
            f"The points {taken[:5]} ({len(taken)} in all) were moved before this start of the run (`set_aside`, "
            "`unlabel` or `label`), but the run has acquired or moved them in the meantime. Leave them as the records "
            "have them; to take back a label, call `unlabel` in a callback's `on_fit_start`."
        )
    datamodule.labels.replace({**now.state_of, **states})


def reason_to_stop(
    trainer: Trainer, limits: Limits, labels: Labels, *, num_fits: int, metrics: Mapping[str, float | None]
) -> str | None:
    """Return why no round follows the fit that has just ended, or None."""
    if trainer.fast_dev_run and num_fits >= FAST_DEV_ROUNDS:  # type: ignore[attr-defined]
        return f"fast_dev_run ends after {FAST_DEV_ROUNDS} rounds"
    return limits.reason(num_labelled=labels.num_labelled, num_pool=labels.num_pool, num_fits=num_fits, metrics=metrics)


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
