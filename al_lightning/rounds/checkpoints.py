"""The Trainer's checkpoints over several rounds: names that do not collide, whose they are, the best one's weights."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from al_lightning._lightning import Callback, CheckpointIO, LightningModule, Trainer, pl
from al_lightning.data import Labels
from al_lightning.records.files import refuse_code
from al_lightning.records.header import what_differs
from al_lightning.records.journal import finite_or_none
from al_lightning.rounds.metrics import Metrics

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import ModelCheckpoint

CHECKPOINT_KEY = "al_lightning"


def prefix_checkpoints(trainer: Trainer, round_index: int, member: int | None = None) -> None:
    """Give each fit's checkpoints names of their own, or a fit would overwrite those of the one before; once."""
    prefix = f"round={round_index:03d}-" + ("" if member is None else f"member={member}-")
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, pl.callbacks.ModelCheckpoint):
            checkpoint.filename = _prefixed(checkpoint.filename or "{epoch}-{step}", prefix)
            checkpoint.CHECKPOINT_NAME_LAST = _prefixed(checkpoint.CHECKPOINT_NAME_LAST, prefix)
        elif isinstance(checkpoint, pl.callbacks.OnExceptionCheckpoint):
            checkpoint.filename = _prefixed(checkpoint.filename, prefix)


def keeps_last(checkpoint: Callback) -> bool:
    """Tell whether a later process finds the last checkpoint by name, and where this one has written it."""
    if not isinstance(checkpoint, pl.callbacks.ModelCheckpoint):
        return False
    return bool(checkpoint.save_last) and checkpoint.dirpath is not None


class PlainCheckpoints(CheckpointIO):
    """Reads a checkpoint only if no code is in it, whichever version of Lightning loads it and however it was chosen.

    Args:
        inner: What saves and loads: Lightning's own, which reads files of torch.
    """

    def __init__(self, inner: CheckpointIO) -> None:
        self.inner = inner

    def load_checkpoint(self, path: str | Path, *arguments: Any, **keywords: Any) -> dict[str, Any]:  # noqa: ANN401
        """Load it, if it holds tensors and plain values alone."""
        refuse_code(path)
        return self.inner.load_checkpoint(path, *arguments, **keywords)

    def save_checkpoint(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401
        """Save it as ever."""
        self.inner.save_checkpoint(*arguments, **keywords)

    def remove_checkpoint(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401
        """Remove it as ever."""
        self.inner.remove_checkpoint(*arguments, **keywords)

    def teardown(self) -> None:
        """End what the inner one has begun."""
        self.inner.teardown()


def read_plain_checkpoints(trainer: Trainer) -> None:
    """Keep the Trainer from running code of a checkpoint, until `read_checkpoints_as_before`.

    A `CheckpointIO` of the user's own, which may read files of another kind, is left as it is.
    """
    plugins: Any = pl.plugins
    inner = own = trainer.strategy.checkpoint_io
    if isinstance(own, plugins.AsyncCheckpointIO):
        inner = own.checkpoint_io
    if isinstance(inner, plugins.TorchCheckpointIO):
        trainer.strategy.checkpoint_io = PlainCheckpoints(own)


def read_checkpoints_as_before(trainer: Trainer) -> None:
    """Give the Trainer back what it had before `read_plain_checkpoints`."""
    if isinstance(trainer.strategy.checkpoint_io, PlainCheckpoints):
        trainer.strategy.checkpoint_io = trainer.strategy.checkpoint_io.inner


def _prefixed(name: str, prefix: str) -> str:
    return name if name.startswith(prefix) else prefix + name


def fit_metrics(trainer: Trainer, *, before: Metrics) -> dict[str, float | None]:
    """Return the last metrics of the fit; `before` are those of the part that another process ran."""
    now = {name: finite_or_none(float(value)) for name, value in trainer.callback_metrics.items()}
    return {**before, **now}


@dataclass(frozen=True)
class LabelsDue:
    """The label state that a round begins with, in few words.

    Args:
        round: The round.
        num_labelled: Its labels.
        digest: A hash of the whole label state.
    """

    round: int
    num_labelled: int
    digest: str


def labels_due(labels: Labels, *, round_index: int) -> LabelsDue:
    """Return the label state that a round begins with."""
    digest = hashlib.blake2b(labels.round_of_N.numpy().tobytes(), digest_size=16).hexdigest()
    return LabelsDue(round_index, labels.num_labelled, digest)


def write_progress(
    checkpoint: dict[str, Any], trainer: Trainer, header: Mapping[str, Any], *, before: Metrics, due: LabelsDue
) -> None:
    """Write run, round and metrics of the fit into a checkpoint."""
    plain = json.loads(json.dumps(dict(header)))  # Lightning may load it by a reader that knows plain types alone
    metrics = fit_metrics(trainer, before=before)
    checkpoint[CHECKPOINT_KEY] = {"header": plain, "metrics": metrics, "began_with": asdict(due)}


def read_progress(checkpoint: Mapping[str, Any], header: Mapping[str, Any], *, path: object, due: LabelsDue) -> Metrics:
    """Return the metrics in a checkpoint; one of another run or round is refused.

    Args:
        checkpoint: What Lightning has loaded.
        header: The run that resumes.
        path: Of the checkpoint.
        due: What the round that is due begins with.
    """
    if "began_with" not in checkpoint.get(CHECKPOINT_KEY, {}):
        raise ValueError(
            f"`ckpt_path` is {path}, which does not say of which run it is: a fit without `ActiveLearning` wrote it, "
            "or an older version. Leave it out, and the round starts anew."
        )
    if different := what_differs(checkpoint[CHECKPOINT_KEY]["header"], header):
        raise ValueError(
            f"`ckpt_path` is {path}, which another run wrote: {different}. Give a checkpoint of this run, or none, and "
            "the round starts anew. Runs whose checkpoints are to be found need a `ModelCheckpoint(dirpath=...)` each."
        )
    began_with = LabelsDue(**checkpoint[CHECKPOINT_KEY]["began_with"])
    if began_with != due:
        raise ValueError(
            f"`ckpt_path` is {path}, written in round {began_with.round} with {began_with.num_labelled} labels, but "
            f"the run is in round {due.round} with {due.num_labelled}, and not with the same ones: the weights belong "
            f"to another round or run. Give a checkpoint of this run whose name begins with round={due.round:03d}, or "
            "none, and the round starts anew."
        )
    metrics: Metrics = checkpoint[CHECKPOINT_KEY]["metrics"]
    return metrics


def best_checkpoint(trainer: Trainer) -> "ModelCheckpoint":
    """Return the first ModelCheckpoint with a `monitor`: it knows which weights are best."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, pl.callbacks.ModelCheckpoint) and checkpoint.monitor is not None:
            return checkpoint
    raise ValueError(
        "`weights` is 'best', but the Trainer keeps no best checkpoint. Add "
        "`ModelCheckpoint(monitor='val_loss')` to its callbacks, or use `weights='last'`."
    )


def load_best(trainer: Trainer, module: LightningModule) -> dict[str, float | None]:
    """Load the best checkpoint into the model; return the metric that made it the best."""
    checkpoint = best_checkpoint(trainer)
    if not checkpoint.best_model_path or checkpoint.best_model_score is None:
        raise RuntimeError(
            "`weights` is 'best', but the fit saved no best checkpoint. Its ModelCheckpoint needs a validation "
            "that logs its `monitor`."
        )
    state = trainer.strategy.load_checkpoint(checkpoint.best_model_path)["state_dict"]
    module.load_state_dict(state, strict=module.strict_loading)
    return {str(checkpoint.monitor): finite_or_none(float(checkpoint.best_model_score))}
