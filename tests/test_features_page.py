"""Each block of docs/guides/features.md, run, and its tables, which name what there is."""

import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import al_lightning
from al_lightning import Acquisition, Random, active_fit
from al_lightning.acquisition.base import check_needs
from al_lightning.models import Classifier
from al_lightning.rounds.settings import check_cold_start

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "features.md").read_text()
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
NAMES = {name: getattr(al_lightning, name) for name in al_lightning.__all__}
QUICK = {
    "max_epochs=20": "max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, "
    "enable_model_summary=False, accelerator='cpu'",
    "num_samples=100": "num_samples=8",
    "max_labelled=100": "max_labelled=20",
    "points_per_epoch=640": "points_per_epoch=64",
    "nn.Linear(40, 10)": "nn.Linear(6, 3)",
    "num_eigenvectors=40": "num_eigenvectors=6",
}


def blocks(section, language):
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


def quick(script):
    for long, short in QUICK.items():
        script = script.replace(long, short)
    return script


class Images(LightningDataModule):
    """Three groups of small images."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.arange(90) % 3
        self.images = torch.eye(16)[self.targets * 5].view(-1, 1, 4, 4)
        self.images = self.images + 0.2 * torch.rand(90, 1, 4, 4, generator=generator)

    def loader(self, part):
        return DataLoader(TensorDataset(self.images[part], self.targets[part]), batch_size=8)

    def train_dataloader(self):
        return self.loader(slice(60))

    def test_dataloader(self):
        return self.loader(slice(60, 90))


class LargerImages(Images):
    """Those of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.images = self.images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_each_block_has_a_test():
    found = {title: re.findall(r"```(\w+)\n.*?```", text, re.DOTALL) for title, text in SECTIONS.items()}
    assert {title: each for title, each in found.items() if each} == {
        "In your own script": ["python"],
        "On the command line": ["bash"],
        "Encoders": ["python", "python"],
        "The first batch": ["python"],
        "Acquisitions": ["python"],
    }


@pytest.fixture
def in_script(tmp_path, monkeypatch):
    """The names that the script leaves behind."""
    monkeypatch.chdir(tmp_path)
    (script,) = blocks("In your own script", "python")
    names = {"MyDataModule": Images}
    exec(quick(script), names)  # noqa: S102 - of this repository
    return names


def test_a_script_makes_features_once_and_trains_a_layer_on_them(in_script, tmp_path):
    assert [record.num_labelled for record in in_script["rounds"]] == [0, 10, 20]
    assert in_script["rounds"][-1].metrics["test_acc"] > 0.9
    assert len(list((tmp_path / "features").iterdir())) == 1


@pytest.mark.slow
def test_the_first_batch_is_chosen_on_the_features(in_script):
    (script,) = blocks("The first batch", "python")
    exec(quick(script), in_script | NAMES, names := {})  # noqa: S102 - of this repository
    trainer = in_script["Trainer"](
        max_epochs=2,
        limit_val_batches=0,
        callbacks=[names["callback"]],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    rounds = active_fit(trainer, Classifier(nn.Linear(6, 3)), names["datamodule"])
    assert [record.num_labelled for record in rounds] == [0, 10, 20]
    classes = Images().targets[rounds[0].acquired]
    assert set(classes.tolist()) == {0, 1, 2}


def test_the_commands_name_configurations_that_are_there():
    (commands,) = blocks("On the command line", "bash")
    named = re.findall(r"configs/\w+\.yaml", SECTIONS["On the command line"])
    assert len(named) == 4
    assert all((Path(__file__).parents[1] / name).exists() for name in named)
    assert [line.split(" --")[0] for line in commands.splitlines()] == ["al-lightning fit"] * 2


def test_an_encoder_is_trained_in_a_script_and_its_features_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, _ = blocks("Encoders", "python")
    script = script.replace("max_epochs=10", QUICK["max_epochs=20"])
    names = {"MyDataModule": LargerImages, "Trainer": Trainer}
    exec(script, NAMES | names, found := {})  # noqa: S102 - of this repository
    found["features"].setup("fit")
    features = found["features"].features_of([0, 3])
    assert features.shape == (2, 128)
    encoder = found["simclr"].encoder
    assert all(norm.num_batches_tracked > 0 for norm in encoder.modules() if isinstance(norm, nn.BatchNorm2d))  # fitted
    with torch.no_grad():
        torch.testing.assert_close(features, encoder.eval()(LargerImages().images[[0, 3]]))


class Texts(LightningDataModule):
    def train_dataloader(self):
        items = [
            {
                "input_ids": torch.tensor([index % 7, 3, 5]),
                "attention_mask": torch.tensor([1, 1, index % 2]),
                "label": 0,
            }
            for index in range(12)
        ]
        return DataLoader(items, batch_size=4)


class Hidden(nn.Module):
    """As a transformer of another library: an output with `last_hidden_state`."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 5)

    def forward(self, input_ids, attention_mask):
        assert attention_mask.shape == input_ids.shape
        return type("Output", (), {"last_hidden_state": self.words(input_ids)})


def test_a_transformers_hidden_states_become_their_mean_over_the_tokens_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, script = blocks("Encoders", "python")
    names = {"nn": nn, "Embedded": al_lightning.Embedded, "MyTexts": Texts, "net": (net := Hidden())}
    exec(script, names)  # noqa: S102 - of this repository
    names["features"].setup("fit")
    found = names["features"].features_of([0, 1])
    words = net.words.weight.detach()
    expected = torch.stack([words[[0, 3]].mean(dim=0), words[[1, 3, 5]].mean(dim=0)])
    torch.testing.assert_close(found, expected)


def test_targets_come_from_a_method_of_the_data_module():
    (script,) = blocks("Acquisitions", "python")
    exec(script, names := {"MyDataModule": Images, "DataLoader": DataLoader})  # noqa: S102 - of this repository
    datamodule = names["WithTargets"]()
    assert next(iter(datamodule.target_dataloader())).shape == (90,)
    ((arguments),) = re.findall(r"`Screening\((.*?\)*)\)`", SECTIONS["Acquisitions"])
    assert eval(f"Screening({arguments})", dict(NAMES)).score == al_lightning.EPIG()  # noqa: S307 - of this repository


def named_in(section):
    rows = re.findall(r"^\| (`.*?`) \| ([^|]*) \|", SECTIONS[section], re.MULTILINE)
    return {call: takes for calls, takes in rows for call in re.findall(r"`([^`]+)`", calls)}


def test_the_table_of_acquisitions_names_all_of_them_and_what_they_take():
    kinds = {
        name: kind
        for name, kind in NAMES.items()
        if isinstance(kind, type) and issubclass(kind, Acquisition) and name not in {"Acquisition", "Pointwise"}
    }
    words = {"predictions": "predictions", "features": "features", "targets": "of targets", "disagreement": ""}
    rows = named_in("Acquisitions")
    assert {call.split("(")[0] for call in rows} == set(kinds)
    for call, takes in rows.items():
        acquisition = eval(call, dict(NAMES))  # noqa: S307 - of this repository
        check_needs(acquisition)
        assert all(words[need] in takes for need in acquisition.needs), call
        assert ("features" in takes, "targets" in takes) == (
            "features" in acquisition.needs,
            "targets" in acquisition.needs,
        )


def test_the_acquisitions_for_the_first_batch_are_those_that_need_no_model():
    for call in re.findall(r"`(\w+\(\))`", SECTIONS["The first batch"].split("```")[2]):
        check_cold_start(eval(call, dict(NAMES)))  # noqa: S307 - of this repository
    assert al_lightning.ActiveLearning(Random()).settings.cold_start == Random()


def test_the_table_of_encoders_builds_each(tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "file.ckpt")
    given = {"net": nn.Linear(2, 3), "encoder": nn.Flatten(), "model": nn.Module()}
    for call in named_in("Encoders"):
        if "(" not in call or "..." in call:
            continue
        code = call.replace("file.ckpt", str(tmp_path / "file.ckpt"))
        assert isinstance(eval(code, NAMES | given), nn.Module), call  # noqa: S307 - of this repository
