"""Answers in records: a small world of points, people, batches and commits, against the rules in plain Python."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from al_lightning.data.labels import EXCLUDED, HELD_OUT, IN_POOL, REJECTED, RESERVED
from al_lightning.labelling.answers import Answer
from al_lightning.labelling.asked import AskedBatch, AskedPoint
from al_lightning.labelling.oracle import DatasetLabels, Query
from al_lightning.labelling.resolve import Resolved, resolved, skipped_at_last
from al_lightning.labelling.take_up import TakenUp, take_up, taken_up
from al_lightning.records.lines import decoded, encoded
from al_lightning.records.replay import Recorded, before_batch, recorded
from al_lightning.records.round import Round
from tests.labelling.test_resolve import model, said

CLASSES, NUM_POINTS, RESERVE = ["cat", "dog"], 12, [9, 10, 11]
HEADER = {"num_points": NUM_POINTS, "initial": [0], "initial_targets": [1], "reserved": RESERVE}


@dataclass
class World:
    """A run and the people who label for it; what the package computes is `rounds` and `draft`."""

    wanted: int
    has_times: bool
    asks_once: bool
    rounds: list[Round] = field(default_factory=list)
    log: list[Answer] = field(default_factory=list)
    expected: dict[int, tuple[int, int | None]] = field(default_factory=lambda: {0: (0, 1)})
    by_hand: list[list[int | None]] = field(default_factory=list)
    asked: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    draft: Round | None = None

    def state(self, index):
        start = (RESERVED, None) if index in RESERVE else (IN_POOL, None)
        return self.expected.get(index, start)

    def pool(self, state=IN_POOL):
        return [index for index in range(NUM_POINTS) if self.state(index)[0] == state]

    def begin_round(self):
        labelled = sum(self.state(index)[0] >= 0 for index in range(NUM_POINTS))
        self.draft = Round(len(self.rounds), labelled, len(self.pool()))
        self.ask()

    def ask(self):
        batch, held_out = (
            [index for index in self.pool(state) if not (self.asks_once and index in self.asked)]
            for state in (IN_POOL, RESERVED)
        )
        self.draft = replace(self.draft, acquired=batch[:2], scores=[0.5] * len(batch[:2]), asked_held_out=held_out[:1])
        self.asked |= set(self.draft.asked)

    def answer(self, who, number, what):
        askable = sorted(self.asked - self.excluded)
        if not askable:
            return
        index = askable[number % len(askable)]
        if not self.asks_once:
            who = "ann" if index % 2 else "bob"  # a point has one person, who may say something else at any time
        if what == "skip" and index not in self.draft.asked:
            what = "undo"
        at = f"2026-01-01T00:00:{len(self.log):02d}.000000Z" if self.has_times else None
        self.log.append(said(index, what, who, at, place=f"{who}.jsonl:{len(self.log)}"))

    def exclude(self, number):
        free = [index for index in self.pool() if all(answer.id != index for answer in self.log)]
        if free:
            index = free[number % len(free)]
            self.excluded.add(index)
            self.expected[index] = (EXCLUDED, None)
            self.by_hand.append([index, EXCLUDED, None])

    def taken(self):
        """What the round takes up, as `rounds` asks for it."""
        before = taken_up([*self.rounds, self.draft], CLASSES)
        of_batch = {"asked_now": self.draft.asked, "taken_up": [each for each in before if each[0] in self.draft.asked]}
        found = resolved(self.log, answers_per_point=self.wanted, **of_batch)
        found |= skipped_at_last(self.log, found, **of_batch)
        known = before_batch(HEADER, [*self.rounds, self.draft]).apply(self.by_hand)
        return take_up(found, self.draft, known=known, classes=CLASSES, reserve=RESERVE, before=before)

    def close(self):
        taken = self.taken()
        assert self.taken() == taken  # killed before the commit, and started again
        self.draft = replace(
            self.draft,
            targets=taken.targets,
            changed_after=[*self.draft.changed_after, *self.by_hand, *taken.changes],
            answers=[*self.draft.answers, *taken.rows],
        )
        self.by_hand = []
        self.follow_the_rules()
        labelled = any(target is not None for target in taken.targets or [])
        if not (labelled or taken.changes) and self.draft.acquired:
            event("a batch without a label")
            self.draft = replace(self.draft, acquired=[], scores=[], targets=None, asked_held_out=[])
            self.ask()
        else:
            self.rounds.append(self.draft)
            self.begin_round()
        self.check()

    def follow_the_rules(self):
        """Bring the expected labels to what all answers say by now."""
        verdicts = model(self.log, asked=(), wanted=self.wanted, points=range(NUM_POINTS))
        for index, (kind, label) in verdicts.items():
            state, _ = self.state(index)
            home = RESERVED if index in RESERVE else IN_POOL
            labelled = HELD_OUT if index in RESERVE else state if state >= 0 else self.draft.round + 1
            if kind == "tie":  # what was paid for stays
                continue
            self.expected[index] = {
                "label": (labelled, None if label is None else CLASSES.index(label)),
                "unsure": (EXCLUDED, None),
                "reject": (EXCLUDED if index in RESERVE else REJECTED, None),
                "undo": (home, None),
            }[kind]

    def check(self):
        known = before_batch(HEADER, [*self.rounds, self.draft])
        for index in range(NUM_POINTS):
            home = RESERVED if index in RESERVE else IN_POOL
            found = (known.state_of.get(index, IN_POOL), known.target_of.get(index))
            assert found == self.expected.get(index, (home, None))
        again = self.taken()  # killed after the commit, and started again: nothing is counted twice
        assert (again.rows, again.changes) == ([], [])
        assert all(target is None for target in again.targets or [])
        self.check_rows()

    def check_rows(self):
        rows = [row for record in [*self.rounds, self.draft] for row in record.answers]
        given = [(each.id, each.kind, each.label, each.who, each.at) for each in self.log]
        last_row, last_answer = {}, {(each.id, each.who): each for each in self.log}
        for row in rows:
            label = None if row["label"] is None else CLASSES[row["label"]]
            key = (row["id"], row["kind"], label, row["who"], row["at"])
            assert key in given
            assert last_row.get((row["id"], row["who"])) != key
            last_row[row["id"], row["who"]] = key
        if self.has_times:
            assert len({(row["id"], row["who"], row["at"]) for row in rows}) == len(rows)
        for (index, who), answer in last_answer.items():
            is_out = index not in self.excluded and self.state(index)[0] not in {IN_POOL, RESERVED}
            if is_out and answer.kind in {"label", "unsure", "reject"}:
                assert last_row[index, who] == (index, answer.kind, answer.label, who, answer.at)
            elif is_out and answer.kind == "undo":  # of a vote that was taken up, or of nothing
                assert last_row.get((index, who), (index, "undo"))[1] in {"undo", "skip"}


ACTIONS = st.one_of(
    st.tuples(
        st.just("answer"),
        st.sampled_from(["ann", "bob", "eve"]),
        st.integers(0, 11),
        st.sampled_from(["cat", "cat", "dog", "skip", "unsure", "reject", "undo"]),
    ),
    st.just(("close",)),
    st.tuples(st.just("exclude"), st.integers(0, 11)),
)


def live(actions, *, wanted, has_times, asks_once):
    world = World(wanted, has_times, asks_once)
    world.begin_round()
    for name, *arguments in actions:
        getattr(world, name)(*arguments)
    world.close()
    return world


@pytest.mark.slow
@settings(max_examples=100)
@given(st.lists(ACTIONS, min_size=8, max_size=40), st.booleans())
def test_labels_are_at_last_what_all_answers_say_whenever_they_were_taken_up(actions, has_times):
    world = live(actions, wanted=1, has_times=has_times, asks_once=False)
    assert decoded(encoded(HEADER, world.rounds))[1] == world.rounds  # a journal takes them


@pytest.mark.slow
@settings(max_examples=100)
@given(st.lists(ACTIONS, min_size=8, max_size=40), st.integers(1, 3), st.booleans())
def test_so_are_the_labels_by_votes_of_several_people(actions, wanted, has_times):
    live(actions, wanted=wanted, has_times=has_times, asks_once=True)


FIRST = Round(0, 1, 8, acquired=[1, 2], scores=[0.5, 0.5], asked_held_out=[9])


def taken_from(answers, *, record=FIRST, rounds=(), wanted=1, known=None):
    before = taken_up([*rounds, record], CLASSES)
    found = resolved(answers, asked_now=record.asked, answers_per_point=wanted, taken_up=before)
    known = before_batch(HEADER, [*rounds, record]) if known is None else known
    return take_up(found, record, known=known, classes=CLASSES, reserve=RESERVE, before=before)


def row(answer, **more):
    label = None if answer.label is None else CLASSES.index(answer.label)
    more = {"seconds": answer.seconds, **more}
    return {"id": answer.id, "kind": answer.kind, "label": label, "who": answer.who, "at": answer.at, **more}


def test_a_batch_gets_its_targets_and_other_points_their_changes():
    answers = [said(1, "dog"), said(2, "unsure"), said(9, "cat")]
    expected = TakenUp([1, None], [[2, EXCLUDED, None], [9, HELD_OUT, 0]], [row(each) for each in answers])
    assert taken_from(answers) == expected


def test_a_late_answer_a_correction_and_an_undo_are_changes_of_the_record_that_takes_them_up():
    rounds = [replace(FIRST, targets=[0, None], answers=[row(said(1, "cat"))])]
    record = Round(1, 2, 7, acquired=[3], scores=[0.5])
    corrected, late = said(1, "dog"), said(2, "cat")
    taken = taken_from([corrected, late], record=record, rounds=rounds)
    assert taken == TakenUp([None], [[1, 1, 1], [2, 2, 0]], [row(corrected, was=0), row(late)])
    undone = said(1, "undo")
    assert taken_from([undone], record=record, rounds=rounds).changes == [[1, IN_POOL, None]]


def by_several(index, **said_by):
    return [said(index, what, who) for who, what in said_by.items()]


@pytest.mark.parametrize(("first", "second"), [("cat", "dog"), ("cat", "unsure"), ("unsure", "cat"), ("reject", "dog")])
def test_a_tie_after_the_commit_leaves_what_was_committed_and_is_told_once(first, second):
    ann, bob = by_several(1, ann=first, bob=second)
    found = taken_from([ann])
    rounds = [replace(FIRST, targets=found.targets, changed_after=found.changes, answers=found.rows)]
    num_labelled = 1 + (first == "cat")
    tie = taken_from([ann, bob], record=Round(1, num_labelled, 7), rounds=rounds)
    assert tie == TakenUp(None, [], [row(bob)], {1: Resolved("tie", None, (ann, bob))})
    rounds.append(Round(1, num_labelled, 7, answers=tie.rows))
    assert taken_from([ann, bob], record=Round(2, num_labelled, 7), rounds=rounds) == TakenUp(None, [], [])
    assert recorded(HEADER, rounds).state_of[1] == {"cat": 1, "unsure": EXCLUDED, "reject": REJECTED}[first]


@pytest.mark.parametrize(
    ("third", "state", "target"), [("cat", 1, 0), ("dog", 1, 1), ("unsure", 1, 0), ("undo", 1, 0), ("reject", 1, 0)]
)
def test_a_third_vote_settles_a_tie_for_what_it_is_cast_for(third, state, target):
    ann, bob, eve = by_several(1, ann="cat", bob="dog", eve=third)
    rounds = [
        replace(FIRST, targets=[0, None], answers=[row(ann)]),
        Round(1, 2, 7, answers=[row(bob)]),
    ]
    taken = taken_from([ann, bob, eve], record=Round(2, 2, 7), rounds=rounds)
    assert taken.changes == ([[1, 1, 1]] if third == "dog" else [])
    known = recorded(HEADER, [*rounds, Round(2, 2, 7, changed_after=taken.changes, answers=taken.rows)])
    assert (known.state_of[1], known.target_of[1]) == (state, target)


def test_most_votes_for_unsure_and_votes_that_are_taken_back_withdraw_a_label():
    ann, *others = by_several(1, ann="cat", bob="unsure", eve="unsure")
    rounds = [replace(FIRST, targets=[0, None], answers=[row(ann)])]
    taken = taken_from([ann, *others], record=Round(1, 2, 7), rounds=rounds)
    assert taken == TakenUp(None, [[1, EXCLUDED, None]], [row(each, was=0) for each in others])
    both = by_several(1, ann="cat", bob="cat")
    rounds = [replace(FIRST, targets=[0, None], answers=[row(each) for each in both])]
    (undone,) = by_several(1, bob="undo")
    taken = taken_from([both[0], undone], record=Round(1, 2, 7), rounds=rounds, wanted=2)
    assert taken == TakenUp(None, [[1, IN_POOL, None]], [row(undone, was=0)])


def test_a_vote_that_was_not_enough_counts_when_the_point_is_asked_for_again():
    ann, bob = said(1, "cat", "ann"), said(1, "cat", "bob")
    rounds = [replace(FIRST, targets=[None, None])]
    between = taken_from([ann], record=Round(1, 1, 8, acquired=[3], scores=[0.5]), rounds=rounds, wanted=2)
    assert between == TakenUp([None], [], [])
    again = Round(1, 1, 8, acquired=[1], scores=[0.5])
    assert taken_from([ann, bob], record=again, rounds=rounds, wanted=2).targets == [0]


def test_a_label_after_a_recorded_skip_counts_without_any_times():
    skip = said(1, "skip")
    rounds = [replace(FIRST, targets=[None, 0], answers=[row(skip)])]
    lines = [skip, said(1, "cat", place="a.jsonl:2")]
    asked_again = Round(1, 2, 7, acquired=[1], scores=[0.5])
    assert taken_from(lines, record=asked_again, rounds=rounds).targets == [0]
    assert taken_from([skip], record=asked_again, rounds=rounds).targets == [None]


def test_files_that_are_away_for_a_while_take_nothing_back():
    first, second = said(1, "dog", at="2026-01-01"), said(1, "cat", at="2026-01-02")
    rounds = [replace(FIRST, targets=[0, None], answers=[row(second)])]
    for left in ([first], []):
        assert taken_from(left, record=Round(1, 2, 7), rounds=rounds) == TakenUp(None, [], [])


@pytest.mark.parametrize("what", ["cat", "unsure"])
def test_an_answer_for_a_point_that_the_user_has_excluded_is_refused_but_one_for_an_unsure_point_is_not(what):
    by_hand = before_batch(HEADER, [FIRST]).apply([[1, EXCLUDED, None]])
    with pytest.raises(ValueError, match=r"x.jsonl:3 answers point 1, which was excluded from the pool. Take the ans"):
        taken_from([said(1, what, place="x.jsonl:3")], known=by_hand)
    rounds = [
        replace(FIRST, targets=[None, None], changed_after=[[1, EXCLUDED, None]], answers=[row(said(1, "unsure"))])
    ]
    assert taken_from([said(1, "cat", at="2026")], record=Round(1, 1, 7), rounds=rounds).changes == [[1, 2, 0]]


def test_a_point_that_was_skipped_and_then_excluded_by_the_user_is_excluded_by_the_user():
    rounds = [
        replace(FIRST, targets=[None, 0], changed_after=[[1, EXCLUDED, None]], answers=[row(said(1, "skip"))])
    ]  # the exclusion before the next start is added to the last record
    with pytest.raises(ValueError, match="answers point 1, which was excluded from the pool"):
        taken_from([said(1, "cat", at="2026")], record=Round(1, 2, 6), rounds=rounds)


def test_an_undo_of_what_the_user_has_excluded_is_none():
    by_hand = before_batch(HEADER, [FIRST]).apply([[1, EXCLUDED, None]])
    assert taken_from([said(1, "undo")], record=Round(0, 1, 8), known=by_hand) == TakenUp(None, [], [])


def test_the_labels_of_the_dataset_leave_the_record_as_it_is():
    record = Round(0, 1, 8, acquired=[1, 2], scores=[0.5, 0.5], targets=[1, 0])
    batch = AskedBatch(0, [AskedPoint(1), AskedPoint(2)], CLASSES, NUM_POINTS)
    found = DatasetLabels().answers(Query(batch, None, lambda index: index)).of
    known = Recorded(NUM_POINTS)
    taken = take_up(found, record, known=known, classes=CLASSES, reserve=[], before=[])
    assert taken == TakenUp([1, 0], [], [])


def test_an_oracle_may_know_some_labels_from_the_dataset_and_others_itself():
    record = Round(0, 1, 8, acquired=[1, 2], scores=[0.5, 0.5], targets=[1, 0])
    found = {1: Resolved("label", None, ()), 2: Resolved("label", "dog", ())}
    taken = take_up(found, record, known=Recorded(NUM_POINTS), classes=CLASSES, reserve=[], before=[])
    assert taken == TakenUp([1, 1], [], [])


def test_answers_keep_their_class_when_it_is_renamed():
    assert taken_up([replace(FIRST, answers=[row(said(1, "dog"))])], ["cat", "hound"]) == [
        (1, "label", "hound", "ann", None)
    ]


def test_the_record_of_the_world_is_the_one_that_a_run_begins_with():
    assert recorded(HEADER, []).state_of == {0: 0, **dict.fromkeys(RESERVE, RESERVED)}
