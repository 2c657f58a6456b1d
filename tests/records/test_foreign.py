import csv
import io
import json

import pytest

from al_lightning.records.foreign import as_aligned, as_csv, plain_json, printable
from al_lightning.records.journal import Journal, Round, read_journal
from al_lightning.tracking.weights_and_biases import labelled_csv

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201"]
HARMLESS = ["test_acc", "a\r=1", "a\n=1", "a=b", "'quoted", "1-2", "", "é", 'a "b", c']


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_or_header_is_a_formula_and_its_text_can_be_read(text):
    rows = list(csv.reader(io.StringIO(as_csv([text, "b"], [{text: "c", "b": text}]), newline="")))
    assert rows[0][0] == f"'{text}"
    assert rows[-1][-1] == f"'{text}"


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text):
    assert next(csv.reader(io.StringIO(as_csv([text, "b"], []), newline=""))) == [text, "b"]


def test_numbers_stay_numbers_and_what_is_missing_is_empty():
    row = {"a": -1, "b": -0.5, "c": None, "d": True, "e": float("-inf")}
    assert as_csv([*row, "f"], [row]).splitlines()[1] == "-1,-0.5,,True,-inf,"


def test_columns_are_as_wide_as_their_widest_cell_and_a_missing_cell_is_empty():
    rows = [{"round": "0", "test_acc": "0.5"}, {"round": "10", "joint_mi": "1.25"}]
    assert as_aligned(rows, left={"joint_mi"}).splitlines() == [
        "round  test_acc  joint_mi",
        "-----  --------  --------",
        "    0       0.5          ",
        "   10            1.25    ",
    ]


def test_the_tables_of_a_run_folder_have_no_formula(tmp_path):
    rounds = [
        Round(0, 5, 5, acquired=[7], scores=[-0.5], targets=[1], metrics={"=HYPERLINK(0)": -2.5, "@b": None}),
        Round(1, 6, 4, metrics={"+c": 1.0}),
    ]
    Journal(tmp_path, {}, rounds=rounds)
    header, first, _ = csv.reader((tmp_path / "rounds.csv").read_text().splitlines())
    assert [name for name in header if name[1:] in {"=HYPERLINK(0)", "@b", "+c"}] == ["'=HYPERLINK(0)", "'@b", "'+c"]
    assert first[header.index("'=HYPERLINK(0)")] == "-2.5"
    assert "0,0,7,-0.5,1," in (tmp_path / "acquisitions.csv").read_text()


def test_the_labelled_set_has_no_formula():
    header = {"num_points": 10, "initial": [3], "initial_targets": ["=1"]}
    assert labelled_csv([Round(0, 1, 9)], header).split() == ["id,round,target", "3,0,'=1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 50 deep"),
        ('{"a":' * 51 + "1" + "}" * 51, "nested more than 50 deep"),
        ("[NaN]", "the number NaN is not finite"),
        ("-Infinity", "the number -Infinity is not finite"),
        ("1e400", "the number 1e400 is not finite"),
        (str(2**64), r"the number 18446744073709551616\.\.\. does not fit into 64 bits"),
        ("-" + "9" * 4000, "does not fit into 64 bits"),
        ("9" * 100_000, "does not fit into 64 bits"),
        ("{", "Expecting property name"),
    ],
    ids=range(9),
)
def test_json_that_would_cost_more_than_an_error_is_one(text, words):
    with pytest.raises(ValueError, match=words):
        plain_json(text)


def test_plain_json_is_read_as_json_is():
    value = {"a": [1, -2, 2**64 - 1, -(2**63), 0.1, -1e300, None, True, "é"], "deep": json.loads("[" * 48 + "]" * 48)}
    assert plain_json(json.dumps(value)) == value


@pytest.mark.parametrize("line", ["[" * 100_000 + "]" * 100_000, '{"round": 1e999}', '{"round": NaN}'])
def test_a_journal_with_such_a_line_is_refused_with_its_path(tmp_path, line):
    Journal(tmp_path, {"num_points": 3, "initial": [0]})
    path = tmp_path / "rounds.jsonl"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(ValueError, match=r"rounds\.jsonl cannot be used: line 2 is torn or no JSON \(.*(deep|finite)"):
        read_journal(tmp_path)


def test_what_moves_the_cursor_is_shown_and_not_obeyed():
    assert printable("é\n\x1b[31m\r\x07\u202e\udc80") == "é\n\\x1b[31m\\r\\x07\\u202e\\udc80"
