"""Predict the pool: the log-probabilities of K posterior samples at every pool point, in the order of the pool."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from al_lightning._lightning import LightningModule, Trainer, pl
from al_lightning.posterior import Posterior

DESCRIPTION = "Predicting the pool"


@contextmanager
def _predicting(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """The trainer says that it predicts, and the module is on its device, also after the strategy was torn down."""
    stage, device = trainer.state.stage, module.device
    trainer.predicting = True  # users ask `self.trainer.training` whether to augment
    trainer.strategy.model_to_device()  # at the end of a fit the strategy has moved the model to the CPU
    try:
        yield
    finally:
        module.to(device)
        trainer.state.stage = stage


def _batches_on_device(trainer: Trainer, module: LightningModule, batches: Iterable[object]) -> Iterator[object]:
    """Each batch as the trainer's own predict loop would hand it to the module, the user's transfer hooks included."""
    for batch in batches:
        converted = trainer.precision_plugin.convert_input(batch)
        # Private, because only it knows whether the data module or the module overrides the hook.
        converted = module._on_before_batch_transfer(converted)
        yield trainer.strategy.batch_to_device(converted)


def _with_progress(trainer: Trainer, batches: DataLoader[object]) -> Iterable[object]:
    """The batches under a progress bar of the kind that the Trainer shows, if it shows one."""
    shown = trainer.progress_bar_callback
    if isinstance(shown, pl.callbacks.RichProgressBar) and shown.progress is not None:
        return shown.progress.track(
            batches, total=len(batches), description=DESCRIPTION
        )  # it owns the terminal until the fit is torn down
    return tqdm(batches, desc=DESCRIPTION, leave=False, disable=shown is None)


def predict_pool(
    trainer: Trainer,
    module: LightningModule,
    batches: DataLoader[object],
    posterior: Posterior,
    *,
    num_samples: int,
    seed: int,
) -> Tensor:
    """Log-probabilities (N, K, C), float32, of `num_samples` = K draws of the posterior at the N points of `batches`.

    Runs after a fit as well as during one, on the trainer's device and in its precision. The K draws depend on `seed`
    alone, so every batch sees the same K networks.
    """
    with (
        _predicting(trainer, module),
        posterior.sample(module, num_samples, seed=seed) as predict,
        trainer.precision_plugin.forward_context(),
    ):
        chunks = [predict(batch) for batch in _batches_on_device(trainer, module, _with_progress(trainer, batches))]
    log_probs_N_K_C = torch.cat(chunks)
    _refuse_not_finite(log_probs_N_K_C, batches)
    return log_probs_N_K_C


def preview_pool(
    trainer: Trainer, module: LightningModule, batches: DataLoader[object], posterior: Posterior
) -> Tensor:
    """Log-probabilities (B, C) of the first batch by one sample: refuses before a training what would fail after it."""
    with _predicting(trainer, module), trainer.precision_plugin.forward_context():
        return posterior.preview(module, next(_batches_on_device(trainer, module, batches)))


def _refuse_not_finite(log_probs_N_K_C: Tensor, batches: DataLoader[object]) -> None:
    broken_N = log_probs_N_K_C.isnan().any(dim=2).any(dim=1)
    if broken_N.any():
        indices = [batches.dataset.indices[position] for position in broken_N.nonzero().flatten().tolist()]  # type: ignore[attr-defined]
        raise ValueError(
            f"The model's predictions are NaN at {len(indices)} of {len(broken_N)} pool points, first at the samples "
            f"{indices[:5]}. Look for a training that diverged, for an overflow of half precision, or for NaN in these "
            "inputs; samples that are broken can be set aside with `datamodule.set_aside(indices)`."
        )
