"""What BALD and BatchBALD acquired of the repeated digits, copies of an earlier digit of the same run framed.

    al-lightning fit --config configs/repeated_digits.yaml --trainer.callbacks.folder=runs/digits/BatchBALD
    al-lightning fit --config configs/repeated_digits.yaml --trainer.callbacks.folder=runs/digits/BALD --trainer.callbacks.acquisition=BALD
    python benchmarks/labels/acquired_images.py runs/digits/BALD runs/digits/BatchBALD

Writes acquired_images.png.
"""  # noqa: E501 - a command stands on one line

import argparse
import sys
from pathlib import Path

from torch import Tensor

from al_lightning import DigitsDataModule, read_journal
from al_lightning.report import acquired_images

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import RESULTS


def main() -> None:
    """Draw the runs of the folders given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, named by its acquisition")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    data = DigitsDataModule(repeat=4, noise=0.1)
    data.setup("fit")
    digits = data.train_dataloader().dataset
    num_originals = len(digits) // 4

    def image_of(index: int) -> Tensor:
        image: Tensor = digits[index][0]
        return image.view(8, 8)

    rounds_of = {folder.name: read_journal(folder)[1] for folder in asked.runs}
    figure = acquired_images(rounds_of, image_of=image_of, same_as=lambda index: index % num_originals)
    asked.results.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.results / "acquired_images.png")
    print(f"Saved to {asked.results / 'acquired_images.png'}.")


if __name__ == "__main__":
    main()
