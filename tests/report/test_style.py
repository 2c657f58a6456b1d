import io
import sys

import pytest

from al_lightning.report.style import FREE, OWN, legend_below, lines, panels, plain, png, refuse


def test_no_two_groups_share_a_line_and_known_acquisitions_keep_theirs():
    drawn = lines(["Entropy", "BALD", "BatchBALD", "BatchBALD", "Random", "Margin", "Mine", "MeanSTD"])
    assert len(set(drawn)) == len(drawn)
    assert (drawn[1].colour, drawn[1].dashes) == OWN["BALD"]
    assert (drawn[2].colour, drawn[2].dashes) == OWN["BatchBALD"]


def test_more_groups_than_lines_begin_again():
    assert len(set(lines(["Mine"] * (len(FREE) + 3)))) == len(FREE)


def test_a_picture_is_a_png_on_white_paper_and_leaves_pyplot_alone():
    figure, axes = panels(2, 1, height=2.0)
    data = png(figure)
    image = pytest.importorskip("matplotlib.image").imread(io.BytesIO(data))
    assert data.startswith(b"\x89PNG")
    assert image.shape[:2] == (400, 1040)
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    assert len(axes) == 2
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'need matplotlib: `pip install "al-lightning\[plot\]"`'):
        panels(1, 1, height=1.0)


def test_no_name_is_hidden_or_set_as_a_formula_and_the_figure_grows_with_its_legend():
    figure, (axes,) = panels(1, 1, height=2.0)
    for name in ("_Mine", r"$\undefined$", "a very long name " * 12):
        axes.plot([0, 1], label=plain(name))
    legend_below(figure)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == [" _Mine", r"\$\undefined\$"]
    assert png(figure).startswith(b"\x89PNG")
    assert figure.get_figheight() > 2.8
    assert figure.legends[0].get_window_extent().x1 < figure.bbox.width


def test_a_reason_is_raised_and_no_reason_is_not():
    refuse(None)
    with pytest.raises(ValueError, match="because"):
        refuse("because")


def test_a_notebook_shows_a_figure_that_ends_a_cell_although_pyplot_is_not_imported():
    figure, _ = panels(1, 1, height=2.0)
    assert figure._repr_png_() == png(figure)  # the method that IPython asks for
