import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.labelling import AskedBatch, AskedPoint
from al_lightning.labelling.missing import Lack
from al_lightning.records.round import Round
from al_lightning.rounds.draft import Draft, Waiting

IDS = st.lists(st.integers(0, 99), unique=True, max_size=5)


@st.composite
def drafts(draw):
    """Rounds that have chosen a batch, as `asked.json` keeps them."""
    acquired = draw(IDS)
    shares = st.lists(st.floats(0, 1), min_size=len(acquired), max_size=len(acquired))
    targets = draw(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=len(acquired), max_size=len(acquired)))
    record = Round(
        draw(st.integers(0, 9)),
        7,
        90,
        acquired=acquired,
        scores=draw(shares),
        targets=targets,
        changed_after=[[3, -2, None]],
        answers=[{"id": 3, "kind": "unsure", "label": None, "who": "é", "at": None, "seconds": 0.1}],
        asked_held_out=draw(IDS),
        metrics={"acc": draw(st.one_of(st.none(), st.floats(0, 1)))},
    )
    probs = None if draw(st.booleans()) else [[share, 1 - share] for share in draw(shares)]
    predicted = draw(st.dictionaries(st.integers(0, 99), st.integers(0, 3), max_size=4))
    return Draft(record, None, draw(st.one_of(st.none(), st.just("abc"))), probs, predicted, draw(st.booleans()))


@given(drafts())
def test_a_draft_is_read_from_json_as_it_was_written(draft):
    assert Draft.from_data(json.loads(json.dumps(draft.as_data(), allow_nan=False))) == draft


def asked(draft, round_index=1, ids=(3, 4)):
    return AskedBatch(round_index, [AskedPoint(index) for index in ids], ["cat", "dog"], 99, draft=draft)


def test_the_draft_of_a_batch_is_read_where_it_is_that_of_this_batch():
    draft = Draft(Round(1, 2, 97, acquired=[3, 4], scores=[0.5, 0.25]), None)
    assert Draft.of_asked(asked(draft.as_data())) == draft
    assert Draft.of_asked(asked(draft.as_data(), ids=[4])) == draft  # a point was excluded since


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": {}}, "its draft is a round without num_labelled"),
        ({"record": None}, "its draft is none"),
        ({"held_out_predicted": 3}, "its draft is none"),
        ({"record": {"acquired": "no list"}}, "its draft has `acquired` = 'no list'"),
        ({"record": {"scores": [0.5]}}, "its draft has lists of other lengths"),
        ({"record": {"round": 2}}, "its draft is round 2, but must be round 1"),
        ({"record": {"acquired": [3, 5]}}, "its draft asks for other points"),
        ({"record": {"novelty": 1}}, "novelty, which this version of al_lightning does not know"),
    ],
)
def test_a_damaged_draft_is_named(changes, words):
    data = Draft(Round(1, 2, 97, acquired=[3, 4], scores=[0.5, 0.25]), None).as_data()
    record = changes.get("record", data["record"])
    with pytest.raises(ValueError, match=words):
        Draft.of_asked(asked({**data, **changes, "record": record and {**data["record"], **record}}))


def test_the_next_batch_is_due_where_nothing_is_asked_and_the_run_goes_on():
    assert Draft(Round(0, 1, 9), None).needs_batch
    assert not Draft(Round(0, 1, 9, acquired=[3]), None).needs_batch
    assert not Draft(Round(0, 1, 9, asked_held_out=[3]), None).needs_batch
    assert not Draft(Round(0, 1, 9, stopped="the pool is empty"), None).needs_batch


def test_waiting_says_what_is_missing_and_where_to_give_it():
    said = str(Waiting(2, Path("runs/a"), list(range(12)), 20, ["b.jsonl:3 has no end of line"]))
    assert "Round 2 asks for 20 labels, and 12 are missing: points 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in said
    assert "`al-lightning label runs/a`, or write files in runs/a/answers" in said
    assert "Not read: b.jsonl:3 has no end of line." in said


def test_waiting_for_one_label_says_so():
    waiting = Waiting(2, Path("runs/a"), [7], 1, [])
    assert str(waiting).startswith("Round 2 asks for 1 label, and 1 is missing: point 7.")
    assert waiting.while_waiting.startswith("Round 2 asks for 1 label, and waits for 1: ")


def test_waiting_says_why_points_are_missing():
    lacks = {3: Lack("with contradicting answers", "ann 'cat', bob 'dog'")}
    waiting = Waiting(2, Path("runs/a"), [3, 5], 20, [], lacks)
    why = "1 with contradicting answers: 3 (ann 'cat', bob 'dog'); 1 without an answer: 5."
    assert f"2 are missing: {why}" in str(waiting)
    assert waiting.while_waiting.endswith(f"Missing: {why}")


def test_names_of_files_cannot_move_the_cursor():
    waiting = Waiting(2, Path("runs/\x1b[2Ja"), [1], 20, ["\x1b[2J.jsonl:3 has no end of line"])
    assert "\x1b" not in str(waiting) + waiting.while_waiting
    assert "waits for 1: answer them with `al-lightning label runs/" in waiting.while_waiting
