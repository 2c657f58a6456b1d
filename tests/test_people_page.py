"""Each block of docs/guides/people.md, run; the sections of the page and of Label Studio have tests of their own."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

import al_lightning
from al_lightning import ActiveLearning, AskPeople, BatchBALD, active_fit
from al_lightning.datasets.unlabelled_images import number_images
from al_lightning.labelling.answers import COLUMNS, KINDS, Allowed, read_answers
from al_lightning.labelling.asked import read_asked
from al_lightning.labelling.export import COLUMNS as EXPORTED
from al_lightning.labelling.export import labels_csv
from al_lightning.labelling.resolve import resolved
from al_lightning.records.round import Round
from tests.conftest import TinyModule

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "people.md").read_text()
README = (Path(__file__).parents[1] / "README.md").read_text()
ANNOTATE = Path(__file__).parents[1] / "docs" / "guides" / "annotate.py"
CONFIG = "unlabelled_images.yaml"
ELSEWHERE = {"The page", "Label Studio"}
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
NAMES = {name: getattr(al_lightning, name) for name in al_lightning.__all__}


def blocks(section, language):
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


def test_each_block_has_a_test():
    tested = {
        "In your own script": ["python", "python"],
        "On the command line": ["bash"],
        "The labels as a file": ["bash", "python"],
        "Status 75": ["bash", "bash", "bash"],
        "The files": ["json", "csv"],
        "Junk in the pool": ["python", "python"],
        "An accuracy without a test set": ["python"],
        "Several runs, one set of answers": ["python"],
    }
    found = {title: re.findall(r"```(\w+)\n.*?```", text, re.DOTALL) for title, text in SECTIONS.items()}
    assert {title: each for title, each in found.items() if each and title not in ELSEWHERE} == tested
    assert set(SECTIONS) >= ELSEWHERE


class Unlabelled(LightningDataModule):
    """What a user without labels has."""

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        return DataLoader(torch.randn(40, 4, generator=generator), batch_size=8, shuffle=True)


class Plain(TinyModule):
    """A model that neither validates nor tests."""

    validation_step, test_step = LightningModule.validation_step, LightningModule.test_step


def test_five_lines_of_a_script_change_and_it_asks_for_its_first_batch(tmp_path, monkeypatch, capsys):
    script, end = blocks("In your own script", "python")
    assert sorted(re.findall(r"# (\d)", script)) == ["1", "2", "3", "4", "5"]
    monkeypatch.chdir(tmp_path)
    names = {"MyModule": Plain, "MyDataModule": Unlabelled}
    quiet = "max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator='cpu'"
    assert "max_epochs=30" in script
    lines = script.replace("max_epochs=30", quiet).replace('"dog"]', '"dog", "emu"]')  # the model has three outputs
    for number in range(2):
        exec(lines, names)  # noqa: S102 - of this repository
        assert len(names["rounds"]) == number
        with pytest.raises(SystemExit) as exit_info:
            exec(end, names)  # noqa: S102 - of this repository
        assert exit_info.value.code == 75
        assert capsys.readouterr().out.endswith("10 labels are missing: al-lightning label runs/mine\n")
        batch = read_asked(Path("runs/mine"))
        assert batch.ids == names["trainer"].callbacks[0].waiting_for
        assert (len(batch.ids), batch.classes) == (10, ["cat", "dog", "emu"])
        with Path("runs/mine/answers/ann.jsonl").open("a") as file:
            file.writelines(f'{{"id": {index}, "label": "cat"}}\n' for index in batch.ids)
    names["callback"].run.waiting = None
    exec(end, names)  # noqa: S102 - where nothing is missing the script goes on


@pytest.mark.parametrize(("last", "expected"), [(0, 0), (2, 2)])
def test_the_loop_of_status_waits_and_then_trains_or_ends_as_it_does(tmp_path, last, expected):
    _, loop, _ = blocks("Status 75", "bash")
    command = f'case $1 in fit) exit 0;; esac\n[ "$(grep -c status called)" -lt 3 ] && exit 75\nexit {last}'
    status, called = in_shell(loop, tmp_path, al_lightning=command, sleep="")
    assert status == expected
    waited = ["al-lightning status runs/unlabelled_images", "sleep 60"]
    then = [f"al-lightning fit --config {CONFIG}"] if last == 0 else []
    assert called == [*waited * 2, waited[0], *then]


def in_shell(script, folder, **commands):
    """Run lines with stand-ins for the commands in them, each a shell script; the status and what was called."""
    for name, body in commands.items():
        path = folder / name.replace("_", "-")
        path.write_text(f'#!/bin/bash\necho "{path.name} $*" >> {folder}/called\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(["/bin/bash", "-c", script], env={"PATH": f"{folder}:/usr/bin:/bin"}, cwd=folder, check=False)
    called = folder / "called"
    return done.returncode, called.read_text().splitlines() if called.exists() else []


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (75, 0), (1, 1), (143, 1)])
def test_a_scheduler_sees_no_failure_in_waiting_alone(tmp_path, status, expected):
    *_, line = blocks("Status 75", "bash")
    assert in_shell(line, tmp_path, al_lightning=f"exit {status}") == (
        expected,
        [f"al-lightning fit --config {CONFIG}"],
    )


def loop_of(text):
    (loop,) = re.findall(r"```bash\n(until al-lightning fit .*?)```", text, re.DOTALL)
    return loop


@pytest.mark.parametrize("last", [0, 1, 143])
def test_the_loop_annotates_while_the_run_waits_and_ends_as_it_does(tmp_path, last):
    loop = loop_of(PAGE)  # which tests/cli/test_people.py runs with real commands
    fit = f'[ "$(grep -c al-lightning called)" -lt 3 ] && exit 75\nexit {last}'
    status, called = in_shell(loop, tmp_path, al_lightning=fit, python="")
    assert status == last
    both = [f"al-lightning fit --config {CONFIG}", "python annotate.py runs/unlabelled_images"]
    assert called == [*both * 2, both[0]]


def test_the_loop_ends_if_the_annotator_fails(tmp_path):
    status, called = in_shell(loop_of(PAGE), tmp_path, al_lightning="exit 75", python="exit 3")
    assert (status, len(called)) == (3, 2)


@pytest.fixture
def asking(tmp_path):
    """A run folder, in a folder with the digits, that asks for three points."""
    (tmp_path / "digits" / "answers").mkdir(parents=True)
    (tmp_path / "digits" / "answers" / "digits.csv").write_text("id,label\n3,three\n4,four\n5,five\n")
    (tmp_path / "run" / "answers").mkdir(parents=True)
    points = [{"id": index, "shown": f"asked/{index}.png"} for index in (3, 4, 5)]
    (tmp_path / "run" / "asked.json").write_text(json.dumps({"points": points}))
    return tmp_path / "run"


def annotate(asking):
    """Run the annotator: the ids and labels in its file, its status, and what it says of an error."""
    command = [sys.executable, ANNOTATE, "run"]
    done = subprocess.run(command, cwd=asking.parent, check=False, capture_output=True, text=True)
    entries = [json.loads(line) for line in (asking / "answers" / "script.jsonl").read_text().splitlines()]
    return [(each["id"], each["label"]) for each in entries], done.returncode, done.stderr


def test_the_annotator_completes_what_it_has_begun_even_half_a_line_and_fails_with_nothing_to_do(asking):
    (asking / "answers" / "script.jsonl").write_text('{"id": 3, "label": "three"}\n{"id": 4, "la')
    complete = [(3, "three"), (4, "four"), (5, "five")]
    assert annotate(asking) == (complete, 0, "")
    given, status, error = annotate(asking)
    assert (given, status) == (complete, 1)
    assert "`al-lightning status run` says whether run still waits" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("name", "text", "due"),
    [
        ("ann.jsonl", '{"id": 3, "label": "two"}\n{"id": 4, "kind": "unsure"}', [5]),
        ("ann.jsonl", '\ufeff{"id": 3, "kind": "reject"}\r\n\r\n{"id": 4, "la', [4, 5]),
        ("ann.jsonl", '{"id": 3, "kind": "skip"}\n{"id": 4, "label": "two"}\n{"id": 4, "kind": "undo"}\n', [3, 4, 5]),
        ("ann.csv", '\ufeffid,label,kind,who\r\n3,two,,"Ann, B."\r\n4,,unsure,\r\n5,,,\r\n', [5]),
        ("ann.csv", "kind,id\nskip,3\nlabel,4\nreject,4\n", [3, 5]),
        (".ann.jsonl", '{"id": 3, "label": "two"}\n', [3, 4, 5]),
        ("ann.txt", "3", [3, 4, 5]),
    ],
)
def test_the_annotator_leaves_alone_what_others_have_answered(asking, name, text, due):
    (asking / "answers" / name).write_bytes(text.encode())
    given, status, _ = annotate(asking)
    assert ([index for index, _ in given], status) == (due, 0)


def test_the_annotator_says_that_a_run_asks_for_nothing(asking):
    (asking / "answers" / "script.jsonl").touch()
    (asking / "asked.json").unlink()
    _, status, error = annotate(asking)
    assert status == 1
    assert error.startswith("run asks for nothing at the moment")
    assert error.count("\n") == 1


def test_the_commands_are_those_of_the_readme_and_each_is_known():
    (commands,) = blocks("On the command line", "bash")
    (readme,) = re.findall(r"```bash\n(python -m al_lightning\.datasets\.digit_images .*?)```", README, re.DOTALL)
    without_comments = [line.partition("  #")[0].rstrip().replace("configs/", "") for line in readme.splitlines()]
    assert commands.splitlines() == without_comments
    make, *fit_label_fit = commands.splitlines()
    assert make == "python -m al_lightning.datasets.digit_images digits"
    fit = f"al-lightning fit --config {CONFIG}"
    assert fit_label_fit == [fit, "al-lightning label runs/unlabelled_images", fit]


def test_the_exported_labels_are_joined_with_the_names_of_the_files(tmp_path, monkeypatch, capsys):
    (command,), (script,) = blocks("The labels as a file", "bash"), blocks("The labels as a file", "python")
    assert in_shell(command, tmp_path, al_lightning="")[1] == [command.strip()]
    header = {"num_points": 3, "initial": [0], "initial_targets": [1], "classes": ["cat", "dog"]}
    (tmp_path / "labels.csv").write_text(labels_csv(header, [Round(0, 1, 2, acquired=[2], scores=[0.5], targets=[0])]))
    assert all(f"`{name}`" in SECTIONS["The labels as a file"] for name in EXPORTED)
    folder = tmp_path / "digits" / "images"
    (folder / "b").mkdir(parents=True)
    for name in ("c.png", "a.png", "b/d.png"):
        (folder / name).touch()
    assert number_images(folder) == ["a.png", "b/d.png", "c.png"]
    monkeypatch.chdir(tmp_path)
    exec(script, {})  # noqa: S102 - of this repository
    assert capsys.readouterr().out.splitlines() == ["a.png label dog", "c.png label cat"]


def test_an_older_answer_is_corrected_by_a_line_in_another_file(tmp_path):
    (command,) = [block for block in blocks("The page", "bash") if block.startswith("echo")]
    answers = tmp_path / "runs" / "mine" / "answers"
    answers.mkdir(parents=True)
    (answers / "ann.jsonl").write_text('{"id": 17, "label": "cat", "who": "ann", "at": "2020-01-28T10:00:00.5Z"}\n')
    assert in_shell(command, tmp_path)[0] == 0
    found, unread = read_answers(answers, Allowed(["cat", "dog"], {}, 50, {17}))
    assert unread == []
    assert resolved(found, asked_now=[])[17].label == "dog"


def test_answers_are_read_as_the_page_writes_them(tmp_path):
    (lines,), (table,) = blocks("The files", "json"), blocks("The files", "csv")
    allowed = Allowed(["cat", "dog"], {}, 50, {17, 40, 41})
    for name, text, expected in (
        ("bob.jsonl", lines, [(17, "label", "cat", "bob", None), (40, "skip", None, "ann", 2.4)]),
        ("eve.csv", table, [(17, "label", "cat", "ann", None), (40, "unsure", None, "ann", None)]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        answers, unread = read_answers(folder, allowed)
        assert [(each.id, each.kind, each.label, each.who, each.seconds) for each in answers] == expected
        assert unread == []


def keys_of_tables(section):
    """The words in code in the first column of each table."""
    rows = re.findall(r"^\| ([^|]*) \|", SECTIONS[section], re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([\w]+)`", row)]


def test_the_tables_name_each_key_of_the_files(tmp_path, make_trainer):
    callback = ActiveLearning(BatchBALD(), query_size=3, folder=tmp_path / "run", oracle=AskPeople())
    data = al_lightning.ActiveLearningDataModule(Unlabelled(), initial=0, classes=["cat", "dog", "emu"])
    al_lightning.active_fit(make_trainer(callback), Plain(), data)
    asked = json.loads((tmp_path / "run" / "asked.json").read_text())
    assert {*asked} | {*COLUMNS} == {*keys_of_tables("The files")}
    (row,) = [line for line in SECTIONS["The files"].splitlines() if line.startswith("| `points`")]
    assert {*asked["points"][0]} <= {*re.findall(r"`(\w+)`", row)}
    assert all(f"`{kind}`" in SECTIONS["The files"] for kind in KINDS)


def test_the_other_examples_are_settings_that_are_taken():
    (holdout,) = blocks("An accuracy without a test set", "python")
    (shared,) = blocks("Several runs, one set of answers", "python")
    callback = eval(holdout, dict(NAMES))  # noqa: S307 - of this repository
    assert (callback.settings.num_reserved, callback.settings.holdout_share) == (100, 0.2)
    assert eval(shared, dict(NAMES)) == AskPeople(answers_from=["labels"])  # noqa: S307


class WithOutputs(Plain):
    """A model of any number of outputs."""

    def __init__(self, num_outputs):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, num_outputs))


def test_rejected_points_are_one_more_class_of_training_and_none_of_the_accuracy(tmp_path, make_trainer):
    rejecting, measuring = blocks("Junk in the pool", "python")
    names = {**NAMES, "MyModule": WithOutputs, "MyDataModule": Unlabelled, "classes": ["cat", "dog"]}
    for _ in range(3):  # two batches are asked and answered
        exec(rejecting, names)  # noqa: S102 - of this repository
        callback = ActiveLearning(
            BatchBALD(), oracle=AskPeople(), query_size=6, max_labelled=12, num_samples=4, folder=tmp_path / "mine"
        )
        trainer = make_trainer(callback, max_epochs=1, limit_val_batches=0, num_sanity_val_steps=0)
        rounds = active_fit(trainer, names["model"], names["datamodule"])
        kinds = ['"label": "cat"', '"label": "dog"', '"kind": "reject"']
        with (tmp_path / "mine" / "answers" / "ann.jsonl").open("a") as file:
            file.writelines(
                f'{{"id": {index}, {kinds[at % 3]}}}\n' for at, index in enumerate(callback.waiting_for or ())
            )
    assert [(record.num_labelled, record.num_rejected) for record in rounds] == [(0, 0), (4, 2), (8, 4)]
    logits = torch.tensor([[1.0, 2.0, 9.0], [4.0, 3.0, 9.0]])
    exec(measuring, names := {"self": lambda x: x, "x": logits, "y": torch.tensor([1, 1])})  # noqa: S102
    assert names["accuracy"] == 0.5
