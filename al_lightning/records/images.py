"""Small pictures of acquired points: `acquired/ID.png` in the run folder, one for each id.

They are what `render(item)` of the user's data module returns, or else the first image found in the item. W&B and
reports show them.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from al_lightning.records.files import write_atomically

Pixels = npt.NDArray[np.uint8]

FOLDER, ASKED_FOLDER = "acquired", "asked"
MIN_SIDE, MAX_SIDE = 4, 256


def thumbnails_of(folder: Path, indices: Iterable[int]) -> dict[int, Path]:
    """Return the paths of the pictures that a run folder holds of these points, by id.

    With people they are those that people have seen.
    """
    paths = [(index, folder / name / f"{index}.png") for index in indices for name in (ASKED_FOLDER, FOLDER)]
    return {index: path for index, path in paths if path.is_file()}


def refuse_linked(folder: Path) -> None:
    """Refuse to write pictures into another folder than the run's own, where they would replace others."""
    if (folder / FOLDER).is_symlink():
        raise FileExistsError(
            f"{folder / FOLDER} is a link, and pictures go into the run folder alone. Remove it. To keep them "
            "elsewhere, let the run folder itself be there."
        )


def write_thumbnail(folder: Path, index: int, pixels: Pixels) -> None:
    """Either no file or the whole one survives a crash."""
    path = folder / FOLDER / f"{index}.png"
    refuse_linked(folder)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, png(pixels))


def first_image(item: object) -> Tensor | None:
    """Return the first image of an item: a tensor or array (H, W), (1, H, W) or (3, H, W), H and W at least 4.

    Example:
        >>> first_image((torch.zeros(3), {"image": torch.zeros(3, 8, 8)}, 7)).shape
        torch.Size([3, 8, 8])
        >>> first_image((torch.zeros(4, 3), 7)) is None  # rows of a table
        True
    """
    if isinstance(item, np.ndarray) and item.dtype.kind in "biuf":
        item = torch.from_numpy(item)
    if isinstance(item, Tensor):
        return item if _is_image(item.shape) and not item.is_complex() else None
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, (tuple, list)) else ()
    return next((image for part in parts if (image := first_image(part)) is not None), None)


def pixels_of(image: object, max_side: int = MAX_SIDE) -> Pixels:
    """Return the pixels (H, W) or (H, W, 3) of an image (H, W), (1, H, W) or (3, H, W), thinned out to `max_side`.

    Bytes are shown as they are; other numbers from the image's darkest to its brightest.

    Example:
        >>> pixels_of(torch.tensor([[-1.0, 0.0, 1.0, 1.0]] * 4))[0]
        array([  0, 127, 255, 255], dtype=uint8)
    """
    found = first_image(image) if isinstance(image, (Tensor, np.ndarray)) else None
    if found is None:
        shape = getattr(image, "shape", None)
        given = f"a {type(image).__name__}" if shape is None else f"of shape {tuple(shape)}"
        raise ValueError(
            f"`render` returned an image that is {given}, but must be a tensor or an array of shape (H, W), (1, H, W) "
            f"or (3, H, W), with H and W at least {MIN_SIDE}."
        )
    found = found.detach().cpu()
    if found.ndim == 3:  # noqa: PLR2004 - channels, height and width
        found = found[0] if len(found) == 1 else found.movedim(0, -1)
    step = -(-max(found.shape[:2]) // max_side)
    found = found[::step, ::step]
    if found.dtype != torch.uint8:
        found = found.double()
        lowest, highest = found.min(), found.max()
        if not torch.isfinite(highest - lowest):
            raise ValueError(
                f"An image has pixels from {lowest:g} to {highest:g}, but they must be finite to be shown."
            )
        found = (255 * (found - lowest) / (highest - lowest).clamp_min(torch.finfo(torch.double).tiny)).byte()
    pixels: Pixels = found.contiguous().numpy()
    return pixels


def _is_image(shape: torch.Size) -> bool:
    channels, sides = shape[:-2], shape[-2:]
    return channels in {(), (1,), (3,)} and len(sides) == 2 and min(sides) >= MIN_SIDE  # noqa: PLR2004 - height and width


def png(pixels: Pixels) -> bytes:
    """Return pixels (H, W) or (H, W, 3) as a PNG file of 8 bits."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def rendered(item: Any, datamodule: object) -> Pixels | None:  # noqa: ANN401 - whatever the user's dataset holds
    """Return the picture of an item, if it has one: as the user's data module renders it, or the first image in it."""
    if hasattr(datamodule, "render"):
        seen = datamodule.render(item)
        return None if isinstance(seen, str) else pixels_of(seen)
    image = first_image(item)
    # What was found and not rendered may be no picture at all, as a series with gaps: then there is none to show.
    return None if image is None or not bool(torch.isfinite(image).all()) else pixels_of(image)
