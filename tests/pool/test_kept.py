from collections import namedtuple

import pytest
import torch

from al_lightning.pool.kept import Header, Kept, put_rows, rows_in

HEADER = Header("net.backbone", "digest", 3, "bfloat16")


def written(folder):
    kept = Kept(folder / "frozen")
    kept.describe(HEADER)
    kept.extend(HEADER, 5)
    put_rows(kept.opened(HEADER, is_written=True), HEADER, [4, 1], torch.tensor([[4.0] * 3, [1.0] * 3]).bfloat16())
    kept.mark([4, 1], 5)
    return kept


def test_rows_are_read_as_they_were_written_in_their_precision(tmp_path):
    kept = written(tmp_path)
    assert Kept(kept.folder).header() == HEADER
    assert kept.made(5).tolist() == [False, True, False, False, True]
    found = rows_in(kept.opened(HEADER), HEADER, [1, 4])
    assert torch.equal(found, torch.tensor([[1.0] * 3, [4.0] * 3]).bfloat16())


def test_points_may_be_appended_and_rows_that_are_there_stay(tmp_path):
    kept = written(tmp_path)
    assert kept.made(7).tolist() == [False, True, False, False, True, False, False]
    kept.extend(HEADER, 7)
    put_rows(kept.opened(HEADER, is_written=True), HEADER, [6], torch.full((1, 3), 6.0).bfloat16())
    kept.mark([6], 7)
    assert kept.made(7).nonzero().flatten().tolist() == [1, 4, 6]
    assert rows_in(kept.opened(HEADER), HEADER, [4, 6])[:, 0].tolist() == [4, 6]


def test_another_description_begins_without_rows(tmp_path):
    kept = written(tmp_path)
    kept.describe(Header("net.backbone"))
    assert [path.name for path in kept.folder.iterdir()] == ["part.json"]
    assert kept.header() == Header("net.backbone")


@pytest.mark.parametrize("name", ["part.json", "made.npy", "rows.bin"])
def test_a_torn_file_is_named(tmp_path, name):
    kept = written(tmp_path)
    path = kept.folder / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"{name} is damaged .* Delete the folder"):
        kept.header(), kept.made(5), kept.opened(HEADER)


def test_rows_of_another_width_are_refused(tmp_path):
    kept = written(tmp_path)
    with pytest.raises(ValueError, match=r"The output of `net.backbone` is torch.float32 with 4 numbers .* \[2\]"):
        put_rows(kept.opened(HEADER), HEADER, [2], torch.zeros(1, 4))


def test_free_bytes_are_those_of_the_disk_of_the_folder(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("al_lightning.pool.kept.shutil.disk_usage", lambda folder: usage(len(folder.name)))
    assert Kept(tmp_path / "frozen").num_free() == len("frozen")
