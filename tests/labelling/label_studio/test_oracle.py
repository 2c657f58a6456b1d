import pickle

import pytest

from al_lightning.labelling import AskedBatch, AskedPoint, LabelStudio, Query

BATCH = AskedBatch(0, [AskedPoint(3), AskedPoint(4)], ["cat", "dog"], 10)


@pytest.fixture
def query(tmp_path):
    return Query(BATCH, tmp_path, items=lambda index: (f"text {index}", -1))


def test_a_batch_is_asked_once_and_closed_by_its_answers(studio, query):
    oracle = LabelStudio(studio.url, 1)
    oracle.ask(query)
    oracle.ask(query)
    assert [task["data"]["text"] for task in studio.tasks.values()] == ["text 3", "text 4"]
    assert oracle.answers(query).of == {}
    studio.annotate(3, "cat")
    found = oracle.answers(query)
    assert ({index: each.label for index, each in found.of.items()}, found.is_closed) == ({3: "cat"}, False)
    studio.annotate(4, "dog", who=2)
    assert oracle.answers(query).is_closed


def test_answers_through_files_count_as_well(studio, query, tmp_path):
    oracle = LabelStudio(studio.url, 1)
    oracle.ask(query)
    studio.annotate(3, "cat")
    (tmp_path / "answers/bob.csv").write_text("id,label\n4,dog\n")
    assert oracle.answers(query).is_closed


def test_wanted_answers_are_those_of_people_who_answer_through_files(studio, query):
    wanted = LabelStudio(studio.url, 1, answers_per_point=2)
    wanted.ask(query)
    for point in (3, 4):
        studio.annotate(point, "cat")
    assert not wanted.answers(query).is_closed
    studio.annotate(3, "cat", who=2)
    assert not wanted.answers(query).is_closed
    assert LabelStudio(studio.url, 1, answers_per_point=2, min_answered=1).answers(query).is_closed


def test_it_is_a_value_without_the_token(studio):
    oracle = LabelStudio(studio.url, 1, wait=3600)
    assert oracle == pickle.loads(pickle.dumps(oracle))  # noqa: S301 - our own
    assert studio.LEGACY not in repr(oracle)
    assert studio.LEGACY.encode() not in pickle.dumps(oracle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "studio"}, "The address 'studio'"),
        ({"project": 0}, "`project` is 0"),
        ({"wait": -1}, "`wait` is -1"),
        ({"answers_per_point": 0}, "`answers_per_point` is 0"),
        ({"min_answered": 0}, "`min_answered` is 0"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(studio, arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelStudio(**{"url": studio.url, "project": 1, **arguments})


def test_a_run_without_a_token_does_not_begin(studio, monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    with pytest.raises(ValueError, match="LABEL_STUDIO_API_KEY holds no token"):
        LabelStudio(studio.url, 1)
