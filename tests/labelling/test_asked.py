import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.labelling import asked as module
from al_lightning.labelling.answers import normal_time
from al_lightning.labelling.asked import (
    AskedBatch,
    AskedPoint,
    now,
    read_asked,
    refuse_other_folders,
    write_asked,
)

BATCH = AskedBatch(
    round=3,
    points=[AskedPoint(17, 0, 0.5, "dog", {"cat": 0.25, "dog": 0.75}, "asked/17.png"), AskedPoint(4)],
    classes=["cat", "dog", '<script>alert("é")</script>'],
    num_points=100,
    asked_at="2026-11-28T10:00:00.000000Z",
    renamed={"kitty": "cat"},
    answers_per_point=2,
    min_answered=1,
    answers_from=["/labels"],
    asked_before={12: 0, 5: 2},
    taken_up=[(17, "skip", None, "ann", None), (4, "label", "cat", "bob", "2026-11-28T09:00:00.000000Z")],
    draft={"record": {"round": 3, "metrics": {"acc": None}}},
)


@pytest.fixture
def entry(tmp_path):
    """What is in the file of a batch, and a function that writes something else there."""
    write_asked(tmp_path, BATCH)
    path = tmp_path / "asked.json"
    return json.loads(path.read_text()), lambda entry: path.write_text(json.dumps(entry))


@pytest.mark.parametrize("batch", [BATCH, AskedBatch(0, [], ["cat"], 1)])
def test_a_batch_is_read_as_it_was_written_and_answers_have_a_folder(tmp_path, batch):
    write_asked(tmp_path, batch)
    assert read_asked(tmp_path) == batch
    assert (tmp_path / "answers").is_dir()
    write_asked(tmp_path, batch)  # twice is once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "asked.json"]


def test_a_run_that_asks_for_nothing_has_no_batch(tmp_path):
    assert read_asked(tmp_path) is None


def test_answers_have_a_folder_before_anybody_is_asked(tmp_path, monkeypatch):
    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        write_asked(tmp_path, BATCH)
    assert (tmp_path / "answers").is_dir()
    assert read_asked(tmp_path) is None


@given(st.data())
def test_a_file_that_was_cut_is_named_with_the_way_out(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    write_asked(folder, BATCH)
    path = folder / "asked.json"
    whole = path.read_bytes().rstrip()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=f"{path} cannot be used .* Restore it. Without it"):
        read_asked(folder)


WRONG = [None, True, -1, 1.5, "text", [], [1], [[1, 2]], {}, {"x": "y"}, {"x": 1}]


@pytest.mark.parametrize("name", list(vars(BATCH)))
def test_a_field_of_a_wrong_type_is_damage_and_no_crash(entry, tmp_path, name):
    found, write = entry
    num_refused = 0
    for wrong in WRONG:
        write({**found, name: wrong})
        try:
            batch = read_asked(tmp_path)
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / 'asked.json'} cannot be used")  # noqa: PT017 - or it may be right
            num_refused += 1
        else:
            assert type(getattr(batch, name)) is type(getattr(BATCH, name)) or wrong is None
    assert num_refused >= (0 if name == "draft" else 4)


@pytest.mark.parametrize("name", ["points", "classes", "round", "num_points", "asked_before", "taken_up", "schema"])
def test_a_field_that_is_missing_is_damage(entry, tmp_path, name):
    found, write = entry
    write({key: value for key, value in found.items() if key != name})
    with pytest.raises(ValueError, match="cannot be used"):
        read_asked(tmp_path)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"id": 100}, "it asks for point 100 of 100"),
        ({"id": -1}, "it asks for point -1 of 100"),
        ({"id": 4}, "it asks for a point twice"),
        ({"id": "5"}, "it has `id` = '5'"),
        ({"id": 5, "score": "high"}, "it has `score` = 'high'"),
        ({"id": 5, "probabilities": {"cat": "much"}}, "it has `probabilities`"),
        ({"id": 5, "html": "<b>"}, "html"),
        ("5", "TypeError"),
    ],
)
def test_a_point_that_no_run_asks_for_is_damage(entry, tmp_path, point, words):
    found, write = entry
    write({**found, "points": [*found["points"], point]})
    with pytest.raises(ValueError, match=words):
        read_asked(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"[]", b'{"schema": "al_lightning.rounds"}', b"NaN"])
def test_another_file_in_its_place_is_named(tmp_path, content):
    (tmp_path / "asked.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"asked.json cannot be used"):
        read_asked(tmp_path)


def test_what_may_be_answered_is_what_is_or_was_asked():
    assert set(BATCH.allowed.asked) == {17, 4, 12, 5}
    assert BATCH.ids == [17, 4]


def test_a_folder_of_something_else_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"so it is no run folder. Give the `folder=` of the run"):
        refuse_other_folders(tmp_path)
    (tmp_path / "rounds.jsonl").touch()
    refuse_other_folders(tmp_path)


def test_the_time_is_written_as_answers_have_it():
    time = now()
    assert normal_time(time) == time
    assert time.endswith("Z")
