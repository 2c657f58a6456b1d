"""What people see of a point: a picture or a text in the run folder, `asked/ID.png` or `asked/ID.txt`."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from al_lightning.records.files import write_atomically
from al_lightning.records.images import ASKED_FOLDER as FOLDER
from al_lightning.records.images import first_image, pixels_of, png

MAX_SIDE = 2048


def show(folder: Path, index: int, item: object, render: Callable[[object], object] | None) -> str | None:
    """Write what a point looks like, and return the file, relative to the run folder; None if there is nothing to see.

    Args:
        folder: The run folder.
        index: The point.
        item: Its item.
        render: Returns an image or a text of an item; None takes the first image in it, else the first text.
    """
    seen = seen_of(item) if render is None else render(item)
    if seen is None:
        return None
    refuse_linked(folder)
    (folder / FOLDER).mkdir(exist_ok=True)
    name, content = (
        (f"{index}.txt", seen) if isinstance(seen, str) else (f"{index}.png", png(pixels_of(seen, MAX_SIDE)))
    )
    write_atomically(folder / FOLDER / name, content)
    return f"{FOLDER}/{name}"


def seen_of(item: object) -> object:
    """Return the first image in an item, else the first text; None if there is neither.

    What has gaps is no image, as a series of measurements.

    Example:
        >>> seen_of((torch.full((4, 4), torch.nan), "a series"))
        'a series'
    """
    image = first_image(item)
    return first_text(item) if image is None or not bool(torch.isfinite(image).all()) else image


def first_text(item: object) -> str | None:
    """Return the first text in an item.

    Example:
        >>> first_text({"ids": [1, 2], "text": "Who wrote Hamlet?", "label": -1})
        'Who wrote Hamlet?'
        >>> first_text(([1, 2], -1)) is None
        True
    """
    if isinstance(item, str):
        return item
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else ()
    return next((text for part in parts if (text := first_text(part)) is not None), None)


def refuse_linked(folder: Path) -> None:
    """Refuse a link in place of the folder: what it leads to is not the run's."""
    if (folder / FOLDER).is_symlink():
        raise FileExistsError(f"{folder / FOLDER} is a link, and what people see goes into the run folder. Remove it.")


def forget(folder: Path) -> int:
    """Delete what people have seen, the only copies of data in a run folder; return the number of files."""
    refuse_linked(folder)
    if not (folder / FOLDER).is_dir():
        return 0
    number = sum(path.is_file() for path in (folder / FOLDER).iterdir())
    shutil.rmtree(folder / FOLDER)
    return number
