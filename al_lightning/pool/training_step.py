"""Trial of a training step, so that no batch is chosen for a model that cannot be trained."""

import inspect
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from al_lightning._lightning import LIGHTNINGS_OWN, LightningModule, Trainer, callbacks_of, rank_zero_warn
from al_lightning.pool.predict import batches_on_device, logging_nothing
from al_lightning.posterior.snapshot import Snapshot


def try_training_step(
    trainer: Trainer, module: LightningModule, batches: DataLoader[Any], *, hint: Callable[[], str], has_labels: bool
) -> None:
    """Refuse a model whose training step fails on a few points of the pool; it is handed back as it was.

    Only errors of layers and losses count (RuntimeError, IndexError), such as layers that do not fit the input and too
    few outputs. Any other error is a warning, because a hook that runs later may make what the step needs. With manual
    optimization nothing is tried.

    Args:
        trainer: A Trainer whose fit begins.
        module: The model.
        batches: The points, as training has labelled ones.
        hint: Returns what the error text says besides.
        has_labels: Their classes are their own, the highest ones of the pool; else they are made up.
    """
    if not module.automatic_optimization:
        return
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    points = "a few points of the pool" if has_labels else "a few points of the pool with made-up classes"
    shared = [trainer, datamodule, getattr(datamodule, "inner", None), *callbacks_of(trainer), *trainer.loggers]
    snapshot = Snapshot(module, shared=shared, kept=LIGHTNINGS_OWN, kept_of=LightningModule)
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]  # such as running statistics
    try:
        with logging_nothing(module), trainer.precision_plugin.forward_context():
            batch = next(batches_on_device(trainer, module, batches))
            module.training_step(*_arguments(module.training_step, batch))
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"`training_step` fails on {points}, as it would once they are labelled: {error}{hint()}"
        ) from error
    except Exception as error:  # noqa: BLE001 - see above
        rank_zero_warn(
            f"`training_step` could not be tried on {points} before the first batch is chosen: "
            f"{type(error).__name__}: {error}. If a hook makes later what it needs, all is well."
        )
    finally:
        snapshot.put_back()
        for buffer, before in buffers:
            buffer.detach().copy_(before)


def _arguments(step: Callable[..., object], batch: object) -> tuple[object, ...]:
    """Return the batch, and its number where the step takes it."""
    return (batch, 0) if len(inspect.signature(step).parameters) > 1 else (batch,)
