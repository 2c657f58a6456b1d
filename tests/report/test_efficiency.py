import pytest

from al_lightning.report.efficiency import label_efficiency
from al_lightning.report.reference import paper_curves
from al_lightning.report.style import OWN, png


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_line_is_the_mean_over_runs_and_the_band_reaches_from_the_lowest_to_the_highest(make_run):
    runs = [make_run("a", (0.5, 0.7)), make_run("b", (0.7, 0.8), seed=1)]
    axes = label_efficiency(runs).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[10, pytest.approx(0.6)], [12, pytest.approx(0.75)]]
    corners = {tuple(point) for point in axes.collections[0].get_paths()[0].vertices.round(6).tolist()}
    assert corners == {(10, 0.5), (10, 0.7), (12, 0.7), (12, 0.8)}
    assert axes.lines[0].get_color() == OWN["BatchBALD"][0]


def test_a_thin_line_goes_on_where_one_run_has_come_farther(make_run):
    runs = [make_run("long", (0.5, 0.7, 0.9)), make_run("killed", (0.7,), ended=False, seed=1)]
    mean, beyond, _ = label_efficiency(runs).axes[0].lines
    assert mean.get_xydata().tolist() == [[10, pytest.approx(0.6)]]
    assert beyond.get_xydata().tolist() == [[10, 0.5], [12, 0.7], [14, 0.9]]
    assert beyond.get_linewidth() < mean.get_linewidth()


def test_the_legend_says_runs_and_labels_to_the_target(make_run):
    runs = [make_run("a", (0.5, 0.9)), make_run("b", acquisition="BALD()"), make_run("c", (), acquisition="Random()")]
    assert legend(label_efficiency(runs, target=0.9)) == [
        "BatchBALD (1 run): 12 labels to 0.9",
        "BALD (1 run): 14 labels to 0.9",
    ]


def test_the_curves_of_the_paper_are_drawn_behind(make_run):
    figure = label_efficiency([make_run("a")], reference=paper_curves("mnist"))
    assert legend(figure)[1:] == [
        "BatchBALD, the paper's median of 6 (b=10, K=100)",
        "BALD, the paper's median of 6 (b=10, K=100)",
    ]
    assert png(figure).startswith(b"\x89PNG")


def test_runs_that_measured_nothing_are_refused(make_run):
    with pytest.raises(ValueError, match="No round has recorded a metric yet"):
        label_efficiency([make_run("empty", ())])


def test_the_curve_of_a_run_without_initial_labels_begins_after_its_first_round(make_people):
    axes = label_efficiency([make_people()], metric="val_acc").axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[2, 0.5], [3, 0.75]]


def test_labels_are_whole_numbers_also_of_a_single_point(make_run):
    figure = label_efficiency([make_run("a", (0.5,))])
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(float(tick).is_integer() for tick in ticks)
