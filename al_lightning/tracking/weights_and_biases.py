"""W&B's tables, images and labelled set. Only a Trainer that logs to it imports wandb."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from al_lightning._lightning import Trainer, pl
from al_lightning.records.foreign import as_csv
from al_lightning.records.header import as_call, is_call
from al_lightning.records.images import thumbnails_of
from al_lightning.records.replay import trained_on
from al_lightning.records.round import PICK_COLUMNS, Round
from al_lightning.tracking.numbers import PREFIX, X_AXIS

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

TABLE, IMAGES = f"{PREFIX}acquired", f"{PREFIX}images"
NOT_IN_CONFIG = frozenset(
    {"initial", "initial_draw", "initial_targets", "set_aside", "first_weights", "hyper_parameters", "versions"}
)


def wandb_loggers(trainer: Trainer) -> "list[WandbLogger]":
    """Those of the Trainer's loggers that log to W&B."""
    loggers: Any = pl.loggers
    return [logger for logger in trainer.loggers if isinstance(logger, loggers.WandbLogger)]


def open_wandb(logger: "WandbLogger", *, job_type: str) -> None:
    """Begin the W&B run now, so that what is missing is said before the first training and not after it."""
    import wandb  # noqa: PLC0415 - only for those who log to it

    if logger._wandb_init.get("job_type") is None:  # private, but once a run has begun it cannot be told any more
        logger._wandb_init["job_type"] = job_type
    try:
        _ = logger.experiment
    except wandb.errors.UsageError as error:
        raise RuntimeError(
            f"W&B cannot start: {error} To keep the run on this machine instead, set `WANDB_MODE=offline` or use "
            "`WandbLogger(offline=True)`; `wandb sync` sends it later."
        ) from error


def begin_wandb(logger: "WandbLogger", header: Mapping[str, Any]) -> None:
    """Tell W&B what runs: `al.seed`, `al.acquisition` and so on in its config, by which its charts can be grouped."""
    config = {
        name: as_call(value) if is_call(value) else value for name, value in header.items() if name not in NOT_IN_CONFIG
    }
    logger.experiment.config.update({PREFIX.rstrip("/"): config}, allow_val_change=True)
    define_axis(logger, [f"{PREFIX}*"])


def define_axis(logger: "WandbLogger", names: Iterable[str]) -> None:
    """Let the x axis of these metrics be the number of labels.

    Each by its name: Lightning has defined "*" with another axis, and which of two matching patterns W&B takes is
    random, whereas a name comes before all patterns.
    """
    for name in names:
        step_metric = None if name == X_AXIS else _prefixed(logger, X_AXIS)
        logger.experiment.define_metric(_prefixed(logger, name), step_metric=step_metric)


def num_logged(logger: "WandbLogger") -> int:
    """Count the rounds that a W&B run holds already, which an earlier process began; 0 for a new run, and offline."""
    last = logger.experiment.summary.get(_prefixed(logger, f"{PREFIX}round"))
    return 0 if last is None else int(last) + 1


def _prefixed(logger: "WandbLogger", name: str) -> str:
    """The name under which W&B gets a metric from `WandbLogger(prefix=...)`."""
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}{name}" if logger._prefix else name


def media_of(record: Round, folder: Path | None) -> dict[str, Any]:
    """A table of what a round acquired, and the pictures of those samples that have one."""
    import wandb  # noqa: PLC0415 - only for those who log to it

    if not record.acquired:
        return {}
    table = wandb.Table(columns=list(PICK_COLUMNS), data=[list(pick) for pick in record.picks()])
    paths = {} if folder is None else thumbnails_of(folder, record.acquired)
    images = [
        wandb.Image(str(paths[index]), caption=f"{rank}: class {target}, score {score:.3f}, id {index}")
        for _, rank, index, score, target, *_ in record.picks()
        if index in paths
    ]
    return {TABLE: table, **({IMAGES: images} if images else {})}


def log_labelled_set(logger: "WandbLogger", rounds: Sequence[Round], header: Mapping[str, Any]) -> None:
    """Log what the last of these rounds trained on as a version of the artifact `labelled-RUN`."""
    import wandb  # noqa: PLC0415 - only for those who log to it

    experiment = logger.experiment
    artifact = wandb.Artifact(f"labelled-{experiment.id}", type="labelled-set")
    with artifact.new_file("labelled.csv", mode="w") as file:
        file.write(labelled_csv(rounds, header))
    experiment.log_artifact(artifact, aliases=[f"round-{rounds[-1].round}"])


def labelled_csv(rounds: Sequence[Round], header: Mapping[str, Any]) -> str:
    """A line for each label that the last of these rounds trained on: id, the first round to train on it, class.

    Example:
        >>> rounds = [Round(0, 1, 9, acquired=[7], targets=[2], scores=[0.5]), Round(1, 2, 8)]
        >>> labelled_csv(rounds, {"num_points": 10, "initial": [3], "initial_targets": [0]}).split()
        ['id,round,target', '3,0,0', '7,1,2']
    """
    found = trained_on(header, rounds)
    rows = [
        {"id": index, "round": state, "target": found.target_of.get(index)}
        for index, state in found.state_of.items()
        if state >= 0
    ]
    return as_csv(("id", "round", "target"), rows)
