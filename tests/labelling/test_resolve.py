from al_lightning.labelling.answers import Answer
from al_lightning.labelling.resolve import counted, resolved, resolved_of, winner

CAT, DOG = Answer(3, "label", "cat", "ann", "2026-01-01"), Answer(3, "label", "dog", "bob", "2026-01-02")


def test_what_is_taken_back_or_taken_up_does_not_count_in_the_running_batch():
    undo = Answer(3, "undo", None, "ann", "2026-01-03")
    assert counted([CAT, DOG], asked_now=[3]) == {3: {"ann": CAT, "bob": DOG}}
    assert counted([CAT, DOG, undo], asked_now=[3]) == {3: {"bob": DOG}}
    assert counted([CAT, DOG], asked_now=[3], taken_up=[(3, "bob", "2026-01-02")]) == {3: {"ann": CAT}}


def test_answers_are_resolved_by_those_that_count():
    skip = Answer(4, "skip", None, "ann", "2026-01-01")
    of = counted([CAT, skip], asked_now=[3, 4])
    assert resolved_of(of, asked_now=[3, 4]) == resolved([CAT, skip], asked_now=[3, 4])
    assert {index: point.kind for index, point in resolved_of(of, asked_now=[3, 4]).items()} == {3: "label", 4: "skip"}


def test_nobody_wins_without_votes_or_with_a_tie():
    assert winner([]) is None
    assert winner([CAT, DOG]) is None
    assert winner([CAT]) == winner([CAT, DOG, CAT]) == CAT
