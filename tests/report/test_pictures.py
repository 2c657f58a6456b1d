import base64

import numpy as np
import pytest
from matplotlib.image import imsave

from al_lightning.report.pictures import (
    classes_picture,
    efficiency_picture,
    information_picture,
    method_picture,
    stored_pictures,
)
from al_lightning.report.reference import paper_curves


def test_the_page_shows_the_very_png_that_lies_beside_it(make_run, tmp_path):
    drawn = classes_picture([make_run("a")]).drawn(tmp_path, "digits-")
    assert base64.b64decode(drawn.base64) == (tmp_path / "digits-classes.png").read_bytes()
    assert drawn.picture.alternative == "Classes of the acquired labels in each round"


def test_where_nothing_can_be_drawn_the_reason_stands_instead(make_run, tmp_path):
    runs = [make_run("empty", ())]
    curves = efficiency_picture(runs, metric="acc", target=0.9, reference=None)
    assert curves.alternative == "Curves of acc against labels"
    assert curves.reason == "No round has recorded a metric yet."
    assert information_picture(runs).reason.startswith("No round records the joint information")
    assert classes_picture(runs).reason.startswith("No round records the labels")
    assert curves.drawn(tmp_path, "").base64 is None
    assert list(tmp_path.glob("*.png")) == []


def test_the_source_of_the_papers_curves_is_named_where_they_are_drawn(make_run):
    runs, settings = [make_run("a")], {"metric": "test_acc", "target": 0.9}
    assert "1906.08158" in efficiency_picture(runs, **settings, reference=paper_curves("mnist")).caption
    assert "1906.08158" not in efficiency_picture(runs, **settings, reference=None).caption


def test_acquired_images_are_of_the_first_run_of_a_group_that_holds_them(make_run):
    without, holder = make_run("a"), make_run("b", seed=1)
    assert stored_pictures([without]) == []
    (holder.folder / "acquired").mkdir()
    for index in range(4):
        imsave(holder.folder / "acquired" / f"{index}.png", np.eye(5) * (index > 1), cmap="gray")
    (picture,) = stored_pictures([without, holder])
    assert picture.draw().axes[0].get_title(loc="left") == "BatchBALD: 2 of 4 are exact repeats"


@pytest.mark.parametrize("broken", [[1], [0, 1, 2, 3]], ids=["one", "all"])
def test_a_broken_image_is_left_out_and_named(make_run, tmp_path, broken):
    run = make_run("a")
    (run.folder / "acquired").mkdir()
    for index in range(4):
        path = run.folder / "acquired" / f"{index}.png"
        imsave(path, np.random.default_rng(index).random((5, 5)), cmap="gray")
        if index in broken:
            path.write_bytes(path.read_bytes()[:60])
    (picture,) = stored_pictures([run])
    told = picture.caption if picture.reason is None else picture.reason
    for index in range(4):
        assert (f"acquired/{index}.png (" in told) == (index in broken)
    assert "Left out, because they cannot be read: " in told
    if len(broken) == 1:
        assert picture.draw().axes[0].get_title(loc="left") == "BatchBALD: 0 of 3 are exact repeats"


def test_the_picture_of_the_method_says_that_it_is_not_of_the_runs():
    assert method_picture().caption.startswith("Not of these runs")
