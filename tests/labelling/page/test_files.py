from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.labelling.answers import Answer, as_line, read_answers
from al_lightning.labelling.asked import read_asked
from al_lightning.labelling.page.files import RunFiles

WHOLE = [as_line(Answer(index, "label", "cat", "ann", f"2026-11-28T10:00:{index}.000000Z")) for index in range(10, 20)]


def read_whole(folder):
    try:
        return *read_answers(folder / "answers", read_asked(folder).allowed), None
    except ValueError as error:
        return [], [], str(error)


def test_a_snapshot_is_kept_until_a_file_changes(run):
    files = RunFiles(run)
    first = files.snapshot()
    assert files.snapshot() is first
    (run / "answers" / "ann.jsonl").write_text(WHOLE[0])
    second = files.snapshot()
    assert second.revision != first.revision
    assert [answer.id for answer in second.answers] == [10]
    assert files.snapshot() is second


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*WHOLE, "\n", '{"id": 11', ', "label": "dog"}\n', WHOLE[3][:-1]]), max_size=12))
def test_a_file_that_grows_is_read_as_if_it_were_read_whole(tmp_path_factory, write_run, parts):
    folder = tmp_path_factory.mktemp("grows")
    write_run(folder, range(10, 20))
    files = RunFiles(folder)
    path = folder / "answers" / "ann.jsonl"
    for part in parts:
        with path.open("a") as file:
            file.write(part)
        found = files.snapshot()
        answers, unread, problem = read_whole(folder)
        assert (list(found.answers), list(found.unread), found.problem) == (answers, unread, problem)
        assert [one.place for one in found.answers] == [one.place for one in answers]


def test_a_file_that_was_edited_is_read_anew(run):
    path, files = run / "answers" / "ann.jsonl", RunFiles(run)
    path.write_text(WHOLE[0] + WHOLE[1])
    assert len(files.snapshot().answers) == 2
    path.write_text(WHOLE[2])
    assert [answer.id for answer in files.snapshot().answers] == [12]
    path.unlink()
    assert files.snapshot().answers == ()


def test_answers_in_further_folders_are_read_too_and_only_to_points_that_are_asked_for(run, write_run):
    labels = run.parent / "labels"
    labels.mkdir()
    files = RunFiles(run)
    write_run(run, range(10, 20), answers_from=[str(labels)])
    assert files.snapshot().answers == ()
    (labels / "all.csv").write_text("id,label\n11,dog\n900,cat\n")
    (run / "answers" / "ann.jsonl").write_text(WHOLE[0])
    assert [(answer.id, answer.who) for answer in files.snapshot().answers] == [(10, "ann"), (11, "all")]
    (run / "answers" / "bob.csv").write_text("id,label\n900,cat\n")  # here it is a mistake
    assert "answers point 900, for which no batch has asked" in files.snapshot().problem


def test_a_further_folder_that_is_gone_is_named_until_it_is_back(run, write_run):
    write_run(run, range(10, 20), answers_from=[str(run / "gone")])
    files = RunFiles(run)
    assert "there is no such folder" in files.snapshot().problem
    (run / "gone").mkdir()
    assert files.snapshot().problem is None


def test_csv_files_are_read_too(run):
    files = RunFiles(run)
    path = run / "answers" / "eve.csv"
    path.write_text("id,label\n10,dog\n")
    assert files.snapshot().answers == (Answer(10, "label", "dog", "eve"),)
    path.write_text("id,label\n10,dog\n11,cat\n")
    assert [answer.label for answer in files.snapshot().answers] == ["dog", "cat"]


def test_the_next_batch_allows_other_answers(run, write_run):
    files = RunFiles(run)
    (run / "answers" / "ann.jsonl").write_text('{"id": 30, "label": "cat"}\n')
    assert "point 30, for which no batch has asked" in files.snapshot().problem
    write_run(run, [30], asked_before=dict.fromkeys(range(10, 20), 3))
    assert [answer.id for answer in files.snapshot().answers] == [30]


def test_no_batch_is_no_problem_and_a_damaged_one_is_named_until_it_is_mended(run):
    files = RunFiles(run)
    text = (run / "asked.json").read_text()
    (run / "asked.json").write_text("{")
    assert "asked.json cannot be used" in files.snapshot().problem
    (run / "asked.json").write_text(text)
    assert files.snapshot().batch.round == 3
    (run / "asked.json").unlink()
    assert (files.snapshot().batch, files.snapshot().problem) == (None, None)


def test_a_file_that_cannot_be_read_is_a_problem_until_it_can(run, monkeypatch):
    def fail(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    files, path = RunFiles(run), run / "answers" / "ann.jsonl"
    path.write_text(WHOLE[0])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert "ann.jsonl" in files.snapshot().problem
    assert len(files.snapshot().answers) == 1


def test_a_table_by_a_name_in_capitals_is_read_and_a_file_of_another_kind_is_told(run):
    files = RunFiles(run)
    files.snapshot()
    (run / "answers" / "ann.CSV").write_text("id,label\n10,cat\n11,dog\n")
    (run / "answers" / "bob.xlsx").touch()
    found = files.snapshot()
    assert [(answer.id, answer.who) for answer in found.answers] == [(10, "ann"), (11, "ann")]
    assert found.unread == (f"{run / 'answers' / 'bob.xlsx'} is neither .csv nor .jsonl: save it as CSV",)
