"""The driver: train, acquire, label, start afresh, on the user's own Trainer."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from al_lightning._lightning import (
    LightningModule,
    Trainer,
    callbacks_of,
    check_flavour,
    has_only_tuned,
    is_overridden,
    isolate_rng,
    lightning_module_of,
    rank_zero_info,
    spawns,
)
from al_lightning.data import ActiveLearningDataModule, wrapped_datamodule
from al_lightning.distributed import Ranks
from al_lightning.records.foreign import printable
from al_lightning.records.round import Round
from al_lightning.rounds.asking import Closed, check_people, closed, finished_line, wait_for_answers
from al_lightning.rounds.callback import active_learning_callback
from al_lightning.rounds.checkpoints import keeps_last, labels_due, prefix_checkpoints, read_checkpoints_as_before
from al_lightning.rounds.console import Live, no_summary, quiet, round_line, table
from al_lightning.rounds.draft import Draft
from al_lightning.rounds.ending import Ending
from al_lightning.rounds.fresh_start import FreshStart
from al_lightning.rounds.mean_prediction import MeanPrediction
from al_lightning.rounds.metrics import Metrics
from al_lightning.rounds.rewind import Rewind
from al_lightning.rounds.round_end import finish_round, with_tests
from al_lightning.rounds.run import Run
from al_lightning.rounds.start import Fit, Start
from al_lightning.tracking import follow_spawned, log_earlier_rounds

SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


def active_fit(
    trainer: Trainer,
    model: LightningModule,
    datamodule: ActiveLearningDataModule,
    *,
    seed: int | None = None,
    ckpt_path: str | Path | None = None,
    finish: bool = False,
) -> list[Round]:
    """Repeat `trainer.fit` until a limit of the Trainer's `ActiveLearning` callback is reached; return the records.

    Every round is a complete, ordinary fit on what is labelled by then, and the same as that fit on a Trainer, a model
    and callbacks of its own: weights, optimizers, schedulers, counters of callbacks and loops start afresh. Where the
    data module has test data and the model a `test_step`, `trainer.test` follows it. The given objects stay valid and
    hold the last round's state, also of a run that an earlier process has ended; the global random generators are given
    back as they were.

    With `ActiveLearning(folder=...)` the same call resumes a run that was killed: after its last finished round, and
    with the weights that it began with. The round that was interrupted starts anew, or resumes inside with
    `ckpt_path`. Several processes (`Trainer(devices=4, strategy="ddp")`) share the pool between them.

    With a `DeepEnsemble` all this holds for every member: a round is one fit and one test of each, its metrics are
    their means, and the model ends as the last of them.

    With `ActiveLearning(oracle=AskPeople())` it returns while people have not answered yet: with the finished rounds,
    and the points that it waits for in `callback.waiting_for`. The same call resumes once the answers are there.

    SIGTERM ends the process, all its ranks included, with status 143 and a line that says how the run resumes.

    Args:
        trainer: A Trainer that has not trained yet, with one `ActiveLearning` callback; a `Tuner` may have used it.
        model: Its weights at the call are those that every round starts from (unless `warm_start`, or an ensemble's
            members start with new ones). They were drawn when it was made: call `seed_everything` before that. It, or
            parts of it, may be compiled by `torch.compile`; the pool is predicted uncompiled.
        datamodule: What is labelled and what is pool.
        seed: Of everything drawn in the rounds, each round's training included, but not of the weights that the model
            comes with: by default what `seed_everything` has set, else 0. Initial labels have the data module's.
        ckpt_path: A checkpoint that Lightning wrote inside the round that is due, for the first fit; or "last" for the
            last one, if there is any in the folder of a `ModelCheckpoint(dirpath=..., save_last=True)`. All processes
            must see it, and with "last" the run's folder. Not for an ensemble, of whose members it holds one.
        finish: Close the batch that people are asked for with the answers that are there.

    Returns:
        The records of all rounds, those of earlier processes included.

    Example:
        >>> import tempfile
        >>> from pytorch_lightning import Trainer
        >>> from al_lightning import ActiveLearning, DigitsDataModule, Random
        >>> from al_lightning.models import MLP, Classifier
        >>> data = ActiveLearningDataModule(DigitsDataModule(), initial=10, points_per_epoch=64)
        >>> callback = ActiveLearning(Random(), query_size=5, max_labelled=20)
        >>> short = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Trainer(callbacks=[callback], default_root_dir=folder, **short)
        ...     rounds = active_fit(trainer, Classifier(MLP(64, num_classes=10)), data, seed=0)
        >>> [record.num_labelled for record in rounds], callback.stopped
        ([10, 15, 20], 'max_labelled=20 reached')
    """
    check_flavour("trainer", trainer, Trainer)
    model = lightning_module_of(model)
    check_flavour("model", model, LightningModule)
    run = active_learning_callback(trainer).run
    wrapped_datamodule(datamodule)
    _refuse_used(trainer, run, datamodule)
    _refuse_checkpoint_of_member(ckpt_path, run)
    check_people(run.settings, datamodule, is_dev=bool(trainer.fast_dev_run))  # type: ignore[attr-defined]
    if run.settings.num_reserved:
        datamodule.reserve(run.settings.num_reserved)
    run.take_seed(_global_seed() if seed is None else seed)
    if spawns(trainer):
        _prepare_to_spawn(trainer, run)
    with quiet(trainer, bars=run.settings.bars):
        _run(trainer, model, datamodule, run, ckpt_path=ckpt_path, finish=finish)
    if run.rounds:
        rank_zero_info(table(run.rounds))
    if run.waiting is not None:
        rank_zero_info(str(run.waiting))
    return run.rounds


def _global_seed() -> int:
    """Return the seed that `seed_everything` leaves to all processes of a script; 0 if there is none."""
    text = os.environ.get(SEED_VARIABLES[0], "0")
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"The environment variable {SEED_VARIABLES[0]} is {text!r}, but must be a whole number. Unset it, or give "
            "`active_fit(..., seed=0)`."
        ) from error


@dataclass(frozen=True)
class _Rounds:
    """Objects of one call of `active_fit`, and one round of it."""

    trainer: Trainer
    model: LightningModule
    datamodule: ActiveLearningDataModule
    run: Run
    start: Start
    live: Live
    rewind: Rewind

    def one(self, ckpt_path: str | Path | None, *, finish: bool) -> bool:
        """Run one round: fit and propose, test, ask, commit, label and log; return whether another one follows.

        Args:
            ckpt_path: The checkpoint that its first fit resumes from.
            finish: Close the batch that an earlier process has asked for, with the answers that are there.
        """
        run = self.run
        if (is_new := self._fits(ckpt_path)) and finish:
            rank_zero_info("`finish` closes nothing: no batch was asked for when this start began.")
        finish = finish and not is_new
        if run.ended_before:
            rank_zero_info(f"The run in {run.folder} ended before: {run.stopped}.")
            return False
        while (batch := self._asked(self._draft(), finish=finish)) is not None:
            keeps_weights = run.folder is not None  # not a run of `fast_dev_run`, which takes this round as it is
            if batch.changes_training or not batch.draft.record.asked or not keeps_weights:
                break
            run.drop_batch(self.datamodule, batch.draft)  # without a label there is nothing to fit
            if spawns(self.trainer):
                run.close()
            self._fit(Fit())
            finish = False
        if batch is None:
            return False
        finish_round(self.trainer, self.datamodule, run, batch.draft)
        if spawns(self.trainer):
            run.close()  # the next process opens it
        self.live.clear()
        rank_zero_info(round_line(run.rounds[-1], budget=run.settings.limits.max_labelled))
        return run.stopped is None

    def _fits(self, ckpt_path: str | Path | None) -> bool:
        """Fit and test the model, or each member; the last fit proposes the round in its `on_fit_end`.

        Return False if nothing was due: the run has ended, or an earlier process has asked for the round's batch.
        """
        run, members, tests = self.run, self.run.settings.posterior.members, []
        has_test = _is_tested(self.model, self.datamodule)
        for member in [None] if members is None else range(members.num):
            self._fit(Fit(member, ckpt_path))
            if run.ended_before or (run.draft is not None and run.draft.is_tested):
                return False
            if run.draft is not None and run.draft.record.num_labelled == 0:
                break  # nothing was trained
            if has_test:
                tests.append(self._test())
        with_tests(self.trainer, run, tests)
        return True

    def _asked(self, draft: Draft, *, finish: bool) -> Closed | None:
        """Ask for the batch of a draft, and return it with its answers; None if they are not there yet."""
        trainer, datamodule, run = self.trainer, self.datamodule, self.run
        Ranks(trainer).same("who is labelled", labels_due(datamodule.labels, round_index=draft.record.round))
        self.live.wait(draft.record)
        answers = wait_for_answers(trainer, datamodule, run, draft, is_finished=finish)
        if not answers.is_closed:
            self.live.clear()
            return None
        batch = closed(datamodule, run, self._draft(), answers)
        lines = [*([finished_line(draft.record, answers.of)] if finish else []), *filter(None, [batch.disputed])]
        for line in [*lines, *(f"Not read: {reason}" for reason in answers.unread)]:
            rank_zero_info(printable(line))
        return batch

    def _fit(self, fit: Fit) -> None:
        is_first = self.trainer.state.fn is None
        if not is_first:
            self.rewind.restore()
        self.start.begin(fit)
        self.live.begin(len(self.run.rounds))
        with nullcontext() if is_first else no_summary(self.trainer):
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=fit.ckpt_path)
        if spawns(self.trainer):
            self.run.receive(self.datamodule)
            follow_spawned(self.trainer)
        if not self.trainer.state.finished:
            self._refuse_unfinished()

    def _test(self) -> tuple[Metrics, float]:
        started = time.perf_counter()
        results = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if spawns(self.trainer):
            follow_spawned(self.trainer)
        metrics = {name: value for result in results for name, value in result.items()}
        return metrics, time.perf_counter() - started

    def _draft(self) -> Draft:
        if self.run.draft is None:
            self._refuse_unfinished()
        return self.run.draft

    def _refuse_unfinished(self) -> NoReturn:
        raise RuntimeError(
            f"Round {len(self.run.rounds)} ended as {self.trainer.state.status!s} without a batch, so the next one "
            "cannot start. A fit that was interrupted resumes when the same command is started again, with "
            "`ActiveLearning(folder=...)`."
        )


def _is_tested(model: LightningModule, datamodule: ActiveLearningDataModule) -> bool:
    """Return whether rounds are tested: there are test data, and the model has a test step."""
    return is_overridden("test_dataloader", datamodule) and is_overridden("test_step", model)


def _run(
    trainer: Trainer,
    model: LightningModule,
    datamodule: ActiveLearningDataModule,
    run: Run,
    *,
    ckpt_path: str | Path | None,
    finish: bool,
) -> None:
    """Run the rounds, and leave the Trainer with the user's own callbacks."""
    if _is_tested(model, datamodule) and any(isinstance(each, MeanPrediction) for each in callbacks_of(trainer)):
        run.measure_tests()
    fresh = FreshStart(trainer, model, datamodule, lasting=[run])
    ending, start, live = own = Ending(_way_on(run)), Start(run, fresh), Live()
    callbacks_of(trainer)[:0] = own
    keep = [active_learning_callback(trainer), *own]
    keep_weights = run.settings.warm_start and run.settings.posterior.members is None
    rewind = Rewind(trainer, model, datamodule, fresh=fresh, keep=keep, keep_weights=keep_weights)
    rounds = _Rounds(trainer, model, datamodule, run, start, live, rewind)
    try:
        with ending.listening(trainer), isolate_rng(), _seed_variables_kept():
            goes_on = rounds.one(_checkpoint_due(trainer, run, ckpt_path), finish=finish)
            while goes_on:
                goes_on = rounds.one(None, finish=False)
    finally:
        live.clear()
        run.end_call()
        for each in own:
            callbacks_of(trainer).remove(each)
        read_checkpoints_as_before(trainer)


def _way_on(run: Run) -> str:
    """Return how a run resumes that is ended from outside."""
    if run.named_folder is None:
        return (
            "Its finished rounds are in the folder of its logger, but to resume after them a run must name its own, "
            "`ActiveLearning(folder=...)`."
        )
    return f"{run.named_folder} holds its finished rounds: start the same command again, and it resumes after them."


def _refuse_used(trainer: Trainer, run: Run, datamodule: ActiveLearningDataModule) -> None:
    if trainer.state.fn is not None and not has_only_tuned(trainer):
        raise ValueError(
            "`trainer` has run already, so its first state is lost and rounds cannot start from it. "
            "Give `active_fit` a new Trainer (and new callbacks)."
        )
    if run.rounds:
        raise ValueError(
            f"The ActiveLearning callback has run {len(run.rounds)} rounds already, and its records are those of "
            "one run. Give the Trainer a new one."
        )
    if datamodule.has_acquired:
        raise ValueError(
            "`datamodule` holds labels that an earlier run acquired, and this run would start with them. Wrap your "
            "data module anew: `ActiveLearningDataModule(datamodule, initial=...)`. To resume a run that was "
            "killed, start its command again, with `ActiveLearning(folder=...)`."
        )


def _refuse_checkpoint_of_member(ckpt_path: str | Path | None, run: Run) -> None:
    if ckpt_path is not None and run.settings.posterior.members is not None:
        raise ValueError(
            f"`ckpt_path` is {ckpt_path}, but a checkpoint holds one network, and `posterior` is "
            f"{run.settings.posterior!r}, whose members take a fit each, and those before it are not kept. Leave it "
            "out, and the round starts anew."
        )


def _prepare_to_spawn(trainer: Trainer, run: Run) -> None:
    """Refuse what would be lost with spawned processes, and name the folder through which they return the rest."""
    posterior, is_dev = run.settings.posterior, trainer.fast_dev_run  # type: ignore[attr-defined]
    if posterior.members is not None or is_dev:
        what = "fast_dev_run" if is_dev else f"`posterior` {posterior!r}"
        raise ValueError(
            f"{what} does not work with a strategy whose processes end with each fit: what they have made would be "
            "lost. Use `Trainer(strategy='ddp')`."
        )
    run.name_folder(trainer)
    follow_spawned(trainer)
    log_earlier_rounds(trainer, run.earlier_rounds(), run.earlier_header(), run.named_folder)


def _checkpoint_due(trainer: Trainer, run: Run, ckpt_path: str | Path | None) -> str | Path | None:
    """Return the checkpoint that the first fit resumes from. "last" suits a run that is new, killed or ended.

    Lightning looks for the last before it calls any callback: its name must be that of the round that is due by then.
    """
    if ckpt_path != "last":
        return ckpt_path
    if run.settings.folder is None or not any(keeps_last(checkpoint) for checkpoint in trainer.checkpoint_callbacks):
        raise ValueError(
            "`ckpt_path` is 'last', but the next process of a run finds its round and its checkpoint only in folders "
            "that are named: `ActiveLearning(folder=...)` and `ModelCheckpoint(dirpath=..., save_last=True)`."
        )
    earlier = run.earlier_rounds()
    if trainer.fast_dev_run or (earlier and earlier[-1].stopped is not None):  # type: ignore[attr-defined]
        return None
    prefix_checkpoints(trainer, len(earlier))
    return ckpt_path


@contextmanager
def _seed_variables_kept() -> Iterator[None]:
    """Restore the environment variables in which `seed_everything` leaves its seed."""
    before = {name: os.environ.get(name) for name in SEED_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
