"""The user's data module, seen through the labels: training gets the labelled samples, the pool is the rest."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_lightning._lightning import LightningDataModule, Trainer, check_flavour, is_overridden, isolate_rng
from al_lightning.data.initial import draw, draw_balanced
from al_lightning.data.labels import Labels
from al_lightning.data.loaders import check_train_loader, labelled_loader, sequential_loader
from al_lightning.data.targets import all_targets, targets_of

FORWARDED_IF_OVERRIDDEN = (
    "prepare_data",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "on_exception",
    "teardown",
)


class ActiveLearningDataModule(LightningDataModule):
    """Wraps a data module; it knows which samples of the training dataset are labelled and which are pool.

    Everything but training is the wrapped module's own: validation, test and predict loaders, transfer hooks, state.
    Its `train_dataloader()` is asked once per `setup("fit")`; the loader that training gets has its settings. Datasets
    without a data module are wrapped by Lightning's own
    `ActiveLearningDataModule(LightningDataModule.from_datasets(train, val, test, batch_size=64))`.

    With few labels the last batch may hold a single sample, on which BatchNorm raises: choose a batch size that leaves
    none over, or `samples_per_epoch` as a multiple of it.

    Args:
        datamodule: An ordinary data module whose `train_dataloader()` returns one plain DataLoader. If it has a method
            `pool_dataset()`, that is the pool unless `pool` is given. `setup` runs with the global random generators
            seeded, so that an unseeded `random_split` gives every sample the same id in each round, process and run.
        initial: How many samples are labelled to begin with, or which.
        balanced: Draw equally many of each class to begin with (needs integer targets).
        samples_per_epoch: Draws per epoch, one permutation of the labelled samples after another, so that an epoch is
            equally long in every round. By default an epoch is one pass over the labelled samples.
        pool: The training dataset as it is shown to the acquisition: the same samples in the same order, usually
            without augmentation. By default the training dataset itself.
        pool_batch_size: Batch size of the pool; by default that of the training loader.
        seed: Of the initial labels and of the wrapped module's `setup`.
    """

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        datamodule: LightningDataModule,
        *,
        initial: int | list[int] = 20,
        balanced: bool = True,
        samples_per_epoch: int | None = None,
        pool: Dataset | None = None,  # type: ignore[type-arg] # jsonargparse resolves the plain class only
        pool_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        check_flavour("datamodule", datamodule, LightningDataModule)
        if isinstance(datamodule, ActiveLearningDataModule):
            raise TypeError("`datamodule` is an ActiveLearningDataModule already. Wrap the plain data module, once.")
        for name, value in (("samples_per_epoch", samples_per_epoch), ("pool_batch_size", pool_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1, or None.")
        if not initial or (isinstance(initial, int) and initial < 1):
            raise ValueError(f"`initial` is {initial}, but training needs at least one labelled sample to begin with.")
        self.inner = datamodule  # before `super().__init__`, which sets `trainer`
        super().__init__()
        self.initial = initial
        self.balanced = balanced
        self.samples_per_epoch = samples_per_epoch
        self.pool = pool
        self.pool_batch_size = pool_batch_size
        self.seed = seed
        self.prepare_data_per_node = datamodule.prepare_data_per_node
        self.allow_zero_length_dataloader_with_multiple_devices = (
            datamodule.allow_zero_length_dataloader_with_multiple_devices
        )
        self._labels: Labels | None = None
        self._train_loader: DataLoader[Any] | None = None
        self._pool_dataset: Dataset[Any] | None = None
        # Only what the wrapped module overrides: Lightning runs no validation loop without a `val_dataloader`, and
        # uses the transfer hooks of the LightningModule unless the data module has its own.
        for hook in FORWARDED_IF_OVERRIDDEN:
            if is_overridden(hook, datamodule):
                setattr(self, hook, getattr(datamodule, hook))

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer, which the wrapped module must know as well, for its loaders may ask it."""
        return self.inner.trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.inner.trainer = trainer

    @property
    def labels(self) -> Labels:
        """Which samples are labelled, and since which round."""
        if self._labels is None:
            raise RuntimeError("There are no labels before `setup('fit')`, which draws the initial ones.")
        return self._labels

    def setup(self, stage: str) -> None:
        """Set up the wrapped module; for a fit, read its training loader and, the first time, draw initial labels."""
        with _seeded(self.seed):
            self.inner.setup(stage)
            if stage != "fit":
                return
            self._train_loader = check_train_loader(self.inner.train_dataloader())
            dataset = self._train_loader.dataset
            num_samples = _length(dataset)
            self._pool_dataset = self._find_pool(dataset, num_samples)
            if self._labels is None:
                labels = Labels(num_samples)
                labels.label(self._initial_indices(dataset, num_samples), round=0)
                self._labels = labels
        if len(self._labels) != num_samples:
            raise ValueError(
                f"The training dataset has {num_samples} samples now, but had {len(self._labels)} when they were "
                "labelled: sample ids would point at other samples. Make `setup('fit')` build the same dataset always."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """The wrapped module's training loader over the labelled samples alone."""
        num_ranks = 1 if self.trainer is None else self.trainer.world_size
        return labelled_loader(
            self._fit_loader(),
            self.labels.labelled_indices.tolist(),
            samples_per_epoch=self.samples_per_epoch,
            num_ranks=num_ranks,
        )

    def pool_dataloader(
        self, indices: Sequence[int] | Tensor | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        """Each sample of the pool once, ascending; or the given samples, in their order."""
        loader = self._fit_loader()
        indices_B = self.labels.pool_indices if indices is None else self.labels.checked(indices)
        return sequential_loader(
            loader,
            loader.dataset if self._pool_dataset is None else self._pool_dataset,
            indices_B.tolist(),
            batch_size=batch_size or self.pool_batch_size,
            seed=self.seed,
        )

    def label(self, indices: Sequence[int] | Tensor, *, round: int) -> None:  # noqa: A002 - the word of the state
        """Move samples from the pool to the labelled ones; training sees them from the next fit on."""
        self.labels.label(indices, round=round)

    def unlabel(self, indices: Sequence[int] | Tensor) -> None:
        """Put labelled or set-aside samples back into the pool."""
        self.labels.unlabel(indices)

    def set_aside(self, indices: Sequence[int] | Tensor) -> None:
        """Take samples that nobody can label out of the pool."""
        self.labels.set_aside(indices)

    def targets_of(self, indices: Sequence[int] | Tensor) -> list[int] | None:
        """The true labels of some samples, or None if the training dataset does not tell them."""
        with _seeded(self.seed):  # reading an item may augment it
            return targets_of(self._fit_loader().dataset, self.labels.checked(indices).tolist())

    def state_dict(self) -> dict[str, Any]:
        """The labels, if there are any yet, and the wrapped module's state."""
        labels = {} if self._labels is None else {"labels": self._labels.state_dict()}
        return {**labels, "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the wrapped module's state and the labels.

        While the Trainer tests, validates or predicts, the labels stay as they are: `trainer.test(ckpt_path="best")`
        is about the weights of a checkpoint, and must not undo what was labelled since it was written.
        """
        self.inner.load_state_dict(state_dict["inner"])
        if "labels" not in state_dict or self._is_evaluating():
            return
        if self._labels is None:
            self._labels = Labels(len(state_dict["labels"]["round_of"]))
        self._labels.load_state_dict(state_dict["labels"])

    def _is_evaluating(self) -> bool:
        state = None if self.trainer is None else self.trainer.state
        return state is not None and state.status == "running" and state.fn != "fit"

    def _fit_loader(self) -> DataLoader[Any]:
        if self._train_loader is None:
            raise RuntimeError("The training loader is not known before `setup('fit')`.")
        return self._train_loader

    def _find_pool(self, dataset: Dataset[Any], num_samples: int) -> Dataset[Any]:
        pool: Dataset[Any] = dataset
        if self.pool is not None:
            pool = self.pool
        elif hasattr(self.inner, "pool_dataset"):
            pool = self.inner.pool_dataset()
        if _length(pool) != num_samples:
            raise ValueError(
                f"The pool dataset has {_length(pool)} samples, but the training dataset has {num_samples}. Both must "
                "hold the same samples in the same order: the pool is the training data without augmentation."
            )
        return pool

    def _initial_indices(self, dataset: Dataset[Any], num_samples: int) -> Tensor | list[int]:
        if not isinstance(self.initial, int):
            return self.initial
        generator = torch.Generator().manual_seed(self.seed)
        if self.balanced:
            return draw_balanced(self.initial, all_targets(dataset, num_samples), generator=generator)
        return draw(self.initial, num_samples=num_samples, generator=generator)


def _length(dataset: Dataset[Any]) -> int:
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"The pool dataset is a {type(dataset).__name__} without `__len__`, so it has no sample ids.")
    return len(dataset)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global random generators and give them back as they were.

    The one of torch by itself: `torch.manual_seed` would reach for the GPU, which a process that forks must not touch.
    """
    with isolate_rng(include_cuda=False):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that users draw from
        torch.default_generator.manual_seed(seed)
        yield
