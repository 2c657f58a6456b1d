import pytest
import torch
from sklearn.datasets import load_digits

from al_lightning.datasets.digits import DigitsDataModule


def parts(**arguments):
    datamodule = DigitsDataModule(**arguments)
    datamodule.setup("fit")
    return [
        loader().dataset
        for loader in (datamodule.train_dataloader, datamodule.val_dataloader, datamodule.test_dataloader)
    ]


def images_of(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def test_the_three_parts_are_all_digits_once():
    digits = load_digits()
    train, val, test = parts()
    assert (len(train), len(val), len(test)) == (1197, 100, 500)
    found = torch.cat([images_of(part) for part in (train, val, test)])
    assert found.shape == (1797, 1, 8, 8)
    expected = sorted((digits.images / 16).reshape(1797, 64).tolist())
    assert sorted(found.reshape(1797, 64).tolist()) == expected


def test_targets_belong_to_their_images():
    digits = load_digits()
    label_of = {
        image.tobytes(): label for image, label in zip(digits.images.astype("f4") / 16, digits.target, strict=True)
    }
    for part in parts():
        assert all(label_of[part[i][0].numpy().tobytes()] == part[i][1] for i in range(len(part)))


def test_only_the_training_part_is_repeated_and_noisy():
    clean, noisy = parts(), parts(repeat=4, noise=0.1)
    assert len(noisy[0]) == 4 * 1197
    residuals = torch.stack([noisy[0][i][0] - clean[0][i % 1197][0] for i in range(0, 4788, 40)])
    assert abs(residuals.std() - 0.1) < 0.005
    for i in (1, 2):
        assert torch.equal(images_of(noisy[i]), images_of(clean[i]))


def test_the_split_follows_its_seed_and_not_the_global_generator():
    torch.manual_seed(1)
    first = images_of(parts()[2])
    torch.manual_seed(2)
    assert torch.equal(first, images_of(parts()[2]))
    assert not torch.equal(first, images_of(parts(split_seed=1)[2]))


def test_a_second_setup_keeps_the_datasets():
    datamodule = DigitsDataModule(batch_size=7)
    datamodule.setup("fit")
    before = datamodule.train_dataloader().dataset
    datamodule.setup("test")
    assert datamodule.train_dataloader().dataset is before
    assert datamodule.train_dataloader().batch_size == 7


def test_parts_can_be_empty_but_not_training():
    assert [len(part) for part in parts(val_size=0, test_size=0)] == [1797, 0, 0]
    with pytest.raises(ValueError, match=r"`test_size` is 1797, but there are 1797 digits"):
        parts(val_size=0, test_size=1797)


def test_loaders_before_setup_say_so():
    with pytest.raises(RuntimeError, match="in `setup`, which has not run yet"):
        DigitsDataModule().train_dataloader()


def test_targets_are_inputs_of_training_points_without_noise_in_a_fixed_order():
    datamodule = DigitsDataModule(repeat=4, noise=0.1, batch_size=300)
    datamodule.setup("fit")
    clean = {tuple(image.flatten().tolist()) for image in images_of(parts()[0])}
    targets = torch.cat(list(datamodule.target_dataloader()))
    assert targets.shape == (1000, 1, 8, 8)
    assert len({tuple(image.flatten().tolist()) for image in targets} & clean) == len(targets.unique(dim=0))
    assert torch.equal(torch.cat(list(datamodule.target_dataloader())), targets)
    tested = {tuple(image.flatten().tolist()) for image in images_of(parts()[2])}
    assert not tested & {tuple(image.flatten().tolist()) for image in targets}
