import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from al_lightning.datasets.idx import IDXDataModule, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
MNIST = os.environ.get("AL_LIGHTNING_MNIST")


def idx_bytes(array):
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_folder(folder, *, num_train=12, num_test=5, train="train-{}-{}", test="t10k-{}-{}", ending=""):
    rng = np.random.default_rng(0)
    for name, num in ((train, num_train), (test, num_test)):
        for kind, axes, array in (
            ("images", "idx3-ubyte", rng.integers(0, 256, (num, 4, 4), dtype="u1")),
            ("labels", "idx1-ubyte", np.arange(num, dtype="u1") % 10),
        ):
            content = idx_bytes(array)
            path = folder / (name.format(kind, axes) + ending)
            path.write_bytes(gzip.compress(content) if ending else content)
    return folder


def parts(folder, **arguments):
    datamodule = IDXDataModule(str(folder), **{"val_size": 3, **arguments})
    datamodule.setup("fit")
    return [
        loader().dataset
        for loader in (datamodule.train_dataloader, datamodule.val_dataloader, datamodule.test_dataloader)
    ]


def images_of(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_array_comes_back_as_it_was_written(tmp_path, dtype, ending):
    array = (np.arange(24).reshape(2, 3, 4) * 5).astype(dtype)
    path = tmp_path / f"array{ending}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if ending else idx_bytes(array))
    assert read_idx(path).dtype == array.dtype
    assert read_idx(str(path)).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with b'', which is no IDX header"),
        (b"\x89PNG123456", "which is no IDX header"),
        (b"\0\0\x07\x01\0\0\0\0", "which is no IDX header"),
        (b"\0\0\x08\x02\0\0\0\x05", "is truncated: its header takes 12 bytes, but the file has 8"),
        (idx_bytes(np.zeros((2, 3), "i4"))[:-1], r"is truncated: shape \(2, 3\) takes 36 bytes, but the file has 35"),
        (
            idx_bytes(np.zeros(4, "u1")) + b"\0",
            r"trailing bytes: shape \(4,\) takes 12 bytes, but the file has more",
        ),
    ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path, content, words):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_idx(path)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(idx_bytes(np.zeros(999, "u1")))[:-9], b"no gzip at all"],
    ids=["cut off", "no gzip"],  # not the bytes, which tell the time: workers a second apart would collect two tests
)
def test_a_damaged_gzip_file_says_so(tmp_path, content):
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is truncated or no gzip file"):
        read_idx(path)


def limited(path, *, mib):
    """What a process that may take so much memory beyond what its imports took says of a file."""
    lines = f"""
import resource
from al_lightning.datasets.idx import read_idx
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {mib} * 2**20,) * 2)
try:
    read_idx({str(path)!r})
except ValueError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="tells how much memory a process takes")
@pytest.mark.parametrize(
    ("lengths", "num_values", "words"),
    [
        ((6,), 2**28, "has trailing bytes: shape (6,) takes 14 bytes, but the file has more"),
        (
            (2**32 - 1, 2**12),
            6,
            "is truncated: shape (4294967295, 4096) takes 17592186040332 bytes, but the ",
        ),
    ],
    ids=["a bomb", "a claim"],
)
@pytest.mark.parametrize("ending", [".gz", ""])
def test_a_file_takes_no_more_memory_than_it_promises_and_holds(tmp_path, lengths, num_values, words, ending):
    path = tmp_path / f"hostile{ending}"
    with gzip.open(path, "wb", 6) if ending else path.open("wb") as file:
        file.write(bytes([0, 0, 8, len(lengths)]) + struct.pack(f">{len(lengths)}I", *lengths))
        if ending:
            for _ in range(0, num_values, 2**26):
                file.write(bytes(min(2**26, num_values)))
        else:
            file.truncate(file.tell() + num_values)
    found = limited(path, mib=64)
    assert found.stderr == ""
    assert f"`{path}` {words}" in found.stdout


def test_more_axes_than_an_array_can_have_are_named(tmp_path):
    path = tmp_path / "axes"
    path.write_bytes(bytes([0, 0, 8, 255]) + struct.pack(">255I", *[1] * 255) + b"7")
    with pytest.raises(ValueError, match=r"axes` has 255 axes, and no array of that shape can be"):
        read_idx(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no IDX file `.*nothing-here`"):
        read_idx(tmp_path / "nothing-here")


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"ending": ".gz"},
        {"train": "train-{}.{}", "test": "t10k-{}.{}"},
        {"train": "emnist-x-train-{}-{}", "test": "emnist-x-test-{}-{}", "ending": ".gz"},
    ],
)
def test_files_are_found_under_the_names_they_are_published_with(tmp_path, names):
    prefix = "emnist-x-" if "emnist" in names.get("train", "") else ""
    train, val, test = parts(write_folder(tmp_path, **names), prefix=prefix)
    assert (len(train), len(val), len(test)) == (9, 3, 5)


def test_a_missing_companion_lists_the_names_looked_for(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"which holds none of t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte.gz"
    ):
        parts(tmp_path)


def test_pixels_are_normalised(tmp_path):
    _, _, test = parts(write_folder(tmp_path), mean=0.25, std=0.5)
    raw = read_idx(tmp_path / "t10k-images-idx3-ubyte")
    expected = (raw.astype(float) / 255 - 0.25) / 0.5
    assert test[0][0].shape == (1, 4, 4)
    assert test[0][0].dtype == torch.float32
    torch.testing.assert_close(images_of(test).squeeze(1), torch.from_numpy(expected).float())
    assert [int(test[i][1]) for i in range(5)] == [0, 1, 2, 3, 4]


def test_validation_is_taken_out_of_training(tmp_path):
    folder = write_folder(tmp_path)
    train, val, _ = parts(folder)
    raw = (torch.from_numpy(read_idx(folder / "train-images-idx3-ubyte")).float() / 255 - 0.1307) / 0.3081
    together = torch.cat([images_of(train), images_of(val)]).flatten(1)
    assert sorted(together.tolist()) == sorted(raw.flatten(1).tolist())


def test_the_split_follows_the_seed_alone(tmp_path):
    folder = write_folder(tmp_path)
    torch.manual_seed(1)
    first = images_of(parts(folder)[1])
    torch.manual_seed(2)
    assert torch.equal(first, images_of(parts(folder)[1]))
    assert not torch.equal(first, images_of(parts(folder, seed=1)[1]))


def test_a_smaller_training_set_is_a_part_of_the_whole_one(tmp_path):
    folder = write_folder(tmp_path)
    whole, some = images_of(parts(folder)[0]), images_of(parts(folder, num_train=4)[0])
    assert len(some) == 4
    assert all(any(torch.equal(image, other) for other in whole) for image in some)


def test_only_the_training_part_is_repeated_and_noisy(tmp_path):
    folder = write_folder(tmp_path)
    clean, noisy = parts(folder), parts(folder, repeat=3, noise=0.1)
    residuals = images_of(noisy[0]) - images_of(clean[0]).repeat(3, 1, 1, 1)
    assert abs(residuals.std() - 0.1) < 0.02
    assert len(residuals.flatten(1).unique(dim=0)) == 27
    for i in (1, 2):
        assert torch.equal(images_of(noisy[i]), images_of(clean[i]))


@pytest.mark.parametrize("arguments", [{"val_size": 12}, {"num_train": 10}, {"num_train": 0}, {"val_size": -1}])
def test_more_than_the_files_hold_is_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=r"hold 12 points, of which at least one must be left"):
        parts(write_folder(tmp_path), **arguments)


def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(11, "u1")))
    with pytest.raises(ValueError, match=r"holds 12 images, but `.*train-labels-idx1-ubyte` holds 11 labels"):
        parts(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros((12, 2), "u1")))
    with pytest.raises(ValueError, match="images have three axes and labels one"):
        parts(tmp_path)


def test_loaders_keep_the_batch_size_and_shuffle_training_only(tmp_path):
    datamodule = IDXDataModule(str(write_folder(tmp_path)), val_size=3, batch_size=2)
    with pytest.raises(RuntimeError, match="in `setup`, which has not run yet"):
        datamodule.train_dataloader()
    datamodule.setup("fit")
    datamodule.setup("test")
    samplers = [
        type(loader().sampler).__name__
        for loader in (datamodule.train_dataloader, datamodule.val_dataloader, datamodule.test_dataloader)
    ]
    assert samplers == ["RandomSampler", "SequentialSampler", "SequentialSampler"]
    assert datamodule.val_dataloader().batch_size == 2


@pytest.mark.skipif(MNIST is None, reason="AL_LIGHTNING_MNIST names no folder with the four MNIST files")
def test_mnist_is_what_it_is_known_to_be():
    train, val, test = parts(Path(MNIST), val_size=1024)
    assert (len(train), len(val), len(test)) == (60_000 - 1024, 1024, 10_000)
    assert [int(test[i][1]) for i in range(5)] == [7, 2, 1, 0, 4]
    pixels = images_of(train)
    assert abs(pixels.mean()) < 0.01  # the published mean and standard deviation normalise
    assert abs(pixels.std() - 1) < 0.01


def rows_of(datamodule):
    """The rows of the training files in the training and the validation set; each image is told by its first pixel."""
    datamodule.setup("fit")
    return [
        [round(float(dataset[i][0][0, 0, 0])) for i in range(len(dataset))]
        for dataset in (datamodule.train_dataloader().dataset, datamodule.val_dataloader().dataset)
    ]


def write_numbered(folder, num=40):
    write_folder(folder)
    images = np.zeros((num, 2, 2), dtype="u1")
    images[:, 0, 0] = np.arange(num)
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(num, dtype="u1") % 10))
    return {"root": str(folder), "mean": 0.0, "std": 1 / 255}


@pytest.mark.parametrize("seed", range(5))
def test_the_first_rows_train_in_their_order_whatever_the_seed_and_the_rest_is_split(tmp_path, seed):
    settings = write_numbered(tmp_path)
    train, val = rows_of(IDXDataModule(**settings, val_size=30, first=[7, 0, 39], seed=seed))
    assert train[:3] == [7, 0, 39]
    assert sorted(train + val) == list(range(40))
    fewer, same_val = rows_of(IDXDataModule(**settings, val_size=30, first=[7, 0, 39], seed=seed, num_train=5))
    assert (fewer, same_val) == (train[:5], val)


def test_without_first_rows_the_split_is_as_it_always_was(tmp_path):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    train, val = rows_of(IDXDataModule(**write_numbered(tmp_path), val_size=9, seed=3))
    assert (train, val) == (order[9:], order[:9])


@pytest.mark.parametrize(("first", "num_train"), [([40], None), ([-1], None), ([1, 1], None), ([1, 2, 3], 2)])
def test_first_rows_that_cannot_be_are_refused(tmp_path, first, num_train):
    datamodule = IDXDataModule(**write_numbered(tmp_path), val_size=9, first=first, num_train=num_train)
    with pytest.raises(ValueError, match=r"`first` is \[.*\], but must be different rows of the 40 in the training"):
        datamodule.setup("fit")


def test_targets_are_inputs_of_training_points(tmp_path):
    datamodule = IDXDataModule(str(write_folder(tmp_path)), val_size=3, repeat=2, noise=0.1, batch_size=4)
    datamodule.setup("fit")
    targets = torch.cat(list(datamodule.target_dataloader()))
    train = images_of(parts(tmp_path)[0])
    assert targets.shape == (9, 1, 4, 4)
    assert sorted(targets.flatten(1).tolist()) == sorted(train.flatten(1).tolist())
