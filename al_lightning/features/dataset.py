"""Datasets of features: the points of a dataset, each with its features in the place of its input."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from al_lightning.data.answered import WithLabel, with_label
from al_lightning.data.items import (
    MISSING,
    Class,
    NoClass,
    Unclear,
    class_of,
    has_no_target,
    is_missing,
    place_of,
    value_at,
)
from al_lightning.data.label_key import LabelKey
from al_lightning.data.targets import told_at_once
from al_lightning.features.stored import Rows
from al_lightning.randomness import seeded


@dataclass(frozen=True)
class Form:
    """Form of the items of a dataset.

    Args:
        label_key: Key of the label in dict items, where it is no usual one.
        own_with_label: The user's own way to put a label into an item.
    """

    label_key: LabelKey | None = None
    own_with_label: WithLabel | None = None

    def target_in(self, item: Any) -> object:  # noqa: ANN401 - whatever items are
        """Return the class in an item, an integer or a name; whatever else stands there; `NONE` for an input alone."""
        seen = item if self.label_key is None else self.label_key.usual(item)
        place = place_of(seen)
        if not isinstance(place, Unclear):
            value = value_at(seen, place)
            return _plain(class_of(value), value)
        if has_no_target(seen) or self.own_with_label is not None:
            return NONE
        raise ValueError(
            f"An item is {place.seen}, and nothing says where its target stands. Return items (input, class), name the "
            "key of the label, `Embedded(..., label_key=...)`, or give the dataset an attribute `targets`."
        )

    def without_label(self, index: int, item: Any) -> Any:  # noqa: ANN401, ARG002 - `Changed` gives the id
        """Return an item with -1 in the place of its label, so that items with and without one collate."""
        if self.label_key is not None:
            return self.label_key.with_label(item, MISSING)
        if self.own_with_label is not None:
            return self.own_with_label(item, MISSING)
        is_unclear = isinstance(place_of(item), Unclear) and not has_no_target(item)
        return item if is_unclear else with_label(item, MISSING)


class _None:
    """Mark of an item that is an input alone."""


NONE = _None()


def _plain(found: Class, value: object) -> object:
    """Return a class, -1 where nobody knows it, or the value that is none."""
    if isinstance(found, NoClass):
        return MISSING if is_missing(found) else value
    return found


@dataclass(eq=False)
class FeatureDataset(Dataset[Any]):
    """Points of a dataset with their features in the place of their inputs: items (features, class), or features alone.

    A class is an integer or a name, and -1 where nobody knows it. If the dataset does not tell its targets at once, an
    item is read when its target is wanted for the first time.

    Args:
        rows: Features of all points.
        dataset: The points.
        form: Form of their items.
        digests: Digests of the inputs of a few points, by which the dataset is known again.
        draws_views: Draw one of several views of a point each time, from the global generator; else take the first.
    """

    rows: Rows
    dataset: Dataset[Any]
    form: Form
    digests: Sequence[str] = ()
    draws_views: bool = False
    _told: list[object] | None = field(init=False, default=None)
    _read: dict[int, object] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.looked_at_again()

    def looked_at_again(self) -> "FeatureDataset":
        """Return itself with the targets as the dataset tells them now."""
        with seeded(0):  # reading an item may augment it
            told = None if self.form.label_key is not None else told_at_once(self.dataset)
        self._read.clear()
        self._told = None if told is None else [_plain(one, getattr(one, "value", one)) for one in told]
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - a pair, or features alone
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several items."""
        for index in indices:
            if not 0 <= index < len(self):  # iteration over a dataset without `__iter__` ends with this error
                raise IndexError(f"Point {index} is out of range: there are {len(self)}.")
        features = self._features(indices)
        targets = [self.target(index) for index in indices]
        return [
            row if target is NONE else (row, target) for row, target in zip(features.unbind(), targets, strict=True)
        ]

    def _features(self, indices: Sequence[int]) -> Tensor:
        if not self.draws_views:
            return self.rows.of(indices)
        num_views = self.rows.shape_N_V_D[1]
        views = torch.randint(num_views, (len(indices),)).tolist()
        return torch.cat([self.rows.of([index], view=view) for index, view in zip(indices, views, strict=True)])

    @property
    def targets(self) -> list[object]:
        """Return the classes of all points, if the dataset tells them at once."""
        if self._told is None:
            raise AttributeError("The dataset does not tell its targets at once.")
        return self._told

    def target(self, index: int) -> object:
        """Return the class of a point."""
        if self._told is not None:
            return self._told[index]
        if index not in self._read:
            with seeded(0):
                self._read[index] = self.form.target_in(self.dataset[index])
        return self._read[index]

    def shown(self, index: int) -> object:
        """Return the item of which the features of a point were made, without its label."""
        with seeded(0):
            return self.form.without_label(index, self.dataset[index])
