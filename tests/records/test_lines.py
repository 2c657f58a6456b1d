import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.records.lines import CHECKED, _next_check, decoded, encoded
from al_lightning.records.round import Round

HEADER = {"acquisition": "BALD()", "num_points": 10, "initial": [0, 1], "excluded": [9]}
ROUNDS = [
    Round(0, 2, 7, acquired=[4, 5], scores=[0.5, 0.25], targets=[1, 0], metrics={"acc": 0.5, "loss": None}),
    Round(1, 3, 6, acquired=[6], scores=[0.5], changed=[[4, -1, None]], changed_after=[[0, -2, None]]),
    Round(2, 3, 5, corrections=[[5, 0, 2]], stopped="max_rounds=3 reached"),
]


def test_what_was_encoded_is_decoded():
    header, rounds = decoded(encoded(HEADER, ROUNDS))
    assert rounds == ROUNDS
    assert header == {"schema": "al_lightning.rounds", "version": 2, **HEADER}


@given(st.integers(0, len(encoded(HEADER, ROUNDS)) - 1), st.integers(0, 127).map(chr))
def test_any_other_character_anywhere_is_refused(position, character):
    text = encoded(HEADER, ROUNDS)
    if text[position] != character:
        with pytest.raises(ValueError, match=r"line \d is|whole line|schema|no JSON"):
            decoded(text[:position] + character + text[position + 1 :])


def lines(*numbers):
    whole = encoded(HEADER, ROUNDS).splitlines(keepends=True)
    return "".join(whole[number] for number in numbers)


@pytest.mark.parametrize("numbers", [(0, 1, 1, 2, 3), (0, 2, 1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 3), (0, 0, 1)])
def test_lines_twice_missing_or_out_of_order_are_refused_by_their_number(numbers):
    with pytest.raises(ValueError, match=r"line \d is damaged|schema None"):
        decoded(lines(*numbers))


def test_a_last_line_without_an_end_was_never_committed_and_without_a_header_there_is_no_run():
    text = encoded(HEADER, ROUNDS)
    for end in (len(text) - 1, len(text) - 30):
        assert decoded(text[:end])[1] == ROUNDS[:-1]
    for end in (5, 0):
        with pytest.raises(ValueError, match="it does not end with a whole line"):
            decoded(text[:end])


# What somebody else may write with sums that are right, or an older version without sums.
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_labelled": "2"}, r"line 2 has `num_labelled` = '2', which no run writes"),
        ({"num_labelled": True}, r"line 2 has `num_labelled` = True"),
        ({"num_labelled": 2**60}, r"line 2 has `num_labelled` = 1152"),
        ({"num_labelled": 10**30}, "line 2 is torn or no JSON .* does not fit into 64 bits"),
        ({"num_labelled": -2, "num_pool": 11}, "line 2 has negative counts or ids"),
        ({"acquired": [4.0, 5]}, r"line 2 has `acquired` = \[4.0, 5\]"),
        ({"acquired": None}, "line 2 has `acquired` = None"),
        ({"acquired": [4, -5]}, "line 2 has negative counts or ids"),
        ({"acquired": [4, 4]}, r"round 0: id 4 is labelled in round 1, but was out of the pool before"),
        ({"acquired": [4, 0]}, r"round 0: id 0 is labelled in round 1"),
        ({"acquired": [4, 9]}, r"round 0: id 9 is labelled in round 1"),
        ({"acquired": [4, 10]}, r"round 0: id 10 is out of range, the dataset has 10 points"),
        ({"scores": [0.5]}, "line 2 has lists of other lengths than the 2 ids"),
        ({"targets": [1, 0, 1]}, "line 2 has lists of other lengths than the 2 ids"),
        ({"metrics": {"acc": "good"}}, r"line 2 has `metrics` = \{'acc': 'good'\}"),
        ({"round": 1}, "line 2 is round 1, but must be round 0"),
        ({"round": 10**12}, "line 2 is round 1000000000000, but must be round 0"),
        ({"stopped": "max_rounds=1 reached"}, "line 2 is the end of a run, but further rounds"),
        ({"kernel": "abacus"}, "line 2 has `kernel` = 'abacus'"),
        ({"changed": [[4, -6, None]]}, "round 0: id 4 has the label state -6, but -5 is the lowest"),
        ({"changed": [[99, -1, None]]}, "round 0: id 99 is out of range"),
        ({"changed": [[3, 0, 1]]}, r"round 0: `num_labelled` is 2 and `num_pool` is 7, but .* 3 points are labelled"),
        ({"changed": [[4]]}, "line 2 has a change or correction that is no list of three"),
        (
            {"answers": [{"id": 4, "kind": "label", "label": 1}]},
            "line 2 has an answer without its point, kind or person",
        ),
        (
            {"answers": [{"id": 4, "kind": "maybe", "who": "ann"}]},
            "line 2 has an answer without its point, kind or person",
        ),
        ({"answers": [{"id": 4, "kind": "skip", "who": "ann", "at": 3}]}, "line 2 has an answer .* of other types"),
        ({"corrections": [[0, 1, 2]]}, "round 0: the target of id 0 is corrected from 1, but was None"),
    ],
)
def test_rounds_that_no_run_writes_are_refused_by_line_or_round(changes, words):
    body = json.dumps(asdict(ROUNDS[0]) | changes)
    with pytest.raises(ValueError, match=words):
        decoded(with_first_round(encoded(HEADER, ROUNDS), body))


def with_first_round(text, body):
    """The text with another first round, and with check sums that are right."""
    header, _, *others = text.splitlines()
    check, out = "", []
    for line in (header, body, *others):
        plain = CHECKED.fullmatch(line)
        bare = line[:-1] if plain is None else plain["body"]
        check = _next_check(check, bare)
        out.append(f'{bare}, "check": "{check}"}}\n')
    return "".join(out)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"num_points": 10}, "line 1 has no initial"),
        ({"initial": [0]}, "line 1 has no num_points"),
        ({"num_points": 0, "initial": [0]}, "the initial labels: id 0 is out of range"),
        ({"num_points": 10, "initial": [0, 0]}, "the initial labels: id 0 is labelled in round 0"),
        ({"num_points": 10, "initial": [0.5]}, r"line 1 has `initial` = \[0.5\]"),
        ({"num_points": 10, "initial": [0], "initial_targets": [1, 2]}, "the initial labels: "),
        ({"num_points": 10, "initial": [0], "query_size": "many"}, "line 1 has `query_size` = 'many'"),
    ],
)
def test_headers_that_no_run_writes_are_refused(header, words):
    with pytest.raises(ValueError, match=words):
        decoded(encoded(header, []))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number):
    text = encoded({**HEADER, "target": 0.125}, [])
    with pytest.raises(ValueError, match=r"line 1 (is torn or no JSON|is damaged)"):
        decoded(text.replace("0.125", number))


def test_nesting_without_end_is_refused_and_costs_little():
    with pytest.raises(ValueError, match="line 1 is torn or no JSON"):
        decoded("[" * 200_000 + "]" * 200_000 + "\n")


def test_version_1_is_read_what_it_excluded_becomes_a_change_and_its_counts_get_their_names():
    header = json.dumps({"schema": "al_lightning.rounds", "version": 1, "num_points": 10})
    first = {"round": 0, "num_labelled": 2, "num_pool": 7, "acquired": [4], "scores": [0.5], "set_aside": [9]}
    first["information"] = {"n_predicted": 7, "num_samples": 3}
    second = {"round": 1, "num_labelled": 3, "num_pool": 5, "set_aside": [8, 9], "stopped": "max_rounds=2 reached"}
    found, rounds = decoded("\n".join([header, json.dumps(first), json.dumps(second)]) + "\n")
    assert found["version"] == 1
    assert [record.changed for record in rounds] == [[[9, -2, None]], [[8, -2, None]]]
    assert rounds[0].information == {"num_predicted": 7, "num_samples": 3}
