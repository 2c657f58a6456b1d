"""Labels that dict items keep under a key of the user's own, read and put as those under a usual key."""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from al_lightning.data.answered import filled
from al_lightning.data.items import KEYS, described


@dataclass(frozen=True)
class LabelKey:
    """Key of the label in dict items.

    Args:
        name: The key.
        may_be_missing: Items may lack it, since people label.

    Example:
        >>> gold = LabelKey("gold", may_be_missing=False)
        >>> gold.usual({"text": "Who wrote Hamlet?", "gold": "person", "label": 7})
        {'text': 'Who wrote Hamlet?', 'label': 'person'}
        >>> gold.with_label({"text": "Who wrote Hamlet?", "gold": 0}, 3)
        {'text': 'Who wrote Hamlet?', 'gold': 3}
        >>> gold.without({"text": ["Who wrote Hamlet?"], "gold": [3]})
        {'text': ['Who wrote Hamlet?']}
    """

    name: str
    may_be_missing: bool

    def usual(self, item: object) -> dict[Any, Any]:
        """Return a dict item with its label under a usual key, and nothing else under one."""
        if not isinstance(item, Mapping) or (self.name not in item and not self.may_be_missing):
            raise ValueError(
                f"`label_key` is {self.name!r}, but an item of the training dataset is {described(item)}. Name the key "
                "that all items have, or leave `label_key` out, if items are (input, class)."
            )
        inputs = {key: value for key, value in item.items() if key not in (*KEYS, self.name)}
        return {**inputs, KEYS[0]: item[self.name]} if self.name in item else inputs

    def with_label(self, item: Any, label: int) -> Any:  # noqa: ANN401 - whatever dicts are
        """Return a dict item with a label."""
        self.usual(item)  # refuses what is no dict
        value = filled(item[self.name], label) if self.name in item else label
        return _changed(item, {**item, self.name: value})

    def without(self, batch: object) -> object:
        """Return a batch without the label, which no model of the pool is to see."""
        if not isinstance(batch, Mapping):
            return batch
        return _changed(batch, {key: value for key, value in batch.items() if key != self.name})

    def is_in(self, batch: object) -> bool:
        """Return True for a dict with the key, which a collate function may have renamed."""
        return isinstance(batch, Mapping) and self.name in batch


def _changed(item: Any, entries: Mapping[Any, Any]) -> Any:  # noqa: ANN401 - whatever dicts are
    """Return a dict of the same kind with these entries."""
    if not isinstance(item, MutableMapping):
        return type(item)(entries)
    copied = copy.copy(item)
    for key in [key for key in copied if key not in entries]:
        del copied[key]
    for key, value in entries.items():
        copied[key] = value
    return copied


class Usual(Dataset[Any]):
    """Dataset whose dict items have their labels under a usual key.

    Example:
        >>> list(Usual([{"x": 1, "gold": "cat"}], LabelKey("gold", may_be_missing=False)))
        [{'x': 1, 'label': 'cat'}]
    """

    def __init__(self, dataset: Dataset[Any], key: LabelKey) -> None:
        self.dataset = dataset
        self.key = key

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type] # checked where the loaders are built

    def __getitem__(self, index: int) -> dict[Any, Any]:
        if not 0 <= index < len(self):  # iteration over a dataset without `__iter__` ends with this error
            raise IndexError(f"Point {index} is out of range: there are {len(self)}.")
        return self.key.usual(self.dataset[index])


@dataclass(frozen=True)
class WithoutLabel:
    """Collate function whose batches have no label."""

    collate_fn: Callable[[Any], Any]
    key: LabelKey

    def __call__(self, items: Any) -> object:  # noqa: ANN401 - whatever items are
        """Return the batch of some items."""
        return self.key.without(self.collate_fn(items))
