"""The Trainer's checkpoints over several rounds: names that do not collide, and the best one's weights."""

from typing import TYPE_CHECKING

from al_lightning._lightning import LightningModule, Trainer, pl
from al_lightning.journal import finite_or_none

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import ModelCheckpoint


def prefix_checkpoints(trainer: Trainer, round_index: int, member: int | None = None) -> None:
    """Give each fit's checkpoints names of their own, or a fit would overwrite those of the one before; once."""
    prefix = f"round={round_index:03d}-" + ("" if member is None else f"member={member}-")
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, pl.callbacks.ModelCheckpoint):
            checkpoint.filename = _prefixed(checkpoint.filename or "{epoch}-{step}", prefix)
            checkpoint.CHECKPOINT_NAME_LAST = _prefixed(checkpoint.CHECKPOINT_NAME_LAST, prefix)


def _prefixed(name: str, prefix: str) -> str:
    return name if name.startswith(prefix) else prefix + name


def best_checkpoint(trainer: Trainer) -> "ModelCheckpoint":
    """The first of the Trainer's checkpoints that knows which weights are best."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, pl.callbacks.ModelCheckpoint) and checkpoint.monitor is not None:
            return checkpoint
    raise ValueError(
        "`weights` is 'best', but the Trainer keeps no best checkpoint. Add "
        "`ModelCheckpoint(monitor='val_loss')` to its callbacks, or use `weights='last'`."
    )


def load_best(trainer: Trainer, module: LightningModule) -> dict[str, float | None]:
    """Put the best checkpoint's weights into the model; the value that made it the best is the round's metric."""
    checkpoint = best_checkpoint(trainer)
    if not checkpoint.best_model_path or checkpoint.best_model_score is None:
        raise RuntimeError(
            "`weights` is 'best', but the fit saved no best checkpoint. Its ModelCheckpoint needs a validation "
            "that logs its `monitor`."
        )
    state = trainer.strategy.load_checkpoint(checkpoint.best_model_path)["state_dict"]
    module.load_state_dict(state, strict=module.strict_loading)
    return {str(checkpoint.monitor): finite_or_none(float(checkpoint.best_model_score))}
