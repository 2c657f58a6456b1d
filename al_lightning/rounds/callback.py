"""The callback that chooses the next batch to label at the end of every fit."""

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from al_lightning._lightning import (
    Callback,
    LightningModule,
    Trainer,
    callbacks_of,
    check_strategy,
    is_tuning,
    logged_steps,
    rank_zero_warn,
    spawns,
)
from al_lightning.acquisition import Acquisition, Screening
from al_lightning.data import wrapped_datamodule
from al_lightning.distributed import Ranks
from al_lightning.pool.select import Chooser, Selection
from al_lightning.pool.storage import Storage
from al_lightning.posterior import MCDropout, Posterior
from al_lightning.records.replay import recorded
from al_lightning.records.round import Change, Round
from al_lightning.rounds.batch_norm import BatchNormWatch, Coming, watch_batch_norm
from al_lightning.rounds.checkpoints import (
    LabelsDue,
    best_checkpoint,
    fit_metrics,
    labels_due,
    load_best,
    read_progress,
    write_progress,
)
from al_lightning.rounds.header import described
from al_lightning.rounds.limits import Limits
from al_lightning.rounds.metrics import Metrics, mean_metrics, repeated_points
from al_lightning.rounds.run import Run, begin, check_stepped, keep_member, reason_to_stop
from al_lightning.tracking import begin_tracking, keep_images, log_last_round, open_loggers


def active_learning_callback(trainer: Trainer) -> "ActiveLearning":
    """The one ActiveLearning callback of a Trainer whose strategy is supported."""
    check_strategy(trainer)
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, ActiveLearning)]
    if len(found) != 1:
        raise ValueError(
            f"The Trainer has {len(found)} ActiveLearning callbacks, but must have exactly one: "
            "`Trainer(callbacks=[ActiveLearning(BatchBALD(), query_size=10)])`."
        )
    open_loggers(trainer, job_type=type(found[0].acquisition).__name__)
    return found[0]


class ActiveLearning(Callback):
    """Chooses the next batch to label at the end of a fit; `active_fit` repeats the fit until a limit is reached.

    A round is one complete fit, or one for each member of an ensemble. It ends with predictions of the pool by
    `num_samples` draws of the posterior, from which the acquisition chooses `query_size` samples; they are labelled
    from the next round on. The last round acquires nothing. Without any of `max_labelled`, `max_rounds` and `target`
    the rounds end when the pool is empty.

    Args:
        acquisition: Whom to label: `BatchBALD()`, `BALD()`, `Random()`, ...
        query_size: Labels per round; the last batches may be smaller, at the budget's or the pool's end.
        posterior: What draws networks from a trained model.
        num_samples: K, the number of posterior samples: by default 100, or the number of an ensemble's members. A batch
            of b points can tell at most log K nats.
        max_predicted: How many points of the pool a round predicts and chooses from at most, drawn at random anew each
            round. By default the whole pool. `Random()` predicts none and chooses from the whole pool.
        screening: A look at these points by a few samples, which leaves only those of largest BALD to the K samples and
            the acquisition: `Screening(num_points=2000, num_samples=20)`. By default none.
        predictions_budget_mib: What predictions of the pool, 4 N K C bytes, may take in memory, where they are made.
            Beyond it they are kept in a file in the run folder while the acquisition chooses, on the CPU.
        max_labelled: The label budget, initial labels included.
        max_rounds: The number of rounds.
        monitor: A metric logged during the fit, e.g. "val_acc"; ends the rounds once it reaches `target`.
        target: See `monitor`. Not a test metric: those are measured after the choice, and stopping on them is cheating.
        mode: Whether `monitor` is to rise ("max") or to fall ("min").
        weights: Whose weights acquire and are tested: those at the end of the fit ("last"), or those of the best
            checkpoint ("best", needs a ModelCheckpoint with a `monitor`).
        warm_start: Continue from the weights of the round before (each member from its own), not from the first ones.
        folder: Where the records go. If it holds those of this very run, it goes on after its last finished round; only
            the limits may have changed. By default that of the Trainer's first logger, which must be new. Of several
            processes only the first needs to see it.
        seed: Of posterior samples and the acquisition's draws. By default that of `active_fit`, else 0.
        bars: Keep the progress bars that the Trainer makes by itself; by default `active_fit` shows one live line in
            their place. A bar that you give the Trainer of another class stays.

    Attributes:
        run: The records of the finished rounds, and where they are kept.
        member: Which member of an ensemble the driver is fitting; None if the posterior takes one fit a round.
        fit_seed: What the driver seeds the trainings with; None for a plain `trainer.fit`.
        awaits_test: Whether the driver adds test metrics to a round after its fit.
    """

    def __init__(  # noqa: PLR0913 - the hyper-parameters of a run, keyword-only and flat as the Trainer's are
        self,
        acquisition: Acquisition,
        *,
        query_size: int = 10,
        posterior: Posterior | None = None,
        num_samples: int | None = None,
        max_predicted: int | None = None,
        screening: Screening | None = None,
        predictions_budget_mib: int = 4096,
        max_labelled: int | None = None,
        max_rounds: int | None = None,
        monitor: str | None = None,
        target: float | None = None,
        mode: Literal["max", "min"] = "max",
        weights: Literal["last", "best"] = "last",
        warm_start: bool = False,
        folder: str | Path | None = None,
        seed: int | None = None,
        bars: bool = False,
    ) -> None:
        self.acquisition = acquisition
        self.query_size = query_size
        self.posterior = MCDropout() if posterior is None else posterior
        self.num_samples = self.posterior.checked_num_samples(num_samples)
        self.max_predicted = max_predicted
        self.screening = screening
        self.predictions_budget_mib = predictions_budget_mib
        self.limits = Limits(max_labelled, max_rounds, monitor, target, mode)
        self.weights = weights
        self.warm_start = warm_start
        self.folder = None if folder is None else Path(folder)
        self.seed = seed
        self.bars = bars
        self.run = Run()
        self.member: int | None = None
        self.fit_seed: int | None = None
        self.awaits_test = False
        self._fits: dict[int | None, tuple[Metrics, float]] = {}  # metrics and seconds of this round's, by member
        self._fit_started, self._steps_before = 0.0, 0
        self._metrics_before: Metrics = {}  # that the checkpoint knew from which the fit goes on
        self._labels_due = LabelsDue(0, 0, "")
        self._warned_of: set[str] = set()
        self._batch_norm: BatchNormWatch | None = None
        self._is_first_batch = False
        self._has_finished_round = False
        self._chooser()  # refuses sizes that cannot be meant
        if weights not in {"last", "best"}:
            raise ValueError(f"`weights` is {weights!r}, but must be 'last' or 'best'.")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse before the training what would fail after it."""
        if stage != "fit" or is_tuning(trainer):
            return
        active_learning_callback(trainer)
        self._metrics_before = {}
        self._has_finished_round = False
        if self.posterior.members is not None and self.member is None:
            raise RuntimeError(
                f"`posterior` is {self.posterior!r}, whose members take a fit each, and `trainer.fit` is one. Call "
                "`active_fit(trainer, model, datamodule)`, with `max_rounds=1` for a single round."
            )
        self.open(trainer, pl_module)
        if self.run.ended_before:
            trainer.fit_loop.max_epochs = 0  # an earlier process has ended the run: there is nothing to train
            return
        labels = wrapped_datamodule(trainer.datamodule).labels  # type: ignore[attr-defined]
        if not self.rounds:
            self.limits.check_start(self.query_size, num_labelled=labels.num_labelled, num_pool=labels.num_pool)
        self._labels_due = labels_due(labels, round_index=len(self.rounds))  # before Lightning loads a checkpoint's
        if self.weights == "best":
            best_checkpoint(trainer)

    def open(self, trainer: Trainer, module: LightningModule) -> bool:
        """Begin the run, or go on where an earlier process was killed; whether this process did not do so before."""
        if self.run.is_open:
            return False
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        header = described(vars(self), module, datamodule, before=self.run.header or None)
        begin(self.run, trainer, datamodule, header, folder=self.folder, limits=self.limits)
        begin_tracking(trainer, self.run.rounds, self.run.header, self.run.folder)
        return True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Keep the metrics so far: a fit that goes on where it had ended measures none."""
        write_progress(checkpoint, trainer, self.run.header, before=self._metrics_before, due=self._labels_due)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Refuse that of another run, which may have begun with the same labels."""
        if trainer.state.fn == "fit":
            self._metrics_before = read_progress(
                checkpoint, self.run.header, path=trainer.ckpt_path, due=self._labels_due
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the posterior before the first training, and start the clock."""
        if self.run.ended_before:
            return
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        if not self.rounds and not self.member:
            self._chooser().preview(trainer, pl_module, datamodule)
        self._is_first_batch = True
        self._steps_before = trainer.global_step
        self._fit_started = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:  # noqa: ARG002
        """Look in a fit's first batch whether BatchNorm would fail on a batch of one sample, now or rounds later."""
        if not self._is_first_batch:
            return
        self._is_first_batch = False
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        labels = datamodule.labels
        Ranks(trainer).same("who is labelled", labels_due(labels, round_index=len(self.rounds)))  # or some would wait
        coming = Coming(self.query_size, self.limits, len(self.rounds), labels.num_labelled, labels.num_pool)
        self._batch_norm = watch_batch_norm(
            trainer,
            pl_module,
            datamodule,
            coming,
            batch_idx=batch_idx,
            warn=lambda message: self._warn_once({"a batch of one": message}),
        )

    def on_train_batch_end(self, *arguments: object) -> None:  # noqa: ARG002
        """End that look."""
        if self._batch_norm is not None:
            self._batch_norm.end()
            self._batch_norm = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Acquire here and not in `on_train_end`, which a fit resumed from its last checkpoint never reaches."""
        if self.run.ended_before:
            return
        check_stepped(trainer, self._steps_before)
        metrics = fit_metrics(trainer, before=self._metrics_before)
        if self.weights == "best":
            metrics |= load_best(trainer, pl_module)
        self._fits[self.member] = metrics, time.perf_counter() - self._fit_started
        if (members := self.posterior.members) is not None and self.member is not None:
            keep_member(trainer, pl_module, members, self.member)
            if self.member < members.num - 1:
                return
        self._finish_round(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """After a plain fit, let other objects and processes go on with the run; the driver lets go by itself.

        What has moved since the choice is recorded here where the driver does not see it: it does not exist, or another
        process has done it.
        """
        if stage == "fit" and self._has_finished_round and (self.fit_seed is None or spawns(trainer)):
            self._record_later_changes(trainer)
        elif stage == "test" and self.awaits_test and spawns(trainer):
            self._refuse_lost_changes(trainer)
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Let go here too, for then `teardown` is not called."""
        self.on_train_batch_end()
        self._let_go()

    def _let_go(self) -> None:
        if self.fit_seed is None and self.folder is not None:
            self.run.close()

    def _later_changes(self, trainer: Trainer) -> list[Change]:
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        return datamodule.changes_since(recorded(self.run.header, self.rounds).state_of)

    def _record_later_changes(self, trainer: Trainer) -> None:
        self._has_finished_round = False
        ranks, changes = Ranks(trainer), self._later_changes(trainer)
        ranks.same("who is labelled", changes)
        if changes:
            last = self.rounds[-1]
            last = replace(last, changed_after=[*last.changed_after, *changes])
            self.run.commit(ranks, [*self.rounds[:-1], last])

    def _refuse_lost_changes(self, trainer: Trainer) -> None:
        if changes := self._later_changes(trainer):
            raise RuntimeError(
                f"The points {[index for index, *_ in changes[:5]]} ({len(changes)} in all) were moved in a test, in a "
                "process that ends with it, so that this would be lost. Move them in a hook of the fit, or use "
                "`Trainer(strategy='ddp')`."
            )

    @property
    def rounds(self) -> list[Round]:
        """The records of the finished rounds."""
        return self.run.rounds

    @property
    def stopped(self) -> str | None:
        """Return why the rounds have ended, or None."""
        return self.rounds[-1].stopped if self.rounds else None

    def _finish_round(self, trainer: Trainer, module: LightningModule) -> None:
        datamodule, ranks = wrapped_datamodule(trainer.datamodule), Ranks(trainer)  # type: ignore[attr-defined]
        labels = datamodule.labels
        ranks.same("who is labelled", labels_due(labels, round_index=len(self.rounds)))
        known = recorded(self.run.header, self.rounds)
        metrics = ranks.first(mean_metrics([metrics for metrics, _ in self._fits.values()]))
        record = Round(
            round=len(self.rounds),
            num_labelled=labels.num_labelled,
            num_pool=labels.num_pool,
            metrics=metrics,
            seconds={"fit": sum(seconds for _, seconds in self._fits.values())},
            stopped=reason_to_stop(trainer, self.limits, labels, num_fits=len(self.rounds) + 1, metrics=metrics),
            logged_steps=logged_steps(trainer),
            changed=datamodule.changes_since(known.state_of),
            corrections=datamodule.corrections_since(known.target_of),
            complete=self.fit_seed is None,  # the driver completes it after the fit and its test
            repeated_points=repeated_points(ranks, val=(trainer.val_dataloaders, trainer.num_val_batches)),
        )
        if record.stopped is None:
            batch_size = self.limits.batch_size(
                self.query_size, num_labelled=labels.num_labelled, num_pool=labels.num_pool
            )
            selection = self._chooser().select(
                trainer, module, datamodule, round_index=record.round, batch_size=batch_size
            )
            record = with_selection(record, selection)
            self._warn_once(selection.warnings)
        keep_images(trainer, self.run.folder, datamodule, record.acquired)
        self.run.commit(ranks, [*self.rounds, record], states=self.posterior.states(module), is_warm=self.warm_start)
        datamodule.label(record.acquired, round=record.round + 1)
        self._has_finished_round = True
        log_last_round(trainer, self.run.rounds, self.run.header, self.run.folder)

    def _chooser(self) -> Chooser:
        return Chooser(
            self.acquisition,
            self.query_size,
            self.posterior,
            self.num_samples,
            self.max_predicted,
            self.screening,
            Storage(self.predictions_budget_mib, self.run.folder),
            seed=self.seed or 0,
        )

    def _warn_once(self, warnings: dict[str, str]) -> None:
        for subject in [subject for subject in warnings if subject not in self._warned_of]:
            self._warned_of.add(subject)
            rank_zero_warn(f"{warnings[subject]} This is said once a run.")


def with_selection(record: Round, selection: Selection) -> Round:
    """Complete the record of a round by the points that it selected."""
    told = {field.name: getattr(selection, field.name) for field in fields(selection) if field.name != "warnings"}
    return replace(record, **{**told, "seconds": {**record.seconds, **selection.seconds}})
