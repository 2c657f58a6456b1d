import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.data import EXCLUDED, IN_POOL, Labels
from al_lightning.records.replay import recorded, trained_on
from al_lightning.records.round import Round

NUM_POINTS = 12
HEADER = {"num_points": NUM_POINTS, "initial": [0, 1], "initial_targets": [0, 1], "excluded": [11]}


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
