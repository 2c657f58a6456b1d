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
    (["--model=Clasifier"], "`Clasifier`, given for `model`, names no class that is known; did you mean `Classifier`"),
    (["--seed_evrything", "3"], "`seed_evrything` is no key; did you mean `seed_everything`?"),
    (["--trainer.max_epochz=3"], "`trainer.max_epochz` is no key; did you mean `trainer.max_epochs`"),
    (["--trainer.max_epochs=abc"], "`trainer.max_epochs` is abc, but must be int or null."),
    (["--trainer.callbacks.query_size=ten"], "`trainer.callbacks.query_size` is ten, but must be int."),
    (["--trainer.callbacks.max_rounds=x"], "`trainer.callbacks.max_rounds` is x, but must be int or null."),
    (
        ["--trainer.callbacks.acquisition.num_configs=many"],
        "`trainer.callbacks.acquisition.num_configs` is many, but must be int.",
    ),
    (["--trainer.callbacks.mode=5"], "`trainer.callbacks.mode` is 5, but must be 'max' or 'min'."),
    (["--data.initial=some"], "`data.initial` is some, but must be int, list or 'given'."),
    (["--model=Zzzzz"], "`Zzzzz`, given for `model`, names no class that is known. `al-lightning fit --help` lists "),
]
FILES = [
    ({"data": {"init_args": {"initail": 3}}}, "`initail` is no argument of ActiveLearningDataModule; did you mean "
     "`initial`?"),
    ({"trainer": {"callbacks": [{"class_path": "ActiveLearning", "init_args": {"acquisition": "BALD", "query_size":
     "ten"}}]}}, "`trainer.callbacks.query_size` is ten, but must be int."),
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
    text = said("--config=nowhere.json")
    assert text.startswith("usage:")
    assert "nowhere.json" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--trainer.callbacks.query_size=0", "ActiveLearning: `query_size` is 0, but must be at least 1."),
        ("--data.initial=-4", "ActiveLearningDataModule: `initial` is -4, but must be a number of points from 0 on."),
        ("--trainer.callbacks.acquisition.num_configs=0", "BatchBALD: `num_configs` is 0, but must be at least 1; "),
    ],
)
def test_what_a_constructor_of_ours_refuses_is_one_line(said, argument, expected):
    (line,) = [line for line in said(argument).splitlines() if not line.startswith("Seed set")]
    assert line.startswith(f"error: {expected}")


@pytest.mark.slow
def test_what_a_users_class_raises_is_raised_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    lines = ["from al_lightning import DigitsDataModule", "class Mine(DigitsDataModule):"]
    lines += ["    def __init__(self) -> None:", "        raise ValueError('mine')"]
    (tmp_path / "mine_that_fails.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^mine$"):
        run(["fit", "--config", CONFIG, "--data.datamodule=mine_that_fails.Mine"])
