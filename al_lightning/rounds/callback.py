"""The callback that chooses the next batch to label at the end of every fit."""

import time
from pathlib import Path
from typing import Any, Literal

from al_lightning._lightning import (
    Callback,
    LightningModule,
    Trainer,
    callbacks_of,
    check_strategy,
    is_tuning,
    rank_zero_warn,
    spawns,
)
from al_lightning.acquisition import Acquisition, Random, Screening
from al_lightning.data import wrapped_datamodule
from al_lightning.distributed import Ranks
from al_lightning.labelling import DatasetLabels, Oracle
from al_lightning.posterior import MCDropout, Posterior
from al_lightning.records.round import Round
from al_lightning.rounds.asking import known_answers
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
from al_lightning.rounds.limits import Limits
from al_lightning.rounds.metrics import Metrics
from al_lightning.rounds.round_end import choose_batch, conclude_round, propose_round
from al_lightning.rounds.run import Run
from al_lightning.rounds.settings import Settings, check_objects
from al_lightning.rounds.start import Fit, fit_of, is_driven, open_run
from al_lightning.tracking import open_loggers


def active_learning_callback(trainer: Trainer) -> "ActiveLearning":
    """The one ActiveLearning callback of a Trainer whose strategy is supported."""
    check_strategy(trainer)
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, ActiveLearning)]
    if len(found) != 1:
        raise ValueError(
            f"The Trainer has {len(found)} ActiveLearning callbacks, but must have exactly one: "
            "`Trainer(callbacks=[ActiveLearning(BatchBALD(), query_size=10)])`."
        )
    open_loggers(trainer, job_type=type(found[0].settings.acquisition).__name__)
    return found[0]


class ActiveLearning(Callback):
    """Callback that chooses the next batch at the end of a fit; `active_fit` repeats the fit until a limit is reached.

    A round is one complete fit, or one for each member of an ensemble. It ends with predictions of the pool by
    `num_samples` draws of the posterior, from which the acquisition chooses `query_size` points; they are labelled
    from the next round on. The last round acquires nothing. Without any of `max_labelled`, `max_rounds` and `target`
    the rounds end when the pool is empty.

    Args:
        acquisition: Which points to label: `BatchBALD()`, `BALD()`, `Random()`, ...
        query_size: Labels per round; the last batches may be smaller, at the budget's or the pool's end. With
            `holdout_share` a batch asks for points of the holdout on top of these.
        posterior: What draws networks from a trained model.
        num_samples: K, the number of posterior samples: by default 100, or the number of an ensemble's members. A batch
            of b points can tell at most log K nats.
        max_predicted: How many points of the pool a round predicts and chooses from at most, drawn at random anew each
            round. By default the whole pool. `Random()` predicts none and chooses from the whole pool.
        screening: A look at these points by a few samples, which leaves only those of largest BALD to the K samples and
            the acquisition: `Screening(num_points=2000, num_samples=20)`; with `score=EPIG()` those that tell most
            about the targets of the data module. By default none.
        predictions_budget_mib: What predictions of the pool, 4 N K C bytes, may take in memory, where they are made.
            Beyond it they are kept in a file in the run folder while the acquisition chooses, on the CPU.
        max_labelled: The label budget, initial labels and rejected points included.
        max_rounds: The number of rounds.
        monitor: A metric logged during the fit, e.g. "val_acc"; ends the rounds once it reaches `target`.
        target: See `monitor`. Not a test metric: those are measured after the choice, and stopping on them is cheating.
        mode: Whether `monitor` is to rise ("max") or to fall ("min").
        weights: Whose weights acquire and are tested: those at the end of the fit ("last"), or those of the best
            checkpoint ("best", needs a ModelCheckpoint with a `monitor`).
        warm_start: Continue from the weights of the round before (each member from its own), not from the first ones.
        folder: Where the records go. If it holds those of this very run, the run resumes after its last finished round;
            only the limits may have changed. By default that of the Trainer's first logger, which must be new. Of
            several processes only the first needs to see it.
        seed: Of posterior samples and the acquisition's draws. By default that of `active_fit`, else 0.
        bars: Keep the progress bars that the Trainer makes by itself; by default `active_fit` shows one live line in
            their place. A bar that you give the Trainer of another class stays.
        oracle: Gives the labels: by default the dataset. `AskPeople()` asks people, through files in the run folder;
            the run ends while it waits, and the same command resumes it. Needs `folder` and `active_fit`.
        holdout_share: Share of the labels that measures the accuracy and is never trained on, for those who have no
            test set: that part of `max_labelled` is drawn at random before anything else. The records then have the
            accuracy of the mean prediction with its 95 % interval; `monitor="holdout_acc"` compares `target` with its
            lower bound.
        cold_start: Chooses the first batch where the data module has `initial=0`, before any fit: by default
            `Random()`. One that needs features takes those that the data module made once (`features_of(indices)`).

    Attributes:
        settings: The arguments above.
        run: State of the run.

    Example:
        >>> from al_lightning.acquisition import BatchBALD
        >>> callback = ActiveLearning(BatchBALD(), query_size=10, max_labelled=300)
        >>> callback.rounds, callback.stopped  # nothing was fitted yet
        ([], None)
        >>> ActiveLearning(BatchBALD(), query_size=0)
        Traceback (most recent call last):
        ValueError: `query_size` is 0, but must be at least 1.
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
        oracle: Oracle | None = None,
        holdout_share: float | None = None,
        cold_start: Acquisition | None = None,
    ) -> None:
        posterior = MCDropout() if posterior is None else posterior
        oracle = DatasetLabels() if oracle is None else oracle
        cold_start = Random() if cold_start is None else cold_start
        check_objects(acquisition, posterior, screening, oracle, cold_start)
        self.settings = Settings(
            acquisition,
            query_size=query_size,
            posterior=posterior,
            num_samples=posterior.checked_num_samples(num_samples),
            max_predicted=max_predicted,
            screening=screening,
            predictions_budget_mib=predictions_budget_mib,
            limits=Limits(max_labelled, max_rounds, monitor, target, mode),
            weights=weights,
            warm_start=warm_start,
            folder=None if folder is None else Path(folder),
            seed=seed,
            bars=bars,
            oracle=oracle,
            holdout_share=holdout_share,
            cold_start=cold_start,
        )
        self.run = Run(self.settings)
        self._fit_started, self._steps_before = 0.0, 0
        self._metrics_before: Metrics = {}  # that the checkpoint knew from which the fit resumes
        self._labels_due = LabelsDue(0, 0, "")
        self._warned_of: set[str] = set()
        self._batch_norm: BatchNormWatch | None = None
        self._is_first_batch = False
        self._has_proposed = False
        self._is_idle = self._is_previewed = False
        self._max_epochs: list[int | None] = []  # of the Trainer, while an ended run keeps it from training

    @property
    def rounds(self) -> list[Round]:
        """The records of the finished rounds."""
        return self.run.rounds

    @property
    def stopped(self) -> str | None:
        """Return why the rounds have ended, or None."""
        return self.run.stopped

    @property
    def waiting_for(self) -> list[int]:
        """The points whose answers the run waits for; none if it does not wait for people."""
        return [] if self.run.waiting is None else list(self.run.waiting.missing)

    @property
    def posterior(self) -> Posterior:
        """The posterior; an ensemble with the members that the last round has trained."""
        return self.run.posterior

    @property
    def member(self) -> int | None:
        """The member of an ensemble that is fitted or tested; None if the posterior takes one fit a round."""
        return self.run.member

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse before the training what would fail after it."""
        if stage != "fit" or is_tuning(trainer):
            return
        active_learning_callback(trainer)
        run, settings, fit = self.run, self.settings, fit_of(trainer)
        self._metrics_before = {}
        self._has_proposed = False
        self._check_driver(trainer, fit)
        open_run(trainer, pl_module, run)
        run.begin_fit(fit.member)
        labels = wrapped_datamodule(trainer.datamodule).labels  # type: ignore[attr-defined]
        self._is_idle = run.ended_before or run.draft is not None or labels.num_labelled == 0
        if self._is_idle:  # there is nothing to train
            self._max_epochs = [trainer.max_epochs]
            trainer.fit_loop.max_epochs = 0
        if run.ended_before:
            return
        if not run.rounds and run.draft is None:  # else points may have left the pool since
            counts = {"num_labelled": labels.num_paid, "num_pool": labels.num_pool}
            num_reserved = len(labels.reserved_indices)
            settings.limits.check_start(settings.query_size, **counts, num_reserved=num_reserved)
            settings.check_is_cold(num_labelled=labels.num_labelled)
        self._labels_due = labels_due(labels, round_index=len(run.rounds))  # before Lightning loads a checkpoint's
        if settings.weights == "best":
            best_checkpoint(trainer)

    def _check_driver(self, trainer: Trainer, fit: Fit) -> None:
        """Refuse a plain fit where a round takes more, and where it would add to rounds of `active_fit`."""
        run, settings = self.run, self.settings
        if settings.posterior.members is not None and fit.member is None:
            raise RuntimeError(
                f"`posterior` is {settings.posterior!r}, whose members take a fit each, and `trainer.fit` is one. Call "
                "`active_fit(trainer, model, datamodule)`, with `max_rounds=1` for a single round."
            )
        if run.fit_seed is not None and run.stopped is None and not is_driven(trainer):
            raise RuntimeError(
                f"`active_fit` has run {len(run.rounds)} rounds with this ActiveLearning callback and not all, and "
                "`trainer.fit` cannot add one to them. To resume them start the same command again, with "
                "`ActiveLearning(folder=...)`; for another fit give the Trainer a new callback, or none."
            )
        if settings.oracle.asks_people and not is_driven(trainer):
            raise RuntimeError(
                f"`oracle` is {settings.oracle!r}, which is asked between fits, and `trainer.fit` is one fit. Call "
                "`active_fit(trainer, model, datamodule)`."
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Keep the metrics so far: a fit that resumes at its end measures none."""
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
        is_new = not self.rounds or (self.settings.oracle.asks_people and datamodule.labels.num_pool > 0)
        is_asked = datamodule.trains_rejected and not datamodule.knows_outputs
        if ((is_new and not self._is_previewed) or is_asked) and not self.member:
            if datamodule.labels.num_labelled == 0:
                self.run.chooser(is_fitted=False).preview(trainer, pl_module, datamodule)
            self.run.chooser().preview(trainer, pl_module, datamodule)
            self._is_previewed = True
        self._is_first_batch = True
        self._steps_before = trainer.global_step
        self._fit_started = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:  # noqa: ARG002
        """Look in a fit's first batch whether BatchNorm would fail on a batch of one point, now or rounds later."""
        if not self._is_first_batch:
            return
        self._is_first_batch = False
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        labels = datamodule.labels
        Ranks(trainer).same("who is labelled", labels_due(labels, round_index=len(self.rounds)))  # or some would wait
        coming = Coming(
            self.settings.query_size,
            self.settings.limits,
            len(self.rounds),
            len(datamodule.trained_indices),
            labels.num_pool,
        )
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
        run, datamodule = self.run, wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        if run.ended_before or (run.draft is not None and not run.draft.needs_batch):
            return
        if run.draft is not None:
            self._warn_once(choose_batch(trainer, pl_module, datamodule, run, run.draft))
            self._has_proposed = True
            return
        if not self._is_idle and not self._keep_fit(trainer, pl_module):
            return
        self._warn_once(propose_round(trainer, pl_module, datamodule, run))
        self._has_proposed = True
        if run.fit_seed is None and run.draft is not None:  # `active_fit` tests and asks first
            conclude_round(trainer, datamodule, run, run.draft, known_answers(datamodule, run, run.draft))

    def _keep_fit(self, trainer: Trainer, module: LightningModule) -> bool:
        """Keep what the fit has made; return whether it was the last of its round."""
        run = self.run
        check_stepped(trainer, self._steps_before)
        metrics = fit_metrics(trainer, before=self._metrics_before)
        if self.settings.weights == "best":
            metrics |= load_best(trainer, module)
        run.keep_fit(metrics, time.perf_counter() - self._fit_started)
        members, member = self.settings.posterior.members, self.member
        if members is None or member is None:
            return True
        run.keep_member(Ranks(trainer), module, member)
        return member == members.num - 1

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """After a plain fit, let other objects and processes resume the run; `active_fit` releases it by itself.

        What has moved since the choice is recorded here where `active_fit` does not see it: it has not called, or
        another process has moved it.
        """
        if stage == "fit" and self._has_proposed:
            self._record_later_changes(trainer)
        elif stage == "test" and self.run.draft is not None and spawns(trainer):
            self._refuse_lost_changes(trainer)
        self._let_go(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Let go here too, for then `teardown` is not called."""
        self.on_train_batch_end()
        self._let_go(trainer)

    def _let_go(self, trainer: Trainer) -> None:
        if self._max_epochs:
            trainer.fit_loop.max_epochs = self._max_epochs.pop()
        self.run.close_if_named()

    def _record_later_changes(self, trainer: Trainer) -> None:
        self._has_proposed = False
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        if self.run.draft is not None:
            if spawns(trainer):
                self.run.hand_over(datamodule)
            return
        ranks, changes = Ranks(trainer), self.run.changes_since_choice(datamodule)
        ranks.same("who is labelled", changes)
        if changes:
            self.run.add_changes(ranks, changes)

    def _refuse_lost_changes(self, trainer: Trainer) -> None:
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        before = [] if self.run.draft is None else self.run.draft.record.changed_after
        if changes := [change for change in self.run.changes_since_choice(datamodule) if change not in before]:
            raise RuntimeError(
                f"The points {[index for index, *_ in changes[:5]]} ({len(changes)} in all) were moved in a test, in a "
                "process that ends with it, so that this would be lost. Move them in a hook of the fit, or use "
                "`Trainer(strategy='ddp')`."
            )

    def _warn_once(self, warnings: dict[str, str]) -> None:
        for subject in [subject for subject in warnings if subject not in self._warned_of]:
            self._warned_of.add(subject)
            rank_zero_warn(f"{warnings[subject]} This is said once a run.")


def check_stepped(trainer: Trainer, steps_before: int) -> None:
    """Refuse to acquire with a model that the fit did not train."""
    if trainer.global_step == steps_before:
        raise RuntimeError(
            "The fit ended without a single training step, so there is nothing to acquire with. A Trainer that has "
            "finished does not train again: use `active_fit`, or a new Trainer. Otherwise look at `max_epochs` and "
            "`max_steps`, and at the batch size against the number of labels."
        )
