"""Each block of the README, the guides and the concepts, run; three guides have tests of their own."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest
import pytorch_lightning
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

import al_lightning
from al_lightning import ActiveLearning, BatchBALD, active_fit, read_journal
from al_lightning.acquisition import batchbald
from al_lightning.cli.command import main, run
from tests.conftest import TinyData, TinyModule

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"people", "features", "text"}
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("guides/*.md"), *(ROOT / "docs").glob("concepts/*.md")]
PAGES = sorted(page for page in PAGES if page.stem not in ELSEWHERE)
QUICK = "max_epochs=1, accelerator='cpu', enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1"
SMALLER = {
    "max_epochs=30": QUICK,
    "max_labelled=300": "max_labelled=12",
    "query_size=10": "query_size=3",
    "initial=20": "initial=6",
    "num_samples=1000": "num_samples=4",
    "num_points=2000": "num_points=5",
}


def blocks(page, language):
    """Blocks of a language, those within lists included."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def with_blocks(language):
    return [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, language)]


def test_no_page_has_a_block_of_another_language():
    languages = {
        found for page in PAGES for found in re.findall(r"^ *```(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert languages <= {"python", "bash", "yaml"}


@pytest.fixture
def finished(tmp_path, monkeypatch, make_data, make_trainer):
    """Names that the blocks of a page take for granted, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    generator = torch.Generator().manual_seed(0)
    names = {name: getattr(al_lightning, name) for name in al_lightning.__all__}
    return names | {
        "MyModule": TinyModule,
        "MyDataModule": TinyData,
        "Trainer": pytorch_lightning.Trainer,
        "ModelCheckpoint": ModelCheckpoint,
        "WandbLogger": lambda **_: CSVLogger("logs"),
        "batchbald": batchbald,
        "torch": torch,
        "nn": torch.nn,
        "LightningModule": pytorch_lightning.LightningModule,
        "log_probs_N_K_C": torch.randn(20, 6, 3, generator=generator).log_softmax(dim=2),
        "label_efficiency": al_lightning.report.label_efficiency,
        "read_runs": al_lightning.report.read_runs,
    }


def trained_run(names, folder):
    """A run for pages that read one, and the names of pages that go on with one."""
    callback = ActiveLearning(BatchBALD(), query_size=3, max_labelled=9, num_samples=4, folder=folder)
    trainer = pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[callback])
    datamodule = al_lightning.ActiveLearningDataModule(TinyData(), initial=6)
    active_fit(trainer, TinyModule(), datamodule)
    fresh = al_lightning.ActiveLearningDataModule(TinyData(), initial=6)
    in_pool = datamodule.labels.pool_indices[:1].tolist()
    names |= {"folders": [folder], "model": TinyModule(), "datamodule": fresh, "ids": in_pool}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
@pytest.mark.parametrize("page", with_blocks("python"))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, finished, tmp_path):
    if page.stem in {"run_folder", "reports", "resume"}:
        trained_run(finished, "runs/mine" if page.stem != "resume" else "runs/other")
    if page.stem == "posteriors":
        for name in ("a.ckpt", "b.ckpt"):
            torch.save({"state_dict": TinyModule().state_dict()}, name)
    names = dict(finished)
    for text in blocks(page, "python"):
        small = re.sub("|".join(SMALLER), lambda now: SMALLER[now[0]], text)
        exec(compile(small, str(page), "exec"), names)  # noqa: S102 - of this repository
    if "rounds" in names:
        assert [record.num_labelled for record in names["rounds"]][-1] in {9, 12}


class Parsed(Exception):  # noqa: N818 - no error
    """The arguments were understood."""


def commands(text):
    """Commands of this package in a block, with the variables of its loops filled in."""
    joined = text.replace("\\\n", " ").replace("$seed", "0").replace("$rule", "BatchBALD")
    found = re.findall(
        r"(?:al-lightning|python -m al_lightning) ((?:fit|label|status|export|report|compare|advise)\b.*)", joined
    )
    return [shlex.split(one, comments=True) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("bash"))
def test_the_command_line_understands_the_commands_of_a_page(page, tmp_path, monkeypatch):
    def parsed(parser, args=None, namespace=None):
        parser.parse_known_args(args, namespace)
        raise Parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    found = [each for text in blocks(page, "bash") for each in commands(text)]
    for command in found:
        if "mine.yaml" in command:
            continue  # the reader's own
        if command[0] == "fit":
            with pytest.raises(SystemExit) as exit_info:
                run([*command, "--print_config"])
            assert exit_info.value.code == 0, command
            continue
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            patch.setattr(sys, "argv", ["al-lightning", *command])
            with pytest.raises(Parsed):
                main()


def of_classes():
    """Pages whose YAML names a class that they have written: all but one, whose YAML is that of data."""
    return [page for page in with_blocks("yaml") if page.id != "when"]


def test_the_data_of_a_page_are_what_advise_reads(finished, tmp_path, monkeypatch, capsys):
    own = "from al_lightning import DigitsDataModule\n\n\nclass MyDataModule(DigitsDataModule):\n    pass\n"
    (tmp_path / "my_package.py").write_text(own)
    (text,) = blocks(ROOT / "docs" / "concepts" / "when.md", "yaml")
    (tmp_path / "own.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["al-lightning", "advise", "own.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith("own.yaml: before a run\n")
    assert re.search(r"copies, features: [\d.]+ % \(.*\), 1000 points drawn from \d+", page)


@pytest.mark.slow
@pytest.mark.parametrize("page", of_classes())
def test_the_class_of_a_page_is_named_in_yaml(page, finished, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    (tmp_path / "my_package.py").write_text(blocks(page, "python")[0])
    (text,) = blocks(page, "yaml")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [yaml.safe_load(text)]}}))
    config = str(ROOT / "configs" / "repeated_digits.yaml")
    quick = ["--trainer.max_epochs=1", "--data.points_per_epoch=64", "--trainer.enable_progress_bar=false"]
    limits = ["--trainer.callbacks.max_rounds=2", "--trainer.callbacks.num_samples=5"]
    run(["fit", "--config", config, "--config", "own.yaml", *quick, *limits])
    header, (first, last) = read_journal("runs/repeated_digits/version_0")
    assert "my_package" in str(header["acquisition"]) + str(header["posterior"])
    assert (first.num_labelled, last.num_labelled, len(first.acquired)) == (10, 20, 10)
