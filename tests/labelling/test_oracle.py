import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from al_lightning.labelling import AskedBatch, AskedPoint, AskPeople, DatasetLabels, Query
from al_lightning.labelling.asked import read_asked

BATCH = AskedBatch(2, [AskedPoint(3, 0, 0.5), AskedPoint(5, 1, 0.4)], ["cat", "dog"], num_points=9, asked_before={7: 1})


@pytest.fixture
def query(tmp_path):
    (tmp_path / "run").mkdir()
    return Query(BATCH, tmp_path / "run", items=lambda index: (f"point {index}", -1))


def write(folder, *answers, name="ann"):
    with (folder / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps(answer) + "\n" for answer in answers)


def kinds(answers):
    return {index: point.label or point.kind for index, point in answers.of.items()}


def test_the_dataset_answers_at_once_with_what_it_holds(query):
    oracle = DatasetLabels()
    oracle.ask(query)
    answers = oracle.answers(query)
    assert answers.is_closed
    assert {index: (point.kind, point.label) for index, point in answers.of.items()} == dict.fromkeys(
        [3, 5], ("label", None)
    )
    assert not oracle.asks_people
    assert list(query.folder.iterdir()) == []


def test_asking_writes_the_batch_and_what_people_see_and_twice_is_once(query):
    oracle = AskPeople(min_answered=1, answers_per_point=2)
    for _ in range(2):
        oracle.ask(query)
    batch = read_asked(query.folder)
    assert [point.shown for point in batch.points] == ["asked/3.txt", "asked/5.txt"]
    assert (batch.min_answered, batch.answers_per_point) == (1, 2)
    assert (query.folder / "asked" / "3.txt").read_text() == "point 3"
    assert sorted(path.name for path in (query.folder / "asked").iterdir()) == ["3.txt", "5.txt"]


def test_what_the_data_module_renders_is_shown(query):
    AskPeople().ask(replace(query, render=lambda item: np.full((6, 5), len(item), dtype=np.uint8)))
    with Image.open(query.folder / "asked" / "3.png") as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((5, 6), 2)


def test_answers_are_read_from_the_run_folder_and_close_the_batch_when_all_are_there(query):
    oracle = AskPeople()
    oracle.ask(query)
    write(query.folder / "answers", {"id": 3, "label": "cat"}, {"id": 7, "label": "dog"})
    answers = oracle.answers(query)
    assert (kinds(answers), answers.is_closed) == ({3: "cat", 7: "dog"}, False)
    write(query.folder / "answers", {"id": 5, "kind": "unsure"})
    assert oracle.answers(query).is_closed
    assert not oracle.answers(replace(query, batch=replace(BATCH, points=[*BATCH.points, AskedPoint(8)]))).is_closed


def test_a_part_of_the_batch_closes_it_if_it_may_or_somebody_says_so(query):
    AskPeople().ask(query)
    write(query.folder / "answers", {"id": 3, "label": "cat"})
    assert AskPeople(min_answered=1).answers(query).is_closed
    assert not AskPeople(min_answered=2).answers(query).is_closed
    assert AskPeople().answers(replace(query, is_finished=True)).is_closed


def test_a_line_without_an_end_is_told_and_not_read(query):
    AskPeople().ask(query)
    (query.folder / "answers" / "ann.csv").write_text("id,label\n3,cat")
    answers = AskPeople().answers(query)
    assert answers.of == {}
    assert len(answers.unread) == 1
    assert "ann.csv" in answers.unread[0]


def test_labels_that_exist_already_answer_what_is_asked_and_the_rest_waits(query, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "all.csv").write_text("id,label\n" + "".join(f"{index},dog\n" for index in range(9)))
    AskPeople().ask(query)
    answers = AskPeople(answers_from=[there]).answers(query)
    assert (kinds(answers), answers.is_closed) == ({3: "dog", 5: "dog", 7: "dog"}, True)
    (there / "all.csv").write_text("id,label\n9,dog\n")
    with pytest.raises(ValueError, match=r"all\.csv:2 answers point 9, but ids run from 0 to 8"):
        AskPeople(answers_from=[there]).answers(query)
    with pytest.raises(ValueError, match=r"`answers_from` names .*nowhere, but there is no such folder"):
        AskPeople(answers_from=[tmp_path / "nowhere"]).answers(query)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"wait": -1}, ValueError, "`wait` is -1"),
        ({"wait": float("nan")}, ValueError, "`wait` is nan"),
        ({"min_answered": 0}, ValueError, "`min_answered` is 0"),
        ({"answers_per_point": 0}, ValueError, "`answers_per_point` is 0"),
        ({"answers_from": "there"}, TypeError, r"must be a list: \['there'\]"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        AskPeople(**settings)


def test_without_a_run_folder_nobody_can_be_asked(query):
    with pytest.raises(ValueError, match="`fast_dev_run` leaves none"):
        AskPeople().ask(replace(query, folder=None))
