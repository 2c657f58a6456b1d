import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from al_lightning import ActiveLearningDataModule
from al_lightning.datasets.image_folder import ImageFolderDataModule, Images, list_images, read_image

CLASSES = ("car", "bird", "cat")


def write_images(root, *, parts=("train", "valid", "test"), per_class=4, size=6, classes=CLASSES):
    """Images of one colour: red tells the class, green the image, blue the part."""
    for blue, part in enumerate(parts):
        for red, name in enumerate(sorted(classes)):
            (root / part / name).mkdir(parents=True)
            for green in range(per_class):
                pixels = np.full((size, size, 3), (red, green, blue), dtype="u1")
                Image.fromarray(pixels).save(root / part / name / f"{green}.png")
    return root


def plain(root, **arguments):
    return ImageFolderDataModule(str(root), **{"val_size": 2, "mean": (0.0,) * 3, "std": (1 / 255,) * 3, **arguments})


def colours(dataset):
    return [tuple(int(value) for value in dataset[i][0][:, 0, 0].round()) for i in range(len(dataset))]


def test_pixels_come_back_as_they_were_written(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype="u1")
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert torch.equal(read_image(tmp_path / "image.png"), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_grey_image_has_three_equal_colours(tmp_path):
    Image.fromarray(np.full((2, 2), 9, dtype="u1")).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[9, 9], [9, 9]]] * 3


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_corrupt_image_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype="u1")).save(path)
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(ValueError, match=r"broken\.png` cannot be read as an image"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("num_pixels", [1, 599, 1000], ids=["PIL refuses", "PIL warns", "PIL is silent"])
def test_an_image_that_would_take_too_much_memory_is_named(tmp_path, monkeypatch, num_pixels):
    Image.fromarray(np.zeros((40, 25), "u1")).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", num_pixels)
    if num_pixels == 1000:
        assert read_image(tmp_path / "bomb.png").shape == (3, 40, 25)
        return
    with pytest.raises(ValueError, match=r"bomb\.png` would take too much memory \(.*raise `PIL\.Image\.MAX_"):
        read_image(tmp_path / "bomb.png")


def test_text_in_an_image_that_unpacks_to_too_much_is_named(tmp_path):
    info = PngInfo()
    info.add_text("comment", "0" * (2**20 + 1), zip=True)
    Image.fromarray(np.zeros((4, 4), "u1")).save(tmp_path / "text.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"text\.png` cannot be read as an image \(Decompressed (?i:data too large)"):
        read_image(tmp_path / "text.png")


def test_classes_are_counted_in_the_order_of_their_names(tmp_path):
    (write_images(tmp_path) / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / ".DS_Store").touch()
    paths, targets, classes = list_images(tmp_path / "train")
    assert classes == ["bird", "car", "cat"]
    assert [path.parent.name for path in paths] == ["bird"] * 4 + ["car"] * 4 + ["cat"] * 4
    assert targets == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("names", [[], ["only"]])
def test_folders_with_fewer_than_two_classes_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="but there must be at least two"):
        list_images(tmp_path)


def test_a_class_without_images_and_a_folder_that_is_missing_are_named(tmp_path):
    (write_images(tmp_path) / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog` holds no image"):
        list_images(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=r"There is no folder `.*nowhere`"):
        list_images(tmp_path / "nowhere")


def test_the_training_parts_are_joined_and_every_image_is_in_one_place(tmp_path):
    datamodule = plain(write_images(tmp_path), train_parts=["train", "valid"], val_size=5)
    datamodule.setup("fit")
    train, val, test = (
        colours(loader().dataset)
        for loader in (datamodule.train_dataloader, datamodule.val_dataloader, datamodule.test_dataloader)
    )
    everything = {(red, green, blue) for red in range(3) for green in range(4) for blue in range(2)}
    assert (len(train), len(val)) == (19, 5)
    assert {*train, *val} == everything
    assert set(test) == {(red, green, 2) for red in range(3) for green in range(4)}


def test_the_seed_decides_the_validation_set(tmp_path):
    def val_of(seed):
        datamodule = plain(tmp_path, seed=seed, val_size=6)
        datamodule.setup("fit")
        return colours(datamodule.val_dataloader().dataset)

    write_images(tmp_path)
    assert val_of(0) == val_of(0) != val_of(1)


def test_pixels_are_normalised_per_colour(tmp_path):
    write_images(tmp_path)
    datamodule = plain(tmp_path, mean=(0.0, 1 / 255, 0.5), std=(1 / 255, 0.5, 1.0))
    datamodule.setup("fit")
    image, target = datamodule.test_dataloader().dataset[-1 + 12]
    expected = [2.0, (3 - 1) / 255 / 0.5, 2 / 255 - 0.5]
    assert target == 2
    assert image[:, 0, 0].tolist() == pytest.approx(expected)


def test_a_shift_moves_the_image_by_no_more_than_asked_for_and_lets_black_in(tmp_path):
    pixels = np.arange(1, 17, dtype="u1").reshape(4, 4)
    Image.fromarray(np.stack([pixels] * 3, axis=2)).save(tmp_path / "image.png")
    images = Images(
        paths=[tmp_path / "image.png"], targets=[0], mean=[0.0] * 3, std=[1 / 255] * 3, max_shift=1, flips=True
    )
    padded = np.pad(pixels, 1)
    shifted = [padded[top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
    possible = {each.tobytes() for image in shifted for each in (image, image[:, ::-1])}
    torch.manual_seed(0)
    seen = {images[0][0][0].round().to(torch.uint8).numpy().tobytes() for _ in range(300)}
    assert seen == possible
    assert len(possible) == 18


def test_the_pool_is_shown_as_it_is_and_training_is_not(tmp_path):
    wrapped = ActiveLearningDataModule(plain(write_images(tmp_path), max_shift=3), initial=3)
    wrapped.setup("fit")
    pool = torch.cat([images for images, _ in wrapped.pool_dataloader()])
    train = torch.cat([images for _ in range(5) for images, _ in wrapped.train_dataloader()])
    is_even = [(images == images[:, :, :1, :1]).all() for images in (pool, train)]
    assert (len(pool), is_even) == (7, [True, False])
    assert sorted(wrapped.targets_of(wrapped.labels.labelled_indices)) == [0, 1, 2]


def test_images_of_another_size_and_parts_of_other_classes_are_named(tmp_path):
    write_images(tmp_path)
    Image.fromarray(np.zeros((3, 6, 3), dtype="u1")).save(tmp_path / "test" / "cat" / "3.png")
    datamodule = plain(tmp_path)
    datamodule.setup("fit")
    with pytest.raises(ValueError, match=r"3\.png` is \(3, 3, 6\) .*0\.png` is \(3, 6, 6\)"):
        list(datamodule.test_dataloader())
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "kitten")
    with pytest.raises(ValueError, match=r"test` holds the class folders .*kitten.*a class would have two numbers"):
        plain(tmp_path).setup("fit")


@pytest.mark.parametrize("val_size", [-1, 12])
def test_a_validation_set_that_leaves_nothing_to_train_on_is_refused(tmp_path, val_size):
    write_images(tmp_path)
    with pytest.raises(ValueError, match=f"`val_size` is {val_size}, but the parts .* hold 12 images"):
        plain(tmp_path, val_size=val_size).setup("fit")


def test_loaders_before_setup_say_so(tmp_path):
    with pytest.raises(RuntimeError, match="listed in `setup`, which has not run yet"):
        plain(tmp_path).train_dataloader()


def test_a_second_setup_keeps_the_split(tmp_path):
    datamodule = plain(write_images(tmp_path))
    datamodule.setup("fit")
    before = datamodule.pool_dataset()
    datamodule.setup("test")
    assert datamodule.pool_dataset() is before


def test_targets_are_training_images_without_shifts_and_classes_in_a_fixed_order(tmp_path):
    datamodule = plain(write_images(tmp_path), train_parts=("train", "valid"), max_shift=2, flips=True)
    datamodule.setup("fit")
    targets = torch.cat(list(datamodule.target_dataloader()))
    assert targets.shape == (22, 3, 6, 6)
    assert torch.equal(targets, torch.cat(list(datamodule.target_dataloader())))
    found = [tuple(image[:, 0, 0].round().int().tolist()) for image in targets]
    assert sorted(found) == sorted(colours(datamodule.pool_dataset()))
