"""Images of a folder without labels, whose ids stay when further images are added."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader

from al_lightning._lightning import LightningDataModule
from al_lightning.datasets.image_folder import Images

IDS, LOCK = "ids.jsonl", ".ids.lock"
MOST_BYTES = 255
NO_LABEL = -1


def number_images(root: Path) -> list[str]:
    """Give each image file below a folder an id, and return the files, relative to it, by id.

    `root/ids.jsonl` keeps the ids: files that it names already keep theirs, and new ones follow, sorted by name. One
    process at a time numbers them, and a killed one leaves either the old list or the new one.

    Raises:
        FileNotFoundError: If there is no folder, or a file is gone that has an id.
        ValueError: If there is no file.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder `{root}`. It must hold the images to be labelled.")
    with FileLock(root / LOCK):
        known = read_numbered(root) if (root / IDS).exists() else []
        found = _files_below(root)
        if gone := [file for file in known if file not in found]:
            raise FileNotFoundError(
                f"`{root / gone[0]}` is gone ({len(gone)} in all), but has the id {known.index(gone[0])}, and ids must "
                f"stay. Bring it back; to begin anew without it, remove `{root / IDS}` and the run folders."
            )
        if not found:
            raise ValueError(f"`{root}` holds no file, but must hold the images to be labelled.")
        if new := sorted(found - set(known)):
            _write(root / IDS, [*known, *new])
        return [*known, *new]


def read_numbered(root: Path) -> list[str]:
    """Return the image files of a folder by id, as `number_images` has written them.

    Raises:
        FileNotFoundError: If they have no ids yet.
        ValueError: If the list was changed, with file and line.
    """
    path = root / IDS
    if not path.exists():
        raise FileNotFoundError(f"There is no `{path}`: the images have no ids yet. `prepare_data()` gives them.")
    files: list[str] = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            entry = json.loads(line)
            is_next = entry["id"] == index and isinstance(entry["file"], str) and len(entry) == 2  # noqa: PLR2004
        except (ValueError, TypeError, KeyError):
            is_next = False
        if not is_next:
            raise ValueError(
                f'`{path}:{index + 1}` is {line!r}, but must be like {{"id": {index}, "file": "image.png"}}: ids count '
                "from 0, without a gap. Restore the file as it was, or labels would be given to other images."
            )
        files.append(entry["file"])
    return files


def _files_below(root: Path) -> set[str]:
    """Return the files below a folder, relative to it; names that begin with a dot are left out."""
    relative = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts)} - {IDS}


def _write(path: Path, files: Sequence[str]) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": index, "file": name}) + "\n" for index, name in enumerate(files))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class UnlabelledImagesDataModule(LightningDataModule):
    """Images of one size in a folder and its subfolders, without labels; further ones may be added at any time.

    An image is a tensor (3, H, W), red, green and blue, also where the file is grey. `root/ids.jsonl` says which file
    has which id: files sorted by name at first, then what is new, sorted again, when a fit begins. So an id means one
    file for ever, whatever the new ones are called. There are no validation and no test images, for there are no
    labels.

    Args:
        root: Folder of the images. It must be writable whenever there are new ones. All other files in it are an error
            when they are read as images; names that begin with a dot are left out.
        batch_size: Batch size of training.
        mean: Mean of red, green and blue (scaled to 0 ... 1), which is subtracted.
        std: Standard deviation of red, green and blue, by which they are divided.
        num_workers: Number of workers of each loader.
    """

    def __init__(
        self,
        root: str,
        *,
        batch_size: int = 64,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # a run that resumes with other values warns
        self.root = root
        self.batch_size = batch_size
        self.mean = mean
        self.std = std
        self.num_workers = num_workers
        self._images: Images | None = None

    def prepare_data(self) -> None:
        """Give new images their ids, in one process alone."""
        number_images(Path(self.root))

    def setup(self, stage: str) -> None:
        """List the images for a fit, new ones included."""
        if stage == "fit":
            paths = [Path(self.root) / file for file in read_numbered(Path(self.root))]
            self._images = Images(paths=paths, targets=[NO_LABEL] * len(paths), mean=self.mean, std=self.std)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader of the images."""
        if self._images is None:
            raise RuntimeError("The images are listed in `setup('fit')`, which has not run yet.")
        return DataLoader(self._images, batch_size=self.batch_size, shuffle=True, num_workers=self.num_workers)

    def render(self, item: tuple[Tensor, int]) -> Tensor:
        """Return the pixels of an item as bytes, which people see."""
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        pixels = (item[0] * std + mean) * MOST_BYTES
        return pixels.round().clamp(0, MOST_BYTES).to(torch.uint8)
