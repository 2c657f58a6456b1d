import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from al_lightning.labelling import answers as module
from al_lightning.labelling.answers import KINDS, Allowed, Answer, answers_in, as_line, normal_time, read_answers
from al_lightning.records.foreign import as_csv

CLASSES = ["cat", "dog", "=x", "-1", "naïve 🐈", 'a,"b"']
ALLOWED = Allowed(CLASSES, {"kitty": "cat"}, num_points=100, asked=range(50))
ONE = b'{"id": 1, "label": "cat"}\n'


def read(data, name="ann.jsonl", allowed=ALLOWED):
    return answers_in(data if isinstance(data, bytes) else data.encode(), Path("answers") / name, allowed)


def words_of(data, name="ann.jsonl", allowed=ALLOWED):
    """What is said of data that are no answers."""
    with pytest.raises(ValueError, match=f"^answers/{name}:[0-9]+ ") as error:
        read(data, name, allowed)
    return str(error.value)


NAMES = st.text(min_size=1).filter(lambda name: name == name.strip() and name != "")
TIMES = st.datetimes().map(lambda time: time.isoformat(timespec="microseconds") + "Z")
SECONDS = st.one_of(st.none(), st.floats(0, 1e9))


@st.composite
def drawn_answers(draw, names=NAMES):
    kind = draw(st.sampled_from(KINDS))
    label = draw(st.sampled_from(CLASSES)) if kind == "label" else None
    at = draw(st.one_of(st.none(), TIMES))
    return Answer(draw(st.integers(0, 49)), kind, label, draw(names), at, draw(SECONDS))


@pytest.mark.slow
@given(st.lists(drawn_answers()), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_lines_of_json_are_read_as_they_were_written(answers, end, has_mark):
    data = "".join(map(as_line, answers)).encode().replace(b"\n", end)
    assert read((b"\xef\xbb\xbf" if has_mark else b"") + data) == (answers, None)


SPREADSHEET_NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1).filter(
    lambda name: not name.startswith("'")
)


@pytest.mark.slow
@given(st.lists(drawn_answers(SPREADSHEET_NAMES)), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
@example([Answer(3, "label", "=x", "@bob")], b"\n", False)
def test_a_table_is_read_as_it_was_exported(answers, end, has_mark):
    columns = ["who", "id", "label", "kind", "seconds", "at"]
    data = as_csv(columns, [vars(answer) for answer in answers]).encode().replace(b"\n", end)
    assert read((b"\xef\xbb\xbf" if has_mark else b"") + data, "x.csv") == (answers, None)


@pytest.mark.slow
@given(st.lists(drawn_answers(), min_size=1, max_size=4), st.data())
def test_a_file_that_is_cut_anywhere_holds_the_answers_of_its_whole_lines(answers, data):
    whole = "".join(json.dumps(json.loads(as_line(each)), ensure_ascii=False) + "\n" for each in answers).encode(
        errors="replace"
    )
    size = data.draw(st.integers(0, len(whole)))
    found, torn = read(whole[:size])
    num_whole = whole[:size].count(b"\n")
    is_between = whole[size : size + 1] == b"\n"  # the last line is whole, and only its end is missing
    at_an_end = size == 0 or whole[size - 1 : size] == b"\n"
    assert [each.id for each in found] == [each.id for each in answers[: num_whole + is_between]]
    assert torn == (None if at_an_end or is_between else num_whole + 1)


@pytest.mark.slow
@given(st.lists(drawn_answers(), min_size=1, max_size=4), st.data())
def test_a_table_that_is_cut_anywhere_holds_the_answers_of_its_whole_lines(answers, data):
    # The csv module of Python 3.10 cannot write such a character.
    assume(sys.version_info >= (3, 11) or not any("\0" in f"{each.label}{each.who}" for each in answers))
    columns, rows = ["id", "label", "kind", "who", "at", "seconds"], [vars(answer) for answer in answers]
    ends = [len(as_csv(columns, rows[:number]).encode(errors="replace")) for number in range(len(rows) + 1)]
    whole = as_csv(columns, rows).encode(errors="replace")
    size = data.draw(st.integers(0, len(whole)))
    found, torn = read(whole[:size], "x.csv")
    num_whole = max(0, sum(end <= size for end in ends) - 1)  # without the names of the columns
    assert [each.id for each in found] == [each.id for each in answers[:num_whole]]
    assert (torn is None) == (size in {0, *ends})


@pytest.mark.parametrize(
    ("tail", "name"),
    [
        (b'{"id": 2, "lab', "ann.jsonl"),
        ('{"id": 2, "label": "naï'.encode()[:-1], "ann.jsonl"),
        (b"17", "ann.jsonl"),
        (b"\x00\x00\x00", "ann.jsonl"),  # a crash of the machine
        (b"2,do", "ann.csv"),
        ("2,naï".encode()[:-1], "ann.csv"),
        (b'2,"do\ng', "ann.csv"),
        (b'2,"do\n', "ann.csv"),
    ],
)
def test_half_a_last_line_is_not_read_yet_and_its_place_is_told(tmp_path, tail, name):
    (tmp_path / name).write_bytes((ONE if name.endswith("jsonl") else b"id,label\n1,cat\n") + tail)
    found, unread = read_answers(tmp_path, ALLOWED)
    assert found == [Answer(1, "label", "cat", "ann")]
    assert unread[0].startswith(f"{tmp_path / name}:{2 if name.endswith('jsonl') else 3} has no end of line")
    assert len(unread) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": 1, "label": "bird"}', "answers point 1 with the label 'bird', but the classes are 'cat', 'dog',"),
        ('{"id": 1, "label": 0}', "with the label 0, but .* Class names are texts, in quotes."),
        ('{"id": 1, "label": "kitty "}', "with the label 'kitty '"),
        ('{"id": 1, "label": ["cat"]}', r"with the label \['cat'\]"),
        ('{"id": 1}', "with no label. Give a class name, or one of the kinds skip, unsure, reject, undo"),
        ('{"id": 1, "label": null}', "with no label"),
        ('{"id": 1, "kind": "skip", "label": "cat"}', "with the kind 'skip' and the label 'cat'. Leave one of them"),
        ('{"id": 1, "kind": "later"}', "with the kind 'later', but it must be one of label, skip, unsure, reject, un"),
        ('{"id": 1, "kind": ["skip"]}', r"with the kind \['skip'\]"),
        ('{"label": "cat"}', "has no id, but must have that of a point. Ids are whole numbers: asked.json has them"),
        ('{"id": null, "label": "cat"}', "has no id, but must have"),
        ('{"id": "0073.png", "label": "cat"}', "has the id '0073.png', .* the names of the files in asked/, and"),
        ('{"id": 1, "label": "unsure"}', "'unsure' is no class but a kind: write it as `kind`"),
        ('{"id": 1, "label": "Skip"}', "'skip' is no class but a kind: write it as `kind`"),
        ('{"id": 100, "label": "cat"}', "answers point 100, but ids run from 0 to 99"),
        ('{"id": -1, "label": "cat"}', "answers point -1, but ids run from 0 to 99"),
        ('{"id": 50, "label": "cat"}', "answers point 50, for which no batch has asked"),
        ('{"id": 1.5, "label": "cat"}', "has the id 1.5"),
        ('{"id": 1e300, "label": "cat"}', "has the id 1e\\+300"),
        ('{"id": true, "label": "cat"}', "has the id True"),
        ('{"id": "one", "label": "cat"}', "has the id 'one'"),
        ('{"id": "²", "label": "cat"}', "has the id '²'"),
        ('{"id": 18446744073709551616, "label": "cat"}', "does not fit into 64 bits"),
        ('{"id": 18446744073709551615, "label": "cat"}', "answers point 18446744073709551615, but ids"),
        ('{"id": NaN, "label": "cat"}', "the number NaN is not finite"),
        ('{"id": 1, "label": "cat", "seconds": -1}', "has `seconds` -1, but must have a number from 0 to 1000000000"),
        ('{"id": 1, "label": "cat", "seconds": 1e308}', "has `seconds` 1e\\+308"),  # two have no sum
        ('{"id": 1, "label": "cat", "seconds": NaN}', "the number NaN is not finite"),
        ('{"id": 1, "label": "cat", "seconds": 1e999}', "the number 1e999 is not finite"),
        ('{"id": 1, "label": "cat", "seconds": "nan"}', "has `seconds` 'nan'"),
        ('{"id": 1, "label": "cat", "seconds": true}', "has `seconds` True"),
        ('{"id": 1, "label": "cat", "seconds": [1]}', r"has `seconds` \[1\]"),
        ('{"id": 1, "label": "cat", "at": "yesterday"}', "has `at` 'yesterday', but must have a time like 2026-11-28T"),
        ('{"id": 1, "label": "cat", "at": 1764324000}', "has `at` 1764324000"),
        ('{"id": 1, "label": "cat", "at": "0001-01-01T00:00:00+12:00"}', "has `at` '0001-01-01T00:00:00"),
        ('{"id": 1, "label": "cat", "who": " "}', "has `who` ' ', but must have a name"),
        ('{"id": 1, "label": "cat", "who": 7}', "has `who` 7"),
        ('{"id": 1, "label": "cat", "who": "\\ud800"}', "which is not UTF-8"),
        (
            '{"id": 1, "label": "cat", "note": "sure"}',
            "has 'note', but an answer has id, kind, label, who, at, seconds",
        ),
        ("[1]", "it is no JSON object"),
        ('{"id": 1, "label": "cat"', "is no answer"),
        ('{"id": 1}{"id": 2}', "is no answer"),
        ('{"id": ' + "[" * 100_000, "nested more than 50 deep"),
        ('{"id": ' + "[" * 60 + "]" * 60 + "}", "nested more than 50 deep"),
    ],
)
def test_a_line_that_is_no_answer_is_named_with_its_value_and_what_is_allowed(line, words):
    said = words_of(ONE + line.encode() + b"\n" + ONE)
    assert said.startswith("answers/ann.jsonl:2 ")
    assert len(said) < 700
    with pytest.raises(ValueError, match=words):
        read(ONE + line.encode() + b"\n")


def test_bytes_that_are_no_utf_8_within_a_file_are_named_by_line():
    assert words_of(ONE + b'{"id": 2, "label": "\xc3"}\n').startswith("answers/ann.jsonl:2 is no answer (it is not UTF")
    assert words_of(b"id,label\n1,cat\n2,\xc3\n3,cat\n", "x.csv").startswith("answers/x.csv:3 is not UTF-8 ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id;label\n1;cat\n", "Separate the columns with commas"),
        ("id\tlabel\n1\tcat\n", "Separate the columns with commas"),
        ("image,label\n1,cat\n", "has the columns image, label, but must have `id` and `label`"),
        ("id,label,label\n1,cat,cat\n", "has the columns id, label, label, but .* each once"),
        ("id,who\n1,ann\n", "must have `id` and `label`"),
        ("1,cat\n", r"x.csv:1 is '1,cat', but the first line must be the header `id,label`"),
        ("17.png,cat\n18.png,dog\n", r"x.csv:1 is '17.png,cat', but the first line must be the header"),
        ("id,label,,\n1,cat,,\n2,dog,,x\n", "x.csv:3 has 4 cells, but the columns are id,label"),
        ("id,,label\n1,,cat\n", "has the columns id, , label, but must have"),
        ("id,label\n1,unsure\n", "'unsure' is no class but a kind: write it as `kind` .in a CSV a column of its own"),
        ('id,label,seconds\n1,cat,"2,4"\n', "has `seconds` '2,4', .* Write decimals with a point"),
        ("id,label\n1,cat,dog\n", "x.csv:2 has 3 cells, but the columns are id,label"),
        ('id,label\n1,"cat"x\n', "x.csv:2 is no CSV"),
        ('id,label\n1,"cat\n2,"dog"\n', "is no CSV"),
        ("id,label\n1,bird\n", "x.csv:2 answers point 1 with the label 'bird'"),
        ("id,label\n,cat\n", "x.csv:2 has no id"),
        ("id,label\n73.5,cat\n", "x.csv:2 has the id '73.5'"),
        ('id,label\n"73,0",cat\n', "x.csv:2 has the id '73,0'"),
        ("id,label\n0073.png,cat\n", "x.csv:2 has the id '0073.png', .* ids.jsonl"),
        (f"id,label\n{'9' * 5000},cat\n", "x.csv:2 has the id '999"),
        ("id,label,seconds\n1,cat,1e999\n", "x.csv:2 has `seconds` '1e999'"),
        ('id,label,who\n1,cat,"a\nb"\n\n2,bird,ann\n', "x.csv:5 answers point 2"),
        (f"id,label\n1,{'x' * 200_000}\n", "x.csv:2 is no CSV"),
    ],
)
def test_a_table_that_holds_no_answers_is_named_by_line(text, words):
    with pytest.raises(ValueError, match=words) as error:
        read(text, "x.csv")
    assert len(str(error.value)) < 700


def test_rows_without_an_answer_yet_are_passed_over_and_columns_may_come_in_any_order():
    text = " Label , KIND,id,who\ncat,,1,ann\n,,2,\n,,3,bob\n\n,skip,4,\n'=x,,5\n dog ,label, 6 ,'@bob\n"
    found, torn = read(text, "x.csv")
    assert torn is None
    assert found == [
        Answer(1, "label", "cat", "ann"),
        Answer(4, "skip", None, "x"),
        Answer(5, "label", "=x", "x"),
        Answer(6, "label", "dog", "@bob"),
    ]


@given(st.integers(0, 49), st.integers(0, 3), st.integers(0, 5), st.integers(0, 3))
def test_empty_columns_and_rows_and_ids_as_floats_change_nothing(index, num_columns, num_rows, num_zeros):
    more = "," * num_columns
    shown = f"{index}.{'0' * num_zeros}" if num_zeros else str(index)
    empty = f",{more}\r\n" * num_rows
    found, torn = read(f"id,label{more}\r\n{empty}{shown},dog{more}\r\n{empty}", "x.csv")
    assert (found, torn) == ([Answer(index, "label", "dog", "x")], None)
    assert read(json.dumps({"id": float(index), "label": "dog"}), "x.jsonl")[0] == found


def test_a_class_may_be_called_as_a_kind():
    allowed = Allowed(["skip", "dog"], {}, num_points=9)
    assert read("id,label\n1,skip\n", "x.csv", allowed)[0] == [Answer(1, "label", "skip", "x")]


def test_a_quoted_name_may_hold_commas_quotes_and_ends_of_lines():
    found, _ = read('id,label,who\r\n1,"a,""b""","Ann\r\nB."\r\n2,cat,ann\r\n', "x.csv")
    assert [(each.label, each.who, each.place) for each in found] == [
        ('a,"b"', "Ann\nB.", "answers/x.csv:2"),
        ("cat", "ann", "answers/x.csv:4"),
    ]


def test_an_alias_stands_for_its_class_and_a_text_of_digits_for_an_id():
    assert read('{"id": "7", "label": "kitty"}\n')[0] == [Answer(7, "label", "cat", "ann")]


@pytest.mark.parametrize("name", ["naïve 🐈", "nai\u0308ve 🐈", "nai\u0308f"])
def test_letters_and_accents_of_a_class_may_be_one_character_or_two(name):
    allowed = Allowed(CLASSES, {"naïf": "naïve 🐈"}, num_points=100)
    assert [answer.label for answer in read(f"id,label\n7,{name}\n", "a.csv", allowed)[0]] == ["naïve 🐈"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-28T10:00:00Z", "2026-11-28T10:00:00.000000Z"),
        ("2026-11-28T10:00:00.123Z", "2026-11-28T10:00:00.123000Z"),
        ("2026-11-28T23:30:00-02:00", "2026-11-29T01:30:00.000000Z"),
        (" 2026-11-28 10:00 ", "2026-11-28T10:00:00.000000Z"),
        ("2026-11-28", "2026-11-28T00:00:00.000000Z"),
    ],
)
def test_times_are_utc_with_microseconds(text, expected):
    assert normal_time(text) == expected


@pytest.mark.slow
@given(st.datetimes(timezones=st.timezones()), st.datetimes(timezones=st.timezones()))
def test_times_sort_as_text(one, other):
    assert (normal_time(one.isoformat()) < normal_time(other.isoformat())) == (one.timestamp() < other.timestamp())


def test_files_are_read_by_name_and_other_visible_ones_are_told(tmp_path):
    names = ["b.jsonl", "a.JSONL", ".c.jsonl", "ann.xlsx", "e.jsonl.partial", "é 'x'.jsonl", "~$a.csv", ".~lock.a.csv#"]
    for number, name in enumerate(names):
        (tmp_path / name).write_text(f'{{"id": {number}, "label": "cat"}}\n')
    (tmp_path / "t.Csv").write_text("id,label\n9,dog\n")
    (tmp_path / "older").mkdir()
    found, unread = read_answers(tmp_path, ALLOWED)
    assert [(each.id, each.who) for each in found] == [(1, "a"), (0, "b"), (9, "t"), (5, "é 'x'")]
    assert unread == [
        f"{tmp_path / 'ann.xlsx'} is neither .csv nor .jsonl: save it as CSV",
        f"{tmp_path / 'e.jsonl.partial'} is neither .csv nor .jsonl: save it as CSV",
        f"{tmp_path / 'older'} is a folder: put the files of answers beside it",
    ]
    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    assert read_answers(tmp_path, ALLOWED)[1][-1] == f"{tmp_path} holds 2 further files of other kinds"
    assert found[0].place.lower() == f"{tmp_path / 'a.jsonl'}:1".lower()


def test_a_folder_and_a_link_to_nothing_are_told_and_a_link_to_a_file_is_read(tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / "x.jsonl").mkdir()
    (folder / "gone.csv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere.txt").write_bytes(ONE)
    (folder / "ann.jsonl").symlink_to(tmp_path / "elsewhere.txt")
    found, unread = read_answers(folder, ALLOWED)
    assert found == [Answer(1, "label", "cat", "ann")]
    assert unread == [f"{folder / name} is no file, or a link to none" for name in ("gone.csv", "x.jsonl")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_stops_nobody(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    assert read_answers(tmp_path, ALLOWED)[1] == [f"{tmp_path / 'x.jsonl'} is no file, or a link to none"]


def test_a_file_that_is_deleted_while_the_folder_is_read_is_as_one_that_was_deleted_before(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(ONE)
    listed = module.files_in

    def deleted_after(folder):
        paths = listed(folder)
        (tmp_path / "a.jsonl").unlink(missing_ok=True)
        return paths

    monkeypatch.setattr(module, "files_in", deleted_after)
    assert read_answers(tmp_path, ALLOWED) == ([Answer(1, "label", "cat", "b")], [])


def test_a_missing_folder_has_no_answers(tmp_path):
    assert read_answers(tmp_path / "answers", ALLOWED) == ([], [])


def test_in_a_list_of_labels_that_exists_already_any_point_may_be_answered_but_none_beyond_the_dataset():
    of_all = Allowed(CLASSES, {}, num_points=100)
    assert read('{"id": 99, "label": "cat"}\n', allowed=of_all)[0][0].id == 99
    assert "ids run from 0 to 99" in words_of('{"id": 100, "label": "cat"}\n', allowed=of_all)


def test_an_error_names_ten_classes_of_many():
    many = Allowed([f"c{number}" for number in range(1000)], {}, num_points=9)
    assert words_of('{"id": 1, "label": "x"}\n', allowed=many).endswith("'c8', 'c9', ....")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_as_many_answers_as_anybody_gives_are_read_each_once(name):
    of_all = Allowed([f"c{number}" for number in range(1000)], {}, num_points=20_000)
    rows = [{"id": number, "label": f"c{number % 1000}", "at": "2026-01-01T00:00:00Z"} for number in range(20_000)]
    text = as_csv(list(rows[0]), rows) if name == "x.csv" else "".join(json.dumps(row) + "\n" for row in rows)
    found, torn = read(text, name, of_all)
    assert torn is None
    assert [each.id for each in found] == list(range(20_000))
    assert found[-1].place == f"answers/{name}:{20_000 + (name == 'x.csv')}"


@given(st.binary(max_size=200), st.sampled_from(["ann.jsonl", "x.csv"]))
def test_any_bytes_are_answers_or_half_of_one_or_an_error_with_a_line(data, name):
    try:
        read(data, name)
    except ValueError as error:
        assert str(error).startswith(f"answers/{name}:")  # noqa: PT017 - or there is none


ONE_CLASS = Allowed(["cat"], {}, num_points=9)


def test_further_lines_of_a_file_have_the_numbers_that_they_have_in_it():
    answers, torn = answers_in(b'{"id": 3, "label": "cat"}\n{"id": 4, "la', Path("ann.jsonl"), ONE_CLASS, first=7)
    assert (answers, answers[0].place, torn) == ([Answer(3, "label", "cat", "ann")], "ann.jsonl:7", 8)
    with pytest.raises(ValueError, match=r"ann\.jsonl:8 is no answer"):
        answers_in(b'{"id": 3, "label": "cat"}\n{"id"\n', Path("ann.jsonl"), ONE_CLASS, first=7)


def test_a_name_that_no_file_can_hold_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": 3, "label": "cat", "who": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:1 has `who` '\\ud800', which is not UTF-8"):
        read_answers(tmp_path, ONE_CLASS)
