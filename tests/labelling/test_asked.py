import pytest

from al_lightning.labelling.asked import AskedBatch, AskedPoint, read_asked, refuse_other_folders, write_asked


def test_a_batch_is_read_as_it_was_written(tmp_path):
    point = AskedPoint(3, 0, 0.5, "cat", {"cat": 0.9}, "asked/3.png")
    batch = AskedBatch(1, [point], ["cat"], 9, asked_before={4: 0}, taken_up=[(3, "skip", None, "ann", None)])
    write_asked(tmp_path, batch)
    assert read_asked(tmp_path) == batch


def test_a_folder_without_a_batch_or_rounds_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        refuse_other_folders(tmp_path)
    (tmp_path / "rounds.jsonl").touch()
    refuse_other_folders(tmp_path)
