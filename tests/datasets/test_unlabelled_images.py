import json
import multiprocessing
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from al_lightning import ActiveLearningDataModule
from al_lightning.datasets.unlabelled_images import UnlabelledImagesDataModule, number_images, read_numbered


def write_images(root, *names, size=4):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((size, size, 3), sum(map(ord, name)) % 256, dtype="u1")
        Image.fromarray(pixels).save(root / name, format="png")
    return root


def ready(root, **arguments):
    datamodule = UnlabelledImagesDataModule(str(root), **arguments)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def test_ids_follow_sorted_names_and_images_that_are_added_come_after_them(tmp_path):
    write_images(tmp_path, "b.png", "sub/a.png", "c.png")
    assert number_images(tmp_path) == ["b.png", "c.png", "sub/a.png"]
    write_images(tmp_path, "z.png", "a.png")
    assert number_images(tmp_path) == ["b.png", "c.png", "sub/a.png", "a.png", "z.png"] == read_numbered(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    assert lines[3] == {"id": 3, "file": "a.png"}


names = st.lists(
    st.text(string.ascii_letters + " \n\r\u2028é,'\"=", min_size=1, max_size=8).filter(lambda name: name.strip()),
    min_size=1,
    max_size=6,
    unique_by=str.lower,
)


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(names, min_size=1, max_size=4))
def test_an_id_means_one_file_for_ever_whatever_files_are_called(batches, tmp_path_factory):
    root, before = tmp_path_factory.mktemp("images"), []
    for batch in batches:
        for name in batch:
            (root / name).touch()
        now = number_images(root)
        assert now[: len(before)] == before
        assert now[len(before) :] == sorted(set(batch) - set(before))
        assert read_numbered(root) == now
        before = now


def test_hidden_files_are_left_out_and_a_list_that_is_complete_is_not_written_again(tmp_path):
    write_images(tmp_path, "a.png", ".hidden.png", ".folder/b.png")
    assert number_images(tmp_path) == ["a.png"]
    before = (tmp_path / "ids.jsonl").stat()
    assert number_images(tmp_path) == ["a.png"]
    assert (tmp_path / "ids.jsonl").stat().st_ino == before.st_ino


def test_a_file_that_is_gone_is_named_with_its_id(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    number_images(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png` is gone \(1 in all\), but has the id 1"):
        number_images(tmp_path)


def test_no_folder_no_image_and_no_ids_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        number_images(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no file"):
        number_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`prepare_data\(\)` gives them"):
        UnlabelledImagesDataModule(str(tmp_path)).setup("fit")
    with pytest.raises(RuntimeError, match=r"`setup\('fit'\)`, which has not run yet"):
        UnlabelledImagesDataModule(str(tmp_path)).train_dataloader()


@pytest.mark.parametrize(
    "line", ["", "a.png", '{"id": 0, "file": "b.png"}', '{"id": 1, "file": 3}', '{"id": 1}', "[1]", '{"id": 1, "fi']
)
def test_a_list_that_was_changed_is_named_by_line(tmp_path, line):
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "ids.jsonl").write_text('{"id": 0, "file": "a.png"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"ids\.jsonl:2` is .*ids count from 0"):
        number_images(tmp_path)


def test_a_process_that_is_killed_in_the_middle_of_the_list_leaves_the_old_one(tmp_path, monkeypatch):
    write_images(tmp_path, "b.png")
    number_images(tmp_path)
    write_images(tmp_path, "a.png")
    with monkeypatch.context() as patched:
        patched.setattr("al_lightning.datasets.unlabelled_images.os.fsync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            number_images(tmp_path)
    assert read_numbered(tmp_path) == ["b.png"]
    assert number_images(tmp_path) == ["b.png", "a.png"]


def number_while_adding(root, prefix, found):
    for number in range(20):
        (root / f"{prefix}{number}").touch()
        found.put(number_images(root))


def test_two_processes_that_number_at_once_agree(tmp_path):
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=number_while_adding, args=(tmp_path, prefix, queue)) for prefix in "ab"]
    for process in processes:
        process.start()
    lists = [queue.get(timeout=60) for _ in range(40)]
    for process in processes:
        process.join()
    last = number_images(tmp_path)
    assert len(last) == 40
    assert all(found == last[: len(found)] for found in lists)


def test_items_have_no_label_and_people_see_the_pixels_of_the_file(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    datamodule = ready(tmp_path, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    for index in range(2):
        item = datamodule.train_dataloader().dataset[index]
        assert item[1] == -1
        shown = datamodule.render(item)
        assert torch.equal(shown, torch.full((3, 4, 4), sum(map(ord, f"{'ab'[index]}.png")) % 256).to(torch.uint8))


def test_images_that_are_added_enter_the_pool_at_the_next_fit(tmp_path):
    write_images(tmp_path, "b.png", "c.png", "d.png")
    datamodule = ActiveLearningDataModule(ready(tmp_path), initial=0, classes=["cat", "dog"])
    datamodule.setup("fit")
    datamodule.label([1], round=1, answers={1: 1})
    write_images(tmp_path, "a.png")
    datamodule.prepare_data()
    datamodule.setup("fit")
    assert datamodule.labels.pool_indices.tolist() == [0, 2, 3]
    assert datamodule.inner.train_dataloader().dataset.paths[3].name == "a.png"
    assert datamodule.targets_of([1]) == [1]
