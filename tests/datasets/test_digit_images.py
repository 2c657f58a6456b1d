import csv
import runpy

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from al_lightning.datasets.digit_images import CLASSES, write_digits
from al_lightning.datasets.unlabelled_images import number_images


@pytest.mark.slow
def test_each_image_is_its_digit_and_has_the_label_of_its_id(tmp_path):
    write_digits(tmp_path)
    files, digits = number_images(tmp_path / "images"), load_digits()
    with (tmp_path / "answers" / "digits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(files) == len(rows) == 1797
    for index in range(0, 1797, 7):
        pixels = np.asarray(Image.open(tmp_path / "images" / files[index]))
        assert np.array_equal(np.rint(pixels / 255 * 16), digits.images[index])
        assert (int(rows[index]["id"]), rows[index]["label"]) == (index, CLASSES[digits.target[index]])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # this process knows the module already
def test_the_command_needs_a_folder(monkeypatch):
    monkeypatch.setattr("sys.argv", ["digit_images"])
    with pytest.raises(SystemExit, match=r"^Say where to: python -m al_lightning.datasets.digit_images FOLDER$"):
        runpy.run_module("al_lightning.datasets.digit_images", run_name="__main__")
