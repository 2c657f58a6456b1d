import math

import pytest
from scipy import stats

from al_lightning.records.round import Round
from al_lightning.report.compare import compare
from tests.report.compare.conftest import HEADER

BALD = {0: [0.5, 0.6, 0.7], 1: [0.4, 0.6, 0.8], 2: [0.5, 0.5, 0.6]}
BATCH = {0: [0.5, 0.8, 0.9], 1: [0.4, 0.7, 0.9], 2: [0.6, 0.7, 0.7]}
RANDOM = {0: [0.5, 0.5, 0.6], 1: [0.4, 0.7, 0.7], 2: [0.5, 0.6, 0.6]}


@pytest.fixture
def make_runs(make_run):
    def make(values, acquisition, **header):
        return [
            make_run(f"{acquisition}-{seed}", curve, acquisition=acquisition, seed=seed, **header)
            for seed, curve in values.items()
        ]

    return make


@pytest.fixture
def folders(make_runs):
    return [*make_runs(BALD, "BALD()"), *make_runs(BATCH, "BatchBALD()"), *make_runs(RANDOM, "Random()")]


def rows_of(comparison):
    return {(row.quantity, row.acquisition): row for row in comparison.rows}


def test_values_of_each_pair_are_those_of_the_curves_by_hand(folders):
    rows = rows_of(compare(folders, target=0.7))
    area, final, labels = (
        rows[name, "BatchBALD()"] for name in ("area under the curve", "final test_acc", "labels to 0.7")
    )
    assert area.values == pytest.approx([0.75, 0.675, 0.675])  # (first / 2 + second + third / 2) / 2
    assert area.baseline_values == pytest.approx([0.6, 0.6, 0.525])
    assert (final.values, final.baseline_values) == ([0.9, 0.9, 0.7], [0.7, 0.8, 0.6])
    assert (labels.values, labels.baseline_values) == ([20, 20, 20], [30, 30, math.inf])


def test_mean_and_interval_are_scipys_paired_t_over_the_shared_seeds(folders):
    row = rows_of(compare(folders))["area under the curve", "BatchBALD()"]
    expected = stats.ttest_rel([0.75, 0.675, 0.675], [0.6, 0.6, 0.525])
    interval = expected.confidence_interval(0.95)
    assert row.difference.mean == pytest.approx(0.125)
    assert (row.difference.low, row.difference.high) == pytest.approx((interval.low, interval.high))
    assert row.difference.p_value == pytest.approx(expected.pvalue)


def test_two_acquisitions_against_the_baseline_are_allowed_for_by_holm_within_a_quantity(folders):
    comparison = compare(folders)
    assert comparison.baseline == "BALD()"
    for quantity in ("area under the curve", "final test_acc"):
        own = [row for row in comparison.rows if row.quantity == quantity]
        smaller, larger = sorted(own, key=lambda row: row.difference.p_value)
        assert smaller.p_holm == min(1, 2 * smaller.difference.p_value)
        assert larger.p_holm == max(smaller.p_holm, larger.difference.p_value)


def test_one_acquisition_against_the_baseline_keeps_its_p_value(folders):
    assert all(row.p_holm == row.difference.p_value for row in compare(folders[:6], target=0.7).rows)


def test_swapping_the_baseline_turns_the_sign_and_nothing_else(folders):
    forth, back = compare(folders[:6]), compare([*folders[3:6], *folders[:3]])
    for row, mirrored in zip(forth.rows, back.rows, strict=True):
        assert mirrored.difference.mean == pytest.approx(-row.difference.mean)
        assert mirrored.difference.high == pytest.approx(-row.difference.low)
        assert mirrored.p_holm == pytest.approx(row.p_holm)
        assert (mirrored.num_better, mirrored.num_worse) == (row.num_worse, row.num_better)


def test_better_means_a_higher_metric_and_fewer_labels(folders):
    rows = rows_of(compare(folders, target=0.7))
    assert [(row.num_better, row.num_worse) for row in rows.values()] == [
        (3, 0),
        (2, 1),
        (3, 0),
        (0, 2),
        (3, 0),
        (1, 1),
    ]


def test_of_a_loss_less_is_better_and_its_target_is_reached_from_above(make_runs):
    losses = {seed: [1 - value for value in curve] for seed, curve in BATCH.items()}
    baseline = {seed: [1 - value for value in curve] for seed, curve in BALD.items()}
    folders = [
        *make_runs(baseline, "BALD()", metric="test_loss"),
        *make_runs(losses, "BatchBALD()", metric="test_loss"),
    ]
    area, final, labels = compare(folders, metric="test_loss", target=0.3, mode="min").rows
    assert (area.num_better, final.num_better, labels.num_better) == (3, 3, 3)
    assert labels.values == [20, 20, 20]


def test_a_target_that_is_no_number_and_a_mode_that_is_none_are_refused(folders):
    with pytest.raises(ValueError, match="`mode` is 'up', but must be 'max' or 'min'"):
        compare(folders, mode="up")
    with pytest.raises(ValueError, match="`target` is nan"):
        compare(folders, target=math.nan)


def test_labels_to_a_target_on_the_holdout_are_counted_where_its_lower_bound_reaches_it(tmp_path, write_run):
    for name, lows in (("BALD()", (0.5, 0.85, 0.91)), ("Random()", (0.5, 0.6, 0.7))):
        rounds = [
            Round(index, 10 * (index + 1), 99 - 10 * index, holdout={"num": 5, "acc": 0.95, "low": low, "high": 1.0})
            for index, low in enumerate(lows)
        ]
        write_run(tmp_path / name, {**HEADER, "acquisition": name}, rounds)
    found = compare([tmp_path / "Random()", tmp_path / "BALD()"], metric="holdout_acc", target=0.9)
    values = {row.quantity: (row.values[0], row.baseline_values[0]) for row in found.rows}
    assert values["final holdout_acc"] == (0.95, 0.95)  # as it was measured
    assert values["labels to 0.9"] == (30, math.inf)
