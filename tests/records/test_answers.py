import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from al_lightning.records.answers import ANSWER_COLUMNS, asked_points
from al_lightning.records.journal import Journal, acquisitions_csv
from al_lightning.records.round import PICK_COLUMNS, Round


def answer(index, kind="label", label=None, who="ann", at=None, seconds=None):
    return {"id": index, "kind": kind, "label": label, "who": who, "at": at, "seconds": seconds}


def table(rounds):
    return list(csv.DictReader(io.StringIO(acquisitions_csv(rounds, asks_people=True))))


def audit(row):
    return tuple(row[name] for name in ("target", *ANSWER_COLUMNS))


def test_each_point_has_its_answer_who_gave_it_when_and_how_long_it_took():
    record = Round(
        0,
        0,
        9,
        acquired=[1, 2, 3, 4],
        scores=[0.5, 0.4, 0.3, 0.2],
        targets=[2, None, None, None],
        asked_held_out=[8],
        answers=[
            answer(1, label=2, at="2026-01-01T00:00:00.000000Z", seconds=1.5),
            answer(1, label=2, who="bob", at="2026-01-03T00:00:00.000000Z", seconds=2.0),
            answer(1, label=0, who="eve", at="2026-01-02T00:00:00.000000Z"),
            answer(2, "unsure"),
            answer(3, "skip", seconds=0.5),
            answer(8, label=1),
        ],
        changed_after=[[8, -4, 1]],
    )
    rows = table([record])
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "8"]
    assert audit(rows[0]) == ("2", "label", "ann; bob; eve", "2026-01-03T00:00:00.000000Z", "3.5")
    assert audit(rows[1]) == ("", "unsure", "ann", "", "")
    assert audit(rows[2]) == ("", "skip", "ann", "", "0.5")
    assert audit(rows[3]) == ("", "", "", "", "")
    assert (rows[4]["rank"], rows[4]["score"], *audit(rows[4])) == ("", "", "1", "label", "ann", "", "")


def test_an_answer_of_a_later_round_is_in_the_row_of_the_round_that_asked():
    first = Round(
        0, 0, 9, acquired=[1, 2], scores=[0.5, 0.4], targets=[0, None], answers=[answer(1, label=0, seconds=1)]
    )
    second = Round(1, 1, 8, answers=[answer(2, label=1, who="bob"), answer(1, label=2, seconds=2)])
    one, two = table([first, second])
    assert audit(one) == ("2", "label", "ann", "", "3.0")
    assert audit(two) == ("1", "label", "bob", "", "")
    third = Round(2, 2, 7, answers=[answer(1, "undo")])
    assert audit(table([first, second, third])[0]) == ("", "", "ann", "", "3.0")


def test_a_point_whose_label_was_taken_back_for_want_of_votes_has_none_until_it_has_one_again():
    both = [answer(1, label=2, who=who) for who in ("ann", "bob")]
    first = Round(0, 0, 9, acquired=[1], scores=[0.5], targets=[2], answers=both)
    second = Round(1, 1, 8, answers=[answer(1, "undo", who="bob")], changed_after=[[1, -1, None]])
    assert [audit(row)[:2] for row in table([first, second])] == [("", "")]
    third = Round(2, 0, 9, answers=[answer(1, label=2, who="eve")], changed_after=[[1, 3, 2]])
    assert [audit(row)[:3] for row in table([first, second, third])] == [("2", "label", "ann; bob; eve")]


def test_a_tie_leaves_the_label_that_a_point_had_until_most_say_something_else():
    first = Round(0, 0, 9, acquired=[1], scores=[0.5], targets=[2], answers=[answer(1, label=2)])
    tie = Round(1, 1, 8, answers=[answer(1, label=0, who="bob")])
    third = Round(2, 1, 8, answers=[answer(1, label=0, who="eve")], changed_after=[[1, 1, 0]])
    (disputed,) = asked_points([first, tie])
    assert (disputed.answer, disputed.is_disputed) == (("label", 2), True)
    assert [audit(row)[:3] for row in table([first, tie])] == [("2", "label", "ann; bob")]
    (settled,) = asked_points([first, tie, third])
    assert (settled.history, settled.is_disputed) == ([("label", 2), ("label", 2), ("label", 0)], False)


def test_a_tie_among_the_answers_of_one_commit_leaves_what_was_before_it():
    first = Round(0, 0, 9, acquired=[1], scores=[0.5], targets=[2], answers=[answer(1, label=2)])
    changed_and_other = [answer(1, label=0), answer(1, label=1, who="bob")]
    assert audit(table([first, Round(1, 1, 8, answers=changed_and_other)])[0])[:2] == ("2", "label")


def test_a_point_that_is_asked_for_again_has_two_rows():
    first = Round(0, 0, 9, acquired=[1], scores=[0.5], targets=[None], answers=[answer(1, "skip")])
    second = Round(1, 0, 9, acquired=[1], scores=[0.4], targets=[2], answers=[answer(1, label=2)])
    assert [audit(row)[1] for row in table([first, second])] == ["skip", "label"]


def test_points_of_a_batch_without_any_label_are_there_without_rank_and_score():
    record = Round(
        0,
        0,
        9,
        acquired=[5],
        scores=[0.5],
        targets=[1],
        asked_without_label=[7, 5, 6],
        answers=[answer(7, "reject"), answer(5, label=1)],
    )
    found = [(row["id"], row["rank"], row["answer"]) for row in table([record])]
    assert found == [("5", "0", "label"), ("7", "", "reject"), ("6", "", "")]
    late = Round(1, 1, 8, answers=[answer(6, label=2)])
    assert [(row["round"], row["answer"]) for row in table([record, late])][-1] == ("0", "label")


def test_an_oracle_that_does_not_tell_who_has_answered_has_labels_all_the_same():
    record = Round(0, 0, 9, acquired=[5], scores=[0.5], targets=[1], asked_held_out=[8], changed_after=[[8, -4, 2]])
    assert [audit(row)[:3] for row in table([record])] == [("1", "label", ""), ("2", "label", "")]


def test_a_run_without_people_keeps_its_columns(tmp_path):
    record = Round(0, 1, 9, acquired=[5], scores=[0.5], targets=[1])
    for name, header in {"without": {}, "with": {"asks_people": True}}.items():
        Journal(tmp_path / name, header).write([record])
    without, with_people = ((tmp_path / name / "acquisitions.csv").read_text() for name in ("without", "with"))
    assert without == ",".join(PICK_COLUMNS) + "\n0,0,5,0.5,1,,\n"
    assert with_people == ",".join((*PICK_COLUMNS, *ANSWER_COLUMNS)) + "\n0,0,5,0.5,1,,,label,,,\n"


KINDS = st.sampled_from(["label", "skip", "unsure", "reject", "undo"])
ANSWERS = st.lists(st.tuples(st.integers(0, 9), KINDS, st.sampled_from(["ann", "bob"]), st.integers(0, 9)), max_size=8)


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), unique=True, max_size=4), ANSWERS), max_size=4))
def test_every_answer_is_in_exactly_one_row_of_its_point(given_rounds):
    rounds = [
        Round(
            number,
            0,
            9,
            acquired=acquired,
            scores=[0.5] * len(acquired),
            answers=[
                answer(index, kind, label=0 if kind == "label" else None, who=who, seconds=seconds)
                for index, kind, who, seconds in answers
            ],
        )
        for number, (acquired, answers) in enumerate(given_rounds)
    ]
    points = asked_points(rounds)
    held = [id(row) for point in points for row in point.rows]
    assert sorted(held) == sorted(id(row) for record in rounds for row in record.answers)
    assert all(row["id"] == point.id for point in points for row in point.rows)
    assert [point.id for point in points if point.pick["rank"] is not None] == [
        index for record in rounds for index in record.acquired
    ]
    assert sum(point.seconds or 0 for point in points) == sum(r["seconds"] for each in rounds for r in each.answers)
