from dataclasses import replace

import pytest

from al_lightning.report.runs import by_dataset, default_metric, grouped, metrics_of, read_runs, unmeasured


def labels(groups):
    return [group.label for group in groups]


def test_a_run_is_read_with_its_curve_and_state(make_folder):
    folder = make_folder("one", (0.5, None, 0.9))
    (run,) = read_runs([folder])
    assert (run.name, run.folder) == (str(folder), folder.resolve())
    assert run.curve("test_acc") == {10: 0.5, 14: 0.9}
    assert run.state == "max_rounds reached"
    assert (run.labels_to(0.9, "test_acc"), run.labels_to(0.95, "test_acc")) == (14, None)


def test_an_accuracy_of_900_in_1000_reaches_its_target_although_it_was_computed_in_single_precision(make_run):
    assert make_run("one", (0.5, 0.8999999761581421)).labels_to(0.9, "test_acc") == 12


def test_a_metric_of_the_name_of_the_holdouts_is_counted_where_nothing_is_held_out(make_run):
    run = make_run("own", (0.5, 0.9))
    rounds = [replace(entry, metrics={"holdout_acc": entry.metrics["test_acc"]}) for entry in run.rounds]
    assert replace(run, rounds=rounds).labels_to(0.9, "holdout_acc") == 12


def test_killed_runs_say_how_far_they_came(make_run):
    assert make_run("killed", (0.5, 0.6), ended=False).state == "unfinished: 2 rounds so far"
    empty = make_run("empty", ())
    assert (empty.state, empty.curve("test_acc"), empty.labels_to(0.1, "test_acc")) == ("no round finished", {}, None)


def test_runs_of_one_acquisition_are_one_group_whatever_their_seed_and_budget(make_run):
    runs = [make_run(str(seed), seed=seed, max_labelled=100 * seed, initial=[30 + seed]) for seed in range(3)]
    runs.append(make_run("bald", acquisition="BALD()"))
    groups = grouped(runs)
    assert labels(groups) == ["BatchBALD", "BALD"]
    assert [len(group.runs) for group in groups] == [3, 1]
    assert groups[0].acquisition == "BatchBALD"


def test_groups_are_named_by_what_tells_them_apart(make_run):
    small, large = (
        make_run(name, acquisition={"class_path": "al.BatchBALD", "init_args": {"num_configs": number, "fill": None}})
        for name, number in (("small", 10), ("large", 10000))
    )
    assert labels(grouped([small, make_run("bald", acquisition="BALD()"), large])) == [
        "BatchBALD, num_configs=10",
        "BALD",
        "BatchBALD, num_configs=10000",
    ]
    assert labels(grouped([make_run("two"), make_run("five", query_size=5)])) == [
        "BatchBALD, query_size=2",
        "BatchBALD, query_size=5",
    ]
    looked = make_run("looked", screening={"num_points": 9, "num_samples": 3})
    assert labels(grouped([make_run("older"), make_run("newer", screening=None), looked])) == [
        "BatchBALD, screening=None",
        "BatchBALD, screening={'num_points': 9, 'num_samples': 3}",
    ]


def test_acquisitions_of_another_version_are_told_apart_too(make_run):
    def mine(**arguments):
        return {"class_path": "own.Mine", "init_args": arguments}

    old, new = make_run("old", acquisition=mine(a=1)), make_run("new", acquisition=mine(a=1, b=2))
    assert labels(grouped([old, new])) == ["Mine", "Mine, b=2"]
    bare = [make_run(name, acquisition=name) for name in ("Mine(1)", "Mine(2)")]  # as version 1 wrote them
    assert labels(grouped(bare)) == ["Mine, arguments=(1)", "Mine, arguments=(2)"]


def test_the_mean_goes_as_far_as_every_measured_run(make_run):
    runs = [make_run("long", (0.5, 0.7, 0.9)), make_run("short", (0.7, 0.9), ended=False), make_run("empty", ())]
    (group,) = grouped(runs)
    assert group.values("test_acc") == {10: [0.5, 0.7], 12: [0.7, 0.9]}
    assert group.values("val_acc") == {}


@pytest.mark.parametrize(
    ("target", "said"),
    [(0.9, "13 labels to 0.9"), (0.95, "1 of 2 reach 0.95"), (0.99, "0 of 2 reach 0.99")],
)
def test_the_labels_to_a_target_are_the_median_over_runs_or_how_many_reach_it(make_run, target, said):
    (group,) = grouped([make_run("slow", (0.5, 0.7, 0.9)), make_run("fast", (0.5, 0.96, 0.97))])
    assert group.median_labels_to(target, "test_acc") == said


def test_datasets_are_told_apart_and_not_compared(make_run):
    digits, more, other = make_run("a"), make_run("b", seed=1), make_run("c", datamodule="MNIST", num_points=90)
    assert by_dataset([digits, other, more]) == {"Digits, 60 points": [digits, more], "MNIST, 90 points": [other]}
    with pytest.raises(ValueError, match="different datasets, which cannot be compared: Digits, 60 points; MNIST"):
        grouped([digits, other])


def test_a_run_named_twice_and_no_run_at_all_are_refused(make_folder, tmp_path):
    folder = make_folder("one")
    with pytest.raises(ValueError, match=r"one/\.\./one is the same run as .*/one: name each run once"):
        read_runs([folder, f"{folder}/../one"])
    with pytest.raises(ValueError, match="`folders` is empty"):
        read_runs([])
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        read_runs([tmp_path])


def test_a_metric_that_nobody_recorded_is_named_beside_those_recorded(make_run):
    run = make_run("one")
    assert metrics_of([run]) == ["test_acc"]
    assert unmeasured([run], "test_acc") is None
    assert unmeasured([run], "acc") == (
        "`metric` is 'acc', but no round has a number of that name; recorded are test_acc: choose one with `--metric`."
    )
    assert unmeasured([make_run("empty", ())], "acc") == "No round has recorded a metric yet."


def test_without_a_metric_named_the_test_the_holdout_and_any_accuracy_are_shown_in_this_order(make_run, make_people):
    people = make_people()
    assert default_metric([make_run("one"), people]) == "test_acc"
    assert default_metric([people]) == "holdout_acc"
    assert default_metric([replace(people, rounds=[])]) == "holdout_acc"  # to come
    no_holdout = replace(
        people,
        header={**people.header, "reserved": []},
        rounds=[replace(each, holdout={}, num_held_out=0) for each in people.rounds],
    )
    assert default_metric([no_holdout]) == "val_acc"
    nothing = replace(no_holdout, rounds=[replace(each, metrics={}) for each in no_holdout.rounds])
    assert unmeasured([nothing], default_metric([nothing])) == (
        "No round has recorded a metric yet. Without a test set, `holdout_share` measures an accuracy."
    )


def test_a_round_without_labels_and_metrics_is_no_point_of_the_curve(make_people):
    run = make_people()
    assert run.curve("val_acc") == {2: 0.5, 3: 0.75}
    assert run.curve("holdout_acc") == {2: 1.0}
    assert unmeasured([run], "val_acc") is None


def test_a_round_in_which_people_only_corrected_replaces_the_one_before(make_people):
    run = make_people()
    corrected = replace(run.rounds[-1], num_labelled=2)
    assert replace(run, rounds=[*run.rounds[:-1], corrected]).curve("val_acc") == {2: 0.75}
    header = {**run.header, "asks_people": None}
    assert replace(run, rounds=[*run.rounds[:-1], corrected], header=header).curve("val_acc") == {}
