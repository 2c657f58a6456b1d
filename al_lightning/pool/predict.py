"""Prediction of the pool: log-probabilities of K posterior samples at every point, in the order of the pool."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from al_lightning._lightning import LIGHTNINGS_OWN, LightningModule, Trainer, callbacks_of, isolate_rng, pl
from al_lightning.acquisition import Predictions
from al_lightning.data import ActiveLearningDataModule
from al_lightning.distributed import Ranks
from al_lightning.pool.frozen import Frozen, FrozenPoints, Keeper, Usual, taking_rows
from al_lightning.pool.kept import Kept
from al_lightning.pool.storage import Storage
from al_lightning.posterior import Posterior, Predict
from al_lightning.posterior.labelled_fit import LabelledFit
from al_lightning.posterior.last_layer.features import last_layer_pass
from al_lightning.posterior.model import Call, leaves
from al_lightning.posterior.snapshot import Snapshot

DESCRIPTION = "Predicting the pool"
NUM_NAMED = 20
EXCLUDE = "Points that are broken can be excluded with `datamodule.exclude(indices)`."
MOST_REASON = 200
"""Letters of a reason in a record, at most."""


@contextmanager
def _predicting(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Set the trainer to predicting, and move the module to its device, also after the strategy was torn down."""
    stage, device = trainer.state.stage, module.device
    trainer.predicting = True  # users ask `self.trainer.training` whether to augment
    trainer.strategy.model_to_device()  # at the end of a fit the strategy has moved the model to the CPU
    try:
        with logging_nothing(module):
            yield
    finally:
        module.to(device)
        trainer.state.stage = stage


@contextmanager
def logging_nothing(module: LightningModule) -> Iterator[None]:
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


def batches_on_device(trainer: Trainer, module: LightningModule, batches: Iterable[object]) -> Iterator[object]:
    """Yield each batch as the trainer's own predict loop would, the user's transfer hooks included.

    To a GPU Lightning copies tensors without waiting, which takes effect for those that the loader has pinned.
    """
    for batch in batches:
        converted = trainer.precision_plugin.convert_input(batch)
        # Private, because only it knows whether the data module or the module overrides the hook.
        converted = module._on_before_batch_transfer(converted)
        yield trainer.strategy.batch_to_device(converted)


def _points_on_device(trainer: Trainer, module: LightningModule, batches: DataLoader[object]) -> Iterator[object]:
    """Yield each batch on the device under a progress bar; kept rows without the user's hooks, made for inputs."""
    shown: Iterable[Any] = _with_progress(trainer, batches)
    if not isinstance(batches.dataset, FrozenPoints):
        return batches_on_device(trainer, module, shown)
    device, batch_of = trainer.strategy.root_device, batches.dataset.frozen.batch_of
    return (batch_of(rows_n_D.to(device)) for rows_n_D in shown)


def _with_progress(trainer: Trainer, batches: DataLoader[object]) -> Iterable[object]:
    """Show a progress bar over the batches, of the kind that the Trainer shows, if it shows one."""
    shown: Any = trainer.progress_bar_callback
    if isinstance(shown, pl.callbacks.RichProgressBar) and shown.progress is not None:
        return shown.progress.track(
            batches, total=len(batches), description=DESCRIPTION
        )  # it owns the terminal until the fit is torn down
    return tqdm(batches, desc=DESCRIPTION, leave=False, disable=shown is None or shown.is_disabled)


@dataclass(frozen=True)
class Passes:
    """Description of the forward passes of a posterior; None for one that does not tell.

    Args:
        path: How they were made.
        sampled: What was sampled in them.
        labelled_fit: Fit of the posterior samples to the labelled points.
    """

    path: str | None = None
    sampled: str | None = None
    labelled_fit: LabelledFit | None = None


class PoolChunks(Iterator[Tensor]):
    """Chunks of `predict_pool`, and the description of the forward passes."""

    def __init__(self, chunks: Iterator[Tensor], predict: Predict) -> None:
        self._chunks, self._predict = chunks, predict

    def __next__(self) -> Tensor:
        """Return the log-probabilities of the next batch."""
        return next(self._chunks)

    @property
    def passes(self) -> Passes:
        """Describe the forward passes that were made."""
        told = ("path", "reason", "sampled", "labelled_fit")
        path, reason, sampled, fit = (getattr(self._predict, name, None) for name in told)
        return Passes(f"{path}: {' '.join(reason.split())[:MOST_REASON]}" if path and reason else path, sampled, fit)


@contextmanager
def predict_pool(
    trainer: Trainer,
    module: LightningModule,
    batches: DataLoader[object],
    posterior: Posterior,
    draw: "Draw",
    *,
    ids: Sequence[int] | None,
) -> Iterator["PoolChunks"]:
    """Predict log-probabilities (n, K, C), float32, of K draws of the posterior, batch by batch when asked for.

    Runs after a fit as well as during one, on the trainer's device and in its precision. The K draws depend on `draw`
    alone, so every batch sees the same K networks. The first batch with a prediction that is NaN is an error, which
    names the points by `ids`; None where they are those of `target_dataloader()`.
    """
    with (
        _predicting(trainer, module),
        taking_rows(module, batches),
        posterior.sample(module, draw.num_samples, seed=draw.seed) as predict,
        trainer.precision_plugin.forward_context(),
    ):
        points = _points_on_device(trainer, module, batches)
        yield PoolChunks(_finite(map(predict, points), ids), predict)


@dataclass(frozen=True)
class Few:
    """Loaders of a few points, to try before a training what will be done after it.

    Args:
        batches: Some points of the pool.
        smaller: Fewer points than the first batch holds.
        looked_through: Batches that are searched for the first one of another shape, as texts padded to another length;
            the posterior then previews that one beside the first batch.
        targets: Target points, which are all predicted too.
    """

    batches: DataLoader[object]
    smaller: DataLoader[object] | None = None
    looked_through: DataLoader[object] | None = None
    targets: DataLoader[object] | None = None


def preview_pool(
    trainer: Trainer,
    module: LightningModule,
    few: Few,
    posterior: Posterior,
    *,
    reads_last_layer: bool = False,
) -> Tensor:
    """Predict the first batch by one sample (B, C), to refuse before a training what would fail after it.

    Args:
        trainer: A Trainer whose fit begins.
        module: The model, which is handed back as it was.
        few: Points to predict.
        posterior: Posterior that is to be sampled.
        reads_last_layer: Read the inputs of the last linear layer too.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    shared = [trainer, datamodule, getattr(datamodule, "inner", None), *callbacks_of(trainer), *trainer.loggers]
    # A forward pass may also draw from a generator of the model's, or write on other objects that it holds.
    snapshot = Snapshot(module, shared=shared, kept=LIGHTNINGS_OWN, kept_of=LightningModule)
    try:
        with _predicting(trainer, module), trainer.precision_plugin.forward_context():
            first, fewer = (
                None if loader is None else next(batches_on_device(trainer, module, loader))
                for loader in (few.batches, few.smaller)
            )
            refuse_empty_texts(first, _ids(few.batches, 0))
            log_probs_B_C = posterior.preview(module, first, smaller=fewer)
            others = few.looked_through
            other = None if others is None else _of_other_shape(first, others, trainer, module)
            if other is not None:
                with warnings.catch_warnings():  # the first preview has warned
                    warnings.simplefilter("ignore")
                    posterior.preview(module, first, smaller=other)
            if few.targets is not None:
                _preview_targets(batches_on_device(trainer, module, few.targets), module, posterior)
            if reads_last_layer:
                _last_layer_features(module, first, posterior)
            return log_probs_B_C
    finally:
        snapshot.put_back()


def _preview_targets(batches: Iterator[object], module: LightningModule, posterior: Posterior) -> None:
    """Refuse targets that cannot be predicted: all of them, since they are few."""
    number = 0
    try:
        with warnings.catch_warnings():  # the preview of the pool has warned
            warnings.simplefilter("ignore")
            for number, batch in enumerate(batches, start=1):  # noqa: B007 - the error names it
                list(_finite([posterior.preview(module, batch)[:, None]], ids=None))
    except Exception as error:
        raise ValueError(
            f"{'The first batch' if number == 1 else f'Batch {number}'} of `target_dataloader()` cannot be predicted: "
            f"{error} Its batches must be as those of the training loader."
        ) from error
    if number == 0:
        raise ValueError("`target_dataloader()` has no batch. Give it the points that the model will meet.")


def _last_layer_features(module: LightningModule, batch: object, posterior: Posterior) -> Tensor:
    own_call = getattr(posterior, "predict", None)
    found = last_layer_pass(module, batch, predict=own_call, layer=None, has_ones=False)
    return found.features_B_D.float().cpu()


def _of_other_shape(
    first: object, batches: DataLoader[object], trainer: Trainer, module: LightningModule
) -> object | None:
    """Return the first batch whose points have another shape than those of `first`; None if there is none."""
    found = None
    for number, batch in enumerate(batches_on_device(trainer, module, batches)):
        refuse_empty_texts(batch, _ids(batches, number))
        if found is None and _shapes_of_points(batch) != _shapes_of_points(first):
            found = batch
    return found


def _shapes_of_points(batch: object) -> list[torch.Size]:
    return [leaf.shape[1:] for leaf in leaves(batch) if isinstance(leaf, Tensor)]


def _ids(batches: DataLoader[object], number: int) -> list[int]:
    """Return the ids of the points of a batch."""
    size = batches.batch_size or 1
    return list(batches.dataset.indices[number * size : (number + 1) * size])  # type: ignore[attr-defined]


def refuse_empty_texts(batch: object, indices: Sequence[int]) -> None:
    """Refuse texts without a token: a batch that is padded to no length, or points that an attention mask hides.

    Args:
        batch: A batch of the pool.
        indices: The ids of its points.

    Example:
        >>> refuse_empty_texts({"attention_mask": torch.tensor([[1, 1], [0, 0]])}, [7, 9])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: The `attention_mask` of the points [9] hides all that they hold, as in an empty text. ...
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    way_out = (
        "There is nothing to predict from. Leave such points out of the dataset, take them out of the pool with "
        "`datamodule.exclude(ids)`, or let the tokenizer add its special tokens."
    )
    tokens = [leaf for leaf in leaves(inputs) if isinstance(leaf, Tensor) and not leaf.is_floating_point()]
    for tensor in tokens:
        if tensor.dim() > 1 and len(tensor) > 0 and tensor.numel() == 0:
            raise ValueError(
                f"The points {list(indices)} make a batch with a tensor of shape {tuple(tensor.shape)}, of no length, "
                f"as of empty texts. {way_out}"
            )
    if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == len(indices):  # noqa: PLR2004 - points and tokens
        hidden = [indices[row] for row in (mask == 0).all(dim=1).nonzero().flatten().tolist()]
        if hidden:
            raise ValueError(
                f"The `attention_mask` of the points {hidden} hides all that they hold, as in an empty text. {way_out}"
            )


def fitted_posterior(
    trainer: Trainer,
    module: LightningModule,
    batches: DataLoader[object],
    posterior: Posterior,
    targets: Sequence[int] | None,
) -> Posterior:
    """Fit the posterior after a training to the points that it saw, and to their classes where these are known.

    Args:
        trainer: A Trainer at the end of a fit.
        module: The trained model.
        batches: These points, in order.
        posterior: Posterior to be fitted.
        targets: Their classes; None if nothing says where the dataset keeps them.
    """
    with _predicting(trainer, module), trainer.precision_plugin.forward_context():
        on_device = batches_on_device(trainer, module, batches)
        if targets is None:
            return posterior.fit(module, on_device)
        return posterior.fit_to_labels(module, on_device, torch.tensor(targets, dtype=torch.long))


def last_layer_features(
    trainer: Trainer, module: LightningModule, batches: DataLoader[object], posterior: Posterior
) -> Iterator[Tensor]:
    """Yield what the model's last linear layer reads of each batch in evaluation mode (n, D), float32, on the CPU."""
    with _predicting(trainer, module), taking_rows(module, batches), trainer.precision_plugin.forward_context():
        for batch in _points_on_device(trainer, module, batches):
            yield _last_layer_features(module, batch, posterior)


@dataclass(frozen=True)
class Draw:
    """Posterior samples of a prediction.

    Args:
        num_samples: K.
        seed: Seed that decides which networks are drawn, and nothing else does.
    """

    num_samples: int
    seed: int


@dataclass(frozen=True)
class Predictor:
    """Predictor of pool points after a training: a choice may ask it more than once.

    Args:
        trainer: A Trainer at the end of a fit.
        module: The trained model, with the same buffers on all ranks.
        datamodule: Data module that loads the points.
        posterior: Posterior fitted to the labelled points.
        batch_size: Batch size of the loader: a batch is never divided between ranks.
        storage: Place of the predictions.
        frozen: Frozen part of the model, from whose kept output the points are predicted; None without one.
    """

    trainer: Trainer
    module: LightningModule
    datamodule: ActiveLearningDataModule
    posterior: Posterior
    batch_size: int
    storage: Storage
    frozen: Frozen | None = None

    @classmethod
    def unfitted(
        cls,
        trainer: Trainer,
        module: LightningModule,
        datamodule: ActiveLearningDataModule,
        posterior: Posterior,
        storage: Storage,
    ) -> "Predictor":
        """Return one for features alone, for which no posterior is fitted."""
        Ranks(trainer).send_buffers(module)
        batch_size = datamodule.pool_dataloader([]).batch_size or 1
        return cls(trainer, module, datamodule, posterior, batch_size, storage)

    @classmethod
    def after_training(
        cls,
        trainer: Trainer,
        module: LightningModule,
        datamodule: ActiveLearningDataModule,
        posterior: Posterior,
        storage: Storage,
    ) -> "Predictor":
        """Fit the posterior to the labelled points, on every rank."""
        ranks = Ranks(trainer)
        ranks.send_buffers(module)

        def fitted() -> tuple[Posterior, int]:
            trained = datamodule.pool_dataloader(datamodule.trained_indices)
            fitted = fitted_posterior(trainer, module, trained, posterior, datamodule.trained_targets)
            return fitted, trained.batch_size or 1

        return cls(trainer, module, datamodule, *ranks.together(fitted), storage)

    def __call__(self, indices_N: Tensor, draw: Draw) -> tuple[Predictions, Passes]:
        """Predict this rank's part of some points, and describe the forward passes."""
        ranks = Ranks(self.trainer)
        part = ranks.part(len(indices_N), self.batch_size)
        log_probs_n_K_C, passes = ranks.together(lambda: self._own(indices_N[part.start : part.stop], draw))
        num_classes = int(ranks.gather(torch.tensor(log_probs_n_K_C.shape[2])).max())
        if len(part) == 0:  # of no points, a rank knows no number of classes
            log_probs_n_K_C = log_probs_n_K_C.new_empty(0, draw.num_samples, num_classes)
        return Predictions(log_probs_n_K_C, offset=part.start, total=len(indices_N)), passes

    def last_layer_features(self, indices_n: Tensor) -> Tensor:
        """Return what the model's last linear layer reads of some points (n, D)."""
        if len(indices_n) == 0:
            return torch.empty(0, 0)
        batches = self._loader(indices_n)
        return torch.cat(list(last_layer_features(self.trainer, self.module, batches, self.posterior)))

    def keeping(
        self, kept: Kept, indices_N: Tensor, draw: Draw, *, predicts: bool, reads_last_layer: bool
    ) -> "Predictor":
        """Return a predictor that reads some points from the kept output of a frozen part, if the model has one.

        All ranks call it at the same time, and make the rows that are lacking.

        Args:
            kept: Place of the rows.
            indices_N: Ids of the points.
            draw: Posterior samples that will be predicted.
            predicts: Predictions are read.
            reads_last_layer: The inputs of the last linear layer are read.
        """
        trainer, module, ranks = self.trainer, self.module, Ranks(self.trainer)

        @contextmanager
        def predicting() -> Iterator[Callable[[object], list[Tensor]]]:
            sampling = self.posterior.sample(module, draw.num_samples, seed=draw.seed)
            with sampling if predicts else nullcontext() as predict:
                yield lambda batch: [
                    *([] if predict is None else [predict(batch).exp()]),
                    *([_last_layer_features(module, batch, self.posterior)] if reads_last_layer else []),
                ]

        usual = Usual(
            Call(module, getattr(self.posterior, "predict", None)),
            batches=lambda indices, size: batches_on_device(
                trainer, module, self.datamodule.pool_dataloader(indices, size)
            ),
            predicting=predicting,
            is_shown=ranks.rank == 0 and trainer.progress_bar_callback is not None,
        )
        keep = Keeper(usual, kept, ranks, num_points=len(self.datamodule.labels), batch_size=self.batch_size)
        # Reading points may draw from the global generators, which are left as without this.
        with isolate_rng(), _predicting(trainer, module), trainer.precision_plugin.forward_context():
            return replace(self, frozen=keep(indices_N))

    def _loader(self, indices_n: Tensor) -> DataLoader[Any]:
        if self.frozen is None:
            return self.datamodule.pool_dataloader(indices_n)
        return self.frozen.loader(indices_n.tolist(), self.batch_size)

    def _own(self, indices_n: Tensor, draw: Draw) -> tuple[Tensor, Passes]:
        if len(indices_n) == 0:
            return torch.empty(0, draw.num_samples, 0), Passes()
        with predict_pool(
            self.trainer,
            self.module,
            self._loader(indices_n),
            self.posterior,
            draw,
            ids=indices_n.tolist(),
        ) as chunks:
            return self.storage.filled(chunks, num_points=len(indices_n)), chunks.passes


def _finite(chunks: Iterable[Tensor], ids: Sequence[int] | None) -> Iterator[Tensor]:
    """Yield the chunks up to one that holds NaN: with a large pool, one broken batch must not cost hours.

    Args:
        chunks: Log-probabilities of each batch.
        ids: Ids of the points of the pool; None where they are those of `target_dataloader()`.
    """
    start = 0
    for log_probs_n_K_C in chunks:
        broken_n = log_probs_n_K_C.isnan().any(dim=2).any(dim=1)
        if broken_n.any():
            rows = [start + row for row in broken_n.nonzero().flatten().tolist()]
            indices = rows if ids is None else [ids[row] for row in rows]
            points = "points of a batch of `target_dataloader()`" if ids is None else "points of a pool batch"
            raise ValueError(
                f"The model's predictions are NaN at {len(indices)} of the {len(broken_n)} {points}, "
                f"first at the points {indices[:NUM_NAMED]}; later batches were not predicted. Look for a training "
                "that diverged, for an overflow of half precision, or for NaN in these inputs. "
                + ("Leave broken points out of the targets." if ids is None else EXCLUDE)
            )
        yield log_probs_n_K_C
        start += len(broken_n)
