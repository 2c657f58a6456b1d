import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from al_lightning.data.labels import EXCLUDED, HELD_OUT, IN_POOL, RESERVED, Labels

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
        self.attempt(
            ids,
            self.labels.unlabel,
            allowed=lambda s: s in {"excluded", "rejected"} or isinstance(s, int),
            becomes="pool",
        )

    @rule(ids=IDS)
    def exclude(self, ids):
        self.attempt(ids, self.labels.exclude, allowed=lambda s: s == "pool", becomes="excluded")

    @rule(ids=IDS)
    def reject(self, ids):
        self.attempt(ids, self.labels.reject, allowed=lambda s: s == "pool", becomes="rejected")

    @rule(ids=IDS)
    def reserve(self, ids):
        self.attempt(ids, self.labels.reserve, allowed=lambda s: s in {"pool", "held out"}, becomes="reserved")

    @rule(ids=IDS)
    def hold_out(self, ids):
        self.attempt(ids, self.labels.hold_out, allowed=lambda s: s == "reserved", becomes="held out")

    @rule(num_more=st.integers(0, 1))
    def grow(self, num_more):
        self.labels.grow(len(self.labels) + num_more)
        self.state.update(dict.fromkeys(range(len(self.state), len(self.labels)), "pool"))

    @rule()
    def replace_and_compare(self):
        states = {i: s for i, s in enumerate(self.labels.round_of_N.tolist()) if s != IN_POOL}
        other = Labels(len(self.labels))
        assert other.differences(states) == dict.fromkeys(states, IN_POOL)
        other.replace(states)
        assert other.differences(states) == {}
        assert other.round_of_N.tolist() == self.labels.round_of_N.tolist()

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
        assert self.labels.reserved_indices.tolist() == [i for i, s in self.state.items() if s == "reserved"]
        held_out = [i for i, s in self.state.items() if s == "held out"]
        rejected = [i for i, s in self.state.items() if s == "rejected"]
        assert (self.labels.rejected_indices.tolist(), self.labels.num_rejected) == (rejected, len(rejected))
        assert self.labels.num_paid == len(labelled) + len(held_out) + len(rejected)
        assert (self.labels.held_out_indices.tolist(), self.labels.num_held_out) == (held_out, len(held_out))
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
        ({"round_of": torch.tensor([0, 0, 0, 0, 0, -6])}, "holds -6, but -5 is its lowest value"),
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


def test_points_of_the_holdout_are_moved_by_answers_alone():
    labels = five()
    labels.reserve([0, 2])
    labels.hold_out([2])
    assert labels.round_of_N.tolist() == [RESERVED, 2, HELD_OUT, 2, EXCLUDED]
    assert repr(labels).endswith("num_pool=0, num_excluded=1, num_reserved=1, num_held_out=1)")
    for change in (lambda ids: labels.label(ids, round=3), labels.unlabel, labels.exclude):
        with pytest.raises(ValueError, match=r"Points 0, 2 of `indices` are of the holdout.*only answers move"):
            change([0, 2])
    with pytest.raises(ValueError, match="Points 1 of `indices` are neither in the pool nor held out"):
        labels.reserve([2, 1])
    with pytest.raises(ValueError, match="Points 2, 4 of `indices` are not reserved"):
        labels.hold_out([0, 2, 4])
    assert labels.round_of_N.tolist() == [RESERVED, 2, HELD_OUT, 2, EXCLUDED]


def test_points_are_appended_and_never_taken_away():
    labels = five()
    labels.grow(7)
    assert labels.round_of_N.tolist() == [*five().round_of_N.tolist(), IN_POOL, IN_POOL]
    with pytest.raises(ValueError, match="`num_points` is 6, but there are 7: points can only be appended"):
        labels.grow(6)


def test_a_state_below_the_lowest_replaces_nothing():
    labels = five()
    with pytest.raises(ValueError, match="`state_of` holds -6, but -5 is the lowest label state"):
        labels.replace({0: 1, 1: -6})
    assert labels.round_of_N.tolist() == five().round_of_N.tolist()
