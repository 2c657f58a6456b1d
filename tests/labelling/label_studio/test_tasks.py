import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.labelling.answers import Answer
from al_lightning.labelling.asked import AskedBatch, AskedPoint
from al_lightning.labelling.label_studio.tasks import new_answers, pulled, shown_as, task_of, tasks_of_points
from al_lightning.labelling.resolve import last_of_each

BATCH = AskedBatch(2, [AskedPoint(3), AskedPoint(4)], ["cat", "dog"], 10, renamed={"puss": "cat"}, asked_before={7: 1})


def task(annotations=(), *, number=1, point=3, run="run", **data):
    return {
        "id": number,
        "created_at": "2026-01-01T00:00:00Z",
        "data": {"run": run, "round": 2, "point": point, **data},
        "annotations": list(annotations),
    }


def annotation(*labels, number=1, skip=False, who=1, at="2026-01-02T00:00:00Z", **fields):
    result = [{"from_name": "label", "to_name": "point", "type": "choices", "value": {"choices": list(labels)}}]
    return {
        "id": number,
        "result": result if labels else [],
        "was_cancelled": skip,
        "completed_by": who,
        "updated_at": at,
        **fields,
    }


def said(*annotations, **fields):
    return pulled([task(annotations, **fields)], BATCH, run="run", project=1, emails={1: "ann@example.org"})


@pytest.mark.parametrize(
    ("given", "kind", "label"),
    [
        (annotation("cat"), "label", "cat"),
        (annotation("puss"), "label", "cat"),
        (annotation("al_lightning:unsure"), "unsure", None),
        (annotation("al_lightning:reject"), "reject", None),
        (annotation(skip=True), "skip", None),
        (annotation("cat", skip=True), "skip", None),
    ],
)
def test_an_annotation_is_an_answer(given, kind, label):
    (answer,) = said(given).answers
    assert answer == Answer(3, kind, label, "ann@example.org", "2026-01-02T00:00:00.000000Z", None)
    assert answer.place == "project 1, task 1, annotation 1"


def test_an_annotation_may_hold_no_result_at_all():
    assert said({**annotation(), "result": None}).passed == ["project 1, task 1, annotation 1 is empty"]
    assert [each.kind for each in said({**annotation(skip=True), "result": None}).answers] == ["skip"]


def test_what_is_no_control_of_ours_says_nothing():
    other = {"from_name": "comment", "type": "textarea", "value": {"text": ["hm"]}}
    mixed = annotation("dog")
    mixed["result"].insert(0, other)
    assert [each.label for each in said(mixed).answers] == ["dog"]
    assert said({**annotation(), "result": [other]}).passed == ["project 1, task 1, annotation 1 is empty"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(2.5, 2.5), (0, 0.0), (None, None), (-1, None), ("2", None), (math.inf, None), (1e308, None), (True, 1.0)],
)
def test_the_time_that_an_answer_took_is_kept_where_it_can_be_one(seconds, told):
    assert said(annotation("cat", lead_time=seconds)).answers[0].seconds == told


def test_who_is_told_by_address_else_by_number_and_nobody_by_the_annotation():
    there = said(annotation("cat"), annotation("cat", number=2, who=9), annotation("cat", number=3, who=None))
    assert [each.who for each in there.answers] == ["ann@example.org", "9", "unknown-3"]


def test_labels_outside_the_classes_are_named_with_project_task_and_annotation():
    wrong = [annotation("zebra", number=number) for number in range(12)] + [annotation("cat", "dog", number=12)]
    with pytest.raises(
        ValueError, match=r"project 1, task 1, annotation 0 \(point 3\) holds the label 'zebra'"
    ) as caught:
        said(annotation("cat"), *wrong)
    assert "And 3 more. Correct that in Label Studio; the classes are 'cat', 'dog'." in str(caught.value)
    with pytest.raises(ValueError, match=r"annotation 1 .* holds 2 choices, 'cat', 'dog', and not one"):
        said(annotation("cat", "dog"))
    with pytest.raises(ValueError, match=r"annotation 1 .* holds \['cat'\]"):
        said(annotation(["cat"]))


@pytest.mark.parametrize("point", [5, "3", None, 3.5])
def test_a_point_that_the_run_has_not_asked_for_is_passed_over(point):
    there = said(annotation("zebra"), point=point)
    assert there.answers == []
    assert there.passed == [f"task 1 is for point {point!r}, for which this run has not asked"]


def test_tasks_of_others_are_not_looked_at():
    foreign = [task([annotation("zebra")], run="other"), {**task(), "data": None}, {**task(), "data": {"text": "x"}}]
    there = pulled(foreign, BATCH, run="run", project=1, emails={})
    assert (there.answers, there.since, there.passed) == ([], {}, [])


def test_points_of_earlier_batches_are_answers_too():
    assert [each.id for each in said(annotation("dog"), point=7).answers] == [7]


def test_a_point_is_a_task_with_its_identity():
    made = task_of(AskedPoint(4, shown="asked/4.png"), b"\x89PNG", run="run", number=2)
    assert made == {"data": {"image": "data:image/png;base64,iVBORw==", "run": "run", "round": 2, "point": 4}}
    tasks = [{**made, "id": 8}, {**made, "id": 9}, {**task(number=5), "data": {**task()["data"], "round": 1}}]
    assert tasks_of_points(tasks, run="run", number=2) == {4: [8, 9]}
    assert tasks_of_points(tasks, run="other", number=2) == {}


@pytest.mark.parametrize("shown", [None, "asked/4.png", "../secret.txt", "asked/3.jpg", "/etc/passwd"])
def test_a_point_that_shows_not_its_own_file_is_refused(shown):
    with pytest.raises(ValueError, match=r"Point 3 has no picture and no text .* Give the data module a `render`"):
        shown_as(AskedBatch(0, [AskedPoint(3, shown=shown)], ["cat"], 10))


def test_an_id_that_leads_elsewhere_is_refused():
    with pytest.raises(ValueError, match="has no picture and no text"):
        shown_as(AskedBatch(0, [AskedPoint("../3", shown="asked/../3.txt")], ["cat"], 10))


def test_a_batch_shows_pictures_or_texts():
    one, other = AskedPoint(3, shown="asked/3.png"), AskedPoint(4, shown="asked/4.txt")
    assert [shown_as(AskedBatch(0, [each], ["cat"], 10)) for each in (one, other)] == ["image", "text"]
    with pytest.raises(ValueError, match="pictures or texts, but the batch holds both"):
        shown_as(AskedBatch(0, [one, other], ["cat"], 10))


class Played:
    """A project and a file, and what a person's last word is by a count of our own."""

    def __init__(self):
        self.annotations, self.file, self.clock = {}, [], 0

    def now(self, ahead=0):
        return f"2026-01-02T00:{(self.clock + ahead) // 60:02d}:{(self.clock + ahead) % 60:02d}.000000Z"

    def step(self, what, which, label, ahead):
        self.clock += 1
        if what == "say":
            self.annotations[self.clock] = annotation(
                label, number=self.clock, who=which % 2, at=self.now(), skip=label == "skip"
            )
            self.annotations[self.clock]["point"] = 3 + which // 2
        elif what == "pull":
            there = self.there()
            new = new_answers(there, self.file, now=self.now(ahead))
            self.file += new[: len(new) - which] if label == "cat" else new  # killed before the last ones
        elif self.annotations:
            number = sorted(self.annotations)[which % len(self.annotations)]
            if what == "change":
                point = self.annotations[number]["point"]
                changed = annotation(label, number=number, at=self.now(), skip=label == "skip")
                self.annotations[number] |= {**changed, "point": point, "completed_by": which % 2}
            else:
                del self.annotations[number]

    def there(self):
        tasks = [task([a for a in self.annotations.values() if a["point"] == p], number=p, point=p) for p in (3, 4)]
        return pulled(tasks, BATCH, run="run", project=1, emails={})

    def last_words(self):
        words = {}
        for each in sorted(self.annotations.values(), key=lambda each: each["updated_at"]):
            label = each["result"][0]["value"]["choices"][0]
            words[each["point"], str(each["completed_by"])] = "skip" if each["was_cancelled"] else label
        return words


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["say", "say", "change", "delete", "pull", "pull"]),
            st.integers(0, 3),
            st.sampled_from(["cat", "dog", "skip"]),
            st.sampled_from([0, 0, 40, -40]),
        ),
        max_size=25,
    )
)
def test_whatever_people_do_and_whenever_a_pull_is_killed_the_last_one_tells_what_the_project_says(steps):
    played = Played()
    for step in steps:
        played.step(*step)
    played.step("pull", 0, "dog", 0)
    last = {(index, who): each for index, of in last_of_each(played.file).items() for who, each in of.items()}
    words = {key: each.label or each.kind for key, each in last.items() if each.kind != "undo"}
    assert words == played.last_words()
    assert new_answers(played.there(), played.file, now=played.now()) == []
    assert len({(each.id, each.who, each.kind, each.label, each.at) for each in played.file}) == len(played.file)


def test_answers_stay_where_the_tasks_are_gone():
    cat = said(annotation("cat")).answers
    emptied = pulled([], BATCH, run="run", project=1, emails={})
    assert new_answers(emptied, cat, now="2026-01-03T00:00:00.000000Z") == []
    anew = [{**task(), "created_at": "2026-01-02T12:00:00Z"}]
    emptied = pulled(anew, BATCH, run="run", project=1, emails={})
    assert new_answers(emptied, cat, now="2026-01-03T00:00:00.000000Z") == []


def test_an_answer_that_is_taken_back_is_taken_back_once():
    cat = said(annotation("cat")).answers
    undone = new_answers(said(), cat, now="2026-01-03T00:00:00.000000Z")
    assert undone == [Answer(3, "undo", None, "ann@example.org", "2026-01-03T00:00:00.000000Z")]
    assert new_answers(said(), [*cat, *undone], now="2026-01-04T00:00:00.000000Z") == []
