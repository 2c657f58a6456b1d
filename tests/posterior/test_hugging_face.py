"""Models of transformers from tiny configurations, unchanged: dict batches, padding, and outputs with `logits`."""

import os

import pytest
import torch
from torch import Tensor, nn

from al_lightning.posterior import AnchoredHeads, LastLayerLaplace, MCDropConnect, MCDropout, state_of
from al_lightning.posterior.ensemble.deep_ensemble import DeepEnsemble
from al_lightning.posterior.model import map_tensors
from al_lightning.testing import check_posterior

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

K, LENGTHS = 5, [3, 6, 1, 4, 6]


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def bert(*, seed=0, **arguments):
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        classifier_dropout=0.5,
        **{"num_labels": 3, "hidden_dropout_prob": 0.2, "initializer_range": 0.5, **arguments},
    )
    return seeded(lambda: transformers.BertForSequenceClassification(config), seed)


def texts(kind=transformers.BatchEncoding):
    length = max(LENGTHS)
    mask = torch.tensor([[1] * one + [0] * (length - one) for one in LENGTHS])
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return kind({"input_ids": ids, "attention_mask": mask})


def ensemble():
    return DeepEnsemble(K).trained([state_of(bert(seed=k)) for k in range(K)])


@pytest.mark.parametrize(
    "make",
    [MCDropout, LastLayerLaplace, AnchoredHeads, lambda: MCDropConnect(p=0.3), ensemble],
    ids=["drop", "laplace", "heads", "con", "ens"],
)
def test_every_posterior_keeps_its_contract_on_dict_batches(make):
    check_posterior(make(), bert(), texts(), num_samples=K)


@pytest.mark.parametrize("kind", [dict, transformers.BatchEncoding])
def test_predictions_are_those_of_a_loop_over_masks_of_the_pooled_output(kind):
    model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    inputs = {**texts(dict), "labels": torch.tensor([0, 1, 2, 0, 1])}
    with MCDropout().sample(model, K, seed=3) as predict:
        log_probs_B_K_C = predict(kind(inputs))
        keep_K_D = predict._masked.masks["dropout", 0].keep
    model.eval()
    with torch.no_grad():
        pooled_B_D = model.bert(**texts(dict)).pooler_output
        logits_k_B_C = [model.classifier(pooled_B_D * keep_D / 0.5) for keep_D in keep_K_D]
    expected_B_K_C = torch.stack(logits_k_B_C, dim=1).log_softmax(dim=-1)
    torch.testing.assert_close(log_probs_B_K_C, expected_B_K_C, rtol=0, atol=1e-5)


def test_what_is_no_tensor_in_an_encoding_is_no_obstacle():
    model, encoding = bert(), texts()
    encoding["idx"], encoding["text"] = torch.arange(5), ["a", "b", "c", "d", "e"]

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask=None):
            return self.model(input_ids=input_ids, attention_mask=attention_mask)

    with MCDropout().sample(Wrapped(), K, seed=3) as predict:
        assert predict(encoding).shape == (5, K, 3)


def test_tuples_of_a_model_that_returns_no_dict_are_understood():
    model, same = bert(), bert()
    same.config.return_dict = False
    with MCDropout().sample(model, K, seed=3) as predict, MCDropout().sample(same, K, seed=3) as predict_same:
        torch.testing.assert_close(predict(texts()), predict_same(texts()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_labels": 1}, "`num_labels` 1 and `config.problem_type` None.*Regression is not supported"),
        ({"problem_type": "regression"}, "Regression is not supported"),
        ({"problem_type": "multi_label_classification"}, "several labels at once are not supported"),
    ],
)
@pytest.mark.parametrize("posterior", [MCDropout(), LastLayerLaplace(), AnchoredHeads(), MCDropConnect(0.3)], ids=repr)
def test_heads_that_are_no_classifiers_are_refused_in_the_preview(arguments, words, posterior):
    wrapped = nn.Sequential(bert(**arguments))
    with pytest.raises(ValueError, match=rf"`0` \(BertForSequenceClassification\) has .*{words}"):
        posterior.preview(wrapped, texts())


def test_a_head_for_each_token_is_refused_with_its_shape():
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = seeded(lambda: transformers.BertForTokenClassification(config))
    with pytest.raises(ValueError, match=r"shape \(5, 6, 2\), and floating-point logits of shape \(B, C\)"):
        LastLayerLaplace().preview(model, texts())


def test_a_gpt_2_for_classification_runs():
    config = transformers.GPT2Config(
        vocab_size=30,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        num_labels=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.5,
    )
    model = seeded(lambda: transformers.GPT2ForSequenceClassification(config))
    check_posterior(MCDropout(), model, texts(), num_samples=K)


def test_an_output_of_a_model_keeps_its_kind_when_its_tensors_are_mapped():
    output = bert().eval()(**texts())
    mapped = map_tensors(Tensor.neg, output)
    assert type(mapped) is type(output)
    assert torch.equal(mapped.logits, -output.logits)
    assert mapped["logits"] is mapped.logits
