from dataclasses import replace

import pytest

from al_lightning.labelling.asked import AskedBatch, AskedPoint, read_asked, write_asked
from al_lightning.labelling.missing import NO_ANSWER, Lack
from al_lightning.labelling.status import Status, main, status_of
from al_lightning.records.journal import Journal
from al_lightning.records.round import Round

ANSWERED = "id,kind,label,who\n3,label,cat,ann\n4,skip,,ann\n5,unsure,,ann\n"


@pytest.fixture
def run(tmp_path):
    points = [AskedPoint(index) for index in (3, 4, 5, 6)]
    write_asked(tmp_path, AskedBatch(2, points, ["cat", "dog"], 10))
    return tmp_path


def test_points_are_counted_by_what_their_answers_say(run):
    (run / "answers" / "all.csv").write_text(ANSWERED)
    lacks = {6: Lack(NO_ANSWER)}
    assert status_of(run) == Status(2, 4, num_answered=2, num_skipped=1, is_closed=False, lacks=lacks, unread=[])


def test_a_run_that_waits_ends_with_75_and_one_that_can_go_on_with_0(run, capsys):
    (run / "answers" / "all.csv").write_text(ANSWERED)
    assert main([str(run)]) == 75
    (run / "answers" / "all.csv").write_text(f"{ANSWERED}6,reject,,ann\n")
    assert main([str(run)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "4 points, 2 answered, 1 skipped, 1 missing: `al-lightning label" in first
    assert second.endswith("3 answered, 1 skipped, 0 missing: start its command again")


def test_answers_in_further_folders_count_as_they_do_for_the_run(run):
    labels = run / "of another run"
    labels.mkdir()
    (labels / "all.csv").write_text("id,label\n3,cat\n4,dog\n5,cat\n6,cat\n9,dog\n")
    write_asked(run, replace(read_asked(run), answers_from=[str(labels)]))
    assert status_of(run) == Status(2, 4, num_answered=4, num_skipped=0, is_closed=True, unread=[])


HEADER = {"num_points": 10, "initial": [], "reserved": [8], "classes": ["cat", "dog"], "asks_people": True}
FIRST = Round(0, 0, 9, acquired=[0], scores=[0.5], targets=[0], asked_held_out=[8], changed_after=[[8, -4, 1]])
LAST = Round(1, 1, 8, num_held_out=1, stopped="max_labelled=2 reached")


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ([], "no batch is asked now; round 0 is next: its command is training, or was interrupted"),
        ([FIRST], "no batch is asked now; round 1 is next: its command is training, or was interrupted"),
        ([FIRST, LAST], "the run has ended (max_labelled=2 reached) with 2 labels, 1 of them held out"),
    ],
)
def test_a_run_that_asks_for_no_batch_says_why(run, capsys, rounds, words):
    (run / "asked.json").unlink()
    Journal(run, HEADER).write(rounds)
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: {words}\n"


def test_a_batch_that_was_committed_right_before_a_kill_is_asked_no_more(run):
    Journal(run, HEADER).write([FIRST, LAST])
    write_asked(run, replace(read_asked(run), round=1))
    assert status_of(run).startswith("the run has ended")


def test_records_that_no_run_can_have_left_are_named(run, capsys):
    Journal(run, HEADER).write([FIRST, replace(LAST, num_labelled=5)])
    assert main([str(run)]) == 2
    assert "rounds.jsonl cannot be used: round 1: `num_labelled` is 5" in capsys.readouterr().err


def test_why_points_are_missing_is_said(run, capsys):
    write_asked(run, replace(read_asked(run), answers_per_point=2))
    (run / "answers" / "all.csv").write_text("id,kind,label,who\n3,,cat,ann\n3,,dog,bob\n4,skip,,ann\n5,unsure,,bob\n")
    assert main([str(run)]) == 75
    out = capsys.readouterr().out
    assert "0 answered, 0 skipped, 4 missing (1 skipped by some: 4; 1 with 1 of 2 wanted answers: 5; 1 with " in out
    assert "contradicting answers: 3 (ann 'cat', bob 'dog'); 1 without an answer: 6)" in out


def test_a_committed_label_on_which_people_contradict_each_other_is_said(run, capsys):
    answer = {"id": 0, "kind": "label", "label": 0, "who": "ann", "at": None, "seconds": None}
    Journal(run, HEADER).write([replace(FIRST, answers=[answer])])
    write_asked(run, replace(read_asked(run), asked_before={0: 0, 1: 0}))
    lines = ["0,cat,ann", "0,dog,bob", "1,cat,ann", "1,dog,bob"]  # 1 was asked for, and got no label
    (run / "answers" / "all.csv").write_text("id,label,who\n" + "".join(f"{line}\n" for line in lines))
    assert main([str(run)]) == 75
    expected = (
        "al-lightning status: 1 point keeps what it has although its answers contradict each other: 0 stays 'cat' "
        "(ann 'cat', bob 'dog')\n"
    )
    assert capsys.readouterr().err == expected


def test_what_is_not_read_yet_is_told(run, capsys):
    (run / "answers" / "ann.jsonl").write_text('{"id": 3, "lab')
    assert main([str(run)]) == 75
    assert "ann.jsonl:1 has no end of line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("asked.json", "{", "asked.json cannot be used"),
        ("answers/x.csv", "id,label\n3,cow\n", "x.csv:2 answers point 3"),
    ],
)
def test_damaged_files_are_named_in_one_sentence(run, capsys, name, content, words):
    (run / name).write_text(content)
    assert main([str(run)]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
