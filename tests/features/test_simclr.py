import math

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from al_lightning.features import ConvEncoder, Pretrained, SimCLR
from al_lightning.features.simclr import nt_xent, random_affine

NOTHING = {"degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0}


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_loss_is_that_of_a_loop_over_all_views(temperature):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    views = [*first, *second]
    losses = []
    for number, view in enumerate(views):
        cosines = [float(view @ other / view.norm() / other.norm()) / temperature for other in views]
        partner = (number + 5) % 10
        others = sum(math.exp(cosine) for other, cosine in enumerate(cosines) if other != number)
        losses.append(-math.log(math.exp(cosines[partner]) / others))
    assert nt_xent(first, second, temperature=temperature).item() == pytest.approx(sum(losses) / 10, abs=1e-5)


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


def test_each_image_gets_a_map_of_its_own_that_the_seed_decides():
    images = torch.rand(1, 1, 8, 8).expand(3, -1, -1, -1)
    maps = {"degrees": 15.0, "scale": 0.15, "shear": 0.2, "shift": 1.0}
    first, again, other = (
        random_affine(images, **maps, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


@pytest.mark.slow
def test_a_trained_encoder_tells_images_apart_and_is_found_in_its_checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(8, 1, 8, 8, generator=generator)
    images = prototypes[torch.arange(128) % 8] + 0.05 * torch.rand(128, 1, 8, 8, generator=generator)
    torch.manual_seed(0)
    module = SimCLR(ConvEncoder(8, width=16), shift=0.5)
    trainer = Trainer(
        accelerator="cpu", logger=False, max_epochs=12, enable_progress_bar=False, default_root_dir=tmp_path
    )
    loader = DataLoader(TensorDataset(images, torch.zeros(128)), batch_size=32, shuffle=True, drop_last=True)
    trainer.fit(module, loader)
    assert float(trainer.callback_metrics["train_loss"]) < math.log(63) - 1  # that of features that say nothing
    path = tmp_path / "simclr.ckpt"
    trainer.save_checkpoint(path)
    encoder = Pretrained(ConvEncoder(8, width=16), str(path), part="encoder").eval()
    assert torch.equal(encoder(images), module.eval()(images))


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("lr", math.inf)])
def test_settings_that_cannot_train_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}, but must be positive and finite"):
        SimCLR(ConvEncoder(8), **{name: value})
