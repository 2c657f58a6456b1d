"""The images that runs acquired, side by side, with the repeats framed.

The records hold the ids of points and not their images, so a caller says how to find an image: `Dataset.__getitem__`
of the training data will usually do.
"""

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from al_lightning.records.images import MAX_SIDE
from al_lightning.records.round import Round
from al_lightning.report.runs import Run
from al_lightning.report.style import INK, LETTERS, WIDTH, panels, plain, refuse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME = "#D55E00"
GAP = 0.12  # between images, as a share of their height


def acquired_images(
    rounds_of: Mapping[str, Sequence[Round]],
    *,
    image_of: Callable[[int], Tensor],
    same_as: Callable[[int], Hashable] | None = None,
    num_rounds: int = 5,
) -> "Figure":
    """Show the first batches of each run, a row a batch; a frame marks a copy of an image to its left or above it.

    Args:
        rounds_of: The rounds of each run, by the name to print above it.
        image_of: The image of a point id: (H, W), (1, H, W) or (3, H, W). Grey ones are drawn from
            their darkest to their brightest, coloured ones are from 0 to 1.
        same_as: Ids for which this is equal are copies of one another, `lambda id: id % data.num_originals` for
            `Repeated` data. By default only points with equal pixels are.
        num_rounds: How many batches to draw.

    Raises:
        ValueError: If no run has acquired anything, or an image has another shape.
    """
    batches_of = {
        name: [entry.acquired for entry in rounds if entry.acquired][:num_rounds] for name, rounds in rounds_of.items()
    }
    refuse(None if any(batches_of.values()) else "The runs have not acquired anything yet, so there are no images.")
    repeats_are = "exact repeats" if same_as is None else "repeats"
    copy_key = same_as or (lambda index: _pixels(image_of, index).numpy().tobytes())
    most = max(len(batch) for batches in batches_of.values() for batch in batches)
    deepest = max(map(len, batches_of.values()))
    columns = 1 if most > 10 else min(2, len(batches_of))  # noqa: PLR2004 - more than twenty images abreast are specks
    rows = -(-len(batches_of) // columns)
    width = 1.5 * WIDTH
    size = width / (columns * most + 1)
    figure, all_axes = panels(rows, columns, width=width, height=rows * (size * deepest + 0.5) + 0.3)
    for axes in all_axes:
        axes.set_axis_off()
    for axes, (name, batches) in zip(all_axes, batches_of.items(), strict=False):
        repeats = repeated(batches, copy_key)
        _draw_batches(axes, batches, repeats, image_of=image_of, size=(deepest, most))
        told = f"{sum(map(sum, repeats))} of {sum(map(len, batches))} are {repeats_are}"
        axes.set_title(plain(f"{name}: {told}"), loc="left", fontsize=LETTERS + 1, color=INK)
    figure.supxlabel(f"a row is a batch, best first; framed: {repeats_are}", fontsize=LETTERS, color=INK)
    return figure


def repeated(batches: Sequence[Sequence[int]], copy_key: Callable[[int], Hashable]) -> list[list[bool]]:
    """Tell of each id whether it is a copy of an earlier one of its own or an earlier batch.

    Example:
        >>> repeated([[0, 1, 10], [11, 2]], lambda index: index % 10)
        [[False, False, True], [True, False]]
    """
    seen: set[Hashable] = set()
    found: list[list[bool]] = []
    for batch in batches:
        found.append([])
        for index in batch:
            key = copy_key(index)
            found[-1].append(key in seen)
            seen.add(key)
    return found


def stored_files(run: Run, *, num_rounds: int = 5) -> dict[int, Path]:
    """Read the images of the first batches, `acquired/ID.png`, by id; nothing unless the folder holds every one."""
    batches = [entry.acquired for entry in run.rounds if entry.acquired][:num_rounds]
    files = {index: run.folder / "acquired" / f"{index}.png" for batch in batches for index in batch}
    return files if all(map(os.path.isfile, files.values())) else {}


def read_stored(files: Mapping[int, Path]) -> tuple[dict[int, Tensor], dict[int, str]]:
    """The images in these files by id, and of those that cannot be read the reason why."""
    images: dict[int, Tensor] = {}
    broken: dict[int, str] = {}
    for index, path in files.items():
        try:
            images[index] = _stored(path)
        except Exception as error:  # noqa: BLE001, PERF203 - a damaged file can make any error; the others are shown
            broken[index] = str(error)
    return images, broken


def _stored(path: Path) -> Tensor:
    with Image.open(path, formats=["PNG"]) as image:  # the pixels are not read yet: some would unpack to gigabytes
        if max(image.size) > MAX_SIDE:
            width, height = image.size
            raise ValueError(f"it claims {width} x {height} pixels, and runs keep at most {MAX_SIDE} a side")
        is_grey = image.mode in {"1", "L", "LA"}
        pixels = torch.from_numpy(np.array(image.convert("L" if is_grey else "RGB"))) / 255
    return pixels if is_grey else pixels.movedim(-1, 0)


def _pixels(image_of: Callable[[int], Tensor], index: int) -> Tensor:
    """(H, W) or (H, W, 3), as matplotlib wants it."""
    image = image_of(index).detach().float().cpu()
    if image.ndim == 3 and len(image) == 1:  # noqa: PLR2004 - channels, height and width
        image = image[0]
    if image.ndim == 3 and len(image) == 3:  # noqa: PLR2004
        return image.movedim(0, -1).clamp(0, 1)
    if image.ndim != 2:  # noqa: PLR2004
        raise ValueError(
            f"`image_of({index})` is of shape {tuple(image.shape)}, but must be (H, W), (1, H, W) or (3, H, W)."
        )
    return image


def _draw_batches(
    axes: "Axes",
    batches: Sequence[Sequence[int]],
    repeats: Sequence[Sequence[bool]],
    *,
    image_of: Callable[[int], Tensor],
    size: tuple[int, int],
) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - an extra

    step = 1 + GAP
    for row, batch in enumerate(batches):
        for column, index in enumerate(batch):
            left, top = column * step, row * step
            pixels = _pixels(image_of, index)
            height, width = (length / max(pixels.shape[:2]) for length in pixels.shape[:2])
            axes.imshow(pixels.numpy(), cmap="gray", extent=(left, left + width, top + height, top))
            if repeats[row][column]:
                frame = Rectangle((left, top), width, height, fill=False, edgecolor=FRAME, linewidth=2)
                axes.add_patch(frame)
    deepest, most = size
    axes.set(xlim=(-GAP, most * step), ylim=(deepest * step, -GAP))
