"""Rounds of a run in each logger of the Trainer: one call of `log_metrics` a round."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from al_lightning._lightning import CSVLogger, Trainer, get_filesystem, spawns
from al_lightning.data import ActiveLearningDataModule
from al_lightning.distributed import Ranks
from al_lightning.records.images import refuse_linked, rendered, write_thumbnail
from al_lightning.records.round import Round
from al_lightning.tracking.numbers import numbers_of_last
from al_lightning.tracking.weights_and_biases import (
    begin_wandb,
    define_axis,
    log_labelled_set,
    media_of,
    num_logged,
    open_wandb,
    wandb_loggers,
)


def open_loggers(trainer: Trainer, *, job_type: str) -> None:
    """Open the loggers that need a key or a connection, so that they fail before the first training and not after it.

    Args:
        trainer: A Trainer.
        job_type: Job type of the W&B run, which tells the runs of a group apart, unless the user has set one.
    """
    for logger in wandb_loggers(trainer):
        open_wandb(logger, job_type=job_type)


def follow_spawned(trainer: Trainer) -> None:
    """Bring the loggers of this process to what spawned processes have logged, whose own loggers end with them.

    Call it before the first of them too: each would number its version by itself, and a CSVLogger would begin its file
    anew in each. Of its file such a logger remembers the columns alone, which are read here.
    """
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            writer = logger.experiment
            columns = _columns(writer.metrics_file_path)
            writer.metrics_keys = columns or writer.metrics_keys
        _ = logger.version  # is numbered now


def _columns(path: str) -> list[str]:
    """Return the columns of a CSV file, which may lie on another file system; none where there is no file."""
    files = get_filesystem(path)
    if not files.isfile(path):
        return []
    with files.open(path, "r", newline="") as file:
        return next(csv.reader(file), [])


def begin_tracking(trainer: Trainer, rounds: Sequence[Round], header: Mapping[str, Any], folder: Path | None) -> None:
    """Prepare the loggers, and log the rounds that earlier processes finished.

    The loggers of this process are usually new. A W&B run that is resumed by its `id` has some of the rounds already,
    and gets only the others.
    """

    def begin() -> None:
        if folder is not None:
            refuse_linked(folder)  # fail before the first training
        known = {id(logger): num_logged(logger) for logger in wandb_loggers(trainer)}
        for logger in wandb_loggers(trainer):
            begin_wandb(logger, header)
        if not spawns(trainer):  # the process that spawns others has logged them
            _log_all(trainer, rounds, header, folder, known=known)

    _on_first_rank(trainer, begin)


def log_earlier_rounds(
    trainer: Trainer, rounds: Sequence[Round], header: Mapping[str, Any], folder: Path | None
) -> None:
    """Log the rounds that earlier processes finished, before this one spawns any."""
    if rounds:
        known = {id(logger): num_logged(logger) for logger in wandb_loggers(trainer)}
        _log_all(trainer, rounds, header, folder, known=known)


def log_last_round(trainer: Trainer, rounds: Sequence[Round], header: Mapping[str, Any], folder: Path | None) -> None:
    """Log the last round to all loggers, at the step of Lightning's own metrics."""
    _on_first_rank(trainer, lambda: _log(trainer, rounds, header, folder, known={}))


def keep_images(
    trainer: Trainer, folder: Path | None, datamodule: ActiveLearningDataModule, indices: list[int]
) -> None:
    """Write pictures of acquired points to the run folder, for loggers and reports."""
    if folder is not None and indices:
        _on_first_rank(trainer, lambda: _keep(folder, datamodule, indices))


def _keep(folder: Path, datamodule: ActiveLearningDataModule, indices: list[int]) -> None:
    for index, item in zip(indices, datamodule.pool_items(indices), strict=True):
        pixels = rendered(item, datamodule.inner)
        if pixels is not None:
            write_thumbnail(folder, index, pixels)


def _log_all(
    trainer: Trainer, rounds: Sequence[Round], header: Mapping[str, Any], folder: Path | None, *, known: dict[int, int]
) -> None:
    for end in range(1, len(rounds) + 1):
        _log(trainer, rounds[:end], header, folder, known=known)


def _log(
    trainer: Trainer, rounds: Sequence[Round], header: Mapping[str, Any], folder: Path | None, *, known: dict[int, int]
) -> None:
    """Log the last of these rounds, except to loggers that have it already."""
    numbers = numbers_of_last(rounds, header)
    for logger in trainer.loggers:
        if known.get(id(logger), 0) >= len(rounds):
            continue
        everything = dict(numbers)
        if logger in wandb_loggers(trainer):
            define_axis(logger, numbers)
            everything |= media_of(rounds[-1], header, folder)
            log_labelled_set(logger, rounds, header)
        logger.log_metrics(everything, step=rounds[-1].logged_steps)
        logger.save()


def _on_first_rank(trainer: Trainer, work: Callable[[], None]) -> None:
    """Run `work` on the first rank; if it fails, all ranks raise."""
    Ranks(trainer).together(work if trainer.is_global_zero else lambda: None)
