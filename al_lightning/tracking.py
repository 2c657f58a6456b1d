"""Records to every logger of the Trainer."""

from collections.abc import Mapping

from al_lightning._lightning import Trainer, logged_steps

PREFIX = "al/"


def log_round(trainer: Trainer, numbers: Mapping[str, float | int | None]) -> None:
    """Send a round's numbers to all loggers, under `al/...`, at the step at which Lightning logs its own metrics."""
    present = {f"{PREFIX}{name}": float(value) for name, value in numbers.items() if value is not None}
    for logger in trainer.loggers:
        logger.log_metrics(present, step=logged_steps(trainer))
        logger.save()
