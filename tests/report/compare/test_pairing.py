import json

import pytest

from al_lightning.records.round import Round
from al_lightning.report.compare.pairing import Run, caveats, only_accuracy, pairs_by_acquisition, read_runs

SHORT = [0.5, 0.6]


def pairs_of(folders, metric="test_acc"):
    return pairs_by_acquisition(read_runs(folders), metric=metric)


def caveats_of(folders, metric="test_acc"):
    runs = read_runs(folders)
    pairs = [pair for own in pairs_by_acquisition(runs, metric=metric).values() for pair in own]
    return caveats(runs, pairs, metric=metric)


def test_runs_are_paired_by_seed_with_the_first_runs_acquisition_whatever_their_order(make_run):
    folders = [
        make_run("bald-1", [0.5, 0.6], seed=1),
        make_run("random-0", [0.1, 0.2], acquisition="Random()", seed=0),
        make_run("batch-1", [0.7, 0.8], acquisition="BatchBALD()", seed=1),
        make_run("bald-0", [0.3, 0.4], seed=0),
        make_run("batch-0", [0.8, 0.9], acquisition="BatchBALD()", seed=0),
    ]
    found = pairs_of(folders)
    curves = {name: [(pair.seed, pair.curve, pair.baseline_curve) for pair in pairs] for name, pairs in found.items()}
    bald = {0: [(10, 0.3), (20, 0.4)], 1: [(10, 0.5), (20, 0.6)]}
    assert curves == {
        "Random()": [(0, [(10, 0.1), (20, 0.2)], bald[0])],
        "BatchBALD()": [(0, [(10, 0.8), (20, 0.9)], bald[0]), (1, [(10, 0.7), (20, 0.8)], bald[1])],
    }


def test_runs_of_one_acquisition_with_other_hyper_parameters_are_another_acquisition(make_run):
    folders = [
        make_run(name, SHORT, acquisition=acquisition)
        for name, acquisition in [("a", "BatchBALD(num_configs=100)"), ("b", "BatchBALD(num_configs=200)")]
    ]
    assert list(pairs_of(folders)) == ["BatchBALD(num_configs=200)"]


def test_a_killed_run_is_compared_up_to_the_labels_that_both_reached_and_it_is_said(make_run):
    folders = [
        make_run("bald-0", [0.5, 0.6, 0.7, 0.8]),
        make_run("bald-1", [0.5, 0.6, 0.7, 0.8], seed=1),
        make_run("random-0", [0.4, 0.5, None], acquisition="Random()"),
        make_run("random-1", [0.4, 0.5, 0.6, 0.7], acquisition="Random()", seed=1),
    ]
    killed, whole = pairs_of(folders)["Random()"]
    assert killed.curve == [(10, 0.4), (20, 0.5)]
    assert killed.baseline_curve == [(10, 0.5), (20, 0.6)]
    assert whole.curve[-1] == (40, 0.7)
    assert caveats_of(folders) == [
        f"Seed 0: {folders[2]} reached 20 labels and {folders[0]} 40, so they are compared up to 20."
    ]


def test_runs_that_share_everything_have_no_caveats(make_run):
    assert caveats_of([make_run("a", SHORT), make_run("b", SHORT, acquisition="Random()")]) == []


def test_a_seed_without_a_partner_is_left_out_and_named(make_run):
    folders = [make_run("a", SHORT), make_run("b", SHORT, acquisition="Random()")]
    folders += [make_run("c", SHORT, seed=7), make_run("d", SHORT, acquisition="Random()", seed=8)]
    assert [pair.seed for pair in pairs_of(folders)["Random()"]] == [0]
    assert caveats_of(folders) == [
        f"{folders[2]} is left out: no run to pair it with has its seed, 7.",
        f"{folders[3]} is left out: no run to pair it with has its seed, 8.",
    ]


def test_a_run_that_is_left_out_need_not_have_the_metric_nor_be_long(make_run):
    folders = [make_run("a", SHORT), make_run("b", SHORT, acquisition="Random()"), make_run("c", [None], seed=7)]
    assert caveats_of(folders) == [f"{folders[2]} is left out: no run to pair it with has its seed, 7."]


def test_what_else_differs_between_the_runs_is_said(make_run):
    folders = [
        make_run("a", SHORT),
        make_run("b", SHORT, acquisition="Random()", num_samples=20, screening={"num_points": 9}, initial=[1, 2, 5]),
    ]
    assert caveats_of(folders) == [
        "The runs differ in `num_samples` as well (100, 20), which may be what made a difference.",
        "The runs differ in `screening` as well (None, {'num_points': 9}), which may be what made a difference.",
        "Not the same initial labels in both runs of a pair: seeds 0.",
    ]


def test_the_order_of_the_initial_labels_does_not_matter(make_run):
    assert caveats_of([make_run("a", SHORT), make_run("b", SHORT, acquisition="Random()", initial=[1, 2, 3])]) == []


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("datamodule", "IDXDataModule", "has the datamodule DigitsDataModule and .*b has IDXDataModule"),
        ("num_points", 800, "has the num_points 400 and .*b has 800"),
        ("model", "OwnModule", "has the model Classifier and .*b has OwnModule"),
        ("query_size", 5, "has the query_size 10 and .*b has 5"),
        ("initial", [1, 2], "has the number of initial labels 3 and .*b has 2"),
    ],
)
def test_runs_of_different_tasks_are_refused_by_both_names_and_the_difference(make_run, setting, value, words):
    folders = [make_run("a", SHORT), make_run("b", SHORT, acquisition="Random()", **{setting: value})]
    with pytest.raises(ValueError, match=rf".*a {words}, so their curves are not of one task"):
        read_runs(folders)


def test_a_second_run_of_a_seed_is_refused_by_both_names(make_run):
    folders = [make_run("a", SHORT), make_run("b", SHORT)]
    with pytest.raises(ValueError, match=r"a and .*b are both BALD\(\) with seed 0, and a seed makes one pair"):
        read_runs(folders)


def test_runs_of_a_single_acquisition_are_no_comparison(make_run):
    with pytest.raises(
        ValueError, match=r"All the runs named have the acquisition BALD\(\), and a comparison takes two"
    ):
        read_runs([make_run("a", SHORT), make_run("b", SHORT, seed=1)])


@pytest.mark.parametrize("setting", ["seed", "acquisition"])
def test_a_run_that_does_not_record_what_pairing_needs_is_refused(make_run, setting):
    folders = [make_run("a", SHORT), make_run("b", SHORT, **{"acquisition": "Random()", setting: None})]
    with pytest.raises(ValueError, match=rf"b does not record its `{setting}`, so it cannot be compared"):
        read_runs(folders)


def test_a_run_of_an_older_version_without_its_initial_labels_is_refused(make_run, tmp_path):
    first = make_run("a", SHORT)
    header = {**json.loads((first / "rounds.jsonl").read_text().splitlines()[0]), "version": 1, "initial": []}
    del header["initial"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rounds.jsonl").write_text(json.dumps({**header, "acquisition": "Random()"}) + "\n")
    with pytest.raises(ValueError, match=r"old does not record its `initial`, so it cannot be compared"):
        read_runs([first, tmp_path / "old"])


def test_acquisitions_without_a_seed_in_common_are_refused_with_their_seeds(make_run):
    folders = [make_run("a", SHORT), make_run("c", SHORT, seed=2), make_run("b", SHORT, acquisition="Random()", seed=1)]
    with pytest.raises(ValueError, match=r"Random\(\) have the seeds 1 and those of BALD\(\) 0, 2: none in common"):
        pairs_of(folders)


def test_a_run_with_less_than_two_rounds_in_common_is_refused(make_run):
    folders = [make_run("a", [0.5, 0.6, 0.7]), make_run("b", [0.5, None], acquisition="Random()")]
    with pytest.raises(ValueError, match=r"b has `test_acc` up to 10 labels and .*a up to 30, with fewer than two"):
        pairs_of(folders)


def test_a_hole_in_a_curve_is_refused_and_not_bridged(make_run):
    folders = [make_run("a", [0.5, None, 0.7]), make_run("b", [0.5, 0.6, 0.7], acquisition="Random()")]
    with pytest.raises(ValueError, match=r"a has `test_acc` at 30 labels but none at 20, a hole in its curve"):
        pairs_of(folders)


def test_a_metric_that_a_run_does_not_have_is_refused_with_those_it_has(make_run):
    folders = [make_run("a", SHORT), make_run("b", SHORT, acquisition="Random()")]
    with pytest.raises(ValueError, match=r"b has no `test_f1`. It has: val_loss, test_acc\."):
        pairs_of(folders, metric="test_f1")
    with pytest.raises(ValueError, match=r"none has no `test_acc`. It has: no metrics yet\."):
        pairs_of([folders[0], make_run("none", [], acquisition="Random()")])


def test_the_metric_is_the_only_test_accuracy_and_else_must_be_named(make_run):
    runs = read_runs([make_run("a", SHORT), make_run("b", SHORT, acquisition="Random()")])
    assert only_accuracy(runs) == "test_acc"
    both = [make_run("c", SHORT), make_run("d", SHORT, metric="test_Accuracy", acquisition="Random()")]
    with pytest.raises(ValueError, match=r"^2 of the runs' .*`--metric`: val_loss, test_acc, test_Accuracy\."):
        only_accuracy(read_runs(both))
    neither = [make_run("e", SHORT, metric="acc"), make_run("f", SHORT, metric="acc", acquisition="Random()")]
    with pytest.raises(ValueError, match=r"^0 of the runs' .*`--metric`: val_loss, acc\."):
        only_accuracy(read_runs(neither))


def test_a_round_without_labels_is_no_point_and_one_of_corrections_replaces_the_one_before():
    rounds = [
        Round(0, 0, 9),
        Round(1, 4, 5, metrics={"test_acc": 0.5}),
        Round(2, 4, 5, metrics={"test_acc": 0.6}),
        Round(3, 8, 1, metrics={"test_acc": 0.7}, holdout={"acc": 0.9}),
    ]
    run = Run("mine", {"asks_people": True}, rounds)
    assert run.curve("test_acc") == [(4, 0.6), (8, 0.7)]
    assert list(run.metrics) == ["test_acc", "holdout_acc"]
    with pytest.raises(ValueError, match=r"takes labels back \(it has 4, 4, 8 labels\)"):
        Run("mine", {}, rounds).curve("test_acc")
