"""The user's data module, seen through the labels: training gets the labelled samples, the pool is the rest."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from inspect import get_annotations
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_lightning._lightning import LightningDataModule, check_flavour, is_overridden
from al_lightning.data.evaluation import each_test_sample_once
from al_lightning.data.initial import checked_ids, checked_initial, initial_indices
from al_lightning.data.labels import Labels
from al_lightning.data.loaders import (
    draws_per_rank,
    labelled_loader,
    pool_of,
    sample_count,
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

NUM_LOOKED_AT = 8  # of the items where each must be read by itself


class ActiveLearningDataModule(LightningDataModule):
    """Wraps a data module; it knows which samples of the training dataset are labelled and which are pool.

    Everything but training is the wrapped module's own: validation, test and predict loaders, transfer hooks,
    hyper-parameters. Whatever else is read from the wrapper, set on it or deleted is the wrapped module's attribute, as
    in `trainer.datamodule.batch_size = 64`; where both have a name, as in `seed`, the wrapped one is
    `datamodule.inner.seed`. What others than the module itself have set during a round is put back before the next.

    Its `train_dataloader()` is asked in `setup("fit")` and anew each time Lightning wants a training loader, with the
    global random generators seeded alike; the loader that training gets has its settings. Datasets without a data
    module are wrapped by Lightning's own
    `ActiveLearningDataModule(LightningDataModule.from_datasets(train, val, test, batch_size=64))`.

    A last batch of a single sample, on which BatchNorm raises, is refused in a run's first batch: choose a batch
    size that leaves none over, or `points_per_epoch` as a multiple of it.

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
        points_per_epoch: Draws per epoch, one permutation of the labelled samples after another, so that an epoch is
            equally long in every round. By default an epoch is one pass over the labelled samples.
        pool: The training dataset as it is shown to the acquisition: the same samples in the same order, usually
            without augmentation. By default the training dataset itself.
        pool_batch_size: Batch size of the pool; by default that of the training loader.
        seed: Of the initial labels and of the wrapped module's `setup`.
        corrected: Ids of labelled points whose targets in the dataset were corrected since the run began. Other targets
            of labelled points are refused, because they may be those of other points.
    """

    # Checkpoints hold the hyper-parameters of the wrapped module, which are no arguments of this class.
    CHECKPOINT_HYPER_PARAMS_KEY = "wrapper_hyper_parameters"

    # All that the wrapper itself holds; any other attribute is the wrapped module's.
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
        # Not `super().__init__()`: the state that Lightning gives a data module is the wrapped one's.
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
        self._class_names = None  # read once, for it may take reading all items
        self._train_loader = None
        self._pool_dataset = None
        self._is_asked_again = False
        self._set_from_outside = None
        self.inner = datamodule

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - whatever the wrapped module has
        """Read what this class does not define from the wrapped module, Lightning's own hooks and settings included.

        So Lightning sees which hooks the user has overridden. Double-underscore names, which copying and pickling look
        for on an object that is still empty, are never those of the wrapped module.
        """
        if is_own(type(self), name):
            return super().__getattribute__(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set what this class does not hold on the wrapped module, a hook such as `train_dataloader` too."""
        if is_held(type(self), name):
            super().__setattr__(name, value)
        else:
            self._note(name)
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete what this class does not hold from the wrapped module."""
        if is_held(type(self), name):
            super().__delattr__(name)
        else:
            self._note(name)
            delattr(self.inner, name)

    def _note(self, name: str) -> None:
        if self._set_from_outside is not None:
            self._set_from_outside.note(self.inner, name)

    def __dir__(self) -> list[str]:
        """List the attributes of both."""
        return sorted({*super().__dir__(), *dir(self.inner)})

    @property
    def test_dataloader(self) -> Callable[[], Any]:
        """The wrapped module's, of whose samples each rank gets its share; not overridden where the user has none."""
        if is_overridden("test_dataloader", self.inner):
            return partial(each_test_sample_once, self)
        return self.inner.test_dataloader

    def keep_settings(self) -> None:
        """Remember the attributes and hyper-parameters of the wrapped module that others set from now on."""
        self._set_from_outside = SetFromOutside(self.inner)

    def put_settings_back(self) -> None:
        """Undo what others have set since `keep_settings`: a batch size found in one round is not that of the next."""
        if self._set_from_outside is not None:
            self._set_from_outside.undo(self.inner)

    @property
    def labels(self) -> Labels:
        """Return which samples are labelled, and since which round."""
        if self._labels is None:
            raise RuntimeError("There are no labels before `setup('fit')`, which draws the initial ones.")
        return self._labels

    @property
    def initial_draw(self) -> str | None:
        """Describe how the initial labels were drawn; None where they were given, or were moved by hand since.

        A balanced draw depends on the targets of all samples, so after a correction it gives others.
        """
        if self._drawn is None or self._drawn != self.labels.initial_indices.tolist():
            return None
        return f"{self.initial} samples{' of balanced classes' if self.balanced else ''}, seed {self.seed}"

    @property
    def has_acquired(self) -> bool:
        """Tell whether samples were labelled besides the initial ones."""
        return self._labels is not None and bool((self._labels.round_of_N > 0).any())

    def setup(self, stage: str) -> None:
        """Set up the wrapped module; for a fit, read its training loader and, the first time, draw initial labels."""
        with seeded(self.seed):
            self.inner.setup(stage)
        if stage != "fit":
            return
        with seeded(self.seed):  # anew, as it will be whenever it is asked again
            self._train_loader = train_loader_of(self.inner, begins_anew=True)
            self._is_asked_again = False
            dataset = self._train_loader.dataset
            pool = pool_of(self.inner, dataset, given=self.pool)
            self._pool_dataset = None if pool is dataset else pool
            num_samples = sample_count(dataset)
            if self._labels is None:
                labels = Labels(num_samples)
                labels.label(initial_indices(self.initial, dataset, balanced=self.balanced, seed=self.seed), round=0)
                self._drawn = labels.initial_indices.tolist() if isinstance(self.initial, int) else None
                self._labels = labels
        self._refuse_other_length(num_samples)
        self._refuse_other_samples(self._known_targets, self.corrected)

    def _refuse_other_length(self, num_samples: int) -> None:
        if len(self.labels) != num_samples:
            raise ValueError(
                f"The training dataset has {num_samples} samples now, but had {len(self.labels)} when they were "
                "labelled: sample ids would point at other samples. Make `setup('fit')` and `train_dataloader()` build "
                "the same dataset always."
            )

    def _refuse_other_samples(self, before: Mapping[int, int], corrected: Collection[int]) -> None:
        """Refuse ids that mean other points than before; a split drawn anew shows in their targets."""
        indices = self.labels.labelled_indices.tolist()
        targets = self.check_targets(indices)
        now = {} if targets is None else dict(zip(indices, targets, strict=True))
        refuse_other_targets(before, now, corrected=corrected)
        self._known_targets = now

    def train_dataloader(self) -> DataLoader[Any]:
        """The wrapped module's training loader, as it is now, over the labelled samples alone."""
        num_ranks = 1 if self.trainer is None else self.trainer.world_size
        self._ask_again()
        return labelled_loader(
            self._fit_loader(),
            self.labels.labelled_indices.tolist(),
            points_per_epoch=self.points_per_epoch,
            num_ranks=num_ranks,
        )

    def _ask_again(self) -> None:
        """Take the wrapped module's training loader anew: its batch size may be another, but not its samples.

        The first one of a fit begins its own generators anew, and later ones go on with them, as without a wrapper.
        """
        before = self._fit_loader().dataset
        with seeded(self.seed):
            self._train_loader = train_loader_of(self.inner, begins_anew=not self._is_asked_again)
        self._is_asked_again = True
        if self._train_loader.dataset is not before:
            self._refuse_other_length(sample_count(self._train_loader.dataset))
            self._refuse_other_samples(self._known_targets, self.corrected)

    def draws_per_epoch(self, num_labelled: int, *, num_ranks: int) -> int:
        """Return how many samples an epoch has on each rank, with so many labelled."""
        return draws_per_rank(
            self._fit_loader(), num_labelled, points_per_epoch=self.points_per_epoch, num_ranks=num_ranks
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
        """Move samples from the pool to the labelled ones; training sees them from the next fit on.

        Their targets are remembered: others, when the data are set up again, are a correction or other samples.
        """
        # Before `setup`, which follows a state that was loaded, there is no dataset to ask; it asks for all then.
        targets = None if self._train_loader is None else self.targets_of(indices)
        self.labels.label(indices, round=round)
        if targets is not None:
            self._known_targets |= dict(zip(map(int, indices), targets, strict=True))

    def restore(self, state_of: Mapping[int, int], target_of: Mapping[int, int]) -> None:
        """Take over the label state that the records of a run tell, if the data are the same.

        Args:
            state_of: States by id; points that are not named are in the pool.
            target_of: Targets that the records expect of labelled points.
        """
        self.labels.replace(state_of)
        self._refuse_other_samples(target_of, self.corrected)

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


@cache
def own_names(wrapper: type) -> frozenset[str]:
    """List the names that a wrapper's class and those derived from it define, Lightning's own bases left out."""
    bases = [base for base in wrapper.__mro__ if base not in LightningDataModule.__mro__]
    names = frozenset(name for base in bases for name in (*vars(base), *get_annotations(base)))
    return names - {"CHECKPOINT_HYPER_PARAMS_KEY"}  # where Lightning asks the class it loads, where the object it saves


def is_own(wrapper: type, name: str) -> bool:
    """Tell whether an attribute is read from the wrapper and not from the module that it wraps."""
    return name in own_names(wrapper) or (name.startswith("__") and name.endswith("__"))


def is_held(wrapper: type, name: str) -> bool:
    """Tell whether an attribute is set on the wrapper: its own are, but not the hooks in which it asks the wrapped."""
    return is_own(wrapper, name) and (name.startswith("__") or not hasattr(LightningDataModule, name))


class SetFromOutside:
    """Attributes set on a data module through its wrapper, by callbacks or a model, and their values before."""

    def __init__(self, inner: LightningDataModule) -> None:
        self._hparams = dict(inner.hparams)
        self._before: dict[str, Any] = {}

    def note(self, inner: LightningDataModule, name: str) -> None:
        """Remember the value that an attribute has now, unless one was remembered before."""
        self._before.setdefault(name, getattr(inner, name, ABSENT))

    def undo(self, inner: LightningDataModule) -> None:
        """Put all of it back."""
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
