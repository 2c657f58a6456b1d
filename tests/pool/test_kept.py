from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from al_lightning.pool.kept import Header, Kept

HEADER = Header("net.backbone", "digest", 3, "bfloat16")


def written(folder):
    kept = Kept(folder / "frozen")
    kept.begin(HEADER)
    kept.extend(HEADER, 5)
    kept.write(HEADER, [4, 1], torch.tensor([[4.0] * 3, [1.0] * 3]).bfloat16())
    kept.mark([4, 1], 5)
    return kept


def test_rows_are_read_as_they_were_written_in_their_precision(tmp_path):
    kept = written(tmp_path)
    assert Kept(kept.folder).header() == HEADER
    assert kept.made(5).tolist() == [False, True, False, False, True]
    found = kept.rows(HEADER).of([1, 4])
    assert torch.equal(found, torch.tensor([[1.0] * 3, [4.0] * 3]).bfloat16())


def test_points_may_be_appended_and_rows_that_are_there_stay(tmp_path):
    kept = written(tmp_path)
    assert kept.made(7).tolist() == [False, True, False, False, True, False, False]
    kept.extend(HEADER, 7)
    kept.write(HEADER, [6], torch.full((1, 3), 6.0).bfloat16())
    kept.mark([6], 7)
    assert kept.made(7).nonzero().flatten().tolist() == [1, 4, 6]
    assert kept.rows(HEADER).of([4, 6])[:, 0].tolist() == [4, 6]


def test_another_description_begins_without_rows_and_nothing_is_left_of_those_deleted(tmp_path):
    kept = written(tmp_path)
    kept.begin(replace(HEADER, digest="other"))
    assert kept.header() == replace(HEADER, digest="other")
    assert not kept.made(5).any()
    kept.clear()
    assert kept.header() is None
    assert not list(kept.folder.iterdir())


@pytest.mark.parametrize("name", ["part.json", "made.npy", "rows.bin"])
def test_a_torn_file_is_named(tmp_path, name):
    kept = written(tmp_path)
    path = kept.folder / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"{name} is damaged .* Delete the folder"):
        kept.header(), kept.made(5), kept.rows(HEADER)


def test_free_bytes_are_those_of_the_disk_of_the_folder(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("al_lightning.pool.kept.shutil.disk_usage", lambda folder: usage(len(folder.name)))
    assert Kept(tmp_path / "frozen").num_free() == len("frozen")
