import pytest

from al_lightning.report.holdout import holdout_accuracy, unheld


def test_the_accuracy_of_each_round_has_its_interval(make_people):
    (axes,) = holdout_accuracy([make_people()]).axes
    (drawn,) = axes.containers
    line, _, (bars,) = drawn
    assert line.get_xydata().tolist() == [[2, 1.0]]  # labels that were trained on, and the share of right ones
    assert bars.get_segments()[0].tolist() == [[2, pytest.approx(0.025)], [2, 1.0]]
    assert [text.get_text() for text in axes.texts] == ["n = 1"]


def test_a_target_is_reached_by_the_lower_bound(make_people):
    run = make_people()  # one point of one is right
    assert run.curve("holdout_acc") == {2: 1.0}
    assert [run.labels_to(target, "holdout_acc") for target in (0.02, 0.9)] == [2, None]


def test_runs_of_one_group_have_one_entry_of_the_legend(make_people):
    figure = holdout_accuracy([make_people("a"), make_people("b", seed=1)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["BatchBALD"]
    assert len(figure.axes[0].containers) == 2


def test_where_nothing_was_measured_there_is_no_picture(make_run):
    assert unheld([make_run("a")]) == "No point of a holdout has a label that a trained model was compared with yet."
    with pytest.raises(ValueError, match="No point of a holdout"):
        holdout_accuracy([make_run("b")])
