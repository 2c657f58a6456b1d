import pytest
import torch
import yaml
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import ActiveLearningDataModule
from al_lightning.cli.command import configured_datamodule
from al_lightning.cli.points import MOST_NUMBERS, evidence_of_points
from al_lightning.features import Embedded
from al_lightning.report.advice.evidence import UNKNOWN
from al_lightning.report.runs import Run


class Clusters(LightningDataModule):
    """Two clusters, far from each other; the second half of the points are copies of the first."""

    def __init__(self, num: int = 40, width: int = 3):
        super().__init__()
        self.num, self.width = num, width

    def train_dataloader(self):
        classes = torch.arange(self.num // 2) % 2
        noise = torch.randn(self.num // 2, self.width, generator=torch.Generator().manual_seed(0))
        points = 20.0 * classes[:, None] + noise
        return DataLoader(TensorDataset(torch.cat([points, points]), torch.cat([classes, classes])), batch_size=8)


class Texts(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([(f"text {i}", i % 2) for i in range(20)], batch_size=4)


def header(datamodule, /, **changes):
    datamodule.setup("fit")
    initial = datamodule.labels.labelled_indices.tolist()
    known = {"initial_targets": datamodule.targets_of(initial), "num_points": len(datamodule.labels)}
    return {"datamodule": type(datamodule.inner).__name__, "initial": initial, **known, **changes}


def wrapped(inner, **settings):
    return ActiveLearningDataModule(inner, initial=10, **settings)


def test_inputs_tell_clusters_and_copies_before_a_run():
    agree, copies = evidence_of_points(wrapped(Clusters()), None)
    assert (agree.name, agree.value) == ("neighbours agree, inputs", "100 %")
    assert (copies.name, copies.value, copies.interval) == ("copies, inputs", "100 %", "")


def test_data_that_are_prepared_before_their_setup_are_prepared():
    class Prepared(Clusters):
        def prepare_data(self):
            self.is_there = True

        def setup(self, stage):
            assert self.is_there

    assert len(evidence_of_points(wrapped(Prepared()), None)) == 2


def test_labels_of_a_run_are_used_and_no_others(tmp_path):
    run = Run("a", tmp_path, header(wrapped(Clusters()), initial=[0, 1, 20], initial_targets=[0, 1, 0]), [])
    agree, _ = evidence_of_points(wrapped(Clusters()), run)
    assert (agree.value, agree.basis[:35]) == ("66.7 %", "3 labelled points of 2 classes, the")


def test_features_stand_beside_the_inputs_that_they_were_made_of(tmp_path):
    encoder = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(encoder.weight)  # features that tell nothing: all points are copies
    names = {
        each.name: each
        for each in evidence_of_points(wrapped(Embedded(Clusters(), encoder, folder=str(tmp_path))), None)
    }
    assert list(names) == [
        "neighbours agree, features",
        "neighbours agree, inputs",
        "features against inputs",
        "copies, features",
    ]
    assert names["neighbours agree, inputs"].value == "100 %"
    assert names["copies, features"].value == "100 %"
    assert names["features against inputs"].value == "0 %"


def test_texts_are_no_numbers():
    agree, copies = evidence_of_points(wrapped(Texts()), None)
    assert agree.value == copies.value == UNKNOWN
    assert "`Embedded` makes features of them" in agree.basis


def test_inputs_beyond_memory_are_not_read(monkeypatch):
    monkeypatch.setattr("al_lightning.cli.points.MOST_NUMBERS", 119)
    _, copies = evidence_of_points(wrapped(Clusters()), None)
    assert copies.basis == "40 inputs of 3 numbers do not fit into memory; `Embedded` makes features of them"
    assert 4 * MOST_NUMBERS == 2 * 2**30


def test_without_a_label_only_copies_are_known():
    datamodule = ActiveLearningDataModule(Clusters(), initial=0)
    agree, copies = evidence_of_points(datamodule, None)
    assert agree.basis == "no two of the 0 labelled points have one class"
    assert copies.value == "100 %"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_points": 41}, "has the data Clusters, 40 points, but a has Clusters, 41 points"),
        ({"datamodule": "Digits"}, "but a has Digits, 40 points"),
        ({"initial": [0, 1], "initial_targets": [0, 0]}, r"1 labelled points of a have other classes .* ids \[1\]"),
    ],
)
def test_data_that_are_not_those_of_the_run_are_refused(changes, words, tmp_path):
    run = Run("a", tmp_path, header(wrapped(Clusters()), **changes), [])
    with pytest.raises(ValueError, match=words):
        evidence_of_points(wrapped(Clusters()), run)


def test_a_data_module_that_knows_no_labels_is_refused():
    with pytest.raises(TypeError, match="`data` is a Clusters, which does not know what is labelled"):
        evidence_of_points(Clusters(), None)


def test_the_data_module_of_a_configuration_is_built_alone(tmp_path):
    data = {
        "class_path": "ActiveLearningDataModule",
        "init_args": {"initial": 4, "datamodule": {"class_path": "DigitsDataModule", "init_args": {"repeat": 2}}},
    }
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"model": "unread", "data": data}))
    built = configured_datamodule(path)
    assert (type(built), built.initial, built.inner.hparams["repeat"]) == (ActiveLearningDataModule, 4, 2)


@pytest.mark.parametrize(("text", "words"), [("model: a", "has no `data`"), ("a: [", "is no YAML"), ("", "no `data`")])
def test_a_configuration_without_data_is_refused(text, words, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        configured_datamodule(tmp_path / "a.yaml")
