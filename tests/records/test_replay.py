from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.data import EXCLUDED, HELD_OUT, IN_POOL, RESERVED, Labels
from al_lightning.records.replay import Recorded, before_batch, recorded, trained_on
from al_lightning.records.round import Round

NUM_POINTS = 12
HEADER = {"num_points": NUM_POINTS, "initial": [0, 1], "initial_targets": [0, 1], "excluded": [11]}


@pytest.mark.slow
@given(st.lists(st.lists(st.tuples(st.integers(0, NUM_POINTS - 1), st.integers(-2, 5)), max_size=4), max_size=5))
def test_the_state_is_that_of_a_label_array_to_which_the_same_was_done(edits):
    labels, rounds = Labels(NUM_POINTS), []
    labels.label([0, 1], round=0)
    labels.exclude([11])
    for number, pairs in enumerate(edits):
        before = recorded(HEADER, rounds).state_of
        for index, state in pairs:
            labels.round_of_N[index] = state
        changed = [[index, state, None] for index, state in labels.differences(before).items()]
        batch = labels.pool_indices[:2].tolist()
        rounds.append(Round(number, labels.num_labelled, labels.num_pool, acquired=batch, changed=changed))
        labels.label(batch, round=number + 1)
        assert trained_on(HEADER, rounds).num_labelled == rounds[-1].num_labelled
    state_of = recorded(HEADER, rounds).state_of
    expected = {index: state for index, state in enumerate(labels.round_of_N.tolist()) if state != IN_POOL}
    assert state_of == expected
    again = Labels(NUM_POINTS)
    again.replace(state_of)
    assert torch.equal(again.round_of_N, labels.round_of_N)
    assert again.differences(state_of) == {}


def test_targets_follow_batches_changes_and_corrections():
    rounds = [
        Round(0, 2, 9, acquired=[4, 5], targets=[2, 0]),
        Round(1, 3, 7, changed=[[4, IN_POOL, None], [0, EXCLUDED, None], [7, 1, 1]], corrections=[[5, 0, 1]]),
    ]
    assert recorded(HEADER, rounds).target_of == {1: 1, 5: 1, 7: 1}
    assert trained_on(HEADER, rounds[:1]).target_of == {0: 0, 1: 1}
    assert recorded({**HEADER, "initial_targets": None}, []).target_of == {}


def test_a_round_that_takes_a_point_twice_is_named():
    with pytest.raises(ValueError, match="round 1: id 4 is labelled in round 2, but was out of the pool before"):
        recorded(HEADER, [Round(0, 2, 9, acquired=[4]), Round(1, 3, 8, acquired=[4])])


def row(index, kind="label", label=0):
    return {"id": index, "kind": kind, "label": label, "who": "ann", "at": None, "seconds": None}


def test_points_that_people_did_not_label_stay_in_the_pool_and_others_are_answered():
    first = Round(
        0, 2, 9, acquired=[4, 5, 6], targets=[2, None, None], answers=[row(4), row(5, "skip"), row(6, "unsure")]
    )
    found = recorded(HEADER, [replace(first, changed_after=[[6, EXCLUDED, None]])])
    assert found.state_of == {0: 0, 1: 0, 11: EXCLUDED, 4: 1, 6: EXCLUDED}
    assert (found.answered, found.answers) == ({4, 6}, {4: 2})


def test_what_people_have_answered_is_theirs_until_the_user_moves_it():
    first = Round(0, 2, 9, acquired=[4], targets=[2], answers=[row(4)])
    by_user = Round(1, 3, 7, changed=[[4, EXCLUDED, None], [3, 1, 1]])
    assert recorded(HEADER, [first, by_user]).answered == set()
    undone = Round(1, 3, 8, changed_after=[[4, IN_POOL, None]], answers=[row(4, "undo", None)])
    assert recorded(HEADER, [first, undone]).answered == set()


def test_a_skipped_point_that_the_user_excludes_is_none_that_people_have_answered():
    skipped = Round(
        0, 2, 9, acquired=[4], targets=[None], answers=[row(4, "skip")], changed_after=[[4, EXCLUDED, None]]
    )
    assert recorded(HEADER, [skipped]).answered == set()


def test_points_of_the_holdout_are_neither_labelled_nor_in_the_pool():
    header = {**HEADER, "reserved": [7, 8]}
    assert (recorded(header, []).num_labelled, recorded(header, []).num_pool) == (2, 7)
    first = Round(0, 2, 7, asked_held_out=[7], changed_after=[[7, HELD_OUT, 1]], answers=[row(7)])
    found = recorded(header, [first])
    assert (found.state_of[7], found.target_of[7], found.state_of[8]) == (HELD_OUT, 1, RESERVED)
    assert (found.num_labelled, found.num_pool, found.answered) == (2, 7, {7})
    back = Round(1, 2, 7, num_held_out=1, changed_after=[[7, RESERVED, None]], answers=[row(7, "undo", None)])
    assert recorded(header, [first, back]).answered == set()


def test_appended_points_enter_the_pool_and_none_are_taken_away():
    grown = Round(0, 2, 12, num_points=15, acquired=[14], targets=[0])
    assert (recorded(HEADER, [grown]).num_points, recorded(HEADER, [grown]).num_pool) == (15, 11)
    with pytest.raises(ValueError, match="round 1: `num_points` is 14, but was 15: points are appended"):
        recorded(HEADER, [grown, Round(1, 3, 10, num_points=14)])
    with pytest.raises(ValueError, match="round 0: id 14 is out of range, the dataset has 12 points"):
        recorded(HEADER, [replace(grown, num_points=None, num_pool=9)])


def test_the_state_before_a_batch_has_its_changes_and_not_its_labels():
    first = Round(0, 2, 9, acquired=[4], targets=[2], changed_after=[[3, EXCLUDED, None]])
    assert before_batch(HEADER, [first]).state_of == {0: 0, 1: 0, 11: EXCLUDED, 3: EXCLUDED}
    assert before_batch(HEADER, []).state_of == recorded(HEADER, []).state_of
    second = Round(1, 3, 7, acquired=[5], targets=[0])
    assert before_batch(HEADER, [first, second]).state_of == recorded(HEADER, [first]).state_of


def test_further_changes_are_applied_to_the_same_state():
    found = Recorded(5, {1: 0}, {1: 2}, {1})
    assert found.apply([[1, IN_POOL, None], [2, 3, 1]]) is found
    assert found == Recorded(5, {2: 3}, {2: 1}, set())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([2, -6, None], "id 2 has the label state -6, but -5 is the lowest"),
        ([9, 1, 0], "id 9 is out of range"),
        ([None, 1, 0], "a change has no id or no state"),
    ],
)
def test_a_change_that_no_run_makes_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Recorded(5).apply([change])
