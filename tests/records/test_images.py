import io

import numpy as np
import pytest
import torch
from PIL import Image

from al_lightning.records.images import first_image, pixels_of, png, rendered, thumbnails_of, write_thumbnail


@pytest.mark.parametrize("shape", [(4, 4), (7, 5), (1, 1), (9, 6, 3), (300, 2, 3)])
def test_a_png_shows_the_pixels_that_were_written(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(png(pixels)))
    image.load()  # checks the sums of its parts
    assert image.mode == ("L" if len(shape) == 2 else "RGB")
    assert np.array_equal(np.asarray(image), pixels)


def test_pictures_are_found_by_id_and_those_that_are_missing_are_left_out(tmp_path):
    write_thumbnail(tmp_path, 17, np.zeros((4, 4), np.uint8))
    assert thumbnails_of(tmp_path, [3, 17]) == {17: tmp_path / "acquired" / "17.png"}
    assert [path.name for path in (tmp_path / "acquired").iterdir()] == ["17.png"]


def test_pictures_go_through_no_link_to_another_folder(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "17.png").write_text("of the user")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "acquired").symlink_to(tmp_path / "own")
    with pytest.raises(FileExistsError, match=r"run/acquired is a link, and pictures go into the run folder"):
        write_thumbnail(tmp_path / "run", 17, np.zeros((4, 4), np.uint8))
    assert (tmp_path / "own" / "17.png").read_text() == "of the user"


def test_a_picture_that_could_not_be_written_leaves_none(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_thumbnail(tmp_path, 17, np.zeros((4, 4), np.uint8))
    assert thumbnails_of(tmp_path, [17]) == {}
    assert list((tmp_path / "acquired").iterdir()) == []


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        (torch.zeros(8, 8), (8, 8)),
        ((torch.zeros(1, 8, 8), 3), (1, 8, 8)),
        ([torch.zeros(5), np.zeros((3, 4, 4))], (3, 4, 4)),
        ({"id": 3, "pixels": torch.zeros(4, 4), "mask": torch.ones(8, 8)}, (4, 4)),
    ],
)
def test_the_first_image_of_a_sample_is_found(sample, shape):
    assert first_image(sample).shape == shape


@pytest.mark.parametrize(
    "sample",
    [
        torch.zeros(3),
        torch.zeros(2, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(8, 3),
        torch.zeros(4, 4, dtype=torch.complex64),
        (np.array(["text"]), 7),
        "word",
        None,
    ],
)
def test_what_is_no_image_is_not_taken_for_one(sample):
    assert first_image(sample) is None
    assert rendered(sample, datamodule=object()) is None


def test_numbers_are_shown_from_darkest_to_brightest_and_bytes_as_they_are():
    image = torch.linspace(-3, 1, 16).view(4, 4)
    assert (pixels_of(image).min(), pixels_of(image).max(), pixels_of(image)[1, 3]) == (0, 255, 255 * 7 // 15)
    assert pixels_of(image > 0).max() == 255
    dim = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    assert np.array_equal(pixels_of(dim), dim[0].numpy())


def test_an_image_of_one_brightness_is_black():
    assert pixels_of(torch.full((4, 4), 0.7)).max() == 0


def test_colours_keep_their_order_and_large_images_are_thinned_out():
    image = torch.zeros(3, 600, 400)
    image[1] = 1.0
    shown = pixels_of(image)
    assert shown.shape == (200, 134, 3)
    assert shown[0, 0].tolist() == [0, 255, 0]


def test_what_render_returns_must_be_an_image_or_a_text():
    class Data:
        def render(self, sample):
            return sample

    with pytest.raises(ValueError, match=r"`render` returned an image that is of shape \(4, 4, 3\), but must be"):
        rendered(np.zeros((4, 4, 3)), Data())
    with pytest.raises(ValueError, match="`render` returned an image that is a dict"):
        rendered({}, Data())
    assert rendered("a text, which people read", Data()) is None
    with pytest.raises(ValueError, match="An image has pixels from nan to nan, but they must be finite"):
        rendered(torch.full((4, 4), torch.nan), Data())


def test_a_series_with_gaps_is_no_picture_but_what_is_rendered_must_be_one():
    series = torch.full((12, 4), torch.nan)
    assert rendered((series, 1), object()) is None

    class Renders:
        def render(self, sample):
            return sample[0]

    with pytest.raises(ValueError, match="must be finite"):
        rendered((series, 1), Renders())
