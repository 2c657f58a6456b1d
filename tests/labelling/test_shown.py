import pytest

from al_lightning.labelling.shown import forget, show


def test_what_was_shown_is_forgotten_and_counted(tmp_path):
    assert show(tmp_path, 3, "a text", None) == "asked/3.txt"
    assert forget(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    assert forget(tmp_path) == 0


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "asked").symlink_to(tmp_path / "other")
    with pytest.raises(FileExistsError, match="is a link"):
        forget(tmp_path)
