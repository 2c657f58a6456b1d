import copy

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

from al_lightning.features import Embedded
from al_lightning.features.encoder import PoolEncoder, digest_of, largest_difference, read_by


class Dicts(LightningDataModule):
    """Token ids of three lengths that are padded, with a mask and a label."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.items = []
        for index in range(20):
            ids = torch.randint(1, 30, (6,), generator=generator)
            mask = torch.arange(6) < 4 + index % 3
            self.items.append({"input_ids": ids * mask, "attention_mask": mask.long(), "labels": index % 2})

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=6)


def test_a_model_of_hugging_face_is_called_with_the_entries_of_a_dict(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes))
    datamodule = Embedded(Dicts(), model, folder=str(tmp_path / "features"))
    datamodule.setup("fit")
    with torch.no_grad():
        expected = [
            model.eval()(input_ids=one["input_ids"][None], attention_mask=one["attention_mask"][None]).pooler_output[0]
            for one in datamodule.items
        ]
    assert torch.allclose(datamodule.features_of(range(20)), torch.stack(expected), atol=1e-5)
    assert next(iter(datamodule.train_dataloader()))[1].tolist() == [0, 1, 0, 1, 0, 1]
    without_rows = transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=30, dim=8, n_layers=1, n_heads=2, hidden_dim=16)
    )
    with pytest.raises(ValueError, match=r"returned a BaseModelOutput \(\(6, 6, 8\)\), and 0 tensors in it are a row"):
        Embedded(Dicts(), without_rows, folder=str(tmp_path / "none")).setup("fit")


class Several(nn.Module):
    def forward(self, inputs):
        return inputs[:, :2], inputs[:, 2:]


def test_of_several_outputs_none_is_guessed():
    with pytest.raises(ValueError, match="and 2 tensors in it are a row of floating-point numbers for each point"):
        read_by(Several(), torch.ones(3, 4))


def test_the_digest_tells_layers_and_weights_apart_and_nothing_else():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    changed, other = copy.deepcopy(net), copy.deepcopy(net)
    assert digest_of(net) == digest_of(changed)
    changed[1].running_mean += 1e-3
    other[2] = nn.Tanh()
    assert len({digest_of(net), digest_of(changed), digest_of(other)}) == 3
    half = copy.deepcopy(net).bfloat16()
    assert digest_of(half) == digest_of(copy.deepcopy(half))


def test_differences_are_shares_of_the_largest_number():
    assert largest_difference(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert largest_difference(torch.zeros(2, 3), torch.zeros(2, 4)) == float("inf")
    assert largest_difference(torch.tensor([[4.0, 0.0]]), torch.tensor([[4.0, -1.0]])) == 0.25


def test_an_ordinary_module_is_no_encoder_of_the_whole_pool():
    assert not isinstance(nn.Linear(2, 2), PoolEncoder)
