"""Fine-tuned models: LoRA of PEFT, saved heads, heads by name, frozen backbones with a dropout head."""

import os

import pytest
import torch
from torch import nn

from al_lightning.posterior import (
    AnchoredHeads,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    Point,
    state_of,
)
from al_lightning.testing import check_posterior

os.environ.setdefault("HF_HUB_OFFLINE", "1")
K, LENGTHS = 4, [3, 6, 1, 4, 6]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def texts():
    mask = torch.tensor([[1] * one + [0] * (max(LENGTHS) - one) for one in LENGTHS])
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask}


def lora(*, lora_dropout=0.3, seed=0, **arguments):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(
        vocab_size=30,
        max_position_embeddings=16,
        num_labels=3,
        initializer_range=0.5,
        **{**sizes, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **arguments},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=lora_dropout, target_modules=["query", "value"])
        model = peft.get_peft_model(transformers.BertForSequenceClassification(config), kind)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: an adapter that is not trained changes nothing
                nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "posterior",
    [
        MCDropout(),
        MCDropConnect(0.3),
        LastLayerLaplace(),
        LastLayerLaplace(layer="base_model.model.classifier"),
        AnchoredHeads(layer="base_model.model.classifier"),
        Point(),
    ],
    ids=repr,
)
def test_posteriors_keep_their_contract_on_lora(posterior):
    check_posterior(posterior, lora(), texts(), num_samples=1 if posterior == Point() else K)


@pytest.mark.slow
def test_lora_dropout_is_sampled_beside_that_of_the_model():
    with MCDropout().sample(lora(hidden_dropout_prob=0.2), K, seed=0) as predict:
        predict(texts())
        layers = {layer for layer, _ in predict._masked.masks}
    assert sum("lora_dropout" in layer for layer in layers) == 2
    assert len(layers) > 2


@pytest.mark.slow
def test_a_merged_adapter_has_no_dropout_and_the_error_names_its_layers():
    model = lora()
    model.merge_adapter()
    words = r"adapters of `.*self.query`, `.*self.value` are merged into .*`model.unmerge_adapter\(\)`"
    with pytest.raises(ValueError, match=words):
        MCDropout().preview(model, texts())
    with pytest.raises(ValueError, match=words), MCDropout().sample(model, K, seed=0):
        pass
    model.unmerge_adapter()
    MCDropout().preview(model, texts())


@pytest.mark.slow
def test_other_posteriors_predict_a_merged_adapter_as_it_was_before():
    model = lora()
    with Point().sample(model, 1, seed=0) as predict:
        before = predict(texts())
    model.merge_adapter()
    for posterior in (Point(), LastLayerLaplace(), MCDropConnect(0.3)):
        assert posterior.preview(model, texts()).shape == (5, 3)
    with Point().sample(model, 1, seed=0) as predict:
        torch.testing.assert_close(predict(texts()), before)


@pytest.mark.slow
def test_a_disabled_adapter_is_not_sampled_and_stays_disabled():
    model = lora(hidden_dropout_prob=0.2)
    model.base_model.disable_adapter_layers()
    before = state_of(model)
    with MCDropout().sample(model, K, seed=0) as predict:
        predict(texts())
        assert not any("lora" in layer for layer, _ in predict._masked.masks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    assert model.base_model.model.bert.encoder.layer[0].attention.self.query.disable_adapters


@pytest.mark.slow
def test_members_of_an_ensemble_differ_in_what_learns_alone():
    model = lora()
    members = DeepEnsemble(2).members
    states = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            members.start(model)
        states.append(state_of(model))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    differing = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differing
    assert differing <= learning


@pytest.mark.slow
def test_members_start_with_adapters_that_add_nothing_if_those_of_the_model_do_not():
    model = lora()
    trained, fresh = "q", "v"
    for name, parameter in model.named_parameters():
        if "value.lora_B" in name:
            nn.init.zeros_(parameter)
    with torch.random.fork_rng():
        DeepEnsemble(2).members.start(model)
    added = {name: bool(tensor.any()) for name, tensor in state_of(model).items() if "lora_B" in name}
    assert {name.split(".")[-4][0]: adds for name, adds in added.items()} == {trained: True, fresh: False}


@pytest.mark.slow
def test_gpt_2_whose_head_runs_on_each_token_is_served_by_laplace():
    transformers = pytest.importorskip("transformers")
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=30, num_labels=3, initializer_range=0.5, **tokens, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2ForSequenceClassification(config)
    check_posterior(LastLayerLaplace(layer="score"), model, texts(), num_samples=K)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.body.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.body(x)


class Tuned(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone, self.head = Backbone(), nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 3))

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.mark.parametrize(
    "predict", [None, lambda model, batch: model.head(model.backbone(batch["x"]))], ids=["forward", "predict="]
)
def test_a_frozen_backbone_before_the_first_dropout_runs_once_for_all_samples(predict):
    model, x = Tuned(), torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    batch = x if predict is None else {"x": x}
    calls = []
    with MCDropout(predict=predict).sample(model, 50, seed=0) as predict_K:
        predict_K(batch)
        assert predict_K.path == "vmap"
        handle = model.backbone.register_forward_hook(lambda *_: calls.append(1))
        log_probs_B_K_C = predict_K(batch)
        handle.remove()
    assert log_probs_B_K_C.shape == (8, 50, 3)
    assert len(calls) == 1
