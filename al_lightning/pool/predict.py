"""Predict the pool: the log-probabilities of K posterior samples at every pool point, in the order of the pool."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from al_lightning._lightning import LIGHTNINGS_OWN, LightningModule, Trainer, callbacks_of, pl
from al_lightning.posterior import Posterior, Predict
from al_lightning.posterior.snapshot import Snapshot

DESCRIPTION = "Predicting the pool"
NUM_NAMED = 20
MOST_REASON = 200
"""Letters of a reason in a record."""


@contextmanager
def _predicting(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """The trainer says that it predicts, and the module is on its device, also after the strategy was torn down."""
    stage, device = trainer.state.stage, module.device
    trainer.predicting = True  # users ask `self.trainer.training` whether to augment
    trainer.strategy.model_to_device()  # at the end of a fit the strategy has moved the model to the CPU
    try:
        with _logging_nothing(module):
            yield
    finally:
        module.to(device)
        trainer.state.stage = stage


@contextmanager
def _logging_nothing(module: LightningModule) -> Iterator[None]:
    """Let `self.log` in `forward` do nothing: it works in a fit, and outside of its steps Lightning refuses it."""
    parts = [part for part in module.modules() if isinstance(part, LightningModule)]
    replaced = [(vars(part), name) for part in parts for name in ("log", "log_dict") if name not in vars(part)]
    for attributes, name in replaced:
        attributes[name] = _log_nothing
    try:
        yield
    finally:
        for attributes, name in replaced:
            attributes.pop(name, None)


def _log_nothing(*_args: object, **_kwargs: object) -> None:
    pass


def _batches_on_device(trainer: Trainer, module: LightningModule, batches: Iterable[object]) -> Iterator[object]:
    """Each batch as the trainer's own predict loop would hand it to the module, the user's transfer hooks included.

    To a GPU Lightning copies tensors without waiting, which takes effect for those that the loader has pinned.
    """
    for batch in batches:
        converted = trainer.precision_plugin.convert_input(batch)
        # Private, because only it knows whether the data module or the module overrides the hook.
        converted = module._on_before_batch_transfer(converted)
        yield trainer.strategy.batch_to_device(converted)


def _with_progress(trainer: Trainer, batches: DataLoader[object]) -> Iterable[object]:
    """The batches under a progress bar of the kind that the Trainer shows, if it shows one."""
    shown: Any = trainer.progress_bar_callback
    if isinstance(shown, pl.callbacks.RichProgressBar) and shown.progress is not None:
        return shown.progress.track(
            batches, total=len(batches), description=DESCRIPTION
        )  # it owns the terminal until the fit is torn down
    return tqdm(batches, desc=DESCRIPTION, leave=False, disable=shown is None or shown.is_disabled)


class PoolChunks(Iterator[Tensor]):
    """The chunks of `predict_pool`, and how they are made."""

    def __init__(self, chunks: Iterator[Tensor], predict: Predict) -> None:
        self._chunks, self._predict = chunks, predict

    def __next__(self) -> Tensor:
        """The log-probabilities of the next batch."""
        return next(self._chunks)

    @property
    def path(self) -> str | None:
        """Describe how the posterior has made its forward passes; None for one that does not tell."""
        path, reason = (getattr(self._predict, name, None) for name in ("path", "reason"))
        return f"{path}: {' '.join(reason.split())[:MOST_REASON]}" if path and reason else path


@contextmanager
def predict_pool(
    trainer: Trainer,
    module: LightningModule,
    batches: DataLoader[object],
    posterior: Posterior,
    *,
    num_samples: int,
    seed: int,
) -> Iterator["PoolChunks"]:
    """Log-probabilities (n, K, C), float32, of `num_samples` = K draws of the posterior, batch by batch when asked for.

    Runs after a fit as well as during one, on the trainer's device and in its precision. The K draws depend on `seed`
    alone, so every batch sees the same K networks. The first batch with a prediction that is NaN is an error.
    """
    with (
        _predicting(trainer, module),
        posterior.sample(module, num_samples, seed=seed) as predict,
        trainer.precision_plugin.forward_context(),
    ):
        batches_on_device = _batches_on_device(trainer, module, _with_progress(trainer, batches))
        yield PoolChunks(_finite(map(predict, batches_on_device), batches), predict)


def preview_pool(
    trainer: Trainer,
    module: LightningModule,
    batches: DataLoader[object],
    posterior: Posterior,
    *,
    smaller: DataLoader[object] | None = None,
) -> Tensor:
    """Log-probabilities (B, C) of the first batch by one sample: refuses before a training what would fail after it.

    Args:
        trainer: A Trainer whose fit begins.
        module: The model, which is handed back as it was.
        batches: Some points of the pool.
        posterior: What is going to be sampled.
        smaller: Fewer points than are in the first batch.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    others = [trainer, datamodule, getattr(datamodule, "inner", None), *callbacks_of(trainer), *trainer.loggers]
    # A forward pass may also draw from a generator of the model's, or write on other objects that it holds.
    snapshot = Snapshot(module, shared=others, kept=LIGHTNINGS_OWN, kept_of=LightningModule)
    try:
        with _predicting(trainer, module), trainer.precision_plugin.forward_context():
            few, fewer = (
                None if loader is None else next(_batches_on_device(trainer, module, loader))
                for loader in (batches, smaller)
            )
            return posterior.preview(module, few, smaller=fewer)
    finally:
        snapshot.put_back()


def fitted_posterior(
    trainer: Trainer, module: LightningModule, batches: DataLoader[object], posterior: Posterior
) -> Posterior:
    """Fit the posterior after a training, given the labelled samples, which `batches` holds in order."""
    with _predicting(trainer, module), trainer.precision_plugin.forward_context():
        return posterior.fit(module, _batches_on_device(trainer, module, batches))


def _finite(chunks: Iterable[Tensor], batches: DataLoader[object]) -> Iterator[Tensor]:
    """The chunks, up to one that holds NaN: with a large pool, one broken batch must not cost hours."""
    start = 0
    for log_probs_n_K_C in chunks:
        broken_n = log_probs_n_K_C.isnan().any(dim=2).any(dim=1)
        if broken_n.any():
            indices = [batches.dataset.indices[start + row] for row in broken_n.nonzero().flatten().tolist()]  # type: ignore[attr-defined]
            raise ValueError(
                f"The model's predictions are NaN at {len(indices)} of the {len(broken_n)} points of a pool batch, "
                f"first at the samples {indices[:NUM_NAMED]}; later batches were not predicted. Look for a training "
                "that diverged, for an overflow of half precision, or for NaN in these inputs; samples that are broken "
                "can be excluded with `datamodule.exclude(indices)`."
            )
        yield log_probs_n_K_C
        start += len(broken_n)
