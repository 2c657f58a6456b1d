import csv
import io
import sys

import pytest

from al_lightning.cli.command import main as command_line
from al_lightning.labelling.export import labels_csv, main
from al_lightning.records.journal import Journal
from al_lightning.records.round import Round

HEADER = {
    "num_points": 20,
    "initial": [19],
    "initial_targets": [1],
    "excluded": [18],
    "classes": ["cat", "dog"],
    "asks_people": True,
    "reserved": [10, 11],
}


def answer(index, kind="label", label=None, who="ann", at=None, seconds=None, **was):
    return {"id": index, "kind": kind, "label": label, "who": who, "at": at, "seconds": seconds, **was}


# 1 gets a label, 2 is unsure, 3 skipped, 4 answered late; 10 is of the holdout, 11 rejected; 1 is corrected later.
FIRST = Round(
    0,
    1,
    16,
    acquired=[1, 2, 3, 4],
    scores=[0.5, 0.4, 0.3, 0.2],
    targets=[0, None, None, None],
    asked_held_out=[10, 11],
    changed_after=[[2, -2, None], [10, -4, 1], [11, -2, None]],
    answers=[
        answer(1, label=0, at="2026-01-01T00:00:00.000000Z", seconds=2.0),
        answer(2, "unsure"),
        answer(3, "skip"),
        answer(10, label=1, who="=cmd"),
        answer(11, "reject"),
    ],
)
SECOND = Round(
    1,
    2,
    14,
    acquired=[5],
    scores=[0.5],
    targets=[1],
    changed_after=[[4, 2, 1], [1, 1, 1]],
    answers=[
        answer(4, label=1, who="bob", seconds=1.5),
        answer(1, label=1, at="2026-01-02T00:00:00.000000Z", seconds=3.0, was=0),
        answer(5, label=1),
    ],
)
ROUNDS = [FIRST, SECOND]


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def folder(tmp_path):
    Journal(tmp_path / "run", HEADER).write(ROUNDS)
    return tmp_path / "run"


def test_each_point_with_a_label_or_set_aside_by_people_has_a_row():
    found = {
        row["id"]: (row["label"], row["kind"], row["set"], row["round"]) for row in rows(labels_csv(HEADER, ROUNDS))
    }
    assert found == {
        "1": ("dog", "label", "train", "0"),
        "2": ("", "unsure", "train", "0"),
        "4": ("dog", "label", "train", "0"),
        "5": ("dog", "label", "train", "1"),
        "10": ("dog", "label", "holdout", "0"),
        "11": ("", "reject", "holdout", "0"),
        "19": ("dog", "label", "train", ""),
    }


def test_who_and_when_are_those_of_the_last_answer_and_no_cell_is_a_formula():
    found = {row["id"]: (row["who"], row["at"]) for row in rows(labels_csv(HEADER, ROUNDS))}
    assert found["1"] == ("ann", "2026-01-02T00:00:00.000000Z")
    assert found["10"] == ("'=cmd", "")
    assert found["19"] == ("", "")


def test_what_a_script_labels_after_people_were_unsure_is_not_theirs():
    third = Round(2, 5, 12, changed=[[2, 2, 0], [5, -1, None], [3, 2, 0]])
    found = {row["id"]: row for row in rows(labels_csv(HEADER, [*ROUNDS, third]))}
    assert (found["2"]["label"], found["2"]["round"], found["2"]["who"]) == ("cat", "", "")
    assert found["3"]["who"] == ""
    assert "5" not in found


def test_a_run_that_names_no_classes_exports_their_numbers():
    header = {"num_points": 4, "initial": [3], "initial_targets": [7]}
    first = Round(0, 1, 3, acquired=[1], scores=[0.5], targets=[2])
    assert labels_csv(header, [first]).splitlines()[1:] == ["1,2,label,train,0,,", "3,7,label,train,,,"]
    unknown = Round(0, 1, 3, acquired=[1], scores=[0.5])
    assert labels_csv({**header, "initial_targets": None}, [unknown]).splitlines()[1:] == [
        "1,,label,train,0,,",
        "3,,label,train,,,",
    ]


def test_standard_output_and_a_file_hold_the_same(folder, tmp_path, capfdbinary):
    assert main([str(folder), "--to", str(tmp_path / "labels.csv")]) == 0
    assert main([str(folder)]) == 0
    assert capfdbinary.readouterr().out == (tmp_path / "labels.csv").read_bytes() == labels_csv(HEADER, ROUNDS).encode()


def test_a_run_that_writes_its_next_round_is_read_as_far_as_it_is_whole(folder, capfdbinary):
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "num_lab')
    assert main([str(folder)]) == 0
    assert capfdbinary.readouterr().out.decode() == labels_csv(HEADER, ROUNDS)


def test_a_terminal_is_not_moved_by_names(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    (folder / "rounds.jsonl").unlink()
    for table in ("rounds.csv", "acquisitions.csv"):
        (folder / table).unlink()
    Journal(folder, {**HEADER, "classes": ["\x1b[2J", "dog"], "initial_targets": [0]}).write([])
    assert main([str(folder)]) == 0
    assert r"19,\x1b[2J,label" in capsys.readouterr().out


REFUSED = {
    "no run": (lambda folder: [str(folder.parent / "none")], "is no run folder: it has no rounds.jsonl"),
    "over the records": (lambda folder: [str(folder), "--to", str(folder / "rounds.jsonl")], "Name one outside of it"),
    "among the answers": (lambda folder: [str(folder), "--to", str(folder / "answers" / "x.csv")], "outside of it"),
    "no folder": (lambda folder: [str(folder), "--to", str(folder.parent / "none" / "x.csv")], "No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_one_sentence_and_changes_nothing(folder, case, capsys):
    arguments, words = REFUSED[case]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(arguments(folder)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_class_without_a_name_is_refused(tmp_path, capsys):
    Journal(tmp_path / "run", {**HEADER, "classes": ["cat"]}).write(ROUNDS)
    assert main([str(tmp_path / "run")]) == 2
    assert "a label has the class 1, but the classes of the run are 'cat'. Restore" in capsys.readouterr().err


def test_the_command_is_known_to_the_command_line(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["al-lightning", "export", str(folder)])
    with pytest.raises(SystemExit) as ended:
        command_line()
    assert (ended.value.code or 0, capsys.readouterr().out) == (0, labels_csv(HEADER, ROUNDS))
