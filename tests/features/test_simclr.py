import math

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from al_lightning.features import ConvEncoder, Pretrained, SimCLR
from al_lightning.features.simclr import nt_xent


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


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([{"image": torch.zeros(1, 8, 8)}] * 4, "has dict where images are to be"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), r"has torch.uint8 \(2, 1, 8, 8\) where images are to be"),
        (torch.zeros(4, 64), r"has torch.float32 \(2, 64\) where images are to be"),
    ],
    ids=["dict", "bytes", "flat"],
)
def test_what_are_no_images_is_refused(points, words):
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_progress_bar=False)
    with pytest.raises(TypeError, match=words):
        trainer.fit(SimCLR(ConvEncoder(8, width=4)), DataLoader(points, batch_size=2))


def test_a_training_without_an_end_has_no_cycle():
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=-1, enable_progress_bar=False)
    with pytest.raises(ValueError, match="Give the Trainer `max_epochs` or `max_steps`"):
        trainer.fit(SimCLR(ConvEncoder(8, width=4)), DataLoader(torch.zeros(4, 1, 8, 8), batch_size=2))
