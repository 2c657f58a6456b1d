import csv

import pytest

from al_lightning.datasets import TextDataModule, collate_texts


def write_csv(path, rows, *, columns=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_texts_become_ids_of_all_training_words_and_a_batch_is_padded_on_the_right_to_its_longest(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("Is it?", "yes"), ("It is, it IS.", "no"), ("", "no")])
    write_csv(tmp_path / "trec_test.csv", [("Is nothing known?", "yes")])
    data = TextDataModule(root=str(tmp_path))
    data.setup("fit")
    assert set(data.ids) == {"is", "it", "?", ",", "."}
    assert sorted(data.ids.values()) == [3, 4, 5, 6, 7]
    assert [item["label"] for item in data.train_set] == [1, 0, 0]
    i, t, q, c, d = (data.ids[word] for word in ("is", "it", "?", ",", "."))
    batch = collate_texts(data.train_set)
    assert batch["input_ids"].tolist() == [[2, i, t, q, 0, 0, 0], [2, t, i, c, t, i, d], [2, 0, 0, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7, [1, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0, 0]
    assert data.test_set == [{"text": "Is nothing known?", "input_ids": [2, i, 1, 1, q], "label": 1}]


def test_the_vocabulary_keeps_the_most_frequent_words_and_texts_that_are_cut_are_counted(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("a b a c", "yes"), ("a b", "no")])
    write_csv(tmp_path / "trec_test.csv", [("a", "no")])
    data = TextDataModule(root=str(tmp_path), vocab_size=5, max_length=3)
    with pytest.warns(UserWarning, match=r"^1 texts are longer than `max_length` = 3 and lose their end\.$"):
        data.setup("fit")
    assert data.ids == {"a": 3, "b": 4}
    assert [item["input_ids"] for item in data.train_set] == [[2, 3, 4], [2, 3, 4]]


def test_without_a_folder_the_way_out_is_named(monkeypatch):
    monkeypatch.delenv("AL_LIGHTNING_TEXT", raising=False)
    with pytest.raises(ValueError, match="`root` is None: give the folder of the files, or set AL_LIGHTNING_TEXT"):
        TextDataModule()


def test_a_file_that_is_not_there_or_has_no_labels_is_refused_by_its_path(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("a", "yes")])
    data = TextDataModule(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*trec_test\.csv\. `root` is its folder"):
        data.setup("fit")
    write_csv(tmp_path / "trec_test.csv", [("a", "yes")], columns=("text", "class"))
    with pytest.raises(ValueError, match=r"trec_test\.csv has no column label: its first line must name"):
        data.setup("fit")


def test_a_class_that_only_the_test_has_is_refused(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("a", "yes"), ("b", "no")])
    write_csv(tmp_path / "trec_test.csv", [("a", "perhaps")])
    with pytest.raises(ValueError, match=r"trec_test\.csv has the label 'perhaps', which no text of `train` has"):
        TextDataModule(root=str(tmp_path)).setup("fit")
