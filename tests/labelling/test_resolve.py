from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from al_lightning.labelling.answers import Answer
from al_lightning.labelling.resolve import (
    Resolved,
    counted,
    is_closed,
    last_of_each,
    resolved,
    resolved_of,
    winner,
)

POINTS, ASKED = range(4), (0, 1)  # 2 and 3 were asked for by earlier batches
PEOPLE = ("ann", "bob", "eve")
SAID = ("cat", "dog", "skip", "unsure", "reject", "undo")
VOTES = ("label", "unsure", "reject")
NO_TIME, SOME_TIMES = st.none(), st.one_of(st.none(), st.integers(0, 3))


def said(index, what, who="ann", at=None, place="a.jsonl:1"):
    is_label = what in {"cat", "dog", "ant"}
    return Answer(index, "label" if is_label else what, what if is_label else None, who, at, place=place)


def minute(number):
    return None if number is None else f"2026-01-01T00:{number:02d}:00.000000Z"


def as_files(files):
    """Answers by file and line, as they are read."""
    return [
        replace(answer, place=f"{name}:{line}") for name, lines in files for line, answer in enumerate(lines, start=1)
    ]


@st.composite
def one_file_each(draw, times=NO_TIME):
    """A file of each person; with `times` each answer of a person may have one."""
    lines = st.tuples(st.sampled_from(POINTS), st.sampled_from(SAID), times)
    return [
        (f"{who}.jsonl", [said(index, what, who, minute(at)) for index, what, at in draw(st.lists(lines, max_size=8))])
        for who in PEOPLE
    ]


@st.composite
def copied_at_will(draw):
    """Answers of which no two of a person have one time, each in one or more of three files, in any order."""
    answers = [
        said(*each, minute(number))
        for number, each in enumerate(
            draw(st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from(SAID), st.sampled_from(PEOPLE))))
        )
        if number < 60
    ]
    files = [(f"{name}.jsonl", draw(st.permutations(answers))[: draw(st.integers(0, 10))]) for name in "xyz"]
    return answers, files


def model(answers, *, asked, wanted, points=POINTS):
    """The rules of PEOPLE.md, one after the other, on answers in the order in which they were given."""
    last = {(answer.id, answer.who): answer for answer in answers}
    of = {
        index: [
            answer
            for (of_point, _), answer in last.items()
            if of_point == index and answer.kind != ("undo" if index in asked else "skip")
        ]
        for index in points
    }
    took_part = {answer.who for index in asked for answer in of[index]}
    found = {index: verdict(of[index], took_part, wanted=wanted, is_asked=index in asked) for index in points}
    return {index: point for index, point in found.items() if point is not None}


def verdict(counted, took_part, *, wanted, is_asked):
    votes = Counter((answer.kind, answer.label) for answer in counted if answer.kind in VOTES)
    most = [vote for vote, number in votes.items() if number == max(votes.values())]
    if sum(votes.values()) >= wanted and len(most) == 1:
        return most[0]
    if not is_asked:
        is_tie = sum(votes.values()) >= wanted
        return ("tie" if is_tie else "undo", None) if counted else None
    is_skipped = counted and not votes and {answer.who for answer in counted} == took_part
    return ("skip", None) if is_skipped else None


def plain(found):
    return {index: (point.kind, point.label) for index, point in found.items()}


@pytest.mark.slow
@given(one_file_each(), st.integers(1, 3))
def test_without_times_the_lines_of_a_file_tell_the_order(files, wanted):
    answers = as_files(files)
    found = resolved(answers, asked_now=ASKED, answers_per_point=wanted)
    assert plain(found) == model(answers, asked=ASKED, wanted=wanted)


@given(one_file_each(times=SOME_TIMES), st.integers(1, 3), st.permutations(range(3)))
def test_times_come_before_lines_and_the_order_of_the_files_says_nothing(files, wanted, order):
    in_time = [
        answer for _, lines in files for answer in sorted(lines, key=lambda each: each.at or "")
    ]  # stable: lines of one time as they stand
    found = resolved(as_files(files[number] for number in order), asked_now=ASKED, answers_per_point=wanted)
    assert plain(found) == model(in_time, asked=ASKED, wanted=wanted)


@pytest.mark.slow
@given(copied_at_will(), st.integers(1, 3), st.permutations(range(3)))
def test_an_answer_in_several_files_counts_once_in_any_order(drawn, wanted, order):
    answers, files = drawn
    read = as_files(files[number] for number in order)
    kept = [answer for answer in answers if answer in read]
    found = resolved(read, asked_now=ASKED, answers_per_point=wanted)
    assert plain(found) == model(kept, asked=ASKED, wanted=wanted)
    for index, point in found.items():
        assert [answer.who for answer in point.answers] == sorted({answer.who for answer in point.answers})
        assert all(answer.id == index for answer in point.answers)


@pytest.mark.slow
@given(copied_at_will(), st.integers(1, 3), st.data())
def test_a_line_that_is_added_once_more_anywhere_changes_nothing(drawn, wanted, data):
    _, files = drawn
    read = as_files(files)
    assume(read)
    again = replace(data.draw(st.sampled_from(read)), place=data.draw(st.sampled_from(["x.jsonl:99", "new.csv:2"])))
    position = data.draw(st.integers(0, len(read)))
    more = [*read[:position], again, *read[position:]]
    assert resolved(more, asked_now=ASKED, answers_per_point=wanted) == resolved(
        read, asked_now=ASKED, answers_per_point=wanted
    )


@pytest.mark.slow
@given(one_file_each(times=SOME_TIMES), st.integers(1, 3), st.permutations(range(6)))
def test_a_copy_of_each_file_changes_nothing(files, wanted, order):
    both = [*files, *((f"copy-of-{name}", lines) for name, lines in files)]
    found = resolved(as_files(both[number] for number in order), asked_now=ASKED, answers_per_point=wanted)
    assert found == resolved(as_files(files), asked_now=ASKED, answers_per_point=wanted)


@given(
    st.lists(st.tuples(st.sampled_from(SAID), st.sampled_from([None, 1, 2]), st.sampled_from("xyz")), max_size=6),
    st.permutations("xyz"),
)
def test_files_contradict_each_other_in_any_order_or_in_none(lines, order):
    files = {name: [said(0, what, at=minute(at)) for what, at, in_file in lines if in_file == name] for name in "xyz"}
    latest = max((minute(at) or "" for _, at, _ in lines), default="")
    ends = {
        (in_time[-1].kind, in_time[-1].label)
        for each in files.values()
        if (in_time := [answer for answer in each if (answer.at or "") == latest])
    }
    read = as_files([(name, files[name]) for name in order])
    if len(ends) > 1:
        with pytest.raises(ValueError, match="hold different answers of 'ann' to point 0"):
            last_of_each(read)
    else:
        assert {(answer.kind, answer.label) for by in last_of_each(read).values() for answer in by.values()} == ends


@pytest.mark.parametrize(("at", "words"), [(None, "none is stated"), (minute(1), "2026-01-01T00:01:00")])
def test_a_contradiction_names_both_places_the_point_and_both_answers(at, words):
    answers = [said(7, "cat", at=at, place="x/ann.jsonl:3"), said(7, "undo", at=at, place="y/b.csv:12")]
    with pytest.raises(
        ValueError, match=r"x/ann.jsonl:3 and y/b.csv:12 .* 'ann' to point 7 \('cat' and undo\)"
    ) as error:
        last_of_each(answers)
    assert words in str(error.value)


def test_a_contradiction_that_a_later_answer_has_settled_is_none():
    answers = [
        said(7, "cat", at=minute(1), place="x.jsonl:1"),
        said(7, "dog", at=minute(1), place="y.jsonl:1"),
        said(7, "unsure", at=minute(2), place="y.jsonl:2"),
    ]
    assert plain(resolved(answers, asked_now=[7])) == {7: ("unsure", None)}


@pytest.mark.parametrize(
    ("votes", "wanted", "expected"),
    [
        ("cat", 1, "cat"),
        ("cat", 2, None),
        ("cat dog", 1, None),  # a tie
        ("cat dog dog", 3, "dog"),
        ("cat cat dog dog unsure", 3, None),
        ("cat unsure unsure", 2, "unsure"),
        ("unsure reject reject", 1, "reject"),
        ("skip cat", 1, "cat"),
        ("skip cat", 2, None),
        ("undo cat", 1, "cat"),
    ],
)
def test_the_most_frequent_of_enough_votes_wins(votes, wanted, expected):
    answers = [said(0, what, who) for who, what in zip("abcde", votes.split(), strict=False)]
    found = resolved(answers, asked_now=[0], answers_per_point=wanted)
    assert [point.label or point.kind for point in found.values()] == ([] if expected is None else [expected])
    earlier = resolved(answers, asked_now=[], answers_per_point=wanted)[0]
    num_votes = sum(vote not in {"skip", "undo"} for vote in votes.split())
    assert (earlier.label or earlier.kind) == (expected or ("tie" if num_votes >= wanted else "undo"))


def test_a_point_is_skipped_once_all_who_took_part_have_skipped_it():
    skips = [said(0, "skip", "ann"), said(1, "cat", "ann")]
    assert plain(resolved(skips, asked_now=[0, 1]))[0] == ("skip", None)
    assert 0 not in resolved([*skips, said(1, "cat", "bob")], asked_now=[0, 1])
    assert resolved([*skips, said(1, "cat", "bob"), said(0, "skip", "bob")], asked_now=[0, 1])[0].kind == "skip"
    assert resolved([*skips, said(9, "cat", "bob")], asked_now=[0, 1])[0].kind == "skip"  # of an earlier batch
    taken_back = [said(1, "cat", "bob"), said(1, "undo", "bob")]
    assert resolved([*skips, *taken_back], asked_now=[0, 1])[0].kind == "skip"


def test_a_skip_of_an_earlier_batch_says_nothing():
    assert resolved([said(3, "skip")], asked_now=[0]) == {}


@pytest.mark.parametrize("at", [None, minute(5)])
def test_what_was_taken_up_counts_no_more_and_what_is_said_after_it_does(at):
    skip = said(0, "skip", at=at)
    taken = [(0, "skip", None, "ann", at)]
    assert resolved([skip], asked_now=[0], taken_up=taken) == {}
    label = said(0, "cat", at=at, place="a.jsonl:2")  # the later line counts even at the same time
    assert plain(resolved([skip, label], asked_now=[0], taken_up=taken)) == {0: ("label", "cat")}
    assert plain(resolved([skip, said(0, "skip", "bob")], asked_now=[0], taken_up=taken)) == {0: ("skip", None)}


def test_an_older_answer_counts_no_more_if_the_file_of_the_later_one_is_away():
    taken = [(0, "label", "cat", "ann", minute(1)), (0, "undo", None, "ann", minute(2))]
    assert resolved([said(0, "cat", at=minute(1))], asked_now=[0], taken_up=taken) == {}


def test_the_way_back_to_an_earlier_answer_is_a_further_one():
    taken = [(0, "label", "cat", "ann", None), (0, "undo", None, "ann", None)]
    lines = [said(0, "cat"), said(0, "undo", place="a.jsonl:2"), said(0, "cat", place="a.jsonl:3")]
    assert plain(resolved(lines, asked_now=[0], taken_up=taken)) == {0: ("label", "cat")}


@given(one_file_each(), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 2)))
def test_a_batch_is_closed_if_all_points_are_answered_or_skipped_or_enough_are_answered(files, wanted, min_answered):
    answers = as_files(files)
    found = model(answers, asked=ASKED, wanted=wanted)
    num_votes = sum(found.get(index, ("skip",))[0] != "skip" for index in ASKED)
    expected = all(index in found for index in ASKED) or (min_answered is not None and num_votes >= min_answered)
    of = resolved(answers, asked_now=ASKED, answers_per_point=wanted)
    assert is_closed(of, asked_now=ASKED, min_answered=min_answered) == expected


def test_a_batch_of_no_points_waits_for_nothing():
    assert is_closed({}, asked_now=[], min_answered=None)


def test_the_answers_behind_a_point_come_by_name():
    answers = [said(0, "cat", "eve"), said(0, "cat", "ann"), said(0, "dog", "bob")]
    assert resolved(answers, asked_now=[0])[0] == Resolved("label", "cat", (answers[1], answers[2], answers[0]))


CAT, DOG = Answer(3, "label", "cat", "ann", "2026-01-01"), Answer(3, "label", "dog", "bob", "2026-01-02")


def test_what_is_taken_back_or_taken_up_does_not_count_in_the_running_batch():
    undo = Answer(3, "undo", None, "ann", "2026-01-03")
    assert counted([CAT, DOG], asked_now=[3]) == {3: {"ann": CAT, "bob": DOG}}
    assert counted([CAT, DOG, undo], asked_now=[3]) == {3: {"bob": DOG}}
    assert counted([CAT, DOG], asked_now=[3], taken_up=[(3, "label", "dog", "bob", "2026-01-02")]) == {3: {"ann": CAT}}


def test_answers_are_resolved_by_those_that_count():
    skip = Answer(4, "skip", None, "ann", "2026-01-01")
    of = counted([CAT, skip], asked_now=[3, 4])
    assert resolved_of(of, asked_now=[3, 4]) == resolved([CAT, skip], asked_now=[3, 4])
    assert {index: point.kind for index, point in resolved_of(of, asked_now=[3, 4]).items()} == {3: "label", 4: "skip"}


def test_nobody_wins_without_votes_or_with_a_tie():
    assert winner([]) is None
    assert winner([CAT, DOG]) is None
    assert winner([CAT]) == winner([CAT, DOG, CAT]) == CAT
