"""The callback that chooses the next batch to label at the end of every fit."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from al_lightning._lightning import Callback, LightningModule, Trainer, callbacks_of, rank_zero_warn, refuse_ranks
from al_lightning.acquisition import Acquisition, Predictions, saturation_warning, summarise, uncertified_warning
from al_lightning.checkpoints import best_checkpoint, load_best
from al_lightning.data import ActiveLearningDataModule, Labels, wrapped_datamodule
from al_lightning.inference import predict_pool, preview_pool
from al_lightning.information import kernel_name
from al_lightning.journal import Journal, Round, finite_or_none, run_folder
from al_lightning.posterior import MCDropout, Posterior
from al_lightning.seeds import derived_seed
from al_lightning.stopping import Limits
from al_lightning.tracking import log_round

NUM_PREVIEWED = 8
FAST_DEV_ROUNDS = 2  # enough to see a fit, an acquisition, and a fit on what was acquired


def active_learning_callback(trainer: Trainer) -> "ActiveLearning":
    """The one ActiveLearning callback of a Trainer that runs in one process."""
    refuse_ranks(trainer)
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, ActiveLearning)]
    if len(found) != 1:
        raise ValueError(
            f"The Trainer has {len(found)} ActiveLearning callbacks, but must have exactly one: "
            "`Trainer(callbacks=[ActiveLearning(BatchBALD(), query_size=10)])`."
        )
    return found[0]


class ActiveLearning(Callback):
    """Chooses the next batch to label at the end of a fit; `active_fit` repeats the fit until a limit is reached.

    A round is one complete fit. It ends with predictions of the pool by `num_samples` draws of the posterior, from
    which the acquisition chooses `query_size` samples; they are labelled from the next round on. The last round
    acquires nothing. Without any of `max_labelled`, `max_rounds` and `target` the rounds end when the pool is empty.

    Args:
        acquisition: Whom to label: `BatchBALD()`, `BALD()`, `Random()`, ...
        query_size: Labels per round; the last batches may be smaller, at the budget's or the pool's end.
        posterior: What draws networks from a trained model.
        num_samples: K, the number of posterior samples. A batch of b points can tell at most log K nats.
        max_labelled: The label budget, initial labels included.
        max_rounds: The number of fits.
        monitor: A metric logged during the fit, e.g. "val_acc"; ends the rounds once it reaches `target`.
        target: See `monitor`. Not a test metric: those are measured after the choice, and stopping on them is cheating.
        mode: Whether `monitor` is to rise ("max") or to fall ("min").
        weights: Whose weights acquire and are tested: those at the end of the fit ("last"), or those of the best
            checkpoint ("best", needs a ModelCheckpoint with a `monitor`).
        warm_start: Continue from the weights of the round before, instead of the model's first weights.
        folder: Where the records go. By default the folder of the Trainer's first logger.
        seed: Of the posterior samples and of the acquisition's draws. By default that of `active_fit`, else 0.

    Attributes:
        rounds: The records of the finished rounds.
    """

    def __init__(  # noqa: PLR0913 - the hyper-parameters of a run, keyword-only and flat as the Trainer's are
        self,
        acquisition: Acquisition,
        *,
        query_size: int = 10,
        posterior: Posterior | None = None,
        num_samples: int = 100,
        max_labelled: int | None = None,
        max_rounds: int | None = None,
        monitor: str | None = None,
        target: float | None = None,
        mode: Literal["max", "min"] = "max",
        weights: Literal["last", "best"] = "last",
        warm_start: bool = False,
        folder: str | Path | None = None,
        seed: int | None = None,
    ) -> None:
        self.acquisition = acquisition
        self.query_size = query_size
        self.posterior = MCDropout() if posterior is None else posterior
        self.num_samples = num_samples
        self.limits = Limits(max_labelled, max_rounds, monitor, target, mode)
        self.weights = weights
        self.warm_start = warm_start
        self.folder = None if folder is None else Path(folder)
        self.seed = seed
        self.rounds: list[Round] = []
        self._journal: Journal | None = None
        self._fit_started, self._steps_before = 0.0, 0
        self._warned_of: set[str] = set()
        for name, least in {"query_size": 1, "num_samples": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be at least {least}.")
        if weights not in {"last", "best"}:
            raise ValueError(f"`weights` is {weights!r}, but must be 'last' or 'best'.")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse before the training what would fail after it."""
        if stage != "fit":
            return
        active_learning_callback(trainer)
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        labels = datamodule.labels
        if not self.rounds:
            self.limits.check_start(self.query_size, num_labelled=labels.num_labelled, num_pool=labels.num_pool)
        if self.weights == "best":
            best_checkpoint(trainer)
        writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._journal is None and writes:
            self._journal = Journal(self.folder or run_folder(trainer), self._header(pl_module, datamodule))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the posterior before the first training, and start the clock."""
        if not self.rounds and self.acquisition.needs_predictions:
            datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
            few = datamodule.pool_dataloader(datamodule.labels.pool_indices[:NUM_PREVIEWED])
            num_classes = preview_pool(trainer, pl_module, few, self.posterior).shape[1]
            datamodule.check_targets(datamodule.labels.labelled_indices, num_classes=num_classes)
        self._steps_before = trainer.global_step
        self._fit_started = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Acquire here and not in `on_train_end`, which a fit resumed from its last checkpoint never reaches."""
        seconds = {"fit": time.perf_counter() - self._fit_started}
        if trainer.global_step == self._steps_before:
            raise RuntimeError(
                "The fit ended without a single training step, so there is nothing to acquire with. A Trainer that has "
                "finished does not train again: use `active_fit`, or a new Trainer. Otherwise look at `max_epochs` and "
                "`max_steps`, and at the batch size against the number of labels."
            )
        metrics = {name: finite_or_none(float(value)) for name, value in trainer.callback_metrics.items()}
        if self.weights == "best":
            metrics |= load_best(trainer, pl_module)
        self._finish_round(trainer, pl_module, metrics, seconds)

    @property
    def stopped(self) -> str | None:
        """Why the rounds have ended, or None."""
        return self.rounds[-1].stopped if self.rounds else None

    def _finish_round(
        self,
        trainer: Trainer,
        module: LightningModule,
        metrics: dict[str, float | None],
        seconds: dict[str, float],
    ) -> None:
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        labels = datamodule.labels
        record = Round(
            round=len(self.rounds),
            num_labelled=labels.num_labelled,
            num_pool=labels.num_pool,
            metrics=metrics,
            seconds=seconds,
            stopped=self._reason_to_stop(trainer, labels, metrics),
        )
        if record.stopped is None:
            record = self._acquired(trainer, module, datamodule, record)
            datamodule.label(record.acquired, round=record.round + 1)
        self.rounds.append(record)
        self._write()
        log_round(trainer, record.numbers())

    def _reason_to_stop(self, trainer: Trainer, labels: Labels, metrics: dict[str, float | None]) -> str | None:
        num_fits = len(self.rounds) + 1
        if trainer.fast_dev_run and num_fits >= FAST_DEV_ROUNDS:  # type: ignore[attr-defined]
            return f"fast_dev_run ends after {FAST_DEV_ROUNDS} rounds"
        return self.limits.reason(
            num_labelled=labels.num_labelled, num_pool=labels.num_pool, num_fits=num_fits, metrics=metrics
        )

    def _acquired(
        self, trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule, record: Round
    ) -> Round:
        indices_N = datamodule.labels.pool_indices
        started = time.perf_counter()
        log_probs_N_K_C = None
        if self.acquisition.needs_predictions:
            log_probs_N_K_C = predict_pool(
                trainer,
                module,
                datamodule.pool_dataloader(),
                self.posterior,
                num_samples=self.num_samples,
                seed=derived_seed(self.seed or 0, record.round, "posterior"),
            )
        predicted = time.perf_counter()
        batch = self.acquisition(
            Predictions(log_probs_N_K_C=log_probs_N_K_C, indices_N=indices_N),
            self.limits.batch_size(self.query_size, num_labelled=record.num_labelled, num_pool=record.num_pool),
            generator=self._generator(record.round, "acquisition"),
        )
        acquired = time.perf_counter()
        chosen = indices_N[batch.positions.cpu()].tolist()
        information = {}
        if log_probs_N_K_C is not None:
            datamodule.check_targets(chosen, num_classes=log_probs_N_K_C.shape[2])
            information = summarise(log_probs_N_K_C, batch, generator=self._generator(record.round, "information"))
            self._warn_once("saturation", saturation_warning(batch, num_samples=self.num_samples))
            self._warn_once("certificates", uncertified_warning(batch, num_points=len(indices_N)))
        return replace(
            record,
            acquired=chosen,
            scores=batch.scores.tolist(),
            targets=datamodule.targets_of(chosen),
            information=information,
            kernel=None if log_probs_N_K_C is None or batch.leads is None else kernel_name(log_probs_N_K_C),
            seconds={**record.seconds, "predict": predicted - started, "acquire": acquired - predicted},
        )

    def _warn_once(self, subject: str, message: str | None) -> None:
        if message is not None and subject not in self._warned_of:
            self._warned_of.add(subject)
            rank_zero_warn(f"{message} This is said once a run.")

    def _generator(self, round_index: int, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed or 0, round_index, purpose))

    def add_test_metrics(self, trainer: Trainer, metrics: dict[str, float], seconds: float) -> None:
        """Complete the record of the last round by its test, which runs after the fit."""
        last = self.rounds[-1]
        finite = {name: finite_or_none(value) for name, value in metrics.items()}
        self.rounds[-1] = replace(last, metrics={**last.metrics, **finite}, seconds={**last.seconds, "test": seconds})
        self._write()
        log_round(trainer, {"n_labelled": last.num_labelled, "seconds_test": seconds, **finite})

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.write(self.rounds)

    def _header(self, module: LightningModule, datamodule: ActiveLearningDataModule) -> dict[str, Any]:
        initial = datamodule.labels.labelled_indices.tolist()
        return {
            "acquisition": repr(self.acquisition),
            "posterior": repr(self.posterior),
            **{name: getattr(self, name) for name in ("query_size", "num_samples", "weights", "warm_start", "seed")},
            **asdict(self.limits),
            "model": type(module).__name__,
            "datamodule": type(datamodule.inner).__name__,
            "num_points": len(datamodule.labels),
            "initial": initial,
            "initial_targets": datamodule.targets_of(initial),
        }
