import base64
import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from al_lightning.records.round import Round
from al_lightning.report import people as part
from al_lightning.report.people import people_section, set_aside_in_holdout
from tests.report.conftest import answer


@pytest.fixture
def section(make_people):
    return people_section([make_people()])


def cells(table, row=0):
    return dict(zip(table.head, table.rows[row], strict=True))


def test_a_run_without_people_has_no_section(make_run):
    assert people_section([make_run("a")]) is None


def test_labels_are_counted_with_their_hours_and_the_answers_that_have_none(section):
    found = cells(section.runs)
    counts = [found[name] for name in ("labels given", "of them held out", "unsure", "rejected")]
    assert counts == ["4", "1", "1", "1"]
    assert (found["skipped"], found["answers"], found["without seconds"]) == ("1", "12", "9")
    assert (found["time"], found["time per label"]) == ("1 h", "1 h")  # one label has seconds


def test_agreement_is_of_the_points_with_several_votes(section):
    found = cells(section.runs)
    assert found["points with several votes"] == "3"
    assert found["agreement"] == "0.6"  # one pair, one pair, one of three
    assert found["alpha"] == "0.5"  # 1 - (7 - 1) (4 / 2) / (2 * 3 * 4): of the votes 00, 11 and 101 three are 0, four 1


def test_each_person_has_a_row(section):
    assert [row[1] for row in section.persons.rows] == ["ann", "bob", "eve"]
    ann = cells(section.persons)
    assert (ann["answers"], ann["labels"], ann["unsure"], ann["skips"]) == ("6", "4", "1", "1")
    assert (ann["time"], ann["time per label"], ann["without seconds"]) == ("45 min", "45 min", "4")
    assert (cells(section.persons, 2)["time"], cells(section.persons, 2)["time per label"]) == ("", "")


def test_a_correction_says_what_the_label_was_and_is_and_by_whose_answers(section):
    at = "2026-01-02T00:00:00.000000Z"
    assert [row[1:] for row in section.changed.rows] == [["1", "1", "ant", "bee", "corrected", "ann, bob", at]]
    assert section.disputed.rows == []


NUMBERS = itertools.count()  # of folders


def reported(make_people, *later):
    """The section of a run in which points got labels of ann, and later rounds took up further answers."""
    run = make_people(f"people-{next(NUMBERS)}")
    first = Round(
        0,
        0,
        18,
        acquired=[0, 1],
        scores=[0.5, 0.4],
        targets=[0, 0],
        answers=[answer(i, label=0, who="ann") for i in (0, 1)],
    )
    rounds = [first, *(Round(number, 2, 16, **each) for number, each in enumerate(later, 1))]
    return people_section([replace(run, rounds=rounds)])


UNSURE = {"answers": [answer(0, "unsure", who=who, was=0) for who in ("bob", "eve")], "changed_after": [[0, -2, None]]}


@pytest.mark.parametrize(
    ("taken_up", "expected"),
    [
        (UNSURE, ["ant", "none", "now unsure", "bob, eve", ""]),
        (
            {"answers": [answer(0, "undo", who="ann", was=0)], "changed_after": [[0, -1, None]]},
            ["ant", "none", "taken back", "ann", ""],
        ),
        (
            {"answers": [answer(0, label=1, who="ann", was=0)], "changed_after": [[0, 1, 1]]},
            ["ant", "bee", "corrected", "ann", ""],
        ),
        ({"answers": [answer(0, label=0, who="bob")]}, None),
        ({"answers": [answer(0, label=1, who="bob")]}, None),
    ],
    ids=["unsure", "undo", "correction", "agreement", "tie"],
)
def test_what_happened_to_a_label_is_told_as_it_happened(make_people, taken_up, expected):
    section = reported(make_people, taken_up)
    assert [row[1:] for row in section.changed.rows] == ([] if expected is None else [["1", "0", *expected]])


def test_a_disputed_point_is_listed_with_what_each_has_said_until_it_is_settled(make_people):
    tie = {"answers": [answer(0, label=1, who="bob")]}
    assert [row[1:] for row in reported(make_people, tie).disputed.rows] == [["0", "0", "ant", "ann: ant, bob: bee"]]
    third = {"answers": [answer(0, label=1, who="eve", was=0)], "changed_after": [[0, 1, 1]]}
    settled = reported(make_people, tie, third)
    assert settled.disputed.rows == []
    assert [row[1:6] for row in settled.changed.rows] == [["2", "0", "ant", "bee", "corrected"]]
    aside = {"answers": [answer(0, "unsure", who="bob")]}
    again = {"answers": [answer(0, label=0, who="zoe")]}
    assert [row[3] for row in reported(make_people, UNSURE, again).disputed.rows] == ["unsure"]
    assert [row[3] for row in reported(make_people, aside).disputed.rows] == ["ant"]


def test_an_undo_is_no_answer_that_is_counted(make_people):
    section = reported(
        make_people, {"answers": [answer(0, "undo", who="ann", was=0)], "changed_after": [[0, -1, None]]}
    )
    ann = cells(section.persons)
    assert (ann["answers"], ann["labels"], cells(section.runs)["answers"]) == ("2", "2", "2")
    assert "undone" not in section.persons.head


def test_skips_and_points_set_aside_are_listed(section, make_people):
    assert [row[1:] for row in section.skips.rows] == [["0", "3", "ann"]]
    captions = [each.caption for each in section.set_aside]
    assert [caption.partition(": ")[2] for caption in captions] == [
        "point 2, unsure in round 0 by ann. The run folder holds no picture of it",
        "point 11, rejected in round 0 by bob. The run folder holds no picture of it",
    ]
    assert set_aside_in_holdout(make_people("again")) == 1


def test_points_are_shown_as_people_saw_them(make_people):
    run = make_people()
    (run.folder / "asked").mkdir()
    (run.folder / "acquired").mkdir()
    Image.fromarray(np.full((400, 200, 3), 7, np.uint8)).save(run.folder / "asked" / "2.png")
    (run.folder / "asked" / "11.txt").write_bytes(b"<b>who\xff</b>" + b"x" * 500)
    image, text = people_section([run]).set_aside
    with Image.open(io.BytesIO(base64.b64decode(image.image))) as small:
        assert small.size == (80, 160)
        assert small.getpixel((0, 0)) == (7, 7, 7)
    assert text.text.startswith("<b>who�</b>x")
    assert len(text.text) == part.MOST_LETTERS + 3


def test_a_damaged_picture_and_one_too_large_are_named_and_the_others_shown(make_people, monkeypatch):
    run = make_people()
    (run.folder / "asked").mkdir()
    (run.folder / "asked" / "2.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(run.folder / "asked" / "11.png")
    monkeypatch.setattr(part, "LARGEST_SIDE", 8)
    broken, large = people_section([run]).set_aside
    assert "Its picture cannot be read: cannot identify image file" in broken.caption
    assert "it claims 9 x 8 pixels" in large.caption


def test_a_link_to_a_private_file_is_not_shown(make_people, tmp_path):
    run = make_people()
    (run.folder / "asked").mkdir()
    (tmp_path / "private.txt").write_text("secret")
    (run.folder / "asked" / "2.txt").symlink_to(tmp_path / "private.txt")
    assert all(each.text is None for each in people_section([run]).set_aside)


def test_only_so_many_points_are_shown_and_the_others_counted(make_people, monkeypatch):
    monkeypatch.setattr(part, "MOST_SHOWN", 1)
    section = people_section([make_people()])
    assert len(section.set_aside) == 1
    assert "1 further unsure or rejected points are in its acquisitions.csv." in section.notes[-1]


def test_a_class_without_a_name_is_refused_by_its_run(make_people):
    run = make_people()
    with pytest.raises(ValueError, match=r"people cannot be used: a label has the class 1, but the classes .*Restore"):
        people_section([replace(run, header={**run.header, "classes": ["ant"]})])
