"""Data module of a run: training gets the labelled points of the user's data module, the acquisition gets the pool."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from inspect import get_annotations
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_lightning._lightning import LightningDataModule, check_flavour, is_overridden
from al_lightning.data.evaluation import each_test_point_once
from al_lightning.data.initial import checked_ids, checked_initial, initial_indices
from al_lightning.data.labels import Labels
from al_lightning.data.loaders import (
    draws_per_rank,
    labelled_loader,
    num_points_in,
    pool_of,
    sequential_loader,
    train_loader_of,
)
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
from al_lightning.randomness import seeded

ABSENT = object()

NUM_LOOKED_AT = 8  # items that are checked where their targets stand in no attribute


class ActiveLearningDataModule(LightningDataModule):
    """Wrap a data module and record which points of its training dataset are labelled and which are pool.

    The wrapped module provides everything but training: validation, test and predict loaders, transfer hooks,
    hyper-parameters. Any other attribute that is read, set or deleted on the wrapper is the wrapped module's, as in
    `trainer.datamodule.batch_size = 64`; where both have an attribute of that name, such as `seed`, `datamodule.inner`
    has the wrapped module's. Values that callbacks or the model set during a round are undone before the next round.

    The wrapped module's `train_dataloader()` is called in `setup("fit")` and again each time Lightning needs a training
    loader, always with the same seed of the global random generators; training gets a loader with the same settings.
    Datasets without a data module are wrapped with Lightning's help:
    `ActiveLearningDataModule(LightningDataModule.from_datasets(train, val, test, batch_size=64))`.

    BatchNorm cannot train on a last batch of a single point: a run in which one would occur is refused in its first
    batch. Choose a batch size that leaves no single point over, or `points_per_epoch` as a multiple of it.

    Args:
        datamodule: An ordinary data module whose `train_dataloader()` returns one plain DataLoader. If it has a method
            `pool_dataset()`, its result is the pool unless `pool` is given. `setup` runs with the global random
            generators seeded, so that an unseeded `random_split` gives each point the same id in each round and run.
            A method `render(item)` returns the image that people see of an item of the pool: (H, W), (1, H, W) or
            (3, H, W), bytes or numbers. Without it, loggers and reports show the first image in the item.
        initial: Number of points that are labelled to begin with, or a list of their ids.
        balanced: Draw equally many initial points of each class. The classes are read from the training dataset: from
            its attribute `targets` or `labels`, or its items (input, class, ...) or dicts. Names of classes are
            numbered in sorted order. Targets that are no classes are refused, whatever `balanced` is.
        points_per_epoch: Number of points drawn per epoch, one permutation of the labelled points after another, so
            that epochs are equally long in every round. By default an epoch is one pass over the labelled points.
        pool: The training dataset as the acquisition sees it: the same points in the same order, usually
            without augmentation. By default the training dataset itself.
        pool_batch_size: Batch size for predicting the pool; by default that of the training loader.
        seed: Seed of the initial draw and of the wrapped module's `setup`.
        corrected: Ids of labelled points whose targets in the dataset were corrected since the run began. Any other
            changed target of a labelled point is refused, because its id may have come to mean another point.
    """

    # Checkpoints hold the wrapped module's hyper-parameters, which are not arguments of this class.
    CHECKPOINT_HYPER_PARAMS_KEY = "wrapper_hyper_parameters"

    # Attributes of the wrapper; any other attribute is the wrapped module's.
    inner: LightningDataModule
    balanced: bool
    initial: int | list[int]
    pool: Dataset[Any] | None
    pool_batch_size: int | None
    points_per_epoch: int | None
    seed: int
    _labels: Labels | None
    _drawn: list[int] | None
    corrected: frozenset[int]
    _known_targets: dict[int, int]
    _class_names: list[str] | None
    _train_loader: DataLoader[Any] | None
    _pool_dataset: Dataset[Any] | None
    _is_asked_again: bool
    _set_from_outside: "SetFromOutside | None"

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        datamodule: LightningDataModule,
        *,
        initial: int | list[int] = 20,
        balanced: bool = True,
        points_per_epoch: int | None = None,
        pool: Dataset | None = None,  # type: ignore[type-arg] # jsonargparse resolves the plain class only
        pool_batch_size: int | None = None,
        seed: int = 0,
        corrected: list[int] | None = None,
    ) -> None:
        check_flavour("datamodule", datamodule, LightningDataModule)
        if isinstance(datamodule, ActiveLearningDataModule):
            raise TypeError("`datamodule` is an ActiveLearningDataModule already. Wrap the plain data module, once.")
        for name, value in (("points_per_epoch", points_per_epoch), ("pool_batch_size", pool_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1, or None.")
        # Not `super().__init__()`: the wrapped module holds the state that Lightning gives a data module.
        self.initial = checked_initial(initial)
        self.balanced = balanced
        self.points_per_epoch = points_per_epoch
        self.pool = pool
        self.pool_batch_size = pool_batch_size
        self.seed = seed
        self.corrected = checked_ids("corrected", [] if corrected is None else corrected)
        self._labels = None
        self._drawn = None
        self._known_targets = {}
        self._class_names = None  # read only once, because that may take reading all items
        self._train_loader = None
        self._pool_dataset = None
        self._is_asked_again = False
        self._set_from_outside = None
        self.inner = datamodule

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - whatever the wrapped module has
        """Read any attribute that this class does not define from the wrapped module, Lightning's hooks included.

        So Lightning sees which hooks the user has overridden. Double-underscore names are always the wrapper's, because
        copying and pickling look for them on an object that is still empty.
        """
        if is_own(type(self), name):
            return super().__getattribute__(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set any attribute that this class does not hold, hooks included, on the wrapped module."""
        if is_held(type(self), name):
            super().__setattr__(name, value)
        else:
            self._note(name)
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete any attribute that this class does not hold from the wrapped module."""
        if is_held(type(self), name):
            super().__delattr__(name)
        else:
            self._note(name)
            delattr(self.inner, name)

    def _note(self, name: str) -> None:
        if self._set_from_outside is not None:
            self._set_from_outside.note(self.inner, name)

    def __dir__(self) -> list[str]:
        """List the attributes of the wrapper and of the wrapped module."""
        return sorted({*super().__dir__(), *dir(self.inner)})

    @property
    def test_dataloader(self) -> Callable[[], Any]:
        """Return the wrapped module's `test_dataloader`, with its points divided among the ranks, if it has one."""
        if is_overridden("test_dataloader", self.inner):
            return partial(each_test_point_once, self)
        return self.inner.test_dataloader

    def keep_settings(self) -> None:
        """Begin to remember the attributes and hyper-parameters of the wrapped module that are set from outside."""
        self._set_from_outside = SetFromOutside(self.inner)

    def put_settings_back(self) -> None:
        """Restore the attributes set from outside since `keep_settings`, such as a batch size found by a Tuner."""
        if self._set_from_outside is not None:
            self._set_from_outside.undo(self.inner)

    @property
    def labels(self) -> Labels:
        """Return the label state: which points are labelled, and since which round."""
        if self._labels is None:
            raise RuntimeError("There are no labels before `setup('fit')`, which draws the initial ones.")
        return self._labels

    @property
    def initial_draw(self) -> str | None:
        """Describe the draw of the initial labels; None if the ids were given, or the labels were moved by hand since.

        A balanced draw depends on the targets of all points: after a correction it draws other points.
        """
        if self._drawn is None or self._drawn != self.labels.initial_indices.tolist():
            return None
        return f"{self.initial} points{' of balanced classes' if self.balanced else ''}, seed {self.seed}"

    @property
    def has_acquired(self) -> bool:
        """Return True if points were labelled besides the initial ones."""
        return self._labels is not None and bool((self._labels.round_of_N > 0).any())

    def setup(self, stage: str) -> None:
        """Set up the wrapped module; for a fit, read its training loader, and once draw the initial labels."""
        with seeded(self.seed):
            self.inner.setup(stage)
        if stage != "fit":
            return
        with seeded(self.seed):  # seeded again, as in every later call of `train_dataloader`
            self._train_loader = train_loader_of(self.inner, begins_anew=True)
            self._is_asked_again = False
            dataset = self._train_loader.dataset
            pool = pool_of(self.inner, dataset, given=self.pool)
            self._pool_dataset = None if pool is dataset else pool
            num_points = num_points_in(dataset)
            if self._labels is None:
                labels = Labels(num_points)
                labels.label(initial_indices(self.initial, dataset, balanced=self.balanced, seed=self.seed), round=0)
                self._drawn = labels.initial_indices.tolist() if isinstance(self.initial, int) else None
                self._labels = labels
        self._refuse_other_length(num_points)
        self._refuse_other_points(self._known_targets, self.corrected)

    def _refuse_other_length(self, num_points: int) -> None:
        if len(self.labels) != num_points:
            raise ValueError(
                f"The training dataset has {num_points} points now, but had {len(self.labels)} when they were "
                "labelled: the ids would mean other points. Make `setup('fit')` and `train_dataloader()` build "
                "the same dataset always."
            )

    def _refuse_other_points(self, before: Mapping[int, int], corrected: Collection[int]) -> None:
        """Refuse ids that mean other points than before, which changed targets show."""
        indices = self.labels.labelled_indices.tolist()
        targets = self.check_targets(indices)
        now = {} if targets is None else dict(zip(indices, targets, strict=True))
        refuse_other_targets(before, now, corrected=corrected)
        self._known_targets = now

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the wrapped module's current training loader, restricted to the labelled points."""
        num_ranks = 1 if self.trainer is None else self.trainer.world_size
        self._ask_again()
        return labelled_loader(
            self._fit_loader(),
            self.labels.labelled_indices.tolist(),
            points_per_epoch=self.points_per_epoch,
            num_ranks=num_ranks,
        )

    def _ask_again(self) -> None:
        """Call the wrapped module's `train_dataloader` again: its batch size may have changed, but not its points.

        The first loader of a fit restarts its own generators; later ones continue them, as without a wrapper.
        """
        before = self._fit_loader().dataset
        with seeded(self.seed):
            self._train_loader = train_loader_of(self.inner, begins_anew=not self._is_asked_again)
        self._is_asked_again = True
        if self._train_loader.dataset is not before:
            self._refuse_other_length(num_points_in(self._train_loader.dataset))
            self._refuse_other_points(self._known_targets, self.corrected)

    def draws_per_epoch(self, num_labelled: int, *, num_ranks: int) -> int:
        """Count the points of an epoch on each rank when `num_labelled` points are labelled."""
        return draws_per_rank(
            self._fit_loader(), num_labelled, points_per_epoch=self.points_per_epoch, num_ranks=num_ranks
        )

    def pool_dataloader(
        self, indices: Sequence[int] | Tensor | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        """Return a loader of each pool point once, ids ascending, or of the given points in the given order."""
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
        """Move points from the pool to the labelled ones; training sees them from the next fit on.

        Their targets are remembered: if they differ when the data are set up again, they were corrected,
        or the ids mean other points.
        """
        # Before `setup`, as when a state was loaded, there is no dataset to read; `setup` reads all targets.
        targets = None if self._train_loader is None else self.targets_of(indices)
        self.labels.label(indices, round=round)
        if targets is not None:
            self._known_targets |= dict(zip(map(int, indices), targets, strict=True))

    def restore(self, state_of: Mapping[int, int], target_of: Mapping[int, int]) -> None:
        """Restore the label state from the records of a run, if the data are the same.

        Args:
            state_of: Label states by id; all other points are in the pool.
            target_of: Targets of the labelled points, by id, as the records have them.
        """
        self.labels.replace(state_of)
        self._refuse_other_points(target_of, self.corrected)

    def changes_since(self, state_of: Mapping[int, int]) -> list[list[int | None]]:
        """Return [id, state, target] of each point whose state has changed; the target is None if unlabelled."""
        found = self.labels.differences(state_of)
        labelled = [index for index, state in found.items() if state >= 0]
        targets = dict(zip(labelled, self.targets_of(labelled) or [], strict=False))
        return [[index, state, targets.get(index)] for index, state in found.items()]

    def corrections_since(self, target_of: Mapping[int, int]) -> list[list[int]]:
        """Return [id, old target, new target] of each labelled point whose target has changed."""
        known = self._known_targets
        return [[index, old, known[index]] for index, old in target_of.items() if known.get(index, old) != old]

    def unlabel(self, indices: Sequence[int] | Tensor) -> None:
        """Put labelled or excluded points back into the pool."""
        self.labels.unlabel(indices)

    def exclude(self, indices: Sequence[int] | Tensor) -> None:
        """Take points that nobody can label out of the pool."""
        self.labels.exclude(indices)

    def targets_of(self, indices: Sequence[int] | Tensor) -> list[int] | None:
        """Return the true classes of some points; None if nothing says where the dataset keeps them.

        Names of classes are numbered in sorted order.
        """
        dataset, ids = self._fit_loader().dataset, self.labels.checked(indices).tolist()
        with seeded(self.seed):  # reading an item may augment it
            classes = classes_of(dataset, ids)
            if classes is None or not has_names(classes):
                return classes  # type: ignore[return-value] # no names
            self._class_names = self._class_names or class_names(dataset)
        return numbered(ids, classes, self._class_names)

    def check_targets(self, indices: Sequence[int] | Tensor, *, num_classes: int | None = None) -> list[int] | None:
        """Return `targets_of` these points, or raise if one of them is no class."""
        targets = self.targets_of(indices)
        if targets is not None:
            refuse_outside(dict(zip(map(int, indices), targets, strict=True)), num_classes=num_classes)
            return targets
        with seeded(self.seed):
            few = [int(index) for index in indices[:NUM_LOOKED_AT]]
            refuse_visible(self._fit_loader().dataset, few, num_classes=num_classes)
        return None

    def check_targets_to_come(self, *, num_classes: int | None) -> None:
        """Check the targets of the labelled points and of the pool; of a few pool points where items must be read."""
        pool_indices = self.labels.pool_indices
        with seeded(self.seed):
            is_cheap = tells_at_once(self._fit_loader().dataset)
        few = pool_indices if is_cheap else pool_indices[:NUM_LOOKED_AT]
        self.check_targets(torch.cat([self.labels.labelled_indices, few]), num_classes=num_classes)

    def state_dict(self) -> dict[str, Any]:
        """Return the label state, if there is one yet, and the wrapped module's state."""
        labels = {} if self._labels is None else {"labels": self._labels.state_dict()}
        return {**labels, "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the wrapped module's state and the labels.

        While the Trainer tests, validates or predicts, the labels stay as they are: `trainer.test(ckpt_path="best")`
        needs only the weights of the checkpoint, and must not withdraw later labels.
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


@cache
def own_names(wrapper: type) -> frozenset[str]:
    """Return the names that a wrapper's class and its bases define, except Lightning's own bases."""
    bases = [base for base in wrapper.__mro__ if base not in LightningDataModule.__mro__]
    names = frozenset(name for base in bases for name in (*vars(base), *get_annotations(base)))
    return names - {
        "CHECKPOINT_HYPER_PARAMS_KEY"
    }  # Lightning reads it on the class when loading, and on the object when saving


def is_own(wrapper: type, name: str) -> bool:
    """Return True if an attribute is read from the wrapper and not from the wrapped module."""
    return name in own_names(wrapper) or (name.startswith("__") and name.endswith("__"))


def is_held(wrapper: type, name: str) -> bool:
    """Return True if an attribute is set on the wrapper: one of its own that is not a hook of Lightning's."""
    return is_own(wrapper, name) and (name.startswith("__") or not hasattr(LightningDataModule, name))


class SetFromOutside:
    """Earlier values of the attributes that callbacks or a model have set on a data module through its wrapper."""

    def __init__(self, inner: LightningDataModule) -> None:
        self._hparams = dict(inner.hparams)
        self._before: dict[str, Any] = {}

    def note(self, inner: LightningDataModule, name: str) -> None:
        """Remember the value of an attribute, the first time that it is set."""
        self._before.setdefault(name, getattr(inner, name, ABSENT))

    def undo(self, inner: LightningDataModule) -> None:
        """Restore all remembered values and the hyper-parameters."""
        for name, value in self._before.items():
            if value is not ABSENT:
                setattr(inner, name, value)
            elif hasattr(inner, name):
                delattr(inner, name)
        self._before.clear()
        now = inner.hparams
        if now.keys() != self._hparams.keys() or any(now[name] is not self._hparams[name] for name in now):
            now.clear()
            now.update(self._hparams)


def wrapped_datamodule(datamodule: object) -> ActiveLearningDataModule:
    """Return the data module if it is an ActiveLearningDataModule; raise if not."""
    if isinstance(datamodule, ActiveLearningDataModule):
        return datamodule
    given = "missing" if datamodule is None else f"a {type(datamodule).__name__}"
    raise TypeError(
        f"`datamodule` is {given}, but active learning needs one that knows what is labelled and what is pool: wrap "
        "yours as `ActiveLearningDataModule(datamodule, initial=20)`, or datasets as "
        "`ActiveLearningDataModule(LightningDataModule.from_datasets(train, val, test))`. On the command line: "
        "`--data ActiveLearningDataModule --data.datamodule YOURS`."
    )
