"""The Trainer's checkpoints over several rounds: names that do not collide, and the best one's weights."""

from al_lightning._lightning import LightningModule, Trainer, pl
from al_lightning.journal import finite_or_none


def prefix_checkpoints(trainer: Trainer, round_index: int) -> None:
    """Give each round's checkpoints names of their own, or a round would overwrite those of the one before."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, pl.callbacks.ModelCheckpoint):
            prefix = f"round={round_index:03d}-"
            checkpoint.filename = prefix + (checkpoint.filename or "{epoch}-{step}")
            checkpoint.CHECKPOINT_NAME_LAST = prefix + checkpoint.CHECKPOINT_NAME_LAST


def check_best_is_kept(trainer: Trainer) -> None:
    """Refuse before the training a wish for the best weights that nobody keeps."""
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, pl.callbacks.ModelCheckpoint) or checkpoint.monitor is None:
        raise ValueError(
            "`weights` is 'best', but the Trainer keeps no best checkpoint. Add "
            "`ModelCheckpoint(monitor='val_loss')` to its callbacks, or use `weights='last'`."
        )


def load_best(trainer: Trainer, module: LightningModule) -> dict[str, float | None]:
    """Put the best checkpoint's weights into the model; the value that made it the best is the round's metric."""
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, pl.callbacks.ModelCheckpoint) or not checkpoint.best_model_path:
        raise RuntimeError(
            "`weights` is 'best', but the fit saved no best checkpoint. Its ModelCheckpoint needs a validation "
            "that logs its `monitor`."
        )
    module.load_state_dict(trainer.strategy.load_checkpoint(checkpoint.best_model_path)["state_dict"])
    if checkpoint.monitor is None or checkpoint.best_model_score is None:
        return {}
    return {checkpoint.monitor: finite_or_none(float(checkpoint.best_model_score))}
