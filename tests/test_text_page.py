"""Texts end to end: the example on small and real files, its configuration, and each block of docs/guides/text.md."""

import csv
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

import al_lightning
from al_lightning import read_journal
from al_lightning.cli.command import run
from al_lightning.datasets import TextDataModule, collate_texts
from al_lightning.models import TextClassifier

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "text.yaml"
PAGE = (ROOT / "docs" / "guides" / "text.md").read_text()
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
NAMES = {name: getattr(al_lightning, name) for name in al_lightning.__all__}
TREC = os.environ.get("AL_LIGHTNING_TEXT")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


def blocks(section, language):
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.fixture
def _offline(monkeypatch, tmp_path):
    """An empty folder, without a network and without TREC."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("AL_LIGHTNING_TEXT", raising=False)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    monkeypatch.chdir(tmp_path)


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def write_questions(folder):
    """Write 60 and 12 questions whose first word tells the class, of two to seven words, with commas and quotes."""
    folder.mkdir()
    starts = {"HUM": "Who", "LOC": 'Where, "then",', "NUM": "When"}
    rows = [
        (f"{starts[label]} {' '.join(f'w{(index + at) % 9}' for at in range(1 + index % 6))} ?", label)
        for index, label in enumerate([*starts] * 24)
    ]
    write_csv(folder / "trec_train.csv", rows[:60])
    write_csv(folder / "trec_test.csv", rows[60:])
    return folder


def fit(*flags):
    quick = ["--trainer.max_epochs=1", "--data.points_per_epoch=32", "--trainer.enable_progress_bar=false"]
    quick += ["--trainer.callbacks.max_rounds=2", "--trainer.callbacks.num_samples=4"]
    run(["fit", "--config", CONFIG.name, *quick, *flags])
    return read_journal(Path("runs") / "text" / "version_0")


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_two_rounds_of_the_configuration_on_a_tiny_file(tmp_path, monkeypatch):
    monkeypatch.setenv("AL_LIGHTNING_TEXT", str(write_questions(tmp_path / "files")))
    header, (first, last) = fit("--data.initial=6", "--trainer.callbacks.query_size=3", "--model.num_classes=3")
    assert header["acquisition"]["class_path"] == "al_lightning.BatchBALD"
    assert (header["num_points"], first.num_labelled, last.num_labelled) == (60, 6, 9)
    assert first.targets == [index % 3 for index in first.acquired]
    assert 0 < first.information["joint_mi"] <= 3 * torch.log(torch.tensor(3.0))
    assert set(last.metrics) == {"train_loss", "test_acc", "test_mean_recall"}
    assert all(value is not None for value in last.metrics.values())


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
@pytest.mark.skipif(
    TREC is None, reason="AL_LIGHTNING_TEXT does not name a folder with trec_train.csv and trec_test.csv"
)
def test_two_rounds_on_real_questions():
    header, (first, last) = fit("--trainer.callbacks.max_predicted=64", f"--data.datamodule.root={TREC}")
    assert (header["num_points"], first.num_labelled, last.num_labelled) == (5452, 20, 40)
    with (Path(TREC) / "trec_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    assert len(names) == 6
    assert first.targets == [names.index(rows[index]["label"]) for index in first.acquired]
    assert first.information["num_predicted"] == 64
    assert last.metrics["test_acc"] > 0.1


def test_the_sizes_of_model_and_data_agree_in_the_configuration():
    config = yaml.safe_load(CONFIG.read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]["datamodule"]["init_args"]
    assert all(model[name] == data[name] for name in ("vocab_size", "max_length"))


def test_each_block_has_a_test():
    found = {title: re.findall(r"```(\w+)\n.*?```", part, re.DOTALL) for title, part in SECTIONS.items()}
    assert {title: each for title, each in found.items() if each} == {
        "In your own script": ["python"],
        "On the command line": ["bash"],
        "What is sampled": ["python", "text"],
        "Attention written by hand": ["python"],
        "Another key of the label": ["python"],
        "A pretrained model": ["python", "python"],
    }


def test_the_script_is_that_of_the_configuration():
    (script,) = blocks("In your own script", "python")
    config = yaml.safe_load(CONFIG.read_text())
    data, trainer = config["data"]["init_args"], config["trainer"]
    active = trainer["callbacks"][0]["init_args"]
    words = [f"max_epochs={trainer['max_epochs']}", f"balanced={data['balanced']}", f"initial={data['initial']}"]
    words += [f"points_per_epoch={data['points_per_epoch']}"]
    words += [f"{name}={active[name]}" for name in ("query_size", "max_labelled", "num_samples")]
    assert [word for word in words if word not in script] == []


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_four_lines_of_a_script_change_and_what_it_samples_is_what_the_page_prints(tmp_path, capsys):
    (script,) = blocks("In your own script", "python")
    assert re.findall(r"# (\d)", script) == ["1", "2", "3", "4"]
    quiet = ", ".join(f"{name}={value!r}" for name, value in QUIET.items())
    quick = {
        "max_epochs=12": f"max_epochs=1, {quiet}",
        "FOLDER": str(write_questions(tmp_path / "files")),
        "max_labelled=200, num_samples=50": "max_labelled=40, num_samples=4",
        "points_per_epoch=320": "points_per_epoch=32",
    }
    for before, after in quick.items():
        assert before in script
        script = script.replace(before, after)
    names = {}
    exec(script, names)  # noqa: S102 - of this repository
    assert [entry.num_labelled for entry in names["rounds"]] == [20, 40]
    capsys.readouterr()
    (block,), (printed,) = blocks("What is sampled", "python"), blocks("What is sampled", "text")
    exec(block, names)  # noqa: S102
    assert capsys.readouterr().out == printed
    assert names["log_probs_B_K_C"].shape == (2, 10, 6)


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_the_commands_are_accepted(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (commands,) = blocks("On the command line", "bash")
    export, *fits = commands.splitlines()
    monkeypatch.setenv(*export.partition("  #")[0].removeprefix("export ").split("="))
    assert len(fits) == 2
    flags = re.findall(r"`(--data\.datamodule\.train=.*?)`", SECTIONS["On the command line"])
    for command in [*fits, f"{fits[0]} {flags[0]}"]:
        name, *arguments = command.split()
        with pytest.raises(SystemExit) as ended:
            run([*arguments, "--print_config"])
        assert (name, ended.value.code) == ("al-lightning", 0)
    assert "train: my_train.csv" in capsys.readouterr().out


def test_attention_by_torch_is_that_written_by_hand():
    (block,) = blocks("Attention written by hand", "python")
    module, (q, k, v) = torch.nn.Module(), torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    module.drop, scores = torch.nn.Dropout(0.9), q @ k.transpose(-2, -1) / 8**0.5
    for names in ({"self": module.eval()}, {"self": module.train()}):
        names |= {"torch": torch, "q": q, "k": k, "v": v}
        exec(block, names)  # noqa: S102 - of this repository
        is_equal = torch.allclose(names["attended"], scores.softmax(dim=-1) @ v, atol=1e-6)
        assert is_equal != module.training


def test_another_key_of_the_label_stays_out_of_the_pool(make_trainer):
    class Intents(LightningDataModule):
        def train_dataloader(self):
            return DataLoader([{"x": torch.zeros(4), "intent": index % 3} for index in range(30)], batch_size=4)

    (block,) = blocks("Another key of the label", "python")
    datamodule = eval(block, {**NAMES, "MyDataModule": Intents})  # noqa: S307 - of this repository
    datamodule.setup("fit")
    assert [set(batch) for batch in datamodule.pool_dataloader()] == [{"x"}] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_of_a_frozen_encoder_the_head_alone_is_drawn_and_the_encoder_keeps_its_weights(tmp_path, make_trainer):
    transformers = sys.modules["transformers"]
    frozen, without_dropout = blocks("A pretrained model", "python")
    model = TextClassifier(num_classes=3, width=16)
    names = {**NAMES, "model": model}
    exec(frozen, names)  # noqa: S102 - of this repository
    before = {name: each.clone() for name, each in model.state_dict().items() if name.startswith("bert.bert.")}
    callback = names["callback"]
    callback.settings = al_lightning.ActiveLearning(
        callback.settings.acquisition, posterior=callback.settings.posterior, query_size=4, max_rounds=2
    ).settings
    inner = TextDataModule(root=str(write_questions(tmp_path / "files")))
    data = al_lightning.ActiveLearningDataModule(inner, initial=6, balanced=False)
    rounds = al_lightning.active_fit(make_trainer(callback), model, data)
    assert "bert.classifier" in rounds[0].posterior
    assert all(torch.equal(model.state_dict()[name], each) for name, each in before.items())
    exec(without_dropout, {"BertConfig": small_config(transformers)}, names)  # noqa: S102
    head = transformers.BertForSequenceClassification(names["config"])
    batch = collate_texts(inner.train_set[:2])
    del batch["labels"]
    with al_lightning.MCDropout().sample(head, 3, seed=0) as predict:
        predict(batch)
    assert predict.sampled == "1 of nn.Dropout (masks 1)"


def small_config(transformers):
    """BertConfig, small but for what the page sets."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return lambda **settings: transformers.BertConfig(vocab_size=100, **sizes, **settings)
