import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.labelling.answers import Answer
from al_lightning.labelling.asked import AskedBatch, AskedPoint
from al_lightning.labelling.page.view import view
from al_lightning.labelling.resolve import resolved

CLASSES = ["cat", "dog"]


def at(minute: int) -> str:
    return f"2026-11-28T10:{minute:02d}:00.000000Z"


def label(index: int, name: str, who: str, minute: int = 0) -> Answer:
    return Answer(index, "label", name, who, at(minute))


def batch(*ids: int, **fields) -> AskedBatch:
    points = [AskedPoint(index, shown=f"asked/{index}.png") for index in ids]
    return AskedBatch(**{"round": 1, "points": points, "classes": CLASSES, "num_points": 100, **fields})


def seen(of: AskedBatch, answers: list[Answer], who: str = "ann") -> dict:
    return view(of, answers, who, show_predictions=False)


def open_ids(state: dict) -> list[int]:
    """What the page makes of a state."""
    mine = {answer["id"] for answer in state["mine"]}
    ids = [point["id"] for point in state["points"]]
    return [index for index in ids if (index in state["again"] if index in mine else index not in state["settled"])]


def test_points_are_in_the_order_of_the_batch():
    assert open_ids(seen(batch(7, 3, 5), [])) == [7, 3, 5]


def test_a_point_that_others_have_answered_is_asked_until_the_wanted_votes_are_there():
    votes = [label(3, "cat", "bob"), label(3, "cat", "eve")]
    assert open_ids(seen(batch(3, 4, answers_per_point=3), votes)) == [3, 4]
    assert open_ids(seen(batch(3, 4, answers_per_point=2), votes)) == [4]


def test_a_skip_of_another_person_leaves_the_point_to_me():
    assert open_ids(seen(batch(3), [Answer(3, "skip", None, "bob", at(0))])) == [3]


@pytest.mark.parametrize("kind", ["skip", "unsure", "reject"])
def test_what_i_have_answered_is_not_asked_again_and_what_i_took_back_is(kind):
    mine = Answer(3, kind, None, "ann", at(0))
    assert open_ids(seen(batch(3, 4), [mine])) == [4]
    assert open_ids(seen(batch(3, 4), [mine, Answer(3, "undo", None, "ann", at(1))])) == [3, 4]


def test_a_skip_that_an_earlier_batch_took_up_is_asked_again():
    skip = Answer(3, "skip", None, "ann", at(0))
    assert open_ids(seen(batch(3, taken_up=[(3, "skip", None, "ann", at(0))]), [skip])) == [3]


def test_a_tie_is_asked_again_of_who_voted_first_and_of_people_who_have_not():
    votes = [label(3, "cat", "ann", 0), label(3, "dog", "bob", 1)]
    assert open_ids(seen(batch(3), votes, "ann")) == [3]
    assert open_ids(seen(batch(3), votes, "bob")) == []
    assert open_ids(seen(batch(3), votes, "eve")) == [3]
    assert open_ids(seen(batch(3), [*votes, label(3, "dog", "ann", 2)], "ann")) == []


def test_a_closed_batch_is_closed_and_open_points_are_counted():
    state = seen(batch(3, 4, min_answered=1), [label(3, "cat", "bob")])
    assert (state["is_closed"], state["num_missing"]) == (True, 1)
    assert not seen(batch(3, 4), [label(3, "cat", "bob")])["is_closed"]


def test_points_are_tallied_by_what_they_are():
    answers = [label(3, "cat", "ann"), label(4, "dog", "ann"), Answer(5, "unsure", None, "ann", at(0))]
    answers += [Answer(6, "skip", None, "ann", at(0)), label(50, "cat", "ann")]
    state = seen(batch(3, 4, 5, 6, 7, asked_before={50: 0}), answers)
    assert state["tally"] == {"label": 2, "unsure": 1, "skip": 1}


def test_the_last_ten_answers_to_earlier_batches_can_be_corrected():
    before = dict.fromkeys(range(50, 62), 0)
    answers = [label(index, "cat", "ann", index - 50) for index in before]
    answers += [Answer(61, "undo", None, "ann", at(30)), label(50, "dog", "bob", 30)]
    assert [one["id"] for one in seen(batch(3, asked_before=before), answers)["earlier"]] == list(range(51, 61))


def test_hidden_predictions_leave_no_trace_of_rank_score_or_holdout():
    known = AskedPoint(3, 0, 0.5, "dog", {"cat": 0.3, "dog": 0.7}, "asked/3.png")
    both = replace(batch(), points=[known, AskedPoint(4, shown="asked/4.png")])
    one, other = seen(both, [])["points"]
    assert {**one, "id": 0} == {**other, "id": 0}
    shown = view(both, [], "ann", show_predictions=True)["points"]
    assert (shown[0]["predicted"], shown[0]["probability"], "predicted" in shown[1]) == ("dog", 0.7, False)


ANSWERS = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from("abc"), st.sampled_from(["cat", "dog", "skip", "unsure", "reject", "undo"])
    ),
    max_size=20,
)


@given(ANSWERS, st.integers(1, 3))
def test_when_no_point_is_open_for_anybody_none_that_has_votes_enough_is_missing(drawn, answers_per_point):
    minutes = itertools.count()
    answers = [
        label(index, what, who, next(minutes)) if what in CLASSES else Answer(index, what, None, who, at(next(minutes)))
        for index, who, what in drawn
    ]
    of = batch(0, 1, 2, 3, answers_per_point=answers_per_point)
    found = resolved(answers, asked_now=of.ids, answers_per_point=answers_per_point)
    for index in of.ids:
        open_for = [who for who in ("ann", "a", "b", "c") if index in open_ids(seen(of, answers, who))]
        is_answered = index in found and found[index].kind != "skip"
        # Somebody who has not voted sees just those that wait; "ann" has answered nothing.
        assert ("ann" in open_for) == (not is_answered)
