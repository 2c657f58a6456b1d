"""What BALD and BatchBALD acquired of the repeated digits, copies of an earlier digit of the same run framed.

    al-lightning fit --config configs/repeated_digits.yaml --trainer.callbacks.folder=runs/digits/BatchBALD
    al-lightning fit --config configs/repeated_digits.yaml --trainer.callbacks.folder=runs/digits/BALD --trainer.callbacks.acquisition=BALD
    python benchmarks/acquired_images.py runs/digits/BALD runs/digits/BatchBALD

Writes benchmarks/results/acquired_images.png.
"""  # noqa: E501 - a command stands on one line

import sys
from pathlib import Path

from torch import Tensor

from al_lightning import DigitsDataModule, read_journal
from al_lightning.report import acquired_images

RESULT = Path(__file__).parent / "results" / "acquired_images.png"


def main() -> None:
    """Draw the runs of the folders given."""
    data = DigitsDataModule(repeat=4, noise=0.1)
    data.setup("fit")
    digits = data.train_dataloader().dataset
    num_originals = len(digits) // 4

    def image_of(index: int) -> Tensor:
        image: Tensor = digits[index][0]
        return image.view(8, 8)

    rounds_of = {Path(folder).name: read_journal(folder)[1] for folder in sys.argv[1:]}
    figure = acquired_images(rounds_of, image_of=image_of, same_as=lambda index: index % num_originals)
    figure.savefig(RESULT)
    print(f"Saved to {RESULT}.")


if __name__ == "__main__":
    main()
