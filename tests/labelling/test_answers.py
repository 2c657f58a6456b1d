from pathlib import Path

import pytest

from al_lightning.labelling.answers import Allowed, Answer, answers_in, read_answers

PATH, ALLOWED = Path("ann.jsonl"), Allowed(["cat"], {}, num_points=9)


def test_further_lines_of_a_file_have_the_numbers_that_they_have_in_it():
    answers, torn = answers_in(b'{"id": 3, "label": "cat"}\n{"id": 4, "la', PATH, ALLOWED, first=7)
    assert (answers, answers[0].place, torn) == ([Answer(3, "label", "cat", "ann")], "ann.jsonl:7", 8)
    with pytest.raises(ValueError, match=r"ann\.jsonl:8 is no answer"):
        answers_in(b'{"id": 3, "label": "cat"}\n{"id"\n', PATH, ALLOWED, first=7)


def test_a_name_that_no_file_can_hold_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": 3, "label": "cat", "who": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:1 has `who` '\\ud800', which is not UTF-8"):
        read_answers(tmp_path, ALLOWED)
