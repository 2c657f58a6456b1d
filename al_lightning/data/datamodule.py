"""Data module of a run: training gets the labelled points of the user's data module, the acquisition gets the pool."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_lightning._lightning import LightningDataModule, check_flavour, is_overridden
from al_lightning.data.answered import Changed, OfPool, Trained, WithLabel, own_with_label, with_label
from al_lightning.data.evaluation import each_test_point_once
from al_lightning.data.initial import (
    Initial,
    checked_classes,
    checked_ids,
    checked_initial,
    checked_renamed,
    draw_holdout,
    draw_initial,
)
from al_lightning.data.items import MISSING, NUM_SHOWN
from al_lightning.data.label_key import LabelKey, Usual, WithoutLabel
from al_lightning.data.labels import HELD_OUT, Labels
from al_lightning.data.loaders import (
    NothingToTrain,
    draws_per_rank,
    labelled_loader,
    num_points_in,
    pool_of,
    sequential_loader,
    train_loader_of,
)
from al_lightning.data.rejected import Outputs, WithRejected, checked_junk, checked_reject
from al_lightning.data.rows import digests, refuse_reordered
from al_lightning.data.targets import (
    all_targets,
    batch_targets,
    class_names,
    classes_of,
    has_names,
    known_targets_of,
    marked,
    numbered,
    refuse_other_targets,
    refuse_outside,
    refuse_visible,
    shown_classes,
    tells_at_once,
)
from al_lightning.data.wrapper import Wrapper
from al_lightning.randomness import seeded

NUM_LOOKED_AT = 8  # items that are checked where their targets stand in no attribute


class ActiveLearningDataModule(Wrapper):
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
            A method `render(item)` returns the image that people see of an item (x, -1) of the pool: (H, W), (1, H, W)
            or (3, H, W), bytes or numbers. Without it, loggers and reports show the first image in the item.
        initial: Number of points that are labelled to begin with, or a list of their ids. With 0 the first batch is
            asked for without a fit; "given" takes all points that have a label, if people label the others.
        balanced: Draw equally many initial points of each class. The classes are read from the training dataset: from
            its attribute `targets` or `labels`, or its items (input, class, ...) or dicts. Names of classes are
            numbered in sorted order. Targets that are no classes are refused, whatever `balanced` is. If people label,
            all points must have a label for this; `balanced=False` draws among those that have one.
        points_per_epoch: Number of points drawn per epoch, one permutation of the labelled points after another, so
            that epochs are equally long in every round. By default an epoch is one pass over the labelled points.
        pool: The training dataset as the acquisition sees it: the same points in the same order, usually
            without augmentation. By default the training dataset itself.
        pool_batch_size: Batch size for predicting the pool; by default that of the training loader.
        seed: Seed of the initial draw and of the wrapped module's `setup`.
        corrected: Ids of labelled points whose targets in the dataset were corrected since the run began. Any other
            changed target of a labelled point is refused, because its id may have come to mean another point.
        classes: Names of the classes, if people label; their positions are the integers in training. Targets may then
            be missing: an item is an input alone (a tensor, an array, a text, a picture, a tuple of one, a dict without
            a label), or its target is -1, None or NaN, in the item or in the dataset's attribute `targets`. Other
            targets are names among `classes` or their positions. Training sees (input, label), or the dict with
            its label; where labels go elsewhere, a method `with_label(sample, label)` of the data module returns the
            item with the label. Points may be appended to the dataset while the run waits.
        renamed: Other names of classes, such as earlier ones, each with the name in `classes` that it stands for.
        label_key: Key of the label in dict items, where it is none of `label`, `labels`, `target`, `targets` and `y`,
            or where an item has several of these. The pool loader's dict batches come without it.
        reject: Use of rejected points, which are none of the classes: "set_aside" trains on none of them; "train"
            trains them as one more class, the last of the model's C + 1 outputs, whatever C becomes. Rejected points
            that are set aside teach the model nothing, so it stays uncertain of their kind and acquisitions go on to
            ask for it. Acquisitions therefore see all C + 1 outputs: over the C classes alone a rejected kind, of which
            the model is certain by then, would look uncertain again. Metrics of the classes leave the last output out:
            those of the package do, and `without_reject(logits)` is for your own `test_step`.
        junk: Target in the dataset of points that are none of the classes, for experiments: the answer to such a point
            is that it is rejected, which costs one label. They are never among the initial labels. A number, or with
            `classes` a name that is not among them.

    Example:
        >>> class Texts(LightningDataModule):
        ...     def train_dataloader(self):
        ...         return DataLoader(["a text", "another", "a third"], batch_size=2)
        >>> datamodule = ActiveLearningDataModule(Texts(), initial=0, classes=["prose", "verse"])
        >>> datamodule.setup("fit")
        >>> datamodule.label([2, 0], round=1, answers={2: 1, 0: 0})
        >>> list(datamodule.train_dataloader())
        [[('a text', 'a third'), tensor([0, 1])]]
    """

    # Attributes of the wrapper; any other attribute is the wrapped module's.
    balanced: bool
    initial: Initial
    pool: Dataset[Any] | None
    pool_batch_size: int | None
    points_per_epoch: int | None
    seed: int
    _labels: Labels | None
    _drawn: list[int] | None
    corrected: frozenset[int]
    classes: list[str] | None
    renamed: dict[str, str]
    label_key: str | None
    reject: Literal["set_aside", "train"]
    junk: int | str | None
    _outputs: Outputs
    _answers: dict[int, int]
    _num_reserved: int
    _known_targets: dict[int, int]
    _class_names: list[str] | None
    _train_loader: DataLoader[Any] | None
    _pool_dataset: Dataset[Any] | None
    _is_asked_again: bool

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        datamodule: LightningDataModule,
        *,
        initial: int | list[int] | Literal["given"] = 20,
        balanced: bool = True,
        points_per_epoch: int | None = None,
        pool: Dataset | None = None,  # type: ignore[type-arg] # jsonargparse resolves the plain class only
        pool_batch_size: int | None = None,
        seed: int = 0,
        corrected: list[int] | None = None,
        classes: list[str] | None = None,
        renamed: dict[str, str] | None = None,
        label_key: str | None = None,
        reject: Literal["set_aside", "train"] = "set_aside",
        junk: int | str | None = None,
    ) -> None:
        _refuse_loaders(datamodule)
        check_flavour("datamodule", datamodule, LightningDataModule)
        if isinstance(datamodule, ActiveLearningDataModule):
            raise TypeError("`datamodule` is an ActiveLearningDataModule already. Wrap the plain data module, once.")
        if pool is not None and hasattr(type(datamodule), "features_name"):
            raise ValueError(
                f"`pool` is given, but the model predicts the features of {type(datamodule).__name__}, and not "
                "the items of a dataset. Give it there, `Embedded(datamodule, encoder, pool=dataset)`, to be encoded."
            )
        for name, value in (("points_per_epoch", points_per_epoch), ("pool_batch_size", pool_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1, or None.")
        self.classes = checked_classes(classes)
        self.renamed = checked_renamed(renamed, self.classes)
        self.label_key = label_key
        self.reject = checked_reject(reject)
        self.junk = checked_junk(junk, has_classes=self.classes is not None)
        self._outputs = Outputs()
        self.initial = checked_initial(initial, may_be_given=self.classes is not None)
        self.balanced = balanced
        self.points_per_epoch = points_per_epoch
        self.pool = pool
        self.pool_batch_size = pool_batch_size
        self.seed = seed
        self.corrected = checked_ids("corrected", [] if corrected is None else corrected)
        self._labels = None
        self._drawn = None
        self._answers = {}
        self._num_reserved = 0
        self._known_targets = {}
        self._class_names = None  # read only once, because that may take reading all items
        self._train_loader = None
        self._pool_dataset = None
        self._is_asked_again = False
        super().__init__(datamodule)

    @property
    def test_dataloader(self) -> Callable[[], Any]:
        """Return the wrapped module's `test_dataloader`, with its points divided among the ranks, if it has one."""
        if is_overridden("test_dataloader", self.inner):
            return partial(each_test_point_once, self)
        return self.inner.test_dataloader

    @property
    def labels(self) -> Labels:
        """Return the label state, which says which points are labelled, and since which round."""
        if self._labels is None:
            raise RuntimeError("There are no labels before `setup('fit')`, which draws the initial ones.")
        return self._labels

    @property
    def initial_draw(self) -> str | None:
        """Describe the draw of the initial labels; None if the ids were given, or the labels were moved by hand since.

        A balanced draw depends on the targets of all points: after a correction it draws other points. So does a draw
        among points that have a label, of which there may be more when a run is started again.
        """
        if self._drawn is None or self._drawn != self.labels.initial_indices.tolist():
            return None
        if self.initial == "given":
            return "all points that have a label"
        return f"{self.initial} points{' of balanced classes' if self.balanced else ''}, seed {self.seed}"

    @property
    def has_acquired(self) -> bool:
        """Return True if points were labelled besides the initial ones, or rejected."""
        labels = self._labels
        return labels is not None and (bool((labels.round_of_N > 0).any()) or labels.num_rejected > 0)

    @property
    def trains_rejected(self) -> bool:
        """Return True if rejected points are trained as the last output."""
        return self.reject == "train"

    @property
    def knows_outputs(self) -> bool:
        """Return True once the number of the model's outputs was found."""
        return self._outputs.num is not None

    @property
    def trained_indices(self) -> Tensor:
        """Return the ids of the points that training sees, ascending; rejected ones too where they are trained."""
        return self.labels.labelled_or_rejected_indices if self.trains_rejected else self.labels.labelled_indices

    @property
    def trained_targets(self) -> list[int] | None:
        """Return the classes of `trained_indices`, that of rejected points being the last output.

        None if nothing says where the dataset keeps them.
        """
        labelled = self.labels.labelled_indices
        targets = self.targets_of(labelled)
        if targets is None or not self.trains_rejected or self.labels.num_rejected == 0:
            return targets
        rejected = dict.fromkeys(self.labels.rejected_indices.tolist(), self._outputs.last)
        target_of = dict(zip(labelled.tolist(), targets, strict=True)) | rejected
        return [target_of[index] for index in self.trained_indices.tolist()]

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
                labels = self._first_labels(num_points)
                is_drawn = self.initial == "given" or (isinstance(self.initial, int) and self.initial > 0)
                self._drawn = labels.initial_indices.tolist() if is_drawn else None
                self._labels = labels
        if self.classes is not None and num_points > len(self.labels):
            self.labels.grow(num_points)
        self._refuse_other_length(num_points)
        self._refuse_other_points(self._known_targets, self.corrected)

    def reserve(self, num: int) -> None:
        """Reserve `num` points for a holdout; `setup` draws them before the initial labels, from all points but these.

        Points that `initial` names are not drawn, nor with `initial="given"` those that have a label.
        """
        if num < 0:
            raise ValueError(f"`num` is {num}, but a holdout has 0 points or more.")
        is_drawn = self._labels is not None and self._train_loader is not None  # not of a `setup` that failed
        if is_drawn and num != self._num_reserved:
            raise RuntimeError(
                f"`reserve({num})` comes after `setup('fit')`, which has drawn a holdout of {self._num_reserved} "
                "points and the initial labels. Call it before."
            )
        self._num_reserved = num

    def _first_labels(self, num_points: int) -> Labels:
        """Return the label state that a run begins with: the holdout, then the initial labels."""
        labels, junk = Labels(num_points), self._junk_among(range(num_points))
        if self.junk is not None and not junk:
            raise ValueError(
                f"`junk` is {self.junk!r}, but no point of the training data has this target. Name the target that the "
                "dataset gives to points that are none of the classes, or leave `junk` out."
            )
        named = labels.checked(self._named(num_points, set(junk)))
        labels.label(named, round=0)
        labels.reserve(draw_holdout(self._num_reserved, labels.pool_indices, seed=self.seed))
        if isinstance(self.initial, int) and self.initial > 0:
            candidates, targets = self._candidates(labels.pool_indices, num_points, set(junk))
            labels.label(draw_initial(self.initial, candidates, targets, seed=self.seed), round=0)
        return labels

    def _named(self, num_points: int, junk: Collection[int]) -> list[int]:
        """Return the ids of the initial points that are not drawn."""
        if isinstance(self.initial, int):
            return []
        if self.initial != "given" and (wrong := [index for index in self.initial if index in junk]):
            raise ValueError(
                f"`initial` names points that are junk: {wrong[:NUM_SHOWN]} ({len(wrong)} in all). Initial labels are "
                "of the classes."
            )
        if self.initial == "given":
            known = self._known_in_dataset(range(num_points))
            if given := [index for index, target in enumerate(known) if target is not None]:
                return given
            raise ValueError("`initial` is 'given', but no point has a label. Give `initial=0` to begin without.")
        if self.classes is None:
            return self.initial
        within = [index for index in self.initial if 0 <= index < num_points]
        pairs = zip(within, self._known_in_dataset(within), strict=True)
        if unknown := [index for index, target in pairs if target is None]:
            raise ValueError(
                f"`initial` names points without a label: {unknown[:NUM_SHOWN]} ({len(unknown)} in all). Give "
                "`initial='given'` for all points that have one, or `initial=0` to ask people for the first ones."
            )
        return self.initial

    def _candidates(self, in_pool: Tensor, num_points: int, junk: Collection[int]) -> tuple[Tensor, list[int] | None]:
        """Return the points among which initial ones are drawn, and their targets if these decide."""
        if junk:
            in_pool = in_pool[~torch.isin(in_pool, torch.tensor(sorted(junk)))]
        if self.classes is None:
            if not self.balanced:
                return in_pool, None
            targets_N = all_targets(self._dataset_with_labels, num_points)
            refuse_outside(
                {index: target for index, target in enumerate(targets_N) if index not in junk}, num_classes=None
            )
            return in_pool, [targets_N[index] for index in in_pool.tolist()]
        known = self._known_in_dataset(in_pool.tolist())
        is_known = torch.tensor([target is not None for target in known], dtype=torch.bool)
        num_known = int(is_known.sum())
        ways = "`initial=0` asks people for the first labels, and `initial='given'` takes all points that have one"
        if self.balanced and num_known < len(known):
            raise ValueError(
                f"`initial` is {self.initial}, but {len(known) - num_known} of {len(known)} points have no label, and "
                f"`balanced=True` needs all. {ways}; `balanced=False` draws {self.initial} among these {num_known}."
            )
        if int(self.initial) > num_known:  # type: ignore[arg-type] # a number, as the caller has found
            raise ValueError(f"`initial` is {self.initial}, but {num_known} points have a label to draw from. {ways}.")
        return in_pool[is_known], [target for target in known if target is not None] if self.balanced else None

    def _refuse_other_length(self, num_points: int) -> None:
        if len(self.labels) != num_points:
            raise ValueError(
                f"The training dataset has {num_points} points now, but had {len(self.labels)} when they were "
                "labelled: the ids would mean other points. Make `setup('fit')` and `train_dataloader()` build "
                "the same dataset always."
            )

    def _refuse_other_points(self, before: Mapping[int, int], corrected: Collection[int]) -> None:
        """Refuse ids that mean other points than before, which changed targets show."""
        indices = self._labelled_or_held_out.tolist()
        if junk := self._junk_among(indices):
            raise ValueError(
                f"The points {junk[:NUM_SHOWN]} ({len(junk)} in all) are labelled, but the dataset has the target of "
                f"junk for them, {self.junk!r}. Give them a class, or start a new run."
            )
        targets = self.targets_checked(indices)
        now = {} if targets is None else dict(zip(indices, targets, strict=True))
        refuse_other_targets(before, now, corrected=corrected)
        self._known_targets = now

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the wrapped module's current training loader, restricted to the labelled points."""
        num_ranks = 1 if self.trainer is None else self.trainer.world_size
        self._ask_again()
        if self.labels.num_labelled == 0:
            return DataLoader(NothingToTrain())
        loader, labelled = self._fit_loader(), self.labels.labelled_indices.tolist()
        change = None if self.classes is None else self._trained(labelled)
        return labelled_loader(
            loader,
            self.trained_indices.tolist(),
            points_per_epoch=self.points_per_epoch,
            num_ranks=num_ranks,
            dataset=self._changed(loader.dataset, change),
        )

    def _changed(self, dataset: Dataset[Any], change: Callable[[int, Any], Any] | None) -> Dataset[Any]:
        """Return a dataset with changed items, where rejected points are trained with their class."""
        if self.trains_rejected and self.labels.num_rejected > 0:
            change = WithRejected(self.labels.rejected_indices.tolist(), self._outputs, self._put_label, change)
        return dataset if change is None else Changed(dataset, change)

    def _trained(self, indices: Sequence[int]) -> Trained:
        """Return the change of items that gives labelled points their known classes."""
        unread = [index for index in indices if index not in self._known_targets]
        known = {
            **self._known_targets,
            **dict(zip(unread, self.targets_of(unread) or [], strict=True)),
            **self._answers,
        }
        return self._with_classes({index: known[index] for index in indices}, self._answers.keys() & set(indices))

    def _with_classes(self, target_of: Mapping[int, int], answered: Collection[int]) -> Trained:
        """Return the change of items that gives points these classes."""
        read = None if self._key_of_label is None else self._key_of_label.usual
        return Trained(target_of, answered=answered, with_label=self._put_label, read=read)

    @property
    def _put_label(self) -> WithLabel:
        own, key = own_with_label(self.inner), self._key_of_label
        return own or (with_label if key is None else key.with_label)

    @property
    def _key_of_label(self) -> LabelKey | None:
        return None if self.label_key is None else LabelKey(self.label_key, may_be_missing=self.classes is not None)

    @property
    def _dataset_with_labels(self) -> Dataset[Any]:
        """Return the training dataset with labels where they are looked for."""
        dataset, key = self._fit_loader().dataset, self._key_of_label
        return dataset if key is None else Usual(dataset, key)

    def batch_targets(self, batch: object) -> list[int]:
        """Return the classes of a batch, which stand where those of an item do."""
        key = self._key_of_label
        return batch_targets(batch if key is None or not key.is_in(batch) else key.usual(batch))

    def without_label(self, batch: object) -> object:
        """Return a batch without what stands under `label_key`."""
        key = self._key_of_label
        return batch if key is None else key.without(batch)

    @property
    def _labelled_or_held_out(self) -> Tensor:
        """Return the ids of the points that have a label: the labelled ones and those held out, ascending."""
        labels = self.labels
        return torch.cat([labels.labelled_indices, labels.held_out_indices]).sort().values

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

    @property
    def batch_size_of_training(self) -> int | None:
        """Return the batch size of the training loader as it is now; None for a loader without batches."""
        return self._fit_loader().batch_size

    def draws_per_epoch(self, num_labelled: int, *, num_ranks: int) -> int:
        """Count the points of an epoch on each rank when `num_labelled` points are labelled."""
        return draws_per_rank(
            self._fit_loader(), num_labelled, points_per_epoch=self.points_per_epoch, num_ranks=num_ranks
        )

    def pool_dataloader(
        self, indices: Sequence[int] | Tensor | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        """Return a loader of each pool point once, ids ascending, or of the given points in the given order.

        If people label, an item without a label gets -1, so that `x, y = batch` unpacks; labelled points have theirs.
        """
        loader, dataset, key = self._fit_loader(), self._dataset_of_pool(), self._key_of_label
        indices_B = self.labels.pool_indices if indices is None else self.labels.checked(indices)
        pool = sequential_loader(
            loader,
            self._changed(dataset, None if self.classes is None else self._of_pool(indices_B)),
            indices_B.tolist(),
            batch_size=batch_size or self.pool_batch_size,
            seed=self.seed,
            is_for_cuda=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
        if key is not None:
            pool.collate_fn = WithoutLabel(pool.collate_fn, key)
        return pool

    def rehearsal_loader(self, indices: Sequence[int], *, has_labels: bool) -> DataLoader[Any]:
        """Return a loader of some points of the pool as training has labelled ones.

        Args:
            indices: Their ids.
            has_labels: With their own classes; without labels with made-up ones, from the last one down.
        """
        loader, num_classes = self._fit_loader(), len(self.classes or [])
        if has_labels:
            change = None if self.classes is None else self._trained(indices)
        else:
            made_up = {index: (num_classes - 1 - number) % num_classes for number, index in enumerate(indices)}
            change = self._with_classes(made_up, made_up.keys())
        dataset = loader.dataset if change is None else Changed(loader.dataset, change)
        return sequential_loader(loader, dataset, indices, batch_size=len(indices), seed=self.seed)

    def of_highest_class(self, num: int) -> list[int]:
        """Return at most `num` points of the pool with a label, among them one of the highest class that is known."""
        pool_indices = self.labels.pool_indices
        with seeded(self.seed):
            is_cheap = tells_at_once(self._dataset_with_labels)
        looked_at = (pool_indices if is_cheap else pool_indices[:NUM_LOOKED_AT]).tolist()
        known = self.known_targets(looked_at)
        if known is None:
            return looked_at[:num]
        targets = {index: target for index, target in zip(looked_at, known, strict=True) if target is not None}
        return sorted(targets, key=lambda index: -targets[index])[:num]

    def _of_pool(self, indices_B: Tensor) -> OfPool:
        labelled_b = indices_B[self.labels.round_of_N[indices_B] >= 0]
        return OfPool(self._numbers(), self._trained(labelled_b.tolist()))

    def _dataset_of_pool(self) -> Dataset[Any]:
        return self._fit_loader().dataset if self._pool_dataset is None else self._pool_dataset

    def pool_items(self, indices: Sequence[int]) -> Iterator[object]:
        """Yield the items of some points as the pool loader reads them, each with the same global random generators.

        If the pool holds features, they are the items of which these were made.
        """
        shown = getattr(self._dataset_of_pool(), "shown", None)
        if shown is not None:
            yield from map(shown, self.labels.checked(indices).tolist())
            return
        items = self.pool_dataloader(indices).dataset
        for position in range(len(indices)):
            with seeded(self.seed):  # reading an item may augment it
                item = items[position]
            yield item

    def pool_item(self, index: int) -> object:
        """Return the item of a point as the pool has it, with -1 for its label: nobody who sees it learns the label."""
        (checked,) = self.labels.checked([index]).tolist()
        dataset = self._dataset_of_pool()
        if hasattr(dataset, "shown"):  # it holds features
            return dataset.shown(checked)
        with seeded(self.seed):
            item = dataset[checked]
        return self._put_label(item, MISSING)

    @property
    def _pool_with_labels(self) -> Dataset[Any]:
        dataset = self._dataset_of_pool()
        return dataset if self.label_key is None else Usual(dataset, LabelKey(self.label_key, may_be_missing=True))

    def label(
        self,
        indices: Sequence[int] | Tensor,
        *,
        round: int,  # noqa: A002 - the name in the state
        answers: Mapping[int, int] | None = None,
    ) -> None:
        """Move points from the pool to the labelled ones; training sees them from the next fit on.

        Their targets are remembered: if they differ when the data are set up again, they were corrected,
        or the ids mean other points.

        Args:
            indices: Ids of the points.
            round: Round that labels them.
            answers: Classes that people gave, by id. A point without a target in the dataset needs one.
        """
        targets = self._targets_with(answers, indices)
        self.labels.label(indices, round=round)
        self._remember(answers, targets)

    def hold_out(self, indices: Sequence[int] | Tensor, *, answers: Mapping[int, int] | None = None) -> None:
        """Mark reserved points of the holdout as answered; training never sees them."""
        targets = self._targets_with(answers, indices)
        self.labels.hold_out(indices)
        self._remember(answers, targets)

    def relabel(self, answers: Mapping[int, int]) -> None:
        """Give labelled points, or points that are held out, the classes that people have corrected them to."""
        ids = self._checked_answers(answers)
        without = sorted(set(ids) - set(self._labelled_or_held_out.tolist()))
        if without:
            raise ValueError(
                f"`answers` has points without a label: {without[:NUM_SHOWN]} ({len(without)} in all). `relabel` "
                "corrects labels; `label` gives the first one."
            )
        self._remember(ids, ids)

    def _targets_with(
        self, answers: Mapping[int, int] | None, indices: Sequence[int] | Tensor
    ) -> dict[int, int] | None:
        """Return the targets of points, answers first; raise if one has none. None if nothing says where they are."""
        ids, given = self.labels.checked(indices).tolist(), self._checked_answers(answers or {})
        if others := sorted(given.keys() - set(ids)):
            raise ValueError(
                f"`answers` has points that `indices` has not: {others[:NUM_SHOWN]} ({len(others)} in all)."
            )
        if self._train_loader is None:  # as when a state was loaded: there is no dataset to read, `setup` reads all
            return given
        rest = [index for index in ids if index not in given]
        targets = self.targets_of(rest)
        return None if targets is None else {**dict(zip(rest, targets, strict=True)), **given}

    def _remember(self, answers: Mapping[int, int] | None, targets: Mapping[int, int] | None) -> None:
        self._answers |= self._checked_answers(answers or {})
        self._known_targets |= targets or {}

    def _checked_answers(self, answers: Mapping[int, int]) -> dict[int, int]:
        """Validate classes given by people: ids of the dataset, and positions in `classes`."""
        if answers and self.classes is None:
            raise ValueError("`answers` are given, but nobody knows the classes. Give the data module `classes=[...]`.")
        self.labels.checked(list(answers))
        for index, label in answers.items():
            is_whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
            if not is_whole or not 0 <= label < len(self.classes or ()):
                raise ValueError(
                    f"The answer for point {index} is {label!r}, but the classes are {shown_classes(self._numbers())}."
                )
        return {int(index): int(label) for index, label in answers.items()}

    def restore(
        self,
        state_of: Mapping[int, int],
        target_of: Mapping[int, int],
        answered: Mapping[int, int] | None = None,
    ) -> None:
        """Restore the label state from the records of a run, if the data are the same.

        Args:
            state_of: Label states by id; all other points are in the pool.
            target_of: Targets of the labelled points, by id, as the records have them. Where the dataset has none
                (any more), the recorded one counts as an answer.
            answered: Classes that people gave, by id, as the records have them.
        """
        answers = self._checked_answers(answered or {})
        self.labels.replace(state_of)
        self._answers = answers
        self._answers |= self._only_recorded(target_of)
        self._refuse_other_points(target_of, self.corrected)

    def _only_recorded(self, target_of: Mapping[int, int]) -> dict[int, int]:
        """Return the recorded targets of points that have a label and no target in the dataset."""
        if self.classes is None:
            return {}
        recorded = [i for i in self._labelled_or_held_out.tolist() if i in target_of and i not in self._answers]
        known = zip(recorded, self._known_in_dataset(recorded), strict=True)
        return self._checked_answers({index: target_of[index] for index, target in known if target is None})

    def changes_since(self, state_of: Mapping[int, int]) -> list[list[int | None]]:
        """Return [id, state, target] of each point whose state has changed; the target is None if unlabelled."""
        found = self.labels.differences(state_of)
        labelled = [index for index, state in found.items() if state >= 0 or state == HELD_OUT]
        targets = dict(zip(labelled, self.targets_of(labelled) or [], strict=False))
        return [[index, state, targets.get(index)] for index, state in found.items()]

    def corrections_since(self, target_of: Mapping[int, int]) -> list[list[int]]:
        """Return [id, old target, new target] of each labelled point whose target has changed."""
        known = self._known_targets
        return [[index, old, known[index]] for index, old in target_of.items() if known.get(index, old) != old]

    def unlabel(self, indices: Sequence[int] | Tensor) -> None:
        """Put labelled, excluded or rejected points back into the pool; answers to them no longer count."""
        self.labels.unlabel(indices)
        for index in map(int, indices):
            if self._answers.pop(index, None) is not None:
                self._known_targets.pop(index, None)

    def exclude(self, indices: Sequence[int] | Tensor) -> None:
        """Take points that nobody can label out of the pool."""
        self.labels.exclude(indices)

    def targets_of(self, indices: Sequence[int] | Tensor) -> list[int] | None:
        """Return the classes of some points; None if nothing says where the dataset keeps them.

        An answer of people counts, else the target in the dataset. Names of classes are numbered by their position in
        `classes`, without these in sorted order.

        Raises:
            ValueError: If nobody knows the class of one of these points.
        """
        ids = self.labels.checked(indices).tolist()
        known = self.known_targets(ids)
        if known is None:
            return None
        unknown = [index for index, target in zip(ids, known, strict=True) if target is None]
        if unknown:
            raise ValueError(
                f"Nobody knows the labels of {len(unknown)} points, first ids {unknown[:NUM_SHOWN]}: the dataset has "
                "none, and no answer was given. `ActiveLearning(..., oracle=AskPeople())` asks people; a script gives "
                "them as `label(ids, round=..., answers={id: class})`."
            )
        return [target for target in known if target is not None]

    def known_targets(self, indices: Sequence[int] | Tensor) -> list[int | None] | None:
        """Return `targets_of` some points, None for each point whose class nobody knows, and for junk."""
        ids = self.labels.checked(indices).tolist()
        if self.classes is None:
            junk = set(self._junk_among(ids))
            others = [index for index in ids if index not in junk]
            targets = self._true_targets(others)
            of = None if targets is None else dict(zip(others, targets, strict=True))
            return None if of is None else [of.get(index) for index in ids]
        unanswered = [index for index in ids if index not in self._answers]
        known = dict(zip(unanswered, self._known_in_dataset(unanswered), strict=True))
        return [self._answers[index] if index in self._answers else known[index] for index in ids]

    def _known_in_dataset(self, indices: Sequence[int]) -> list[int | None]:
        dataset, is_own = self._dataset_with_labels, own_with_label(self.inner) is not None
        junk = set(self._junk_among(indices))
        others = [index for index in indices if index not in junk]
        with seeded(self.seed):  # reading an item may augment it
            known = known_targets_of(dataset, others, self._numbers(), may_be_anything=is_own)
        of = dict(zip(others, known, strict=True))
        return [of.get(index) for index in indices]

    def _junk_among(self, indices: Sequence[int]) -> list[int]:
        """Return the points, of some, that the dataset calls junk; no item is read where nothing is called so."""
        if self.junk is None:
            return []
        with seeded(self.seed):  # reading an item may augment it
            dataset, may_be_anything = self._dataset_with_labels, self.classes is not None
            return marked(dataset, indices, self.junk, may_be_anything=may_be_anything)

    def junk_among(self, indices: Sequence[int]) -> list[int]:
        """Return the points, of some, that are none of the classes, as far as the dataset says so (`junk`)."""
        return self._junk_among(self.labels.checked(indices).tolist())

    def _numbers(self) -> dict[str, int]:
        """Return the number of each class by its name, and by the names that it had before."""
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        return {**numbers, **{old: numbers[new] for old, new in self.renamed.items()}}

    def _true_targets(self, ids: Sequence[int]) -> list[int] | None:
        dataset = self._dataset_with_labels
        with seeded(self.seed):  # reading an item may augment it
            classes = classes_of(dataset, ids)
            if classes is None or not has_names(classes):
                return classes  # type: ignore[return-value] # no names
            self._class_names = self._class_names or class_names(dataset)
        return numbered(ids, classes, self._class_names)

    def check_targets(
        self, indices: Sequence[int] | Tensor, *, num_classes: int | None = None
    ) -> list[int | None] | None:
        """Return `targets_of` these points, None for junk, or raise if one of them is no class.

        Args:
            indices: Ids of the points.
            num_classes: Number of the model's outputs, if known.
        """
        ids = self.labels.checked(indices).tolist()
        junk = set(self._junk_among(ids))
        others = [index for index in ids if index not in junk]
        targets = self.targets_checked(others, num_classes=num_classes)
        of = None if targets is None else dict(zip(others, targets, strict=True))
        return None if of is None else [of.get(index) for index in ids]

    def targets_checked(self, indices: Sequence[int], *, num_classes: int | None = None) -> list[int] | None:
        """Return `targets_of` points that are no junk, or raise if one of them is no class."""
        targets = self.targets_of(indices)
        if targets is not None:
            has_reject = self.trains_rejected
            num_real = None if num_classes is None else num_classes - has_reject
            refuse_outside(
                dict(zip(map(int, indices), targets, strict=True)), num_classes=num_real, has_reject=has_reject
            )
            return targets
        with seeded(self.seed):
            few = [int(index) for index in indices[:NUM_LOOKED_AT]]
            refuse_visible(self._dataset_with_labels, few, num_classes=num_classes)
        return None

    def check_targets_to_come(self, *, num_classes: int | None, pool_is_labelled: bool = True) -> None:
        """Check the targets of the labelled points and of the pool; of a few pool points where items must be read.

        Args:
            num_classes: Number of classes that the model predicts, if known; with `reject="train"` the last of them is
                from now on that of rejected points.
            pool_is_labelled: Refuse pool points whose class nobody knows. False if people label them.
        """
        self._check_outputs(num_classes, pool_is_labelled=pool_is_labelled)
        if num_classes is not None:
            self._outputs.num = num_classes
        pool_indices = self.labels.pool_indices
        with seeded(self.seed):
            is_cheap = tells_at_once(self._dataset_with_labels)
        few = pool_indices if is_cheap else pool_indices[:NUM_LOOKED_AT]
        if pool_is_labelled:
            self.check_targets(torch.cat([self._labelled_or_held_out, few]), num_classes=num_classes)
        else:
            self.check_targets(self._labelled_or_held_out, num_classes=num_classes)
            self.known_targets(few)

    def _check_outputs(self, num_classes: int | None, *, pool_is_labelled: bool) -> None:
        if self.classes is None:
            if not pool_is_labelled:
                raise ValueError("People label the pool, but nobody knows the classes. Give `classes=[...]`.")
            return
        if num_classes is not None and self.trains_rejected and len(self.classes) >= num_classes:
            num = len(self.classes) + 1
            raise ValueError(
                f"`classes` names {len(self.classes)} classes, and `reject='train'` trains rejected points as one "
                f"more, but the model predicts {num_classes}. Give the model {num} outputs, as in its last layer "
                f"`nn.Linear(..., {num})`: the last is that of rejected points (more are fine: spare ones for classes "
                "to come, before the last)."
            )
        if num_classes is not None and len(self.classes) > num_classes:
            raise ValueError(
                f"`classes` names {len(self.classes)} classes, but the model predicts {num_classes}. Give the model "
                f"{len(self.classes)} outputs (more are fine: spare ones for classes to come)."
            )

    def fingerprint(self) -> list[str]:
        """Return digests of the inputs of a few points, by which `refuse_other_rows` knows the data again."""
        return digests(self._pool_with_labels, len(self.labels), seed=self.seed)

    def refuse_other_rows(self, before: Sequence[str], num_points: int) -> None:
        """Refuse data that were reordered and not appended.

        Args:
            before: `fingerprint` of the data when they had `num_points` points.
            num_points: Number of points then.
        """
        if num_points > len(self.labels):
            raise ValueError(f"The training dataset has {len(self.labels)} points now, but had {num_points}.")
        refuse_reordered(before, digests(self._pool_with_labels, num_points, seed=self.seed), num_points)

    def state_dict(self) -> dict[str, Any]:
        """Return the label state and the answers, if there are some yet, and the wrapped module's state."""
        labels = {} if self._labels is None else {"labels": self._labels.state_dict()}
        answers = {"answers": dict(self._answers)} if self._answers else {}
        return {**labels, **answers, "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the wrapped module's state and the labels.

        While the Trainer tests, validates or predicts, the labels stay as they are: `trainer.test(ckpt_path="best")`
        needs only the weights of the checkpoint, and must not withdraw later labels.
        """
        self.inner.load_state_dict(state_dict["inner"])
        if "labels" not in state_dict or self._is_evaluating():
            return
        labels, num_points = state_dict["labels"], len(state_dict["labels"]["round_of"])
        if self._labels is None:
            self._labels = Labels(num_points)
        if self.classes is not None and num_points < len(self._labels):  # points were appended since
            saved = Labels(num_points)
            saved.load_state_dict(labels)
            saved.grow(len(self._labels))
            labels = saved.state_dict()
        answers = self._checked_answers(state_dict.get("answers", {}))
        self._labels.load_state_dict(labels)
        own = {index: target for index, target in self._known_targets.items() if index not in self._answers}
        self._known_targets, self._answers = {**own, **answers}, answers

    def _is_evaluating(self) -> bool:
        state = None if self.trainer is None else self.trainer.state
        return state is not None and state.status == "running" and state.fn != "fit"

    def _fit_loader(self) -> DataLoader[Any]:
        if self._train_loader is None:
            raise RuntimeError("The training loader is not known before `setup('fit')`.")
        return self._train_loader


def _refuse_loaders(datamodule: object) -> None:
    if isinstance(datamodule, (DataLoader, Dataset)):
        raise TypeError(
            f"`datamodule` is a {type(datamodule).__name__}, but must be a LightningDataModule. Write one whose "
            "`train_dataloader()` returns your loader, and `val_dataloader()` and `test_dataloader()` the others, if "
            "any; or, without a `collate_fn`, `LightningDataModule.from_datasets(train, val, test, batch_size=64)`."
        )


def wrapped_datamodule(datamodule: object) -> ActiveLearningDataModule:
    """Return the data module if it is an ActiveLearningDataModule; raise if not.

    Example:
        >>> wrapped_datamodule(None)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: `datamodule` is missing, but active learning needs one that knows what is labelled and what is ...
    """
    if isinstance(datamodule, ActiveLearningDataModule):
        return datamodule
    given = "missing" if datamodule is None else f"a {type(datamodule).__name__}"
    raise TypeError(
        f"`datamodule` is {given}, but active learning needs one that knows what is labelled and what is pool: wrap "
        "yours as `ActiveLearningDataModule(datamodule, initial=20)`, or datasets as "
        "`ActiveLearningDataModule(LightningDataModule.from_datasets(train, val, test))`, or return loaders from "
        "`train_dataloader()` and its like of a data module of your own. On the command line: "
        "`--data ActiveLearningDataModule --data.datamodule YOURS`."
    )
