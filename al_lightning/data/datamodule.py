"""The user's data module, seen through the labels: training gets the labelled samples, the pool is the rest."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_lightning._lightning import LightningDataModule, Trainer, check_flavour, is_overridden
from al_lightning.data.initial import checked_initial, initial_indices
from al_lightning.data.labels import Labels
from al_lightning.data.loaders import labelled_loader, pool_of, sample_count, sequential_loader, train_loader_of
from al_lightning.data.once import each_test_sample_once
from al_lightning.data.seeded import seeded
from al_lightning.data.targets import (
    class_names,
    classes_of,
    has_names,
    numbered,
    refuse_other_targets,
    refuse_outside,
    refuse_visible,
    tells_at_once,
)

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

NUM_LOOKED_AT = 8  # of the items where each must be read by itself


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
            A method `render(sample)` returns how a sample of the pool is shown to people: (H, W), (1, H, W) or
            (3, H, W), bytes or numbers; by default, and only for loggers and reports, the first image in the sample.
        initial: How many samples are labelled to begin with, or which.
        balanced: Draw equally many of each class to begin with. The classes are read from the training dataset: from
            its attribute `targets` or `labels`, or its items (input, class, ...) or dicts. Names of classes are
            numbered in sorted order. Targets that are no classes are refused, whatever `balanced` is.
        samples_per_epoch: Draws per epoch, one permutation of the labelled samples after another, so that an epoch is
            equally long in every round. By default an epoch is one pass over the labelled samples.
        pool: The training dataset as it is shown to the acquisition: the same samples in the same order, usually
            without augmentation. By default the training dataset itself.
        pool_batch_size: Batch size of the pool; by default that of the training loader.
        seed: Of the initial labels and of the wrapped module's `setup`.
        corrected: Ids of labelled points whose targets in the dataset were corrected since the run began. Other targets
            of labelled points are refused, because they may be those of other points.
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
        corrected: list[int] | None = None,
    ) -> None:
        check_flavour("datamodule", datamodule, LightningDataModule)
        if isinstance(datamodule, ActiveLearningDataModule):
            raise TypeError("`datamodule` is an ActiveLearningDataModule already. Wrap the plain data module, once.")
        for name, value in (("samples_per_epoch", samples_per_epoch), ("pool_batch_size", pool_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1, or None.")
        self.initial = checked_initial(initial)
        self.inner = datamodule  # before `super().__init__`, which sets `trainer`
        super().__init__()
        self.balanced = balanced
        self.samples_per_epoch = samples_per_epoch
        self.pool = pool
        self.pool_batch_size = pool_batch_size
        self.seed = seed
        self.corrected = frozenset(corrected or [])
        self.prepare_data_per_node = datamodule.prepare_data_per_node
        self.allow_zero_length_dataloader_with_multiple_devices = (
            datamodule.allow_zero_length_dataloader_with_multiple_devices
        )
        self._labels: Labels | None = None
        self._known_targets: dict[int, int] = {}
        self._class_names: list[str] | None = None  # read once, for it may take reading all items
        self._train_loader: DataLoader[Any] | None = None
        self._pool_dataset: Dataset[Any] | None = None
        # Only what the wrapped module overrides: Lightning runs no validation loop without a `val_dataloader`, and
        # uses the transfer hooks of the LightningModule unless the data module has its own.
        for hook in FORWARDED_IF_OVERRIDDEN:
            if is_overridden(hook, datamodule):
                setattr(self, hook, getattr(datamodule, hook))
        if is_overridden("test_dataloader", datamodule):
            setattr(self, "test_dataloader", partial(each_test_sample_once, self))  # noqa: B010 - as the hooks above

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer, which the wrapped module must know as well, for its loaders may ask it."""
        return self.inner.trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.inner.trainer = trainer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the wrapped module has
        """What only the wrapped module has, as in `self.trainer.datamodule.num_classes`."""
        if name.startswith("_") or name == "inner":  # while copying and unpickling there is no wrapped module yet
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return getattr(self.inner, name)

    @property
    def labels(self) -> Labels:
        """Which samples are labelled, and since which round."""
        if self._labels is None:
            raise RuntimeError("There are no labels before `setup('fit')`, which draws the initial ones.")
        return self._labels

    @property
    def has_acquired(self) -> bool:
        """Whether samples were labelled besides the initial ones."""
        return self._labels is not None and bool((self._labels.round_of_N > 0).any())

    def setup(self, stage: str) -> None:
        """Set up the wrapped module; for a fit, read its training loader and, the first time, draw initial labels."""
        with seeded(self.seed):
            self.inner.setup(stage)
            if stage != "fit":
                return
            self._train_loader = train_loader_of(self.inner)
            dataset = self._train_loader.dataset
            self._pool_dataset = pool_of(self.inner, dataset, given=self.pool)
            num_samples = sample_count(dataset)
            if self._labels is None:
                labels = Labels(num_samples)
                labels.label(initial_indices(self.initial, dataset, balanced=self.balanced, seed=self.seed), round=0)
                self._labels = labels
        if len(self._labels) != num_samples:
            raise ValueError(
                f"The training dataset has {num_samples} samples now, but had {len(self._labels)} when they were "
                "labelled: sample ids would point at other samples. Make `setup('fit')` build the same dataset always."
            )
        self._refuse_other_samples(self._known_targets, self.corrected)

    def _refuse_other_samples(self, before: Mapping[int, int], corrected: Collection[int]) -> None:
        """The ids must mean the same points as before; a split drawn anew shows in their targets."""
        indices = self.labels.labelled_indices.tolist()
        targets = self.check_targets(indices)
        now = {} if targets is None else dict(zip(indices, targets, strict=True))
        refuse_other_targets(before, now, corrected=corrected)
        self._known_targets = now

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
            is_for_cuda=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def label(self, indices: Sequence[int] | Tensor, *, round: int) -> None:  # noqa: A002
        """Move samples from the pool to the labelled ones; training sees them from the next fit on."""
        self.labels.label(indices, round=round)

    def restore(
        self, state_of: Mapping[int, int], target_of: Mapping[int, int], *, corrected: Collection[int] = ()
    ) -> None:
        """Take over the label state that the records of a run tell, if the data are the same.

        Args:
            state_of: States by id; points that are not named are in the pool.
            target_of: Recorded targets of labelled points.
            corrected: Ids whose corrections the run has accepted before, beside those of `corrected` above.
        """
        self.labels.replace(state_of)
        self._refuse_other_samples(target_of, self.corrected.union(corrected))

    def changes_since(self, state_of: Mapping[int, int]) -> list[list[int | None]]:
        """Return [id, state, target] of every point whose state differs from these; the target of labelled ones."""
        found = self.labels.differences(state_of)
        labelled = [index for index, state in found.items() if state >= 0]
        targets = dict(zip(labelled, self.targets_of(labelled) or [], strict=False))
        return [[index, state, targets.get(index)] for index, state in found.items()]

    def corrections_since(self, target_of: Mapping[int, int]) -> list[list[int]]:
        """Return [id, old, new] of every labelled point whose target was another."""
        known = self._known_targets
        return [[index, old, known[index]] for index, old in target_of.items() if known.get(index, old) != old]

    def unlabel(self, indices: Sequence[int] | Tensor) -> None:
        """Put labelled or set-aside samples back into the pool."""
        self.labels.unlabel(indices)

    def set_aside(self, indices: Sequence[int] | Tensor) -> None:
        """Take samples that nobody can label out of the pool."""
        self.labels.set_aside(indices)

    def targets_of(self, indices: Sequence[int] | Tensor) -> list[int] | None:
        """The true classes of some samples, names numbered in sorted order; None if nothing says where they stand."""
        dataset, ids = self._fit_loader().dataset, self.labels.checked(indices).tolist()
        with seeded(self.seed):  # reading an item may augment it
            classes = classes_of(dataset, ids)
            if classes is None or not has_names(classes):
                return classes  # type: ignore[return-value] # no names
            self._class_names = self._class_names or class_names(dataset)
        return numbered(ids, classes, self._class_names)

    def check_targets(self, indices: Sequence[int] | Tensor, *, num_classes: int | None = None) -> list[int] | None:
        """`targets_of` these samples, all of which must be labels of a class."""
        targets = self.targets_of(indices)
        if targets is not None:
            refuse_outside(dict(zip(map(int, indices), targets, strict=True)), num_classes=num_classes)
            return targets
        with seeded(self.seed):
            few = [int(index) for index in indices[:NUM_LOOKED_AT]]
            refuse_visible(self._fit_loader().dataset, few, num_classes=num_classes)
        return None

    def check_targets_to_come(self, *, num_classes: int | None) -> None:
        """Check the labelled samples and the pool, or a few of it where that takes reading the items one by one."""
        pool_indices = self.labels.pool_indices
        with seeded(self.seed):
            is_cheap = tells_at_once(self._fit_loader().dataset)
        few = pool_indices if is_cheap else pool_indices[:NUM_LOOKED_AT]
        self.check_targets(torch.cat([self.labels.labelled_indices, few]), num_classes=num_classes)

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


def wrapped_datamodule(datamodule: object) -> ActiveLearningDataModule:
    """The data module, if it knows what is labelled and what is pool."""
    if isinstance(datamodule, ActiveLearningDataModule):
        return datamodule
    given = "missing" if datamodule is None else f"a {type(datamodule).__name__}"
    raise TypeError(
        f"`datamodule` is {given}, but active learning needs one that knows what is labelled and what is pool: wrap "
        "yours as `ActiveLearningDataModule(datamodule, initial=20)`, or datasets as "
        "`ActiveLearningDataModule(LightningDataModule.from_datasets(train, val, test))`. On the command line: "
        "`--data ActiveLearningDataModule --data.datamodule YOURS`."
    )
