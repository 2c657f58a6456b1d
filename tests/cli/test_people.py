"""The command while people label: its status, `--finish`, and the road that the configuration and the manual show."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from al_lightning import AskPeople, DatasetLabels, read_journal
from al_lightning.cli.command import advise, run
from al_lightning.datasets.digit_images import CLASSES, write_digits

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "unlabelled_images.yaml"
RUN = Path("runs/unlabelled_images")
QUICK = ["--trainer.max_epochs=2", "--trainer.callbacks.num_samples=10", "--trainer.callbacks.max_labelled=20"]
KNOWN = """
import csv
from al_lightning import UnlabelledImagesDataModule
class Known(UnlabelledImagesDataModule):
    def setup(self, stage):
        super().setup(stage)
        with open("digits/answers/digits.csv") as file:
            classes = CLASSES
            self._images.targets = [classes.index(row["label"]) for row in csv.DictReader(file)]
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def few_digits(tmp_path):
    write_digits(tmp_path / "digits")
    for path in sorted(Path("digits/images").iterdir())[100:]:
        path.unlink()
    lines = Path("digits/answers/digits.csv").read_text().splitlines(keepends=True)
    Path("digits/answers/digits.csv").write_text("".join(lines[:101]))


def fit(*flags):
    """The status of the command, and what it has made."""
    cli = None
    try:
        cli = run(["fit", "--config", str(CONFIG), *QUICK, *flags])
    except SystemExit as exit_info:
        return exit_info.code, None
    return 0, cli


def answer(*labels):
    asked = json.loads((RUN / "asked.json").read_text())["points"][: len(labels)]
    lines = [json.dumps({"id": each["id"], "label": label}) for each, label in zip(asked, labels, strict=True)]
    with (RUN / "answers" / "ann.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def shell(script, **environment):
    """Run lines of the documentation as a shell does, with this package's command and interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", script],  # noqa: S607 - the shell of the documentation
        capture_output=True,
        text=True,
        check=False,
        env=variables,
    )


def known_picks():
    """What the same command acquires where the dataset has all labels."""
    Path("known_digits.py").write_text(KNOWN.replace("CLASSES", repr(CLASSES)))
    sys.modules.pop("known_digits", None)
    flags = ["--data.datamodule=known_digits.Known", "--trainer.callbacks.oracle=DatasetLabels"]
    assert fit(*flags, "--trainer.callbacks.folder=runs/known")[0] == 0
    return [record.acquired for record in read_journal("runs/known")[1]]


no_validation = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


@pytest.mark.slow
@no_validation
def test_the_command_ends_with_75_while_it_waits_and_with_0_at_the_end_and_finish_closes_a_batch_once(few_digits):
    assert fit()[0] == 75
    answer(*["one"] * 10)
    assert fit()[0] == 75
    answer(*["two"] * 3)
    assert fit()[0] == 75  # seven are missing
    assert fit("--finish")[0] == 75  # closes this batch, and asks for the next one
    _, rounds = read_journal(RUN)
    assert rounds[1].targets == [2] * 3 + [None] * 7
    saved = max(RUN.glob("logs/*/config.yaml"), key=lambda path: int(path.parent.name.partition("_")[2]))
    assert yaml.safe_load(saved.read_text())["finish"] is False
    assert fit()[0] == 75  # the next batch is not closed
    answer(*["three"] * 7)
    status, cli = fit()
    assert status == 0
    assert cli.trainer.callbacks[0].stopped == "max_labelled=20 reached"
    assert fit()[0] == 0  # an ended run


@pytest.mark.long
@no_validation
def test_the_loop_of_the_manual_with_a_script_acquires_what_known_labels_acquire(few_digits):
    page = (ROOT / "docs" / "guides" / "people.md").read_text()
    (loop,) = re.findall(r"```bash\n(until al-lightning fit .*?)```", page, re.DOTALL)
    assert f"--config {CONFIG.name};" in loop
    loop = loop.replace(f"--config {CONFIG.name}", f"--config {CONFIG.name} {' '.join(QUICK)}")
    done = shell(loop.replace("annotate.py", str(ROOT / "docs" / "guides" / "annotate.py")))
    assert done.returncode == 0, done.stderr[-3000:]
    header, rounds = read_journal(RUN)
    assert [record.acquired for record in rounds] == known_picks()
    assert [record.num_labelled for record in rounds] == [0, 10, 20]
    given = [json.loads(line) for line in (RUN / "answers" / "script.jsonl").read_text().splitlines()]
    assert [each["id"] for each in given] == [index for record in rounds for index in record.acquired]
    assert header["num_points"] == 100


@pytest.mark.slow
@no_validation
def test_a_list_of_labels_that_exists_already_answers_at_once(few_digits):
    status, cli = fit("--trainer.callbacks.oracle.answers_from=[digits/answers]")
    assert status == 0
    assert [record.acquired for record in cli.trainer.callbacks[0].rounds] == known_picks()


def test_the_help_of_fit_shows_finish(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--help"])
    assert exit_info.value.code == 0
    assert "--finish" in capsys.readouterr().out


PEOPLE = {
    "short name": {"class_path": "AskPeople", "init_args": {"wait": 60, "answers_from": ["labels"]}},
    "class path": {"class_path": "al_lightning.AskPeople", "init_args": {"wait": 60, "answers_from": ["labels"]}},
}


@pytest.mark.slow
@pytest.mark.parametrize("oracle", [*PEOPLE.values(), "DatasetLabels"], ids=[*PEOPLE, "name alone"])
def test_an_oracle_is_named_as_any_other_class(oracle, capsys):
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"]["callbacks"][0]["init_args"]["oracle"] = oracle
    Path("own.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", "own.yaml", "--print_config"])
    assert exit_info.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][0]["init_args"]["oracle"]
    kind = DatasetLabels if oracle == "DatasetLabels" else AskPeople
    assert found["class_path"].endswith(kind.__name__)
    given = found.get("init_args", {})
    assert kind(**given) == (kind() if kind is DatasetLabels else AskPeople(wait=60, answers_from=["labels"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "line"),
    [
        (
            "--trainer.callbacks.oracle.min_anwered=3",
            "`min_anwered` (given '3' for `trainer.callbacks.oracle`) is no argument of AskPeople; did you mean "
            "`min_answered`",
        ),
        ("--trainer.callbacks.oracle=AskPeple", "`AskPeple`, given for `trainer.callbacks.oracle`, names no class"),
    ],
)
def test_a_misspelt_key_or_name_of_an_oracle_is_an_error_of_one_line(flag, line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", str(CONFIG), flag])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.slow
@no_validation
def test_the_configuration_is_kept_beside_the_records_and_a_file_of_the_users_is_left_alone(few_digits, capsys):
    assert fit()[0] == 75
    kept = RUN / "config.yaml"
    (saved,) = RUN.glob("logs/*/config.yaml")
    first, _, rest = kept.read_text().partition("\n")
    assert "by al-lightning" in first
    assert rest == saved.read_text()
    assert advise([str(RUN)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "copies: not known, only the data tell" not in page
    assert fit("--trainer.max_epochs=3")[0] == 75  # the command that resumes is the one that is kept
    assert yaml.safe_load(kept.read_text())["trainer"]["max_epochs"] == 3
    for mine in ("mine: 1\n", kept.read_text() + "# a note\n"):
        kept.write_text(mine)
        with pytest.warns(
            UserWarning, match=r"config\.yaml was not written by a run, or was changed by hand, and stays"
        ):
            assert fit()[0] == 75
        assert kept.read_text() == mine
