import numpy as np
import pytest
import torch
from PIL import Image

from al_lightning.labelling.shown import first_text, forget, seen_of, show

PICTURE = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202e../../é"


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture)


def test_an_image_is_a_picture_of_its_pixels_and_a_text_is_its_letters(tmp_path):
    assert show(tmp_path, 3, (PICTURE, -1), None) == "asked/3.png"
    assert np.array_equal(pixels(tmp_path / "asked" / "3.png"), PICTURE.numpy())
    assert show(tmp_path, 4, {"text": HOSTILE, "label": -1}, None) == "asked/4.txt"
    assert (tmp_path / "asked" / "4.txt").read_bytes() == HOSTILE.encode()


def test_what_can_be_seen_of_nothing_leaves_no_file(tmp_path):
    assert show(tmp_path, 3, (torch.zeros(5), -1), None) is None
    assert show(tmp_path, 3, (PICTURE, -1), lambda item: None) is None
    assert list(tmp_path.iterdir()) == []


def test_the_data_modules_own_picture_or_text_is_shown(tmp_path):
    assert show(tmp_path, 3, (PICTURE, -1), lambda item: f"darkest {item[0].min()}") == "asked/3.txt"
    assert (tmp_path / "asked" / "3.txt").read_text() == "darkest 0"
    assert show(tmp_path, 4, ([], -1), lambda item: PICTURE.float()) == "asked/4.png"


def test_an_own_picture_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`render` returned an image that is a list"):
        show(tmp_path, 3, (PICTURE, -1), lambda item: [1, 2])


@pytest.mark.parametrize("gap", [torch.nan, torch.inf])
def test_a_series_with_gaps_is_no_picture(tmp_path, gap):
    series = torch.full((4, 9), gap)
    assert seen_of(series) is None
    assert show(tmp_path, 3, (series, "a note", -1), None) == "asked/3.txt"


def test_a_large_picture_is_thinned_out(tmp_path):
    show(tmp_path, 3, torch.zeros(4, 5000, dtype=torch.uint8), None)
    assert max(pixels(tmp_path / "asked" / "3.png").shape) <= 2048


def test_letters_that_are_no_utf_8_are_escaped(tmp_path):
    show(tmp_path, 3, "a\ud800b", None)
    assert (tmp_path / "asked" / "3.txt").read_text() == "a\\ud800b"


def test_the_first_text_is_found_within_other_things():
    assert first_text([(1, {"a": 2, "b": ["x", "y"]}), "z"]) == "x"
    assert first_text({"label": 3}) is None
    assert first_text(b"bytes") is None


def test_showing_a_point_again_replaces_the_file_and_a_link_in_its_place(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    show(tmp_path, 3, "one", None)
    (tmp_path / "asked" / "3.txt").unlink()
    (tmp_path / "asked" / "3.txt").symlink_to(victim)
    show(tmp_path, 3, "two", None)
    assert (victim.read_text(), (tmp_path / "asked" / "3.txt").read_text()) == ("mine", "two")


def test_a_link_in_place_of_the_folder_is_refused_and_left_alone(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "3.txt").write_text("mine")
    (tmp_path / "asked").symlink_to(other)
    for used in (lambda: show(tmp_path, 3, "text", None), lambda: forget(tmp_path)):
        with pytest.raises(FileExistsError, match=r"is a link, and what people see goes into the run folder. Remove"):
            used()
    assert (other / "3.txt").read_text() == "mine"


def test_forgetting_deletes_the_copies_of_data_and_nothing_else(tmp_path):
    assert forget(tmp_path) == 0
    for index in range(3):
        show(tmp_path, index, "text", None)
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (tmp_path / "asked" / "link").symlink_to(victim)
    assert forget(tmp_path) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["victim.txt"]
    assert forget(tmp_path) == 0
