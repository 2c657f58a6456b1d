import math

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import ActiveLearning, ActiveLearningDataModule, DigitsDataModule, Random, active_fit
from al_lightning.data.augmented import Augmented, Views, random_affine
from al_lightning.models import MLP, Classifier

NOTHING = {"degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0}
SMALL = {"degrees": 15.0, "scale": 0.15, "shear": 0.2, "shift": 0.7}


def test_a_shift_of_whole_pixels_moves_the_image_and_repeats_its_border():
    image = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    horizontal, vertical = (2 * torch.rand(1, 6, generator=again) - 1)[0, 4:6].tolist()
    moved = random_affine(image, **{**NOTHING, "shift": 1 / horizontal}, generator=generator)
    down = vertical / horizontal
    rows = (torch.arange(6) + down).clamp(0, 5)
    below, weight = rows.floor().long(), rows - rows.floor()
    right = image[0, 0][:, [1, 2, 3, 4, 5, 5]]
    expected = right[below] * (1 - weight[:, None]) + right[(below + 1).clamp(max=5)] * weight[:, None]
    assert torch.allclose(moved[0, 0], expected, atol=1e-4)


def test_a_rotation_turns_the_image_about_its_middle():
    image = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    drawn = float(2 * torch.rand(1, 6, generator=again)[0, 0] - 1)
    turned = random_affine(image, **{**NOTHING, "degrees": 90 / drawn}, generator=generator)
    quarters = [torch.rot90(image, number, dims=(2, 3)) for number in (1, 3)]
    assert any(torch.allclose(turned, quarter, atol=1e-4) for quarter in quarters)


@pytest.mark.parametrize("place", [(8, 60), (2, 33), (13, 20)])
def test_a_rotation_of_an_oblong_image_keeps_distances_from_its_middle_and_turns_all_alike(place):
    image = torch.zeros(1, 1, 16, 64)
    image[0, 0, place[0], place[1]] = 1
    generator, again = (torch.Generator().manual_seed(5) for _ in range(2))
    drawn = float(2 * torch.rand(1, 6, generator=again)[0, 0] - 1)
    turned = random_affine(image, **{**NOTHING, "degrees": 8 / drawn}, generator=generator)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(64) - 31.5, indexing="ij")
    found = torch.stack([(turned * axis).sum() / turned.sum() for axis in (columns, rows)])
    column, row = place[1] - 31.5, place[0] - 7.5
    cos, sin = math.cos(math.radians(8)), math.sin(math.radians(8))
    assert torch.allclose(found, torch.tensor([column * cos + row * sin, row * cos - column * sin]), atol=0.3)


def test_each_image_gets_a_map_of_its_own_that_the_seed_decides():
    images = torch.rand(1, 1, 8, 8).expand(3, -1, -1, -1)
    maps = {"degrees": 15.0, "scale": 0.15, "shear": 0.2, "shift": 1.0}
    first, again, other = (
        random_affine(images, **maps, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


def test_without_a_map_training_sees_the_images_themselves_and_the_loader_keeps_its_settings():
    plain = DigitsDataModule(batch_size=7)
    augmented = Augmented(DigitsDataModule(batch_size=7), **NOTHING)
    for datamodule in (plain, augmented):
        datamodule.setup("fit")
    expected, found = plain.train_dataloader(), augmented.train_dataloader()
    assert (found.batch_size, type(found.sampler)) == (7, type(expected.sampler))
    for row in (0, 5, 1196):
        assert torch.allclose(found.dataset[row][0], expected.dataset[row][0], atol=1e-5)
        assert found.dataset[row][1] == expected.dataset[row][1]
    assert found.dataset.targets == [int(target) for _, target in expected.dataset]


def test_images_of_a_batch_are_changed_as_by_one_call_that_the_global_generator_decides():
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    views = Views(TensorDataset(images, torch.arange(6)), SMALL)
    torch.manual_seed(3)
    changed, classes = zip(*views.__getitems__([4, 1]), strict=True)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(torch.stack(changed), random_affine(images[[4, 1]], **SMALL, generator=generator))
    assert [int(one) for one in classes] == [4, 1]


def test_the_pool_the_labelled_points_of_a_posterior_and_the_test_are_clean_and_training_is_not():
    inner = DigitsDataModule(batch_size=16)
    datamodule = ActiveLearningDataModule(Augmented(inner, **SMALL), initial=8, balanced=False)
    datamodule.setup("fit")
    images = inner.train_dataloader().dataset
    labelled = datamodule.labels.labelled_indices.tolist()
    clean = torch.stack([images[index][0] for index in labelled])
    assert torch.equal(next(iter(datamodule.pool_dataloader(labelled)))[0], clean)
    seen = torch.cat([batch for batch, _ in datamodule.train_dataloader()])
    assert seen.shape == clean.shape
    assert all((view - image).abs().max() > 1e-3 for view in seen for image in clean)
    tested, _ = next(iter(inner.test_dataloader()))
    assert torch.equal(next(iter(datamodule.test_dataloader()))[0], tested)


@pytest.mark.slow
def test_a_run_acquires_the_same_points_again_and_trains_on_other_images_than_without():
    def run(datamodule):
        torch.manual_seed(0)
        model = Classifier(MLP(64, num_classes=10, hidden=(16,)))
        callback = ActiveLearning(Random(), query_size=5, max_labelled=15, num_samples=4)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=[callback], limit_val_batches=0, **quiet)
        rounds = active_fit(trainer, model, ActiveLearningDataModule(datamodule, initial=10), seed=0)
        return [entry.acquired for entry in rounds], model.net.layers[1].weight.detach().clone()

    (first, weights), (again, same), (_, plain) = (
        run(Augmented(DigitsDataModule(), shift=0.7)),
        run(Augmented(DigitsDataModule(), shift=0.7)),
        run(DigitsDataModule()),
    )
    assert first == again
    assert torch.equal(weights, same)
    assert not torch.allclose(weights, plain)


class Rows(LightningDataModule):
    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=2)


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.zeros(3, 64), torch.arange(3)),
        TensorDataset(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3)),
        [{"image": torch.zeros(1, 8, 8), "label": 1}],
        [torch.zeros(1, 8, 8)],
    ],
)
def test_what_is_no_image_with_a_class_is_refused_by_its_number(dataset):
    datamodule = Augmented(Rows(dataset))
    with pytest.raises(TypeError, match=r"Point 0 is a .* items \(image, class\)"):
        next(iter(datamodule.train_dataloader()))


@pytest.mark.parametrize(("name", "value"), [("degrees", -1.0), ("shift", float("inf"))])
def test_settings_that_make_no_map_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}"):
        Augmented(DigitsDataModule(), **{name: value})
