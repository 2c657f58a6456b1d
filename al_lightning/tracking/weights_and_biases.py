"""Tables, images and labelled set of a run in W&B; wandb is imported only if a Trainer logs to it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from al_lightning._lightning import Trainer, pl
from al_lightning.records.answers import class_name
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
    {
        "initial",
        "initial_draw",
        "initial_targets",
        "excluded",
        "reserved",
        "fingerprint",
        "first_weights",
        "hyper_parameters",
        "versions",
    }
)


def wandb_loggers(trainer: Trainer) -> "list[WandbLogger]":
    """Return the W&B loggers of the Trainer."""
    loggers: Any = pl.loggers
    return [logger for logger in trainer.loggers if isinstance(logger, loggers.WandbLogger)]


def open_wandb(logger: "WandbLogger", *, job_type: str) -> None:
    """Begin the W&B run, so that a missing key or package is found before the first training."""
    import wandb  # noqa: PLC0415 - only for those who log to it

    if logger._wandb_init.get("job_type") is None:  # private, but it cannot be set once a run has begun
        logger._wandb_init["job_type"] = job_type
    try:
        _ = logger.experiment
    except wandb.errors.UsageError as error:
        raise RuntimeError(
            f"W&B cannot start: {error} To keep the run on this machine instead, set `WANDB_MODE=offline` or use "
            "`WandbLogger(offline=True)`; `wandb sync` sends it later."
        ) from error


def begin_wandb(logger: "WandbLogger", header: Mapping[str, Any]) -> None:
    """Log the settings of the run to W&B's config, as `al.seed` and so on, by which charts can be grouped."""
    config = {
        name: as_call(value) if is_call(value) else value for name, value in header.items() if name not in NOT_IN_CONFIG
    }
    logger.experiment.config.update({PREFIX.rstrip("/"): config}, allow_val_change=True)
    define_axis(logger, [f"{PREFIX}*"])


def define_axis(logger: "WandbLogger", names: Iterable[str]) -> None:
    """Set the x axis of these metrics to the number of labels.

    Each metric is set by its name: Lightning has set "*" to another axis, and W&B takes any one of two patterns that
    match, but prefers a name to a pattern.
    """
    for name in names:
        step_metric = None if name == X_AXIS else _prefixed(logger, X_AXIS)
        logger.experiment.define_metric(_prefixed(logger, name), step_metric=step_metric)


def num_logged(logger: "WandbLogger") -> int:
    """Count the rounds that a W&B run has from an earlier process; 0 for a new run, and offline."""
    last = logger.experiment.summary.get(_prefixed(logger, f"{PREFIX}round"))
    return 0 if last is None else int(last) + 1


def _prefixed(logger: "WandbLogger", name: str) -> str:
    """Return the name of a metric in W&B, which `WandbLogger(prefix=...)` may change."""
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}{name}" if logger._prefix else name


def media_of(record: Round, header: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return a table of the points that a round acquired, and the pictures of those that have one.

    Classes have their names where the run names them.
    """
    import wandb  # noqa: PLC0415 - only for those who log to it

    if not record.acquired:
        return {}
    picks = picks_with_names(record, header.get("classes"))
    table = wandb.Table(columns=list(PICK_COLUMNS), data=picks)
    paths = {} if folder is None else thumbnails_of(folder, record.acquired)
    images = [
        wandb.Image(str(paths[index]), caption=f"{rank}: {_label(target)}, score {score:.3f}, id {index}")
        for _, rank, index, score, target, *_ in picks
        if index in paths
    ]
    return {TABLE: table, **({IMAGES: images} if images else {})}


def picks_with_names(record: Round, classes: Sequence[str] | None) -> list[list[Any]]:
    """Return the acquired points with names of classes in place of numbers.

    Example:
        >>> record = Round(0, 9, 9, acquired=[4, 7], scores=[0.5, 0.4], targets=[1, None], predicted=[0, 1])
        >>> picks_with_names(record, ["cat", "dog"])
        [[0, 0, 4, 0.5, 'dog', None, 'cat'], [0, 1, 7, 0.4, None, None, 'dog']]
    """
    return [
        [number, rank, index, score, class_name(classes, target), bald, _name_if_any(classes, predicted)]
        for number, rank, index, score, target, bald, predicted in record.picks()
    ]


def _name_if_any(classes: Sequence[str] | None, predicted: int | None) -> str | int | None:
    """Return a predicted class: one of the outputs for classes to come has no name yet."""
    is_named = classes is None or predicted is None or predicted < len(classes)
    return class_name(classes, predicted) if is_named else predicted


def _label(target: str | int | None) -> str:
    return "no label" if target is None else f"class {target}"


def log_labelled_set(logger: "WandbLogger", rounds: Sequence[Round], header: Mapping[str, Any]) -> None:
    """Log the labels that the last of these rounds trained on, as a version of the artifact `labelled-RUN`."""
    import wandb  # noqa: PLC0415 - only for those who log to it

    experiment = logger.experiment
    artifact = wandb.Artifact(f"labelled-{experiment.id}", type="labelled-set")
    with artifact.new_file("labelled.csv", mode="w") as file:
        file.write(labelled_csv(rounds, header))
    experiment.log_artifact(artifact, aliases=[f"round-{rounds[-1].round}"])


def labelled_csv(rounds: Sequence[Round], header: Mapping[str, Any]) -> str:
    """Return a CSV row for each label that the last of these rounds trained on: id, first round to use it, class.

    Where the run names its classes the name is a further column, `label`.

    Example:
        >>> rounds = [Round(0, 1, 9, acquired=[7], targets=[2], scores=[0.5]), Round(1, 2, 8)]
        >>> labelled_csv(rounds, {"num_points": 10, "initial": [3], "initial_targets": [0]}).split()
        ['id,round,target', '3,0,0', '7,1,2']
        >>> header = {"num_points": 10, "initial": [3], "initial_targets": [0], "classes": ["ant", "bee", "cat"]}
        >>> labelled_csv(rounds, header).split()
        ['id,round,target,label', '3,0,0,ant', '7,1,2,cat']
    """
    found = trained_on(header, rounds)
    classes = header.get("classes")
    rows = [
        {"id": index, "round": state, "target": target, "label": class_name(classes, target)}
        for index, state in found.state_of.items()
        for target in [found.target_of.get(index)]
        if state >= 0
    ]
    return as_csv(("id", "round", "target", *(["label"] if classes else [])), rows)
