import re

import numpy as np
import pytest
import torch
from matplotlib.image import imsave

from al_lightning.records.journal import Round
from al_lightning.report.images import acquired_images, read_stored, repeated, stored_files
from al_lightning.report.style import png


def rounds(*batches):
    return [Round(round=i, num_labelled=1, num_pool=9, acquired=batch) for i, batch in enumerate(batches)]


def noise(index):
    return torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(index % 10))


def frames(figure):
    return [len(axes.patches) for axes in figure.axes]


def test_copies_are_framed_from_their_second_appearance_on():
    by_run = {"BALD": rounds([0, 10, 20], [3, 30]), "BatchBALD": rounds([0, 1, 2], [3, 4])}
    figure = acquired_images(by_run, image_of=noise, same_as=lambda index: index % 10)
    assert frames(figure) == [3, 0]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "BALD: 3 of 5 are repeats",
        "BatchBALD: 0 of 5 are repeats",
    ]
    assert png(figure).startswith(b"\x89PNG")


def test_by_default_only_equal_pixels_are_copies():
    assert frames(acquired_images({"run": rounds([0, 10, 1])}, image_of=noise)) == [1]


def test_only_the_first_batches_are_drawn_and_rounds_without_one_are_skipped():
    figure = acquired_images({"run": rounds([], [1], [2], [3])}, image_of=noise, num_rounds=2)
    assert len(figure.axes[0].images) == 2


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (3, 4, 6)])
def test_grey_and_coloured_images_keep_their_proportions(shape):
    (image,) = acquired_images({"run": rounds([5])}, image_of=lambda _: torch.rand(shape)).axes[0].images
    left, right, bottom, top = image.get_extent()
    assert (bottom - top) / (right - left) == pytest.approx(4 / 6)


def test_what_is_no_image_is_refused_by_its_id_and_shape():
    with pytest.raises(ValueError, match=r"`image_of\(5\)` is of shape \(7,\), but must be"):
        acquired_images({"run": rounds([5])}, image_of=lambda _: torch.rand(7))
    with pytest.raises(ValueError, match="have not acquired anything yet"):
        acquired_images({"run": rounds([])}, image_of=noise)


def test_repeats_are_counted_across_batches():
    assert repeated([[1, 2], [2, 1, 3]], lambda index: index) == [[False, False], [True, True, False]]


def save(run, index, image=None):
    (run.folder / "acquired").mkdir(exist_ok=True)
    imsave(run.folder / "acquired" / f"{index}.png", np.eye(5) if image is None else image, cmap="gray")


def test_images_that_the_run_folder_holds_are_read_if_all_are_there(make_run):
    run = make_run("one")
    assert stored_files(run) == {}
    for index in range(3):
        save(run, index)
    assert stored_files(run) == {}
    save(run, 3)
    images, broken = read_stored(stored_files(run))
    assert broken == {}
    assert sorted(images) == [0, 1, 2, 3]
    assert torch.equal(images[3][0], torch.eye(5))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "."),
        ("half", "."),
        ("large", "it claims 300 x 2 pixels, and runs keep at most 256 a side"),
    ],
    ids=["empty", "zeros", "half", "large"],
)
def test_a_broken_image_is_told_apart_from_the_others(make_run, content, reason):
    run = make_run("one")
    for index in range(4):
        save(run, index, np.random.default_rng(0).random((40, 40)))
    path = run.folder / "acquired" / "2.png"
    if content == "large":
        save(run, 2, np.zeros((2, 300)))
    else:
        path.write_bytes(path.read_bytes()[:200] if content == "half" else content)
    images, broken = read_stored(stored_files(run))
    assert sorted(images) == [0, 1, 3]
    assert list(broken) == [2]
    assert re.search(reason, broken[2])
