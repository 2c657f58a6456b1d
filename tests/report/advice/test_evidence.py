from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from al_lightning.records.intervals import interval
from al_lightning.records.round import Round
from al_lightning.report.advice.evidence import (
    DISAGREEMENT,
    HOLDOUT,
    REDUNDANCY,
    REJECTIONS,
    SATURATION,
    UNKNOWN,
    labelled_of,
    of_copies,
    of_features_against_inputs,
    of_neighbours,
    of_records,
    refuse_other_data,
)
from al_lightning.report.runs import Run, read_runs


def named(run):
    return {each.name: each for each in of_records(run)}


@pytest.fixture
def make(tmp_path, write_run):
    """Return a run of 20 points, of which 10 are labelled to begin with, with the given batches of two points."""

    def make(*batches, **header):
        first = {"num_points": 20, "initial": list(range(10, 20)), "initial_targets": [0, 1] * 5, **header}
        rounds = [
            Round(
                index,
                num_labelled=10 + 2 * index,
                num_pool=10 - 2 * index,
                acquired=[2 * index, 2 * index + 1],
                scores=[0.5, 0.25],
                **{"targets": [0, 1], **batch},
            )
            for index, batch in enumerate(batches)
        ]
        write_run(tmp_path / "run", first, rounds)
        return read_runs([tmp_path / "run"])[0]

    return make


def test_a_run_without_a_round_knows_nothing_and_says_why(make):
    found = named(make())
    assert {each.value for each in found.values()} == {UNKNOWN}
    assert not any(each.supports or each.interval for each in found.values())
    assert found[SATURATION].basis == found[DISAGREEMENT].basis == "no batch was chosen"
    assert found[REJECTIONS].basis == "no people were asked, and the data name no junk"
    assert found[HOLDOUT].basis == "no points are reserved (`holdout_share`)"


def test_a_random_run_does_not_know_what_its_samples_would_tell(make):
    found = named(make({}, {}, acquisition={"class_path": "al_lightning.Random", "init_args": {}}))
    assert found[SATURATION].basis == (
        "no round predicted the pool by two posterior samples or more, which Random does not need"
    )
    assert found[REDUNDANCY].value == found[DISAGREEMENT].value == UNKNOWN


def test_batches_above_nine_tenths_of_log_k_are_counted(make):
    shares = [{"information": {"joint_mi_over_log_k": share, "num_samples": 100}} for share in (0.5, 0.9, 0.95)]
    found = named(make(*shares))[SATURATION]
    assert (found.value, found.interval) == ("33.3 %", "")
    assert found.basis == "1 of 3 batches above 90 % of log K; they have 50 to 95 %"
    assert found.supports.startswith("In 1 of 3 batches the points tell nearly log K")


def test_below_the_limit_nothing_is_supported(make):
    found = named(make({"information": {"joint_mi_over_log_k": 0.5, "num_samples": 100}}))[SATURATION]
    assert (found.value, found.supports) == ("0 %", "")


def test_redundancy_has_its_median_and_range(make):
    batches = [{"information": {"joint_mi": 0.5, "mean_bald_picked": bald}} for bald in (0.25, 0.5, 0.75)]
    found = named(make(*batches))[REDUNDANCY]
    assert (found.value, found.interval) == ("2", "1 to 3")


def test_disagreement_is_compared_with_errors_of_the_same_batch(make):
    batches = [
        {"bald": [0.9, 0.1], "predicted": [1, 1]},  # the error disagrees most
        {"bald": [0.5, 0.9], "predicted": [0, 0]},  # so it does here
        {"bald": [5.0, 6.0], "predicted": [1, 0]},  # errors alone: no pair
    ]
    found = named(make(*batches))[DISAGREEMENT]
    low, high = interval(2, 2)
    assert (found.value, found.interval) == ("1.00", f"{low:.2f} to {high:.2f}")
    assert found.basis.startswith("AUROC of BALD for the 2 errors among 4 points just labelled")
    assert found.supports.startswith("It is not shown")


@pytest.mark.parametrize(
    ("bald", "words"), [([0.9, 0.1], "predicted wrong more often"), ([0.1, 0.9], "predicted right more often")]
)
def test_enough_batches_support_what_disagreement_tells(bald, words, make):
    found = named(make(*[{"bald": bald, "predicted": [1, 1]}] * 5, num_points=30))
    assert found[DISAGREEMENT].supports.startswith("It is not shown")  # five pairs
    rounds = [
        Round(i, 2 * i, 40 - 2 * i, [2 * i, 2 * i + 1], [1.0, 0.5], [0, 1], bald=bald, predicted=[1, 1])
        for i in range(20)
    ]
    run = Run("a", "a", {"num_points": 40, "initial": []}, rounds)
    assert words in named(run)[DISAGREEMENT].supports


def test_without_an_error_there_is_nothing_to_find(make):
    found = named(make({"bald": [0.9, 0.1], "predicted": [0, 1]}))[DISAGREEMENT]
    assert found.basis == "no batch has both a point that was predicted right and an error"


def test_people_have_rejections_and_a_holdout_with_their_intervals(make_people):
    run = make_people()
    found = named(run)
    assert (found[REJECTIONS].value, found[REJECTIONS].basis) == ("0 %", "0 of 5 points that were chosen")
    assert found[REJECTIONS].interval == "0 to 52.2 %"
    assert (found[HOLDOUT].value, found[HOLDOUT].interval) == ("100 %", "2.5 to 100 %")
    assert found[HOLDOUT].basis == "1 points drawn at random; trained on 2 labels"
    assert labelled_of(run) == {0: 0, 1: 1, 4: 1}  # with its correction, and without the holdout


@pytest.mark.parametrize(("reject", "is_advised"), [(None, True), ("train", False)])
def test_rejected_points_are_counted_and_training_them_is_named_where_they_are_not(reject, is_advised, make):
    run = make({"targets": [0, None], "changed_after": [[1, -5, None]]}, junk=-7, reject=reject)
    found = named(run)[REJECTIONS]
    assert (found.value, found.basis) == ("50 %", "1 of 2 points that were chosen")
    assert ("`reject='train'`" in found.supports) == is_advised


def test_labels_of_a_run_are_those_of_its_records(make):
    run = make({})
    assert labelled_of(run) == {**dict(zip(range(10, 20), [0, 1] * 5, strict=True)), 0: 0, 1: 1}


@pytest.mark.parametrize(("num_points", "is_refused"), [(19, True), (20, False), (21, False)])
def test_people_may_have_points_appended_and_nobody_may_take_some_away(num_points, is_refused, make_people):
    with pytest.raises(ValueError, match="has the data Digits, 19 points") if is_refused else nullcontext():
        refuse_other_data(make_people(), name="Digits", num_points=num_points)


def test_without_people_no_points_are_appended(make):
    with pytest.raises(ValueError, match=r"Digits, 21 points, but .* has Digits, 20 points: name that of the run"):
        refuse_other_data(make(datamodule="Digits"), name="Digits", num_points=21)


def test_features_of_another_encoder_are_refused_where_the_records_tell(make):
    run = make(datamodule="Digits", features="abc")
    num_points = run.header["num_points"]
    refuse_other_data(run, name="Digits", num_points=num_points, features="abc")
    before = replace(run, header={key: value for key, value in run.header.items() if key != "features"})
    refuse_other_data(before, name="Digits", num_points=num_points, features="def")
    with pytest.raises(ValueError, match=r"has the features def, but .* has abc: name the configuration of the run"):
        refuse_other_data(run, name="Digits", num_points=num_points, features="def")


def test_neighbours_are_compared_with_the_largest_class():
    classes = [0] * 30 + [1] * 10
    better, same = [True] * 40, [True] * 30 + [False] * 10
    assert "tells a class better" in of_neighbours(better, classes, features="features").supports
    found = of_neighbours(same, classes, features="features")
    assert (found.name, found.value) == ("neighbours agree, features", "75 %")
    assert found.supports.startswith("It is not shown, at 40 labels")
    assert "the largest of which has 75 %" in found.basis


def test_classes_of_one_point_are_counted_and_where_there_are_no_others_nothing_is_known():
    assert "1 is the only one of its class" in of_neighbours([True, True, False], [0, 0, 1], features="x").basis
    found = of_neighbours([False, False], [0, 1], features="x")
    assert (found.value, found.basis) == (UNKNOWN, "no two of the 2 labelled points have one class")
    assert of_neighbours([], [], features="x").value == UNKNOWN


def test_features_and_inputs_are_compared_where_they_differ():
    better, worse = [True] * 18 + [True, False], [False] * 18 + [True, False]
    found = of_features_against_inputs(better, worse)
    assert found.basis == "18 of 20 labelled points at which only one of the two agrees"
    assert "better in the features" in found.supports
    assert "look at the encoder" in of_features_against_inputs(worse, better).supports
    assert of_features_against_inputs(better[9:], worse[9:]).supports.startswith("It is not shown")  # 9 of 11
    assert of_features_against_inputs([True, False], [False, True]).supports.startswith("It is not shown")
    same = of_features_against_inputs(better, better)
    assert (same.value, same.basis) == (UNKNOWN, "at each of 20 labelled points both agree, or neither does")
    assert of_features_against_inputs([], []).basis == "no point is labelled"


def test_copies_have_an_interval_where_points_were_drawn():
    drawn = of_copies([True] * 10 + [False] * 90, num_points=1000, features="inputs")
    assert (drawn.value, drawn.interval) == ("10 %", "4.9 to 17.6 %")
    assert of_copies([True, False], num_points=2, features="inputs").interval == ""
    assert of_copies([False] * 3, num_points=9, features="inputs").supports == ""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "noise"), [(1, 0.6), (10, 2.0)])
def test_the_interval_of_agreement_covers_the_mean_of_as_many_labels_drawn_anew(width, noise):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, width))
    found = []
    for _ in range(500):
        classes = rng.integers(3, size=60)
        points = centres[classes] + noise * rng.standard_normal((60, width))
        distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(60, np.inf))
        agrees = classes[distances.argmin(axis=1)] == classes
        found.append((agrees.mean(), of_neighbours(agrees.tolist(), classes.tolist(), features="x").interval))
    truth = np.mean([share for share, _ in found])
    bounds = [[float(bound) / 100 for bound in words.removesuffix(" %").split(" to ")] for _, words in found]
    assert np.mean([low <= truth <= high for low, high in bounds]) >= 0.95
