import csv
import io
import math
import re

import pytest

from al_lightning.report.compare import as_csv, as_text, compare

BALD = [[0.50, 0.60, 0.70], [0.40, 0.60, 0.80], [0.50, 0.50, 0.60], [0.45, 0.55, 0.70]]
BATCH = [[0.50, 0.80, 0.90], [0.40, 0.70, 0.90], [0.60, 0.70, 0.75], [0.55, 0.75, 0.90]]
BATCH_BALD = "BatchBALD(num_configs=10000)"


@pytest.fixture
def compared(make_run):
    def make(num_seeds=4, batch=BATCH, acquisition=BATCH_BALD, **arguments):
        folders = [make_run(f"bald-{seed}", BALD[seed], seed=seed) for seed in range(num_seeds)]
        folders += [
            make_run(f"batch-{seed}", batch[seed], seed=seed, acquisition=acquisition) for seed in range(num_seeds)
        ]
        return compare(folders, **arguments)

    return make


def verdicts(text):
    return [line for line in text.splitlines() if " against " in line]


def test_the_whole_text_for_two_acquisitions(compared):
    assert as_text(compared(target=0.7)) == (
        """\
test_acc (higher is better): differences from BALD, paired by seed

quantity              acquisition  pairs    mean          of BALD  difference        95% interval      p
--------------------  -----------  -----  ------  ---------------  ----------  ------------------  -----
area under the curve  BatchBALD        4  0.7125           0.5719     +0.1406  +0.0691 to +0.2121  0.008
final test_acc        BatchBALD        4  0.8625           0.7000     +0.1625  +0.0863 to +0.2387  0.007
labels to 0.7         BatchBALD        4    20.0  3 of 4 reach it           -                   -  0.125

Intervals and p: paired t. Without an interval, where a target was missed or all pairs differ alike: sign test.

area under the curve, BatchBALD against BALD: better (p = 0.008).
final test_acc, BatchBALD against BALD: better (p = 0.007).
labels to 0.7, BatchBALD against BALD: the difference is not significant (p = 0.125, sign test: better in 4 and worse \
in 0 of 4 pairs, which are too few for it to find any)."""
    )


def test_one_pair_is_said_to_be_too_few_and_has_no_interval(compared):
    text = as_text(compared(1))
    assert re.search(r"final test_acc +BatchBALD +1 +0.9000 +0.7000 +\+0.2000 +- +-\n", text)
    assert [line.partition(": ")[2] for line in verdicts(text)] == [
        "one pair is too few to tell a difference from chance. Run both with more seeds."
    ] * 2
    assert "paired t" not in text


def test_a_difference_that_may_be_chance_is_said_to_be_not_significant(compared):
    text = as_text(compared(batch=[BALD[1], BALD[0], BALD[3], BALD[2]]))
    assert verdicts(text)[1] == "final test_acc, BatchBALD against BALD: the difference is not significant (p = 1.000)."


@pytest.mark.parametrize(("mode", "word"), [("max", "worse"), ("min", "better")])
def test_half_the_metric_is_worse_where_higher_is_better_and_better_where_lower_is(compared, mode, word):
    halved = [[value / 2 for value in curve] for curve in BALD]
    assert verdicts(as_text(compared(batch=halved, mode=mode)))[0].endswith(f"against BALD: {word} (p < 0.001).")


def test_a_sign_test_with_enough_pairs_gives_a_direction(make_run):
    folders = [make_run(f"bald-{seed}", [0.5, 0.6], seed=seed) for seed in range(6)]
    folders += [make_run(f"random-{seed}", [0.4, 0.5], seed=seed, acquisition="Random()") for seed in range(6)]
    assert verdicts(as_text(compare(folders)))[1] == (
        "final test_acc, Random against BALD: worse (p = 0.031, sign test: better in 0 and worse in 6 of 6 pairs)."
    )


def test_several_acquisitions_are_allowed_for_and_told_apart_by_their_hyper_parameters(make_run):
    folders = [make_run(f"bald-{seed}", BALD[seed], seed=seed) for seed in range(3)]
    for name in (BATCH_BALD, "BatchBALD(num_configs=100)"):
        folders += [make_run(f"{name}-{seed}", BATCH[seed], seed=seed, acquisition=name) for seed in range(3)]
    text = as_text(compare(folders))
    assert "p (Holm)" in text
    assert "p allows for 2 acquisitions, an interval is of one." in text
    assert f"final test_acc, {BATCH_BALD} against BALD: " in text


def test_caveats_stand_at_the_end(make_run):
    folders = [make_run("a", [0.5, 0.6, 0.7]), make_run("b", [0.5, 0.6], acquisition="Random()")]
    assert as_text(compare(folders)).endswith(
        f"\n\nNote:\n- Seed 0: {folders[1]} reached 20 labels and {folders[0]} 30, so they are compared up to 20."
    )


def test_every_line_of_the_table_has_its_columns_under_each_other(compared):
    head, rule, *rows = [line for line in as_text(compared(target=0.7)).splitlines() if "  " in line]
    starts = [match.start() for match in re.finditer(r"-+", rule)]
    assert head[: len("quantity")] == "quantity"
    for row in rows:
        assert all(row[start - 1] == " " for start in starts[1:])


def test_small_numbers_keep_four_digits_and_whole_ones_one(make_run):
    folders = [make_run(f"a-{seed}", [0.0004, 0.0005 + seed / 1e4], seed=seed) for seed in range(3)]
    folders += [make_run(f"b-{seed}", [0.0, 0.0], seed=seed, acquisition="Random()") for seed in range(3)]
    assert re.search(r"final test_acc +Random +3 +0.0000000 +0.0006000 +-0.0006000", as_text(compare(folders)))


def test_the_csv_has_a_row_for_each_pair_and_one_for_their_mean(compared):
    comparison = compared(target=0.7)
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [row["seed"] for row in rows] == ["0", "1", "2", "3", "mean"] * 3
    assert {row["acquisition"] for row in rows} == {BATCH_BALD}
    first, mean = rows[5], rows[9]
    assert (first["quantity"], first["metric"], first["baseline"]) == ("final test_acc", "test_acc", "BALD()")
    assert (first["num_labels"], first["value"], first["baseline_value"]) == ("30", "0.9", "0.7")
    assert float(first["difference"]) == pytest.approx(0.2)
    assert (first["low"], first["p_value"], first["test"]) == ("", "", "")
    final = comparison.rows[1].difference
    assert [float(mean[name]) for name in ("difference", "low", "high", "p_value")] == [
        final.mean,
        final.low,
        final.high,
        final.p_value,
    ]
    assert mean["test"] == "t"


def test_a_target_never_reached_is_infinite_in_the_csv_and_has_no_difference(compared):
    rows = list(csv.DictReader(io.StringIO(as_csv(compared(target=0.7)))))[10:]
    never = next(row for row in rows if row["seed"] == "2")
    assert (float(never["baseline_value"]), never["difference"]) == (math.inf, "")
    assert (rows[-1]["difference"], rows[-1]["low"], rows[-1]["test"]) == ("", "", "sign")
