"""Rounds of transformers' vision models, from dict batches of `pixel_values` and `labels`."""

import os

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from al_lightning import (
    BALD,
    ActiveLearningDataModule,
    DeepEnsemble,
    Entropy,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    Point,
    active_fit,
)
from al_lightning.posterior import state_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

NUM, SIDE = 24, 8
SIZES = {
    "ViT": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": SIDE,
        "patch_size": 4,
    },
    "ConvNext": {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "image_size": SIDE, "patch_size": 2},
}


class OfPictures(LightningModule):
    """A frozen backbone whose head is trained, with dropout before it."""

    def __init__(self, kind):
        super().__init__()
        self.given = set()
        config = getattr(transformers, f"{kind}Config")(num_labels=3, initializer_range=0.5, **SIZES[kind])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = getattr(transformers, f"{kind}ForImageClassification")(config)
        self.model.base_model.requires_grad_(requires_grad=False)
        self.model.classifier = nn.Sequential(nn.Dropout(0.5), self.model.classifier)

    def forward(self, **inputs):
        self.given |= inputs.keys()
        return self.model(**inputs)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=0.05)


class Pictures(LightningDataModule):
    def train_dataloader(self):
        noise = torch.randn(NUM, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        items = [{"pixel_values": noise[index] + index % 3, "labels": index % 3} for index in range(NUM)]
        return DataLoader(items, batch_size=8, shuffle=True)


@pytest.mark.parametrize("kind", ["ViT", "ConvNext"])
@pytest.mark.parametrize(
    "posterior",
    [
        *(MCDropout(), LastLayerLaplace(layer="model.classifier.1"), LastLayerLaplace(layer="model.classifier")),
        *(MCDropConnect(0.3, layers=["model.classifier.1"]), DeepEnsemble(2), Point()),
        MCDropout(predict=lambda module, batch: module.model(pixel_values=batch["pixel_values"]).logits),
    ],
    ids=["drop", "laplace", "laplace of a part", "connect", "ensemble", "point", "predict="],
)
def test_each_posterior_chooses_a_batch_and_leaves_the_frozen_backbone_alone(
    posterior, kind, make_trainer, make_callback
):
    model = OfPictures(kind)
    before = state_of(model.model.base_model)
    acquisition = Entropy() if posterior == Point() else BALD()
    num_samples = None if isinstance(posterior, (DeepEnsemble, Point)) else 8
    callback = make_callback(acquisition, posterior=posterior, num_samples=num_samples, max_rounds=2)
    datamodule = ActiveLearningDataModule(Pictures(), initial=6)
    first, _ = active_fit(make_trainer(callback, max_epochs=1), model, datamodule)
    assert len({*first.acquired}) == 4
    assert first.targets == [index % 3 for index in first.acquired]
    after = state_of(model.model.base_model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in model.model.base_model.parameters())
    assert model.given <= {"pixel_values"}
