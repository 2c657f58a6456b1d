import pytest

from al_lightning.records.round import Round


def test_the_numbers_of_a_round_have_one_flat_name_each():
    record = Round(
        3, 10, 40, acquired=[7, 8], metrics={"acc": 0.5}, information={"joint_mi": 0.25}, seconds={"fit": 2.0}
    )
    assert record.numbers() == {
        "round": 3,
        "num_labelled": 10,
        "num_pool": 40,
        "num_acquired": 2,
        "acc": 0.5,
        "joint_mi": 0.25,
        "redundancy": None,
        "seconds_fit": 2.0,
    }


def test_picks_have_a_row_for_each_id_and_none_for_what_is_unknown():
    record = Round(1, 2, 8, acquired=[7, 3], scores=[0.5, 0.25], targets=[1, 0])
    assert record.picks() == [(1, 0, 7, 0.5, 1, None, None), (1, 1, 3, 0.25, 0, None, None)]
    with pytest.raises(ValueError, match="zip"):
        Round(1, 2, 8, acquired=[7, 3], scores=[0.5]).picks()
