import math

import pytest

from al_lightning.records.journal import Round
from al_lightning.report.batches import class_balance, joint_information
from al_lightning.report.runs import Run
from al_lightning.report.style import lines, png


def run_of(*rounds, acquisition="BatchBALD()"):
    return Run("run", "folder", {"acquisition": acquisition}, rounds)


def batch(index, scores, joint, targets=None):
    return Round(
        round=index,
        num_labelled=10,
        num_pool=50,
        acquired=list(range(len(scores))),
        scores=scores,
        targets=targets,
        information={"joint_mi": joint, "num_samples": 8},
    )


def test_gains_add_up_to_a_line_and_the_mark_is_the_estimate_for_the_whole_batch():
    run = run_of(batch(0, [0.5, 0.25], 0.7), batch(1, [0.25, 0.25], 0.5), batch(2, [0.9], 0.9))
    axes = joint_information([run]).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.375], [2, 0.625]]
    assert axes.lines[1].get_ydata().tolist() == [pytest.approx(0.6)]
    assert axes.lines[1].get_xdata()[0] > 2


def test_scores_that_are_no_gains_make_no_line():
    axes = joint_information([run_of(batch(0, [0.5, 0.25], 0.7), acquisition="BALD()")]).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [1, 1, 1, 2]  # the mark, its two caps, and log K


def test_log_k_is_dotted():
    axes = joint_information([run_of(batch(0, [0.5], 0.5))]).axes[0]
    limit = axes.lines[-1]
    assert (limit.get_linestyle(), limit.get_ydata()[0]) == (":", math.log(8))
    assert axes.texts[0].get_text() == "log K = log 8 = 2.08"
    assert axes.get_ylim()[1] > math.log(8)


def test_a_group_has_one_colour_in_every_picture():
    acquisitions = ["Margin()", "Entropy()"]
    silent, informed = (run_of(batch(0, [0.5], 0.5), acquisition=name) for name in acquisitions)
    silent.rounds[0].information.clear()
    drawn = joint_information([silent, informed]).axes[0].lines[0]
    assert drawn.get_color() == lines(acquisitions)[1].colour


def test_without_joint_information_there_is_no_such_picture():
    with pytest.raises(ValueError, match="No round records the joint information"):
        joint_information([run_of(Round(round=0, num_labelled=1, num_pool=2), acquisition="Random()")])


def test_classes_are_counted_for_each_round_and_averaged_over_runs():
    first = run_of(batch(0, [0.1, 0.1], 0.1, targets=[0, 0]), batch(1, [0.1, 0.1], 0.1, targets=[2, 0]))
    second = run_of(batch(0, [0.1, 0.1], 0.1, targets=[0, 2]))
    figure = class_balance([first, second])
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == [[1.5, 1], [0.5, 1]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0", "2"]


def test_a_round_whose_labels_are_not_known_is_masked_and_not_empty():
    known, unknown = batch(1, [0.1], 0.1, targets=[1]), batch(0, [0.1], 0.1)
    (image,) = class_balance([run_of(unknown, known)]).axes[0].images
    assert image.get_array().mask.tolist() == [[True, False]]
    with pytest.raises(ValueError, match="No round records the labels"):
        class_balance([run_of(unknown)])


@pytest.mark.slow
def test_both_pictures_of_several_groups_can_be_drawn():
    runs = [
        run_of(batch(0, [0.5], 0.5, targets=list(range(40)))),
        run_of(batch(0, [0.1], 0.1, [3]), acquisition="BALD()"),
    ]
    assert png(joint_information(runs)).startswith(b"\x89PNG")
    assert png(class_balance(runs)).startswith(b"\x89PNG")


def test_batches_of_equal_information_can_be_drawn_although_their_mean_is_rounded(make_run):
    runs = [make_run(name, ended=False, seed=seed) for seed, name in enumerate("ab")]  # six times 0.7
    assert joint_information(runs).axes


def test_classes_have_their_names_where_all_runs_name_them_alike(make_people):
    def names(*runs):
        return [label.get_text() for label in class_balance(runs).axes[0].get_yticklabels()]

    first, other = make_people("a"), make_people("b", classes=["ant", "wasp"], seed=1)
    assert names(first) == ["ant", "bee"]
    assert names(first, other) == ["ant", "1"]


def test_classes_without_any_label_have_a_row_too():
    run = run_of(batch(0, [0.5], 0.5, targets=[1]))
    named = Run(run.name, run.folder, {**run.header, "classes": ["ant", "bee", "cat"]}, run.rounds)
    axes = class_balance([named]).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["ant", "bee", "cat"]
    assert axes.images[0].get_array().tolist() == [[0], [1], [0]]
