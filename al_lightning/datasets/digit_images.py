"""Write the bundled digits as images without labels: `python -m al_lightning.datasets.digit_images FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(folder: Path) -> None:
    """Write `folder/images/NNNN.png` and their true labels, `folder/answers/digits.csv`, as a person would give them.

    Sorted names are in the order of ids, so the labels are those of `UnlabelledImagesDataModule("folder/images")`.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - the core must run without scikit-learn

    digits = load_digits()
    images, answers = folder / "images", folder / "answers"
    for each in (images, answers):
        each.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(np.rint(digits.images * (255 / 16)).astype("u1")):
        Image.fromarray(pixels).save(images / f"{index:04}.png")
    rows = [f"{index},{CLASSES[target]}\n" for index, target in enumerate(digits.target)]
    (answers / "digits.csv").write_text("id,label\n" + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the module and the folder
        sys.exit("Say where to: python -m al_lightning.datasets.digit_images FOLDER")
    write_digits(Path(sys.argv[1]))
    print(f"{sys.argv[1]}/images holds the images, {sys.argv[1]}/answers their labels.")
