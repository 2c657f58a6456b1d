"""What the command line says of keys and classes that it does not know."""

import sys
from pathlib import Path

import pytest
import yaml

from al_lightning.cli.command import run

CONFIG = str(Path(__file__).parents[2] / "configs" / "repeated_digits.yaml")

ARGUMENTS = [
    (
        ["--trainer.callbacks.query_sise=5"],
        "`query_sise` (given '5' for `trainer.callbacks`) is no argument of "
        "ActiveLearning; did you mean `query_size`? It has acquisition, query_size, posterior, ",
    ),
    (
        ["--trainer.callbacks.acquisition=BatchBold"],
        "`BatchBold`, given for `trainer.callbacks.acquisition`, names no "
        "class that is known; did you mean `BatchBALD`",
    ),
    (["--trainer.callbacks.posterior=MCDroput"], "did you mean `MCDropout`"),
    (
        ["--trainer.callbacks.acquisition.max_config=3"],
        "`max_config` (given '3' for "
        "`trainer.callbacks.acquisition`) is no argument of BatchBALD; "
        "did you mean `max_configs` or `num_configs`? It has num_configs, max_configs, ",
    ),
    (["--data.initail", "3"], "is no argument of ActiveLearningDataModule; did you mean `initial`?"),
    (
        ["--data.datamodule=DigitDataModule"],
        "`DigitDataModule`, given for `data.datamodule`, names no class that is known; did you mean `DigitsDataModule`",
    ),
    (["--model=Clasifier"], "`Clasifier`, given for `model`, names no class that is known; did you mean `Classifier`?"),
    (["--seed_evrything", "3"], "`seed_evrything` is no key; did you mean `seed_everything`?"),
    (["--trainer.max_epochz=3"], "`trainer.max_epochz` is no key; did you mean `trainer.max_epochs`"),
    (["--model=Zzzzz"], "`Zzzzz`, given for `model`, names no class that is known. `al-lightning fit --help` lists "),
]
FILES = [
    ({"data": {"init_args": {"initail": 3}}}, "`initail` is no argument of ActiveLearningDataModule; did you mean "
     "`initial`?"),
    ({"trainer": {"max_epochz": 3}}, "`trainer.max_epochz` is no key; did you mean `trainer.max_epochs`"),
    ({"trianer": {"max_epochs": 3}}, "`trianer.max_epochs` is no key; did you mean `trainer.max_epochs`"),
    ({"trainer": {"callbacks": [{"class_path": "ActivLearning"}]}}, "did you mean `ActiveLearning`"),
    ({"model": {"class_path": "Classifier", "init_args": {"net": {"class_path": "PaperCN"}}}}, "`PaperCN`, given for "
     "`model.net`, names no class that is known; did you mean `PaperCNN`"),
]  # fmt: skip


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """What the command line says last, and how many lines in all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])

    def said(*arguments):
        with pytest.raises(SystemExit) as ended:
            run(["fit", "--config", CONFIG, *arguments])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return said


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS, ids=lambda it: it[0] if isinstance(it, list) else "")
def test_an_unknown_key_or_class_is_named_in_one_line_with_the_nearest_known(said, arguments, expected):
    (line,) = said(*arguments).splitlines()
    assert line.startswith("error: `")
    assert expected in line


@pytest.mark.slow
@pytest.mark.parametrize(("content", "expected"), FILES, ids=lambda it: str(it) if isinstance(it, dict) else "")
def test_an_unknown_name_in_a_file_too(said, content, expected, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    (line,) = said("--config", "mine.yaml").splitlines()
    assert expected in line


def test_any_other_error_is_said_as_jsonargparse_says_it(said):
    text = said("--trainer.max_epochs=abc")
    assert text.startswith("usage:")
    assert "Given value: abc" in text


def test_all_that_was_tried_is_there_for_who_asks(said, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(Exception, match=r"(?s)`seed_evrything` is no key.*unrecognized arguments"):
        run(["fit", "--config", CONFIG, "--seed_evrything=3"])
