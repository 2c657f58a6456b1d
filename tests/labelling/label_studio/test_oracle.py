import pickle

import pytest

from al_lightning import ActiveLearningDataModule, active_fit, read_journal
from al_lightning.labelling import AskedBatch, AskedPoint, DatasetLabels, LabelStudio, Query
from tests.conftest import NUM_CLASSES, TinyData

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


class Shown(TinyData):
    """Points that people see as a picture."""

    def render(self, item):
        return item[0].expand(4, 4)


@pytest.mark.slow
def test_a_run_that_asks_there_acquires_what_one_with_all_labels_does(
    studio, make_callback, make_model, make_trainer, tmp_path
):
    names = ["ant", "bee", "cat"]

    def started(oracle, folder):
        callback = make_callback(oracle=oracle, folder=tmp_path / folder)
        datamodule = ActiveLearningDataModule(Shown(), initial=6, classes=names)
        active_fit(make_trainer(callback), make_model(), datamodule, seed=3)
        return callback

    started(DatasetLabels(), "known")
    while started(LabelStudio(studio.url, 1), "asked").waiting_for:
        answered = {each["task"] for each in studio.annotations.values()}
        for number, task in studio.tasks.items():
            if number not in answered:
                point = task["data"]["point"]
                studio.annotate(point, names[point % NUM_CLASSES], task=number)  # as `TinyData` has them
    (_, known), (_, asked) = (read_journal(tmp_path / folder) for folder in ("known", "asked"))
    assert len(known) == len(asked) == 3
    for one, other in zip(known, asked, strict=True):
        assert (one.acquired, one.scores, one.metrics) == (other.acquired, other.scores, other.metrics)
        assert (one.targets or []) == (other.targets or [])
    assert len(studio.tasks) == sum(len(each.acquired) for each in asked)


def test_an_empty_batch_brings_what_earlier_ones_were_answered_and_asks_nobody(studio, query):
    oracle, empty = (
        LabelStudio(studio.url, 1),
        Query(AskedBatch(1, [], ["cat", "dog"], 10, asked_before={3: 0}), query.folder, query.items),
    )
    assert oracle.answers(empty).is_closed
    assert studio.requests == []
    oracle.ask(query)
    studio.annotate(3, "dog")
    assert oracle.answers(empty).of[3].label == "dog"
