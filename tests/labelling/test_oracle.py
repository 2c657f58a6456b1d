import json
import math

import pytest

from al_lightning.labelling import AskedBatch, AskedPoint, AskPeople, DatasetLabels, Query, Resolved
from al_lightning.labelling.asked import read_asked

BATCH = AskedBatch(1, [AskedPoint(3), AskedPoint(4)], ["cat", "dog"], 10, asked_before={7: 0})


def query_in(folder, batch=BATCH, **more):
    return Query(batch, folder, lambda index: (f"text of {index}", -1), **more)


def say(folder, *answers, who="ann"):
    folder.mkdir(exist_ok=True)
    with (folder / f"{who}.jsonl").open("a") as file:
        file.writelines(json.dumps(answer) + "\n" for answer in answers)


def labels(answers):
    return {index: point.label or point.kind for index, point in answers.of.items()}


def test_the_dataset_labels_each_point_at_once_and_asks_nobody(tmp_path):
    oracle = DatasetLabels()
    oracle.ask(query_in(None))
    answers = oracle.answers(query_in(None))
    assert answers.of == {3: Resolved("label", None, ()), 4: Resolved("label", None, ())}
    assert (answers.is_closed, oracle.asks_people, oracle.wait_s) == (True, False, 0.0)


def test_people_see_what_each_point_looks_like_and_how_many_answers_are_wanted(tmp_path):
    oracle = AskPeople(wait=5, min_answered=1, answers_per_point=2, answers_from=[tmp_path / "labels"])
    for _ in range(2):  # twice is once
        oracle.ask(query_in(tmp_path))
        batch = read_asked(tmp_path)
        assert [point.shown for point in batch.points] == ["asked/3.txt", "asked/4.txt"]
        assert (batch.min_answered, batch.answers_per_point) == (1, 2)
        assert batch.answers_from == [str(tmp_path / "labels")]
        assert (tmp_path / "asked" / "3.txt").read_text() == "text of 3"
    assert (oracle.asks_people, oracle.wait_s) == (True, 5)


def test_answers_close_the_batch_when_all_are_there(tmp_path):
    say(tmp_path / "answers", {"id": 3, "label": "cat"})
    answers = AskPeople().answers(query_in(tmp_path))
    assert (labels(answers), answers.is_closed) == ({3: "cat"}, False)
    say(tmp_path / "answers", {"id": 4, "kind": "unsure"}, {"id": 7, "label": "dog"})
    answers = AskPeople().answers(query_in(tmp_path))
    assert (labels(answers), answers.is_closed) == ({3: "cat", 4: "unsure", 7: "dog"}, True)


def test_fewer_answers_or_finish_close_it_with_what_is_there(tmp_path):
    say(tmp_path / "answers", {"id": 3, "label": "cat"})
    for closes in (
        AskPeople(min_answered=1).answers(query_in(tmp_path)),
        AskPeople().answers(query_in(tmp_path, is_finished=True)),
    ):
        assert (labels(closes), closes.is_closed) == ({3: "cat"}, True)


def test_a_skip_of_one_of_two_people_is_taken_up_only_when_the_batch_is_closed(tmp_path):
    say(tmp_path / "answers", {"id": 3, "kind": "skip"})
    say(tmp_path / "answers", {"id": 4, "label": "dog"}, who="bob")
    assert labels(AskPeople().answers(query_in(tmp_path))) == {4: "dog"}
    finished = AskPeople().answers(query_in(tmp_path, is_finished=True))
    assert labels(finished) == {3: "skip", 4: "dog"}
    assert [answer.who for answer in finished.of[3].answers] == ["ann"]


def test_half_a_line_is_told(tmp_path):
    say(tmp_path / "answers")
    (tmp_path / "answers" / "bob.jsonl").write_text('{"id": 3')
    assert len(AskPeople().answers(query_in(tmp_path)).unread) == 1


def test_a_list_that_exists_already_answers_what_is_asked_and_waits_with_the_rest(tmp_path):
    say(tmp_path / "given", {"id": 3, "label": "cat"}, {"id": 9, "label": "dog"}, {"id": 7, "label": "dog"})
    say(tmp_path / "shared", {"id": 4, "label": "dog"})
    oracle = AskPeople(answers_from=[tmp_path / "given", str(tmp_path / "shared")])
    assert labels(oracle.answers(query_in(tmp_path))) == {3: "cat", 4: "dog", 7: "dog"}
    say(tmp_path / "answers", {"id": 9, "label": "dog"})
    with pytest.raises(ValueError, match=r"ann.jsonl:1 answers point 9, for which no batch has asked"):
        oracle.answers(query_in(tmp_path))


def test_the_same_answer_in_the_run_and_in_a_shared_folder_is_one_vote(tmp_path):
    for name in ("answers", "shared"):
        say(tmp_path / name, {"id": 3, "label": "dog"}, {"id": 3, "label": "cat"})
    oracle = AskPeople(answers_per_point=2, answers_from=[tmp_path / "shared"])
    assert labels(oracle.answers(query_in(tmp_path))) == {}
    say(tmp_path / "shared", {"id": 3, "label": "cat"}, who="bob")
    assert labels(oracle.answers(query_in(tmp_path))) == {3: "cat"}


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"`answers_from` names {tmp_path / 'none'}, but there is no such folder"):
        AskPeople(answers_from=[tmp_path / "none"]).answers(query_in(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"wait": -1}, ValueError, "`wait` is -1"),
        ({"wait": math.nan}, ValueError, "`wait` is nan"),
        ({"min_answered": 0}, ValueError, "`min_answered` is 0, but must be at least 1"),
        ({"answers_per_point": 0}, ValueError, "`answers_per_point` is 0, but must be at least 1"),
        ({"answers_from": "labels"}, TypeError, r"`answers_from` is 'labels', but must be a list: \['labels'\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        AskPeople(**arguments)


@pytest.mark.parametrize("use", [AskPeople().ask, AskPeople().answers])
def test_people_cannot_be_asked_without_a_folder(use):
    with pytest.raises(ValueError, match="People are asked through the run folder, and `fast_dev_run` leaves none"):
        use(query_in(None))
