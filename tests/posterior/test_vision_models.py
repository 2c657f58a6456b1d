"""ViT and ConvNeXt of transformers from tiny configurations: `pixel_values`, heads by name, frozen backbones."""

import os

import pytest
import torch
from torch import nn

from al_lightning.posterior import DeepEnsemble, LastLayerLaplace, MCDropConnect, MCDropout, Point, state_of
from al_lightning.testing import check_posterior

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

K, NUM, SIDE = 4, 5, 8
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


def made(kind, suffix="ForImageClassification", *, seed=0, **arguments):
    config = getattr(transformers, f"{kind}Config")(num_labels=3, initializer_range=0.5, **SIZES[kind], **arguments)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, f"{kind}{suffix}")(config)


def with_dropout(kind):
    """Give the head dropout, as one does to a backbone without any."""
    model = made(kind)
    model.classifier = nn.Sequential(nn.Dropout(0.5), model.classifier)
    return model


def pictures(num=NUM):
    return {"pixel_values": torch.randn(num, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))}


@pytest.fixture(params=["ViT", "ConvNext"])
def kind(request):
    return request.param


NAMED = [LastLayerLaplace(layer="classifier"), MCDropConnect(0.3, layers=("classifier",))]


@pytest.mark.parametrize(
    "posterior", [*NAMED, LastLayerLaplace(), MCDropConnect(0.3), Point(), "DeepEnsemble"], ids=repr
)
def test_posteriors_keep_their_contract(posterior, kind):
    if posterior == "DeepEnsemble":
        posterior = DeepEnsemble(K).trained([state_of(made(kind, seed=k)) for k in range(K)])
    check_posterior(posterior, made(kind), pictures(), num_samples=1 if posterior == Point() else K)


@pytest.mark.parametrize("posterior", NAMED, ids=repr)
def test_posteriors_of_a_named_head_keep_their_contract_on_a_frozen_backbone(posterior, kind):
    model = made(kind)
    model.base_model.requires_grad_(requires_grad=False)
    check_posterior(posterior, model, pictures(), num_samples=K)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"classifier.weight", "classifier.bias"}


def test_mc_dropout_keeps_its_contract_with_a_dropout_of_the_head(kind):
    check_posterior(MCDropout(), with_dropout(kind), pictures(), num_samples=K)


def test_mc_dropout_keeps_its_contract_with_all_dropout_of_a_vit():
    model = made("ViT", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    check_posterior(MCDropout(), model, pictures(), num_samples=K)
    with MCDropout().sample(model, K, seed=0) as predict:
        predict(pictures())
    assert predict.sampled.startswith("attention in 1 layer, ")


def test_a_convnext_whose_blocks_are_left_out_at_random_has_no_dropout_of_units():
    with pytest.raises(ValueError, match=r"MCDropout drew no mask .*LastLayerLaplace\(\)"):
        MCDropout().preview(made("ConvNext", drop_path_rate=0.5), pictures())


def test_predictions_are_those_of_a_loop_over_masks_of_the_pooled_output():
    model = with_dropout("ConvNext").eval()
    with MCDropout().sample(model, K, seed=3) as predict:
        log_probs_B_K_C = predict(pictures())
        keep_K_D = predict._masked.masks["classifier.0", 0].keep
    with torch.no_grad():
        pooled_B_D = model.convnext(**pictures()).pooler_output
        logits_k_B_C = [model.classifier[1](pooled_B_D * keep_D / 0.5) for keep_D in keep_K_D]
    expected_B_K_C = torch.stack(logits_k_B_C, dim=1).log_softmax(dim=-1)
    torch.testing.assert_close(log_probs_B_K_C, expected_B_K_C, rtol=0, atol=1e-5)


class Tuned(nn.Module):
    """A frozen backbone and a head of one's own."""

    def __init__(self, kind):
        super().__init__()
        self.backbone = made(kind, "Model").requires_grad_(requires_grad=False)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Sequential(nn.Dropout(0.5), nn.LazyLinear(3))
            self(**pictures())

    def forward(self, pixel_values):
        return self.head(self.backbone(pixel_values=pixel_values).pooler_output)


@pytest.mark.parametrize(
    "predict",
    [None, lambda model, batch: model.head(model.backbone(pixel_values=batch["pixel_values"]).pooler_output)],
    ids=["forward", "predict="],
)
def test_a_frozen_backbone_runs_once_for_all_samples(predict, kind):
    model, calls = Tuned(kind), []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    with MCDropout(predict=predict).sample(model, 20, seed=0) as predict_K:
        predict_K(pictures())
        assert predict_K.path == "vmap", predict_K.reason
        calls.clear()
        assert predict_K(pictures(3)).shape == (3, 20, 3)
    assert len(calls) == 1
