from hypothesis import given
from hypothesis import strategies as st

from al_lightning.labelling.answers import Answer
from al_lightning.labelling.missing import NO_ANSWER, NUM_NAMED, Lack, disputed_words, lacking, missing_words
from al_lightning.labelling.resolve import Resolved, counted, resolved_of
from tests.labelling.test_resolve import as_files, one_file_each, said

ASKED = (3, 0, 1)


@given(one_file_each(), st.integers(1, 3))
def test_each_point_is_either_resolved_or_missing_for_a_reason_that_its_answers_show(files, wanted):
    last = counted(as_files(files), asked_now=ASKED)
    found = resolved_of(last, asked_now=ASKED, answers_per_point=wanted)
    lacks = lacking(last, found, asked_now=ASKED, answers_per_point=wanted)
    assert list(lacks) == [index for index in ASKED if index not in found]
    for index, (reason, words) in lacks.items():
        kinds = [answer.kind for answer in last.get(index, {}).values()]
        num_votes = sum(kind != "skip" for kind in kinds)
        is_tie = num_votes >= wanted
        expected = "skipped by some" if kinds else NO_ANSWER
        if num_votes:
            expected = "with contradicting answers" if is_tie else f"with {num_votes} of {wanted} wanted answers"
        assert reason == expected
        assert bool(words) == is_tie


def test_missing_points_are_counted_by_reason():
    lacks = {
        1021: Lack("with contradicting answers", "ann 'cat', bob 'dog'"),
        7: Lack(NO_ANSWER),
        1205: Lack("with contradicting answers", "ann unsure, bob 'dog'"),
        8: Lack("with 1 of 2 wanted answers"),
    }
    assert missing_words(lacks) == (
        "1 with 1 of 2 wanted answers: 8; 2 with contradicting answers: 1021 (ann 'cat', bob 'dog'), "
        "1205 (ann unsure, bob 'dog'); 1 without an answer: 7"
    )


def test_a_disputed_point_is_told_with_what_it_keeps_and_what_each_has_said():
    answers = (said(5, "cat"), said(5, "unsure", "bob"), Answer(5, "undo", None, "eve"))
    disputed = {5: Resolved("tie", None, answers), 6: Resolved("tie", None, answers[:2])}
    assert disputed_words(disputed, {6: "cat"}) == (
        "2 points keep what they have although their answers contradict each other: 5 stays set aside (ann 'cat', bob "
        "unsure), 6 stays 'cat' (ann 'cat', bob unsure)"
    )


def test_of_many_points_and_people_only_some_are_named():
    many = missing_words(dict.fromkeys(range(1000), Lack("skipped by some")))
    assert many.startswith("1000 skipped by some: 0, 1,")
    assert many.endswith(f"{NUM_NAMED - 1}, ...")
