import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from al_lightning.posterior.dropout.unreachable import refuse_unreachable_dropout


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (scripted(nn.Sequential(nn.Linear(2, 2), nn.Dropout())), r"`1` \(a TorchScript module that contains dropout\)"),
    ],
)
def test_dropout_that_cannot_be_reached_is_refused_by_name(module, words):
    with pytest.raises(ValueError, match="MCDropout cannot reach the dropout inside .*" + words):
        refuse_unreachable_dropout(nn.Sequential(nn.Dropout(), module))


def test_a_model_that_is_itself_unreachable_is_named_so():
    with pytest.raises(ValueError, match=r"the dropout inside the model itself \(a TorchScript module"):
        refuse_unreachable_dropout(scripted(nn.Dropout()))


def test_all_layers_are_listed():
    model = nn.Sequential(scripted(nn.Dropout()), scripted(nn.Sequential(nn.Dropout())))
    with pytest.raises(ValueError, match=r"`0` \(.*`1` \("):
        refuse_unreachable_dropout(model)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(2, 2, num_layers=2, dropout=0.2),
        torch.compile(nn.Linear(2, 2), backend="eager"),
        nn.MultiheadAttention(2, 1, dropout=0.3),
        nn.TransformerEncoderLayer(2, 1, dropout=0.3),
        scripted(nn.Linear(2, 2)),
        nn.Dropout(),
    ],
)
def test_modules_without_hidden_dropout_pass(module):
    refuse_unreachable_dropout(nn.Sequential(nn.Dropout(), module))


class Configured(nn.Module):
    """A model that chooses its attention as transformers' do."""

    def __init__(self, implementation, **config):
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=implementation, **config)
        self.inner = nn.Dropout()


@pytest.mark.parametrize("config", [{"attention_probs_dropout_prob": 0.1}, {"attn_pdrop": 0.1}, {"dropout_rate": 0.1}])
@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention", "kernels-community/flash-attn"])
def test_attention_kernels_that_drop_by_themselves_are_refused_by_name(kernel, config):
    with pytest.raises(ValueError, match=rf"inside attention by {kernel} in `1`.*attn_implementation='sdpa'"):
        refuse_unreachable_dropout(nn.Sequential(nn.Dropout(), Configured(kernel, **config)))


@pytest.mark.parametrize(
    ("kernel", "config"),
    [
        ("sdpa", {"attention_dropout": 0.1}),
        ("eager", {"attention_dropout": 0.1}),
        (None, {"attention_dropout": 0.1}),
        ("flash_attention_2", {"attention_dropout": 0.0, "hidden_dropout": 0.1}),
        ("flash_attention_2", {"dropout_rate": 0.0, "hidden_size": 16}),
    ],
)
def test_attention_whose_dropout_is_seen_or_absent_passes(kernel, config):
    refuse_unreachable_dropout(Configured(kernel, **config))


class Adapted(nn.Module):
    """A layer with an adapter, as PEFT's and loralib's are."""

    def __init__(self, *, p=0.5, is_merged=True, learns=True):
        super().__init__()
        self.base_layer, self.lora_dropout, self.lora_A = nn.Linear(2, 2), nn.Dropout(p), nn.Linear(2, 2)
        self.merged = is_merged
        self.lora_A.requires_grad_(learns)


def test_an_adapter_that_is_merged_into_its_layer_is_refused_with_the_way_out():
    model = nn.Sequential(nn.Dropout(), Adapted(), Adapted(is_merged=False), Adapted())
    with pytest.raises(
        ValueError, match=r"adapters of `1`, `3` are merged .*`model.unmerge_adapter\(\)`.*`requires_grad_\(False\)`"
    ):
        refuse_unreachable_dropout(model)


@pytest.mark.parametrize(
    "adapted",
    [Adapted(is_merged=False), Adapted(p=0.0), Adapted(p=1.0), Adapted(learns=False)],
    ids=["not merged", "without dropout", "drops all", "frozen"],
)
def test_an_adapter_without_dropout_that_is_missed_passes(adapted):
    refuse_unreachable_dropout(nn.Sequential(nn.Dropout(), adapted))
