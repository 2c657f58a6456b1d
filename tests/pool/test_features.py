from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset

from al_lightning import (
    BALD,
    EPIG,
    ActiveLearningDataModule,
    CoreSet,
    ProbCover,
    Screening,
    TypiClust,
    active_fit,
)
from al_lightning.acquisition import Acquisition, Batch
from al_lightning.distributed import ALONE
from tests.conftest import TinyData, TinyModule

SEEN = []


@dataclass
class Watched(Acquisition):
    """Takes the first points, and remembers what it was given."""

    needs: ClassVar[frozenset[str]] = frozenset({"predictions", "disagreement", "features", "targets"})

    def __call__(self, predictions, batch_size, *, generator, exchange=ALONE):
        SEEN.append(predictions)
        return Batch(torch.arange(batch_size), torch.zeros(batch_size, dtype=torch.float64))


@dataclass
class OfFeatures(Watched):
    needs: ClassVar[frozenset[str]] = frozenset({"features"})


class WithTargets(TinyData):
    """Has target points, which are the inputs of the validation set unless a loader is given."""

    def __init__(self, loader=None):
        super().__init__()
        self.loader = loader

    def target_dataloader(self):
        return self.val_dataloader() if self.loader is None else self.loader


class WithFeatures(WithTargets):
    """Made features of its own: the id and its half."""

    def features_of(self, indices):
        return torch.tensor([[index, index / 2] for index in indices], dtype=torch.float64).reshape(-1, 2)


class OfOneKindOfJunk(TinyData):
    """Two classes spread out, and a third one whose points are almost the same."""

    def __init__(self):
        super().__init__(300)

    def features_of(self, indices):
        targets = self._part(300, 0).tensors[1]
        noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        features = 20 * torch.eye(3, 2)[targets] + torch.where(targets == 2, 0.01, 3.0)[:, None] * noise
        return features[torch.as_tensor(indices, dtype=torch.long)]


class Broken(WithFeatures):
    def features_of(self, indices):
        features = super().features_of(indices)
        return torch.where(features[:, :1] == 17, torch.nan, features)


@pytest.fixture(autouse=True)
def nothing_seen_before():
    SEEN.clear()


@pytest.fixture
def run(make_trainer, make_model, make_callback):
    def run(data, acquisition, **arguments):
        trainer, model = make_trainer(make_callback(acquisition, max_rounds=2, **arguments)), make_model()
        datamodule = ActiveLearningDataModule(data, initial=6)
        rounds = active_fit(trainer, model, datamodule, seed=0)
        return model, datamodule.labels.initial_indices.tolist(), rounds

    return run


def test_features_are_what_the_last_linear_layer_reads_in_evaluation_mode(make_trainer, make_model, make_callback, run):
    _, initial, _ = run(WithTargets(), Watched())
    (seen,) = SEEN
    inputs = TinyData()._part(60, 0).tensors[0]
    pool = [index for index in range(60) if index not in initial]
    trainer, model = make_trainer(make_callback(Watched(), max_rounds=1)), make_model()
    active_fit(trainer, model, ActiveLearningDataModule(WithTargets(), initial=6), seed=0)  # the same first fit
    with torch.no_grad():
        expected_60_D = model.eval().net[:-1](inputs)
    assert torch.allclose(seen.features_N_D, expected_60_D[pool], atol=1e-6)
    assert torch.allclose(seen.labelled_features_L_D, expected_60_D[initial], atol=1e-6)


def test_a_first_layer_of_another_width_than_the_features_is_told_theirs_before_the_training(run, monkeypatch):
    class Narrow(WithFeatures):
        def train_dataloader(self):
            inputs, targets = super().train_dataloader().dataset.tensors
            return DataLoader(TensorDataset(inputs[:, :2], targets), batch_size=8)

    monkeypatch.setattr("tests.conftest.TinyModule.training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        run(Narrow(), BALD())
    assert str(raised.value).endswith(
        "The data module's features are 2 numbers a point: a first layer that reads them takes as many, as "
        "`in_features`."
    )


def test_targets_are_predicted_by_the_networks_that_predict_the_pool(run):
    as_targets = DataLoader(TensorDataset(*TinyData()._part(60, 0).tensors), batch_size=7)
    _, initial, _ = run(WithTargets(as_targets), Watched())
    (seen,) = SEEN
    pool = [index for index in range(60) if index not in initial]
    assert seen.target_log_probs_T_K_C.shape == (60, 8, 3)
    assert torch.allclose(seen.target_log_probs_T_K_C[pool], seen.log_probs_N_K_C, atol=1e-5)


def test_epig_screens_with_targets_of_which_the_acquisition_need_not_know(run):
    _, _, (by_epig, _) = run(WithTargets(), BALD(), screening=Screening(12, 5, EPIG()), seed=0)
    _, _, (by_bald, _) = run(WithTargets(), BALD(), screening=Screening(12, 5), seed=0)
    assert by_epig.information["num_screened"] == by_bald.information["num_screened"] == 54
    assert by_epig.information["mean_bald_pool"] == by_bald.information["mean_bald_pool"]
    assert by_epig.acquired != by_bald.acquired


@pytest.mark.parametrize(
    "arguments", [{"acquisition": EPIG()}, {"acquisition": BALD(), "screening": Screening(12, 5, EPIG())}]
)
def test_epig_without_a_target_dataloader_is_refused_before_the_training(run, monkeypatch, arguments):
    monkeypatch.setattr("tests.conftest.TinyModule.training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=r"no method `target_dataloader\(\)`"):
        run(TinyData(), **arguments)


def test_features_that_the_data_module_made_once_are_taken_as_they_are(run):
    _, initial, rounds = run(WithFeatures(), OfFeatures())
    (seen,) = SEEN
    assert (seen.log_probs_N_K_C, seen.target_log_probs_T_K_C) == (None, None)
    assert seen.features_N_D.dtype == torch.float32
    assert seen.features_N_D[:, 0].tolist() == [index for index in range(60) if index not in initial]
    assert seen.labelled_features_L_D[:, 0].tolist() == initial
    assert len(rounds[0].acquired) == 4


@pytest.mark.parametrize(("acquisition", "most"), [(TypiClust(), 2), (CoreSet(), 1), (ProbCover(), 1)])
def test_what_covers_the_pool_stops_asking_for_junk_of_one_kind_though_it_is_set_aside(
    make_trainer, make_model, make_callback, acquisition, most
):
    data = ActiveLearningDataModule(OfOneKindOfJunk(), initial=6, junk=2)
    callback = make_callback(acquisition, max_rounds=7, query_size=2)
    rounds = active_fit(make_trainer(callback), make_model(), data, seed=0)
    assert sum(len(record.acquired) for record in rounds) == 12
    assert 1 <= sum(len(record.rejected) for record in rounds) <= most  # 6 if it did not know of them


@pytest.mark.parametrize(
    ("data", "acquisition", "words"),
    [
        (TinyData(), Watched(), r"no method `target_dataloader\(\)`"),
        (WithTargets(3), Watched(), "`target_dataloader\\(\\)` returned int"),
        (WithTargets(DataLoader(list(range(5)), shuffle=True)), Watched(), "draws its points with a RandomSampler"),
        (
            WithTargets(DataLoader(list(range(5)), batch_sampler=BatchSampler(RandomSampler(range(5)), 2, False))),
            Watched(),
            "draws its points with a RandomSampler",
        ),
        (WithTargets(DataLoader(TensorDataset(torch.zeros(0, 4)))), Watched(), "has no batch"),
        (WithTargets(DataLoader(torch.zeros(3, 9))), Watched(), "first batch of `target_dataloader.*cannot be pred"),
        (
            WithTargets(DataLoader([torch.zeros(4), torch.zeros(4), torch.zeros(9)], batch_size=1)),
            Watched(),
            "Batch 3 of `target_dataloader.*cannot be predicted",
        ),
        (
            WithTargets(DataLoader(Subset(torch.zeros(3, 4).index_fill(0, torch.tensor(2), torch.nan), [0, 2]))),
            Watched(),
            r"Batch 2 of `target_data.* NaN at 1 of the 1 points of a batch of `target.*Leave broken points out",
        ),
        (
            WithTargets(DataLoader(torch.full((3, 4), torch.nan), batch_size=3)),
            Watched(),
            r"NaN at 3 of the 3 points of a batch of `target_dataloader\(\)`, first at the points \[0, 1, 2\]",
        ),
    ],
    ids=[
        *("none", "no loader", "shuffled", "shuffled batches", "empty", "another shape"),
        *("another shape later", "NaN in a subset", "NaN in a tensor"),
    ],
)
def test_targets_that_cannot_be_predicted_are_refused_before_the_training(run, monkeypatch, data, acquisition, words):
    monkeypatch.setattr("tests.conftest.TinyModule.training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises((ValueError, TypeError), match=words):
        run(data, acquisition)


def test_a_model_without_a_last_linear_layer_is_refused_before_the_training(run, monkeypatch):
    monkeypatch.setattr("tests.conftest.TinyModule.forward", lambda self, inputs: self.net(inputs) * 2)
    monkeypatch.setattr("tests.conftest.TinyModule.training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="not that of its last linear layer"):
        run(TinyData(), OfFeatures())


def test_features_that_are_no_finite_numbers_are_named(run):
    with pytest.raises(ValueError, match=r"features of 1 points are no finite numbers, first of the points \[17\]"):
        run(Broken(), OfFeatures())


def test_targets_that_are_drawn_at_random_are_the_same_in_each_round(make_trainer, make_model, make_callback):
    drawn = []

    class Drawn(TinyData):
        def target_dataloader(self):
            drawn.append(torch.randperm(60)[:5].tolist())
            return DataLoader(TensorDataset(self._part(60, 0).tensors[0][drawn[-1]]), batch_size=5)

    trainer, model = make_trainer(make_callback(EPIG(), max_rounds=3)), make_model()
    active_fit(trainer, model, ActiveLearningDataModule(Drawn(), initial=6), seed=0)
    assert len(drawn) == 3  # before the first training, and in two rounds that choose
    assert drawn == [drawn[0]] * 3


@pytest.mark.parametrize("point", [17, 59])
def test_features_that_are_no_numbers_are_refused_before_the_training_wherever_they_are(run, monkeypatch, point):
    class BrokenAt(WithFeatures):
        def features_of(self, indices):
            features = super().features_of(indices)
            return torch.where(features[:, :1] == point, torch.nan, features)

    monkeypatch.setattr("tests.conftest.TinyModule.training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=rf"no finite numbers, first of the points \[{point}\]"):
        run(BrokenAt(), OfFeatures())


def test_features_in_a_list_are_refused_by_the_name_of_the_method(run, monkeypatch):
    class Listed(WithFeatures):
        def features_of(self, indices):
            return super().features_of(indices).tolist()

    monkeypatch.setattr("tests.conftest.TinyModule.training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(TypeError, match=r"`features_of\(indices\)` of the data module returned a list, but must"):
        run(Listed(), OfFeatures())


class Narrow(TinyModule):
    """Has two outputs for three classes."""

    def __init__(self):
        super().__init__()
        self.net[-1] = nn.Linear(self.net[-1].in_features, 2)


class OtherInput(TinyModule):
    def __init__(self):
        super().__init__()
        self.net[0] = nn.Linear(5, 8)


@pytest.mark.parametrize(
    ("model", "words"),
    [(Narrow, "Target 2 is out of bounds"), (OtherInput, "shapes cannot be multiplied .*2 numbers a point")],
)
def test_a_model_that_cannot_be_trained_is_refused_before_the_first_batch_is_chosen_on_features(
    make_trainer, make_callback, model, words
):
    callback = make_callback(OfFeatures(), max_rounds=2, cold_start=TypiClust())
    datamodule = ActiveLearningDataModule(WithFeatures(), initial=0)
    with pytest.raises(ValueError, match=f"`training_step` fails on a few points of the pool, as it .*{words}"):
        active_fit(make_trainer(callback), model(), datamodule, seed=0)
    assert datamodule.labels.num_labelled == 0
