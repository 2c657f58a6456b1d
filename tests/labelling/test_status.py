from dataclasses import replace

import pytest

from al_lightning.labelling.asked import AskedBatch, AskedPoint, read_asked, write_asked
from al_lightning.labelling.status import Status, main, status_of

ANSWERED = "id,kind,label,who\n3,label,cat,ann\n4,skip,,ann\n5,unsure,,ann\n"


@pytest.fixture
def run(tmp_path):
    points = [AskedPoint(index) for index in (3, 4, 5, 6)]
    write_asked(tmp_path, AskedBatch(2, points, ["cat", "dog"], 10))
    return tmp_path


def test_points_are_counted_by_what_their_answers_say(run):
    (run / "answers" / "all.csv").write_text(ANSWERED)
    assert status_of(run) == Status(2, 4, num_answered=2, num_skipped=1, is_closed=False, unread=[])
    assert status_of(run).num_missing == 1


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


def test_no_batch_is_nothing_to_wait_for(run, capsys):
    (run / "asked.json").unlink()
    (run / "rounds.jsonl").touch()
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.endswith(": no batch is asked\n")


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
