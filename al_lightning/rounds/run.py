"""State of a run: known to every rank, kept on disk by rank 0, found again by the next process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from al_lightning._lightning import LightningModule, Trainer, set_logged_steps
from al_lightning.data import EXCLUDED, IN_POOL, ActiveLearningDataModule
from al_lightning.distributed import Ranks
from al_lightning.labelling import Query
from al_lightning.labelling.asked import ASKED, damaged, read_asked
from al_lightning.pool.kept import Kept
from al_lightning.pool.select import Chooser
from al_lightning.posterior import Posterior, state_of
from al_lightning.records.files import load_plain, replacing
from al_lightning.records.header import other_hyper_parameters
from al_lightning.records.journal import Journal, read_journal, run_folder
from al_lightning.records.replay import Recorded, before_batch, recorded, trained_on
from al_lightning.records.round import Change, Round
from al_lightning.records.weights import States, digest_of, read_states
from al_lightning.rounds.draft import Draft, Waiting
from al_lightning.rounds.header import described
from al_lightning.rounds.metrics import Metrics
from al_lightning.rounds.resuming import (
    ASKED_WEIGHTS,
    FIRST_WEIGHTS,
    LAST_WEIGHTS,
    locked,
    opened,
    save_configuration,
    save_last_states,
    save_states,
    still_finished,
    still_paid,
    writing_into,
)
from al_lightning.rounds.settings import Settings

DRAFT = ".draft.pt"
FROZEN = "frozen"
"""Folder of the output of a model's frozen part."""
ASK_ANEW = f"delete {ASKED}: the round is then fitted anew and asks for the same points, whose answers are kept"
START_AGAIN = "start again in another folder with `ActiveLearning(folder=...)`: the run cannot resume as it began"
BEGIN_ANEW = "delete it: the model then has the weights that the run began with"
NUM_WARM_KEPT = 3  # two rounds may be run again, and the first of them continues from the one before


class Run:
    """State of a run, and its only owner: settings, seeds, rounds, members, folder, journal and lock.

    `active_fit` and `ActiveLearning` read it and call its methods. Only rank 0 touches the folder.

    Args:
        settings: What the user says.

    Attributes:
        seed: Of posterior samples and the acquisition's draws; None for 0.
        fit_seed: From which the seeds of the fits are derived; None where `active_fit` does not fit.
        rounds: The committed rounds; the same on every rank.
        found: The rounds that were on disk when the run was opened, those included that are to be run again.
        draft: The round that is not committed yet.
        waiting: What the draft waits for; None if it does not.
        member: The member of an ensemble that is fitted or tested; None if the posterior takes one fit a round.
        fits: Metrics and seconds of each fit of the running round.
        named_folder: Where the next process finds the run; None if that is not known before the fit.
        folder: Where the records are kept; None before `open`, and for a run that leaves none.
        header: What runs; empty before `open`.
        other_hyper_parameters: Those of this process, as far as they are not the ones in the header.
        is_open: Whether this process has looked for earlier rounds.
        ended_before: Whether those that it found are all.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seed = settings.seed
        self.fit_seed: int | None = None
        self.rounds: list[Round] = []
        self.found: list[Round] = []
        self.draft: Draft | None = None
        self.waiting: Waiting | None = None
        self.member: int | None = None
        self.fits: list[tuple[Metrics, float]] = []
        self.folder: Path | None = None
        self.header: Mapping[str, Any] = {}
        self.other_hyper_parameters: Mapping[str, str] = {}
        self.is_open = False
        self.ended_before = False
        self.named_folder = settings.folder
        self._members: list[Mapping[str, torch.Tensor]] = []  # of the last round that has trained all
        self._trained: list[Mapping[str, torch.Tensor]] = []  # of the running round
        self._num_checked = 0  # points of the data whose rows were compared
        self._is_larger_model = False
        self._measures_tests = False
        self._journal: Journal | None = None
        self._lock: FileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a spawned process, which opens the run by itself."""
        draft = None if self.draft is None else replace(self.draft, states=None)
        return {**vars(self), "draft": draft, "_journal": None, "_lock": None}

    @property
    def num_fitted(self) -> int:
        """Count the rounds that are fitted, the one that is not committed included."""
        return len(self.rounds) + (self.draft is not None)

    @property
    def stopped(self) -> str | None:
        """Return why the rounds have ended, or None."""
        return self.rounds[-1].stopped if self.rounds else None

    @property
    def posterior(self) -> Posterior:
        """The posterior of the settings; an ensemble with the members that the last round has trained."""
        members = self.settings.posterior.members
        is_trained = members is not None and len(self._members) == members.num
        return self.settings.posterior.trained(self._members) if is_trained else self.settings.posterior

    @property
    def _may_get_no_label(self) -> bool:
        """Return whether a batch may get no label, so that the next one is due from the same predictions."""
        return self.settings.oracle.asks_people or self.header.get("junk") is not None

    def chooser(self, *, is_fitted: bool = True) -> Chooser:
        """Return what selects the points to label; without a fit `cold_start`."""
        kept = self._kept() if is_fitted else None
        return self.settings.chooser(
            self.posterior,
            folder=self.folder,
            seed=self.seed or 0,
            is_fitted=is_fitted,
            measures=self._measures_tests,
            kept=kept,
        )

    @property
    def uses_posterior(self) -> bool:
        """Return whether posterior samples choose or measure, or the posterior is what each round trains."""
        settings = self.settings
        measures = self._measures_tests or settings.holdout_share is not None
        return measures or "predictions" in settings.acquisition.needs or settings.posterior.members is not None

    def measure_tests(self) -> None:
        """Say that the posterior predicts the test set, and so must be able to before the first training."""
        self._measures_tests = True

    def _kept(self) -> Kept | None:
        """Return the place of a frozen part's output.

        None once a round has run the whole model to choose: a run does not change the way by which it predicts, whose
        sums differ in their last digits.
        """
        parts = [each.frozen for each in self._all_rounds() if each.num_labelled > 0 and "predict" in each.seconds]
        if self.folder is None or None in parts:
            return None
        return Kept(self.folder / FROZEN, part=parts[-1] if parts else None)

    def take_seed(self, seed: int) -> None:
        """Take the seed of `active_fit`: of the fits, and where the settings name none of the draws."""
        self.fit_seed = seed
        self.seed = seed if self.settings.seed is None else self.settings.seed

    def name_folder(self, trainer: Trainer) -> None:
        """Name the folder before a fit: spawned processes return their round through it."""
        if self.named_folder is None:
            self.named_folder = run_folder(trainer)
        self._resume_after(self.earlier_rounds())

    def earlier_rounds(self) -> list[Round]:
        """Read the rounds after which the run resumes, before it is opened."""
        if self.named_folder is None or not (self.named_folder / "rounds.jsonl").exists():
            return []
        return self._still_finished(read_journal(self.named_folder)[1])

    def earlier_header(self) -> Mapping[str, Any]:
        """Read the header of an earlier process, before the run is opened; empty if there is none."""
        folder = self.named_folder
        return {} if folder is None or not (folder / "rounds.jsonl").exists() else read_journal(folder)[0]

    def _still_finished(self, rounds: Sequence[Round], num_points: int | None = None) -> list[Round]:
        limits = self.settings.limits
        if self.settings.oracle.asks_people:
            num_known = recorded(self.header, rounds).num_points if num_points is not None else 0
            return still_paid(rounds, limits, num_appended=max(0, (num_points or 0) - num_known))
        return still_finished(rounds, limits, query_size=self.settings.query_size)

    def open(self, trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule) -> bool:
        """Begin the run or resume it; return False if this process has done so before.

        The labels and the step axis of the loggers are brought to where the records end. Points that the user has moved
        since (in a new process: excluded) stay so, if the records of another process do not contradict it.
        """
        if self.is_open:
            self.check_rows(Ranks(trainer), datamodule)
            if self.fit_seed is None:  # a further plain fit: after the end there is nothing to train
                self.ended_before = self.stopped is not None
            return False
        known = recorded(self.header, self.rounds) if self.header else None
        seeds = {"seed": self.seed, "fit_seed": self.fit_seed}
        header = described(self.settings, seeds, trainer, module, datamodule, before=self.header or None)
        self._open(Ranks(trainer), header, self._found_folder(trainer))
        others = other_hyper_parameters(self.header, header)
        self.other_hyper_parameters = {name: value for name, (_, value) in others.items()}
        self.found = on_disk = self.rounds
        self._resume_after(self._still_finished(on_disk, len(datamodule.labels)))
        self.check_rows(Ranks(trainer), datamodule)
        self._take_draft(Ranks(trainer))
        base, now = recorded(self.header, []) if known is None else known, self._state()
        if now.num_points > len(datamodule.labels):
            raise ValueError(
                f"The training dataset has {len(datamodule.labels)} points, but the run in {self.folder} has seen "
                f"{now.num_points}: points may be appended, and none may be taken away. Exclude them instead, "
                "`datamodule.exclude(ids)`."
            )
        moved = _moved_by_hand(datamodule, base, now, is_new_process=known is None)
        _restore_labels(datamodule, now, withdrawn=on_disk[len(self.rounds) :])
        _move(datamodule, moved, base=base, now=now)
        if moved and self.rounds and self.draft is None:  # the round that is due begins with them, even if run again
            self.add_changes(Ranks(trainer), moved)
        if self.rounds:
            set_logged_steps(trainer, self.rounds[-1].logged_steps)
        return True

    def check_rows(self, ranks: Ranks, datamodule: ActiveLearningDataModule) -> None:
        """Refuse data that were reordered where points may be appended, at the start and whenever there are more."""
        before, num_points = self.header.get("fingerprint"), self.header.get("num_points", 0)
        if before is not None and len(datamodule.labels) != self._num_checked:
            ranks.together(lambda: datamodule.refuse_other_rows(before, num_points))
            self._num_checked = len(datamodule.labels)

    def _state(self) -> Recorded:
        """Return the label state now, without the batch that is not committed."""
        return (recorded if self.draft is None else before_batch)(self.header, self._all_rounds())

    def _take_draft(self, ranks: Ranks) -> None:
        """Take the round that an earlier process has asked people for; not where its next batch is due."""
        is_due = self.draft is not None and self.draft.needs_batch  # a spawned process, which is to choose it
        if self.settings.oracle.asks_people and not is_due:
            self.draft = ranks.first(ranks.together(self._left_draft))

    def _left_draft(self) -> Draft | None:
        """Return the round that an earlier process has asked people for."""
        if self._journal is None or (batch := read_asked(self._journal.folder)) is None:
            return None
        path, number = self._journal.folder / ASKED, len(self.rounds)
        if batch.round > number:
            raise ValueError(
                f"{path} asks for round {batch.round}, but {self._journal.path} holds {number} rounds: it was cut, "
                "or they are of two runs. Restore both from one copy."
            )
        if batch.round < number:  # a process was killed right after the commit
            path.unlink()
            return None
        try:
            return Draft.of_asked(batch)
        except ValueError as error:
            raise ValueError(damaged(path, error)) from error

    def _found_folder(self, trainer: Trainer) -> Callable[[], Path] | None:
        """Return a function that names the folder on rank 0; None for a run that leaves no records."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        return lambda: self.named_folder or run_folder(trainer)

    def _open(self, ranks: Ranks, header: Mapping[str, Any], find_folder: Callable[[], Path] | None) -> None:
        def begun() -> tuple[Path | None, Mapping[str, Any], list[Round]]:
            if find_folder is None or ranks.rank != 0:
                return None, header, []
            folder = find_folder()
            self._lock = locked(folder)
            (folder / DRAFT).unlink(missing_ok=True)  # of a process that was killed
            is_new = self.named_folder is None
            self._journal, rounds = (Journal(folder, header), []) if is_new else opened(folder, header)
            return folder, self._journal.header, rounds

        shared = {name: value for name, value in header.items() if name != "hyper_parameters"}
        ranks.same("the data, the initial labels or the settings", shared)
        self.folder, self.header, self.rounds = ranks.first(ranks.together(begun))
        self.is_open = True

    def _resume_after(self, rounds: Sequence[Round]) -> None:
        """Resume after `rounds`; further ones on disk are replaced when the next is committed."""
        self.rounds = list(rounds)
        self.ended_before = bool(rounds) and rounds[-1].stopped is not None

    def begin_fit(self, member: int | None) -> None:
        """Begin a fit; the first of a round drops what an interrupted one has left."""
        self.member = member
        if not member:
            self.fits, self._trained = [], []
            self.draft = self.draft if self._may_get_no_label else None

    def keep_fit(self, metrics: Metrics, seconds: float) -> None:
        """Keep the metrics and seconds of a fit of the running round."""
        self.fits.append((metrics, seconds))

    def keep_member(self, ranks: Ranks, module: LightningModule, member: int) -> None:
        """Keep the weights of a member as rank 0 has them: each rank's BatchNorm has seen its own batches."""
        ranks.send_buffers(module)
        self._trained[member:] = [state_of(module)]
        members = self.settings.posterior.members
        if members is not None and len(self._trained) == members.num:
            self._members = self._trained
            self._trained = []

    def member_state(self, member: int) -> Mapping[str, torch.Tensor] | None:
        """Return the weights of a member in the last round that has trained all; None before the first such round."""
        return self._members[member] if self._members else None

    def propose(self, draft: Draft, module: nn.Module) -> None:
        """Keep a round that has chosen its batch, until it is committed."""
        settings, states = self.settings, None
        is_kept = settings.warm_start or draft.record.stopped is not None or self._may_get_no_label
        if self._journal is not None and is_kept:
            states = [state_of(module)] if settings.posterior.members is None else list(self._members) or None
        self.draft = replace(draft, states=states)

    def wait_for(self, waiting: Waiting | None) -> None:
        """Keep what is missing."""
        self.waiting = waiting

    def keep_draft(self, draft: Draft) -> None:
        """Keep a draft with what has become known of the round."""
        self.draft = draft

    def drop_batch(self, datamodule: ActiveLearningDataModule, draft: Draft) -> None:
        """Keep a round whose batch got no label, so that the next one is chosen from the same predictions."""
        asked = list(dict.fromkeys([*draft.record.asked_without_label, *draft.record.asked]))
        record = replace(draft.record, acquired=[], scores=[], targets=None, bald=None, predicted=None)
        record = replace(record, asked_held_out=[], asked_without_label=asked, information={})
        self.draft = replace(draft, record=record, probs=None)
        state = self._state()
        datamodule.restore(state.state_of, state.target_of, state.answers)

    def ask(self, ranks: Ranks, query: Query) -> None:
        """Keep the weights of the draft, and ask for its batch."""

        def asked() -> Draft | None:
            draft = self.draft
            if ranks.rank != 0 or draft is None:
                return None
            if draft.states is not None and self._journal is not None:
                with writing_into(self._journal.folder):
                    save_states(self._journal.folder / ASKED_WEIGHTS, draft.states)
                draft = replace(draft, weights=digest_of(draft.states))
            batch = replace(query.batch, draft=draft.as_data())
            self.settings.oracle.ask(replace(query, batch=batch))
            return replace(draft, states=None)

        first = ranks.first(ranks.together(asked))
        if first is not None and self.draft is not None:
            self.draft = replace(self.draft, weights=first.weights)

    def asked_weights(self, ranks: Ranks) -> States | None:
        """Read the weights of the draft, with which its batch was chosen."""
        digest = None if self.draft is None else self.draft.weights
        return self._read(ranks, ASKED_WEIGHTS, digest=digest, way_out=ASK_ANEW)

    def changes_since_choice(self, datamodule: ActiveLearningDataModule) -> list[Change]:
        """Return the label changes since the batch was chosen, whether or not the round is committed."""
        known = recorded if self.draft is None else trained_on
        return datamodule.changes_since(known(self.header, self._all_rounds()).state_of)

    def _all_rounds(self) -> list[Round]:
        return self.rounds if self.draft is None else [*self.rounds, self.draft.record]

    def commit(self, ranks: Ranks, draft: Draft) -> None:
        """Commit a round: append it to the records on disk, then to those in memory."""

        def written() -> Round:
            record = draft.record
            if self._journal is None:
                return record
            number, last = len(self.rounds), self._journal.folder / LAST_WEIGHTS
            has_ended, is_warm = record.stopped is not None, self.settings.warm_start
            states = self._states_of(draft) if has_ended or is_warm else None
            with writing_into(self._journal.folder):
                if states is not None:
                    record = replace(record, weights=digest_of(states))
                if states is not None and is_warm:
                    save_states(self._warm_weights(number), states)
                if states is not None and has_ended:
                    save_last_states(last, states)
                self._journal.write([*self.rounds, record])
                for name in (ASKED, ASKED_WEIGHTS):
                    (self._journal.folder / name).unlink(missing_ok=True)
            if is_warm and number >= NUM_WARM_KEPT:
                self._warm_weights(number - NUM_WARM_KEPT).unlink(missing_ok=True)
            return record

        self.rounds = [*self.rounds, ranks.first(ranks.together(written))]
        self.fits, self.draft, self.waiting = [], None, None

    def _states_of(self, draft: Draft) -> States | None:
        """Return the weights at the end of a draft, which another process may have kept on disk."""
        if draft.states is not None or draft.weights is None or self._journal is None:
            return draft.states
        return read_states(self._journal.folder / ASKED_WEIGHTS, digest=draft.weights, way_out=ASK_ANEW)

    def add_changes(self, ranks: Ranks, changes: Sequence[Change]) -> None:
        """Add label changes to the last round that is committed."""
        last = replace(self.rounds[-1], changed_after=[*self.rounds[-1].changed_after, *changes])
        rounds = [*self.rounds[:-1], last]

        def written() -> None:
            if self._journal is not None:
                with writing_into(self._journal.folder):
                    self._journal.write(rounds)

        ranks.together(written)
        self.rounds = rounds

    def save_first_weights(self, ranks: Ranks, states: States) -> None:
        """Write the weights that every round starts from, once: first the file, then its hash into the header.

        A larger model, for classes that were added, has first weights of its own from then on.
        """
        number = len(self.rounds)

        def saved() -> dict[str, Any]:
            header = dict(self.header)
            if (journal := self._journal) is None or (header.get("first_weights") and not self._is_larger_model):
                return header
            later = {**(header.get("later_weights") or {}), str(number): digest_of(states)}
            with writing_into(journal.folder):
                save_states(journal.folder / _first_weights_file(number if self._is_larger_model else None), states)
                entry = {"later_weights": later} if self._is_larger_model else {"first_weights": digest_of(states)}
                journal.write_header({**journal.header, **entry})
            return {**header, **entry}

        self.header = ranks.first(ranks.together(saved))
        self._is_larger_model = False

    def begin_larger_model(self) -> None:
        """Begin with the weights that the model has now, since it has outputs for further classes."""
        self._is_larger_model = True

    def forget_first_weights(self) -> None:
        """Drop the first weights of an attempt that finished no round: the model's own replace them."""
        self.header = {name: value for name, value in self.header.items() if name != "first_weights"}
        if self._journal is not None:
            self._journal.write_header(self.header)

    def first_weights(self, ranks: Ranks) -> States | None:
        """Read the weights that every round starts from; None if no process has kept them yet."""
        later = self.header.get("later_weights") or {}
        number = max(map(int, later), default=None)
        digest = self.header.get("first_weights") if number is None else later[str(number)]
        return self._read(ranks, _first_weights_file(number), digest=digest)

    def warm_weights(self, ranks: Ranks) -> States | None:
        """Read the weights that the next round continues from with `warm_start`; None before the first round."""
        if self.draft is not None:
            return self.asked_weights(ranks)
        if not self.rounds:
            return None
        return self._read(ranks, self._warm_weights(len(self.rounds) - 1).name, digest=self.rounds[-1].weights)

    def last_weights(self, ranks: Ranks) -> States | None:
        """Read the weights that an ended run ended with; None if the folder has them no more."""
        digest = self.rounds[-1].weights if self.rounds else None
        return self._read(ranks, LAST_WEIGHTS, digest=digest, way_out=BEGIN_ANEW, is_needed=False)

    def restore_members(self, states: States) -> None:
        """Take the weights of the members from another process."""
        self._members = list(states)

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

    def hand_over(self, datamodule: ActiveLearningDataModule) -> None:
        """Write the draft for the process that has spawned this one, with the label changes since the choice."""
        if self.draft is not None and self._journal is not None and self.folder is not None:
            record = replace(self.draft.record, changed_after=self.changes_since_choice(datamodule))
            states = None if self.draft.states is None else [dict(state) for state in self.draft.states]
            with writing_into(self.folder), replacing(self.folder / DRAFT) as file:
                torch.save({"draft": replace(self.draft, record=record).as_data(), "states": states}, file)

    def receive(self, datamodule: ActiveLearningDataModule) -> None:
        """Read the draft that spawned processes have written, and bring the labels to it."""
        if (folder := self.named_folder) is None:
            raise RuntimeError("The run names no folder, through which spawned processes tell what they have done.")
        self.folder, self._lock = folder, locked(folder)
        self.header, on_disk = read_journal(folder)
        if not datamodule.has_acquired:
            datamodule.setup("fit")
        self._resume_after(self._still_finished(on_disk, len(datamodule.labels)))
        self._journal = Journal(folder, self.header, rounds=on_disk)
        if (path := folder / DRAFT).exists():
            left = load_plain(path)
            self.draft = Draft.from_data(left["draft"], left["states"])
            path.unlink()
        elif self.settings.oracle.asks_people:
            self.draft = self._left_draft()
        state = (recorded if self.draft is None else trained_on)(self.header, self._all_rounds())
        datamodule.restore(state.state_of, state.target_of, state.answers)
        if self.draft is not None:
            datamodule.labels.replace({**state.state_of, **_states(self.draft.record.changed_after)})

    def save_configuration(self, name: str, text: str) -> None:
        """Write the configuration of the command line into the folder of the open run, if it leaves records."""
        if self.folder is not None:
            save_configuration(self.folder / name, text)

    def release(self) -> None:
        """Let another process write into the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def close(self) -> None:
        """Release the folder, so that the next process, or this one, opens the run again."""
        self.release()
        self._journal, self.is_open = None, False

    def end_call(self) -> None:
        """Release the folder at the end of `active_fit`; a run without a round begins anew with the next call.

        That call may have another seed, model and data, and must take the lock again.
        """
        self.release()
        self.member = None
        if not self.rounds and self.waiting is None:
            vars(self).update(vars(Run(self.settings)))

    def close_if_named(self) -> None:
        """Close a run that this process finds again by the name of its folder, after a fit that no driver follows."""
        if self.fit_seed is None and self.settings.folder is not None:
            self.close()


def _first_weights_file(number: int | None) -> str:
    """Return the file of the first weights: of the run, or of the larger model that began with a round."""
    return FIRST_WEIGHTS if number is None else f"first_weights-{number:03d}.pt"


def _restore_labels(datamodule: ActiveLearningDataModule, state: Recorded, *, withdrawn: Sequence[Round]) -> None:
    """Bring the labels to the state of the records.

    Args:
        datamodule: Whose labels.
        state: What the records imply.
        withdrawn: Rounds that are to be run again; the corrections that they recorded are accepted, to these targets.
    """
    accepted = {index: new for record in withdrawn for index, _, new in record.corrections}
    expected = {index: accepted.get(index, target) for index, target in state.target_of.items()}
    datamodule.restore(state.state_of, expected, state.answers)


def _moved_by_hand(
    datamodule: ActiveLearningDataModule, base: Recorded, now: Recorded, *, is_new_process: bool
) -> list[Change]:
    """Return label changes of the user since `base` that the records lack; a new process may only exclude points."""
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
    return [change for change in new if change[1] == EXCLUDED]


def _move(datamodule: ActiveLearningDataModule, moved: Sequence[Change], *, base: Recorded, now: Recorded) -> None:
    """Repeat the label changes of the user since `base`; refuse points that the run has moved too."""
    states = _states(moved)
    taken = [index for index in states if base.state_of.get(index) != now.state_of.get(index)]
    if taken:
        raise ValueError(
            f"The points {taken[:5]} ({len(taken)} in all) were moved before this start of the run (`exclude`, "
            "`unlabel` or `label`), but the run has acquired or moved them in the meantime. Leave them as the records "
            "have them; to take back a label, call `unlabel` in a callback's `on_fit_start`."
        )
    datamodule.labels.replace({**now.state_of, **states})


def _states(changes: Sequence[Change]) -> dict[int, int]:
    """Return the state to which each point has moved, by id."""
    return {int(index): int(state) for index, state, _ in changes if index is not None and state is not None}
