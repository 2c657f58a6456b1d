"""Fingerprint of a dataset: digests of a few of its inputs, which tell data that were appended from reordered ones."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from al_lightning.data.items import KEYS, NUM_SHOWN, Array, Unclear, as_array, place_of
from al_lightning.randomness import derived_seed, seeded

NUM_ROWS = 64
DECIMALS = 4
UNTOLD = ""  # digest of a row that says nothing


def rows_of(num_points: int) -> list[int]:
    """Return the ids of the rows that a fingerprint of `num_points` points looks at: the same ones always.

    Example:
        >>> rows_of(3), len(rows_of(1000))
        ([0, 1, 2], 64)
    """
    generator = torch.Generator().manual_seed(derived_seed(0, 0, "fingerprint"))
    return sorted(torch.randperm(num_points, generator=generator)[:NUM_ROWS].tolist())


def digests(dataset: Dataset[Any], num_points: int, *, seed: int) -> list[str]:
    """Return a digest of the input of each row in `rows_of(num_points)`.

    It is empty where the row differs when it is read twice, under the same seed of the global random generators.
    """
    return [_digest_of_row(dataset, index, seed) for index in rows_of(num_points)]


def _digest_of_row(dataset: Dataset[Any], index: int, seed: int) -> str:
    first, second = (_read(dataset, index, seed) for _ in range(2))
    return first if first == second else UNTOLD


def _read(dataset: Dataset[Any], index: int, seed: int) -> str:
    with seeded(seed):
        return digest(dataset[index])


def digest(item: object) -> str:
    """Return a digest of the input of an item; empty if there is nothing in it that can be compared.

    Floats count to four decimals. Texts count only where there are no numbers: paths change when data are moved.

    Example:
        >>> image = torch.tensor([0.25, 0.5])
        >>> digest((image, 1)) == digest((image + 1e-7, -1)) == digest(image) == digest({"x": image, "label": 2})
        True
        >>> digest((image, 1)) == digest((image.flip(0), 1))
        False
    """
    parts = list(_leaves(_input_of(item)))
    numbers = [array for part in parts if (array := as_array(part)) is not None and array.dtype.kind in "iubfc"]
    texts = [part if isinstance(part, bytes) else _encoded(part) for part in parts if isinstance(part, (str, bytes))]
    told = [_bytes_of(array) for array in numbers] or texts
    if not told:
        return UNTOLD
    hashed = hashlib.blake2b(digest_size=16)
    for content in told:
        hashed.update(f"{len(content)}:".encode() + content)
    return hashed.hexdigest()


def refuse_reordered(before: Sequence[str], now: Sequence[str], num_points: int) -> None:
    """Refuse data of which more than half of the rows looked at have other inputs than before."""
    rows = rows_of(num_points)
    if len(before) != len(rows):
        raise ValueError(
            f"`before` holds {len(before)} digests, but a fingerprint of {num_points} points has {len(rows)}: it "
            "belongs to another number of points."
        )
    told = [(index, *pair) for index, *pair in zip(rows, before, now, strict=True) if UNTOLD not in pair]
    changed = [index for index, old, new in told if old != new]
    if 2 * len(changed) <= len(told):
        return
    raise ValueError(
        f"{len(changed)} of {len(told)} points that were looked at have other inputs than when the run began, first "
        f"ids {changed[:NUM_SHOWN]}: the first {num_points} points of the dataset were reordered and not appended to, "
        "and labels would be given to other points. Bring them back into the order that they had (new points go to the "
        "end), or begin a new run."
    )


def _input_of(item: object) -> object:
    """Return an item without its target."""
    if isinstance(item, Mapping):
        return {key: value for key, value in item.items() if key not in KEYS}
    place = place_of(item)
    if isinstance(place, Unclear) or not isinstance(item, (tuple, list)):
        return item
    key, *deeper = place
    kept = [_input_of(item[key])] if deeper else []
    return [*item[:key], *kept, *item[key + 1 :]]


def _leaves(value: object) -> Iterator[object]:
    """Yield what a nesting of dicts, lists and tuples holds; a list of numbers is one value."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)) and not (value and all(isinstance(part, Number) for part in value)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _bytes_of(array: Array) -> bytes:
    """Return the shape and the values of an array, floats rounded."""
    if array.dtype.kind in "fc":
        wide = array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
        array = np.round(wide, DECIMALS) + 0.0  # no negative zero
        array = np.where(np.isnan(array), np.nan, array)
    else:
        array = array.astype(np.int64)
    return f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
