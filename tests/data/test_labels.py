import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from al_lightning.data.labels import EXCLUDED, IN_POOL, Labels

IDS = st.lists(st.integers(-1, 4), max_size=2)


class LabelsAgainstADict(RuleBasedStateMachine):
    """A plain dict of words says what should be; an operation that it refuses must change nothing."""

    @initialize(num_points=st.integers(1, 4))
    def start(self, num_points):
        self.labels = Labels(num_points)
        self.state = dict.fromkeys(range(num_points), "pool")

    def attempt(self, ids, change, *, allowed, becomes):
        fine = len(set(ids)) == len(ids) and all(i in self.state and allowed(self.state[i]) for i in ids)
        if fine:
            change(ids)
            self.state.update(dict.fromkeys(ids, becomes))
        else:
            with pytest.raises(ValueError, match=r"^Points .* of `indices` are "):
                change(ids)

    @rule(ids=IDS, number=st.integers(0, 3))
    def label(self, ids, number):
        self.attempt(
            ids, lambda ids: self.labels.label(ids, round=number), allowed=lambda s: s == "pool", becomes=number
        )

    @rule(ids=IDS)
    def unlabel(self, ids):
        self.attempt(ids, self.labels.unlabel, allowed=lambda s: s != "pool", becomes="pool")

    @rule(ids=IDS)
    def exclude(self, ids):
        self.attempt(ids, self.labels.exclude, allowed=lambda s: s == "pool", becomes="excluded")

    @rule()
    def save_and_load(self):
        state_dict = self.labels.state_dict()
        self.labels = Labels(len(self.state))  # the marks of another state must not shine through
        self.labels.exclude(range(len(self.state)))
        self.labels.load_state_dict(state_dict)

    @invariant()
    def agrees_with_the_dict(self):
        if not hasattr(self, "labels"):
            return
        labelled = [i for i, s in self.state.items() if isinstance(s, int)]
        pool = [i for i, s in self.state.items() if s == "pool"]
        excluded = [i for i, s in self.state.items() if s == "excluded"]
        assert self.labels.labelled_indices.tolist() == labelled
        assert self.labels.pool_indices.tolist() == pool
        assert self.labels.excluded_indices.tolist() == excluded
        assert (self.labels.num_labelled, self.labels.num_pool) == (len(labelled), len(pool))
        assert [self.labels.round_of_N[i].item() for i in labelled] == [self.state[i] for i in labelled]


TestLabelsAgainstADict = LabelsAgainstADict.TestCase
TestLabelsAgainstADict.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def five(labelled=(1, 3), excluded=(4,)):
    labels = Labels(5)
    labels.label(labelled, round=2)
    labels.exclude(excluded)
    return labels


def test_the_array_holds_rounds_and_two_marks():
    assert five().round_of_N.tolist() == [IN_POOL, 2, IN_POOL, 2, EXCLUDED]
    assert repr(five()) == "Labels(num_labelled=2, num_pool=2, num_excluded=1)"


@pytest.mark.parametrize("make", [list, tuple, iter, torch.tensor], ids=lambda make: make.__name__)
def test_ids_come_as_any_sequence_of_integers(make):
    labels = Labels(5)
    labels.label(make([4, 0]), round=0)
    assert labels.labelled_indices.tolist() == [0, 4]


def test_what_was_labelled_or_excluded_can_go_back_into_the_pool():
    labels = five()
    labels.unlabel([4, 1])
    assert labels.pool_indices.tolist() == [0, 1, 2, 4]
    labels.label([4], round=3)
    assert labels.round_of_N.tolist() == [IN_POOL, IN_POOL, IN_POOL, 2, 3]


def test_no_ids_change_nothing():
    labels = five()
    for change in (labels.unlabel, labels.exclude):
        change([])
    labels.label(torch.tensor([]), round=1)
    assert labels.round_of_N.tolist() == five().round_of_N.tolist()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([0, 5], r"Points 5 of `indices` are out of range. Point ids of this dataset run from 0 to 4"),
        ([-1], r"Points -1 of `indices` are out of range"),
        ([2, 0, 2, 2], r"Points 2 of `indices` are given more than once"),
        ([0, 3, 1], r"Points 3, 1 of `indices` are already labelled"),
        ([0, 4], r"Points 4 of `indices` are excluded. Put them back into the pool with `unlabel`"),
    ],
)
def test_what_cannot_be_labelled_is_named_and_nothing_is_labelled(ids, words):
    labels = five()
    with pytest.raises(ValueError, match=words):
        labels.label(ids, round=3)
    assert labels.round_of_N.tolist() == five().round_of_N.tolist()


def test_many_offenders_are_counted_and_five_are_named():
    labels = Labels(20)
    with pytest.raises(ValueError, match=r"Points 0, 1, 2, 3, 4, … \(12 in all\) of `indices` are in the pool already"):
        labels.unlabel(range(12))


def test_only_pool_points_can_be_excluded():
    with pytest.raises(ValueError, match=r"Points 1 of `indices` are labelled. Only pool points can be excluded"):
        five().exclude([0, 1])


@pytest.mark.parametrize("ids", [torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([True, False])])
def test_ids_that_are_no_flat_integers_are_refused(ids):
    with pytest.raises(TypeError, match="must be a flat sequence of integer point ids"):
        Labels(5).label(ids, round=0)


def test_rounds_count_from_zero():
    with pytest.raises(ValueError, match="`round` is -1, but rounds count from 0"):
        Labels(5).label([0], round=-1)


def test_a_label_state_needs_points():
    with pytest.raises(ValueError, match="`num_points` is 0"):
        Labels(0)


def test_state_survives_a_file_that_is_read_weights_only():
    file = io.BytesIO()
    torch.save(five().state_dict(), file)
    file.seek(0)
    labels = Labels(5)
    labels.load_state_dict(torch.load(file, weights_only=True))
    assert labels.round_of_N.tolist() == five().round_of_N.tolist()


def test_a_saved_state_does_not_follow_later_labels():
    labels = five()
    saved = labels.state_dict()
    loaded = Labels(5)
    loaded.load_state_dict(saved)
    for later in (labels, loaded):
        later.label([0], round=3)
    assert saved["round_of"].tolist() == five().round_of_N.tolist()


@pytest.mark.parametrize(
    ("state_dict", "words"),
    [
        (five().state_dict(), "is of 5 points, but the training dataset has 6"),
        ({"labels": torch.zeros(6)}, r"`state_dict` holds \['labels'\]"),
        ({"round_of": torch.zeros(6)}, "1-D int64 tensor"),
        ({"round_of": torch.tensor([0, 0, 0, 0, 0, -3])}, "holds -3, but -2 is its lowest value"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state_dict, words):
    with pytest.raises(ValueError, match=words):
        Labels(6).load_state_dict(state_dict)


def test_what_a_spawned_process_labels_is_labelled_there_alone():
    labels = five()
    sent = pickle.loads(bytes(ForkingPickler.dumps(labels)))  # noqa: S301 - as torch sends it
    before = labels.round_of_N.tolist()
    sent.label(sent.pool_indices[:1], round=7)
    assert labels.round_of_N.tolist() == before
    assert sent.round_of_N.tolist() != before
