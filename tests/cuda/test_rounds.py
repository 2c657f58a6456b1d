"""Runs of a few rounds with a real Trainer on the device."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.testing import assert_close

from al_lightning import (
    ActiveLearning,
    ActiveLearningDataModule,
    AnchoredHeads,
    BatchBALD,
    DeepEnsemble,
    Embedded,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    MeanPrediction,
    Screening,
    active_fit,
)
from al_lightning.acquisition import BADGE, BAIT, BALD, EPIG, Acquisition, CoreSet, PowerBALD, TypiClust
from al_lightning.information import kernel_name
from al_lightning.records import read_journal

pytestmark = pytest.mark.cuda

NUM_SAMPLES = 8


@dataclass(frozen=True)
class Watched(Acquisition):
    """An acquisition that notes what it is given."""

    inner: Acquisition
    seen: list = field(default_factory=list, repr=False, compare=False)

    @property
    def needs(self):
        return self.inner.needs

    def __call__(self, predictions, batch_size, **arguments):
        batch = self.inner(predictions, batch_size, **arguments)
        self.seen.append((predictions, batch))
        return batch

    def places(self):
        return {predictions.log_probs_N_K_C.device for predictions, _ in self.seen}


@pytest.fixture
def run(device, net, data, tmp_path):
    """Run rounds on the device; return the records, and what the acquisition was given."""

    def run(acquisition=None, *, folder="run", trainer=None, model=None, callbacks=(), datamodule=None, **settings):
        watched = Watched(BatchBALD(num_configs=200) if acquisition is None else acquisition)
        defaults = {"query_size": 4, "num_samples": NUM_SAMPLES, "max_rounds": 3, "folder": tmp_path / folder}
        callback = ActiveLearning(watched, **{**defaults, **settings})
        trainer_arguments = {
            "accelerator": "gpu" if device.type == "cuda" else "cpu",
            "devices": 1,
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        fits = Trainer(callbacks=[callback, *callbacks], **{**trainer_arguments, **(trainer or {})})
        model = net() if model is None else model
        datamodule = ActiveLearningDataModule(data(), initial=8) if datamodule is None else datamodule
        return active_fit(fits, model, datamodule, seed=2), watched

    return run


def picks(rounds):
    return [record.acquired for record in rounds]


def close(found, expected):
    """Check for the same points, and the same scores up to rounding."""
    assert picks(found) == picks(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_the_pool_is_predicted_and_chosen_from_on_the_device(run, device, devices):
    rounds, watched = run()
    assert [record.num_labelled for record in rounds] == [8, 12, 16]
    assert watched.places() == {device}
    assert {model for _, _, model in devices} == {device.type}
    assert {inputs for _, inputs, _ in devices} == {device.type}
    assert rounds[0].kernel == kernel_name(watched.seen[0][0].log_probs_N_K_C)
    assert rounds[0].kernel == ("triton" if device.type == "cuda" else "torch")
    for predictions, batch in watched.seen:
        rows_B_K_C = predictions.rows(batch.positions)
        assert batch.scores[0].item() == pytest.approx(_bald(rows_B_K_C[0]), abs=1e-4)


def _bald(log_probs_K_C):
    probs_K_C = log_probs_K_C.exp()
    of_mean = torch.special.entr(probs_K_C.mean(dim=0)).sum()
    return (of_mean - torch.special.entr(probs_K_C).sum(dim=1).mean()).item()


@pytest.mark.parametrize(
    ("acquisition", "settings"),
    [
        (BatchBALD(num_configs=200), {}),
        (BatchBALD(num_configs=50, max_configs=200), {"posterior": LastLayerLaplace()}),
        (BALD(), {"max_predicted": 30}),
        (BatchBALD(), {"screening": Screening(40, num_samples=5)}),
    ],
    ids=repr,
)
def test_a_pool_that_does_not_fit_is_chosen_from_in_a_file_and_gives_the_same(run, device, acquisition, settings):
    fits, in_memory = run(acquisition, folder="memory", **settings)
    does_not_fit, in_file = run(acquisition, folder="file", predictions_budget_mib=0, **settings)
    assert in_memory.places() == {device}
    assert in_file.places() == {torch.device("cpu")}
    close(does_not_fit, fits)
    for (found, _), (expected, _) in zip(in_file.seen, in_memory.seen, strict=True):
        assert torch.equal(found.log_probs_N_K_C, expected.log_probs_N_K_C.cpu())


def test_the_first_choice_is_that_of_a_trainer_on_the_cpu(run, device, net):
    """Weights that learn nothing, as those that were trained on two devices differ by rounding."""

    def still():
        model = net()
        model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
        return model

    found, watched = run(model=still(), max_rounds=2)
    expected, on_cpu = run(model=still(), max_rounds=2, folder="cpu", trainer={"accelerator": "cpu"})
    assert watched.places() == {device}
    assert on_cpu.places() == {torch.device("cpu")}
    close(found, expected)
    assert_close(watched.seen[0][0].log_probs_N_K_C.cpu(), on_cpu.seen[0][0].log_probs_N_K_C, atol=1e-4, rtol=1e-4)


def test_the_same_run_twice_and_a_resumed_one_make_the_same_picks(run, tmp_path):
    whole, _ = run(max_rounds=4, folder="whole")
    again, _ = run(max_rounds=4, folder="again")
    assert picks(again) == picks(whole)
    run(max_rounds=2, folder="resumed")
    resumed, watched = run(max_rounds=4, folder="resumed")
    assert len(watched.seen) == 2  # rounds 1 and 2: the first was on disk
    assert picks(resumed) == picks(whole)
    assert [record.scores for record in read_journal(tmp_path / "resumed")[1]] == [one.scores for one in whole]


@pytest.mark.parametrize("posterior", [MCDropout(), LastLayerLaplace()], ids=repr)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_gives_finite_predictions_that_sum_to_one(run, device, precision, posterior):
    rounds, watched = run(trainer={"precision": precision}, posterior=posterior)
    assert watched.places() == {device}
    assert len(rounds) == 3
    for predictions, _ in watched.seen:
        probs_N_K_C = predictions.log_probs_N_K_C.exp()
        assert probs_N_K_C.dtype == torch.float32
        assert bool(probs_N_K_C.isfinite().all())
        assert_close(probs_N_K_C.sum(dim=2), torch.ones_like(probs_N_K_C[:, :, 0]), atol=1e-5, rtol=0)


def test_fp16_with_a_scaler_on_a_gpu(run, on_gpu):
    rounds, watched = run(trainer={"precision": "16-mixed"})
    assert len(rounds) == 3
    assert all(bool(predictions.log_probs_N_K_C.isfinite().all()) for predictions, _ in watched.seen)


def test_deterministic_algorithms_are_kept_to(run, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        once, _ = run(trainer={"deterministic": True}, folder="once")
        again, _ = run(trainer={"deterministic": True}, folder="again")
    finally:
        torch.use_deterministic_algorithms(False)
    assert [record.scores for record in once] == [record.scores for record in again]
    assert picks(once) == picks(again)


@pytest.mark.filterwarnings("ignore:.*fit the labelled points")
@pytest.mark.parametrize(
    ("acquisition", "settings"),
    [
        (EPIG(), {}),
        (BatchBALD(num_configs=100), {"screening": Screening(30, num_samples=5, score=EPIG())}),
        (BAIT(), {"posterior": AnchoredHeads()}),
        (PowerBALD(), {"posterior": MCDropConnect(0.2)}),
        (BADGE(), {}),
        (CoreSet(), {}),
        (TypiClust(), {}),
        (BatchBALD(), {"posterior": DeepEnsemble(2), "num_samples": None}),
    ],
    ids=repr,
)
def test_other_acquisitions_and_posteriors_choose_in_a_run(run, device, acquisition, settings):
    rounds, watched = run(acquisition, **settings)
    assert len(rounds) == 3
    assert all(math.isfinite(score) for record in rounds for score in record.scores)
    for predictions, _ in watched.seen:
        if predictions.log_probs_N_K_C is not None:
            assert predictions.log_probs_N_K_C.device == device
        if "targets" in acquisition.needs:
            assert predictions.target_log_probs_T_K_C.shape == (12, NUM_SAMPLES, 4)
    if settings.get("posterior") is None and "features" not in acquisition.needs:
        in_file, _ = run(acquisition, folder="file", predictions_budget_mib=0, **settings)
        close(rounds, in_file)


def test_the_mean_prediction_is_tested_on_the_device(run, device, devices):
    rounds, _ = run(callbacks=[MeanPrediction(num_samples=5)])
    assert {inputs for _, inputs, _ in devices} == {device.type}
    for record in rounds:
        assert record.metrics["test_mean_acc"] * 40 == pytest.approx(
            round(record.metrics["test_mean_acc"] * 40), abs=1e-3
        )
        assert 0 < record.metrics["test_mean_loss"] < 5


class Encoder(nn.Module):
    """A convolution that reads rows of six numbers, and what a first batch must not change."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.net = nn.Sequential(nn.Conv1d(1, 6, 3), nn.BatchNorm1d(6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 6))
        self.met = set()

    def forward(self, x):
        self.met.add(x.device.type)
        return self.net(x.float().unsqueeze(1))


@pytest.mark.parametrize("acquisition", [BatchBALD(num_configs=200), TypiClust()], ids=repr)
def test_an_encoder_runs_on_the_device_and_gives_the_features_of_the_cpu(run, device, data, tmp_path, acquisition):
    encoder = Encoder()
    features = Embedded(data(), encoder, folder=tmp_path / "features")
    rounds, watched = run(acquisition, datamodule=ActiveLearningDataModule(features, initial=8))
    assert len(rounds) == 3
    assert encoder.met == {device.type}
    inputs = data().train_dataloader().dataset.tensors[0]
    with torch.no_grad():
        expected = Encoder().eval()(inputs)
    assert_close(features.features_of(range(90)), expected, atol=1e-4, rtol=1e-4)
    found = watched.seen[0][0].features_N_D
    assert (found is not None) == ("features" in acquisition.needs)


def test_a_frozen_part_is_computed_once_and_gives_the_same(run, device, net, data, monkeypatch, tmp_path):
    monkeypatch.setattr("al_lightning.pool.frozen.LEAST_POINTS", 256)
    met = []

    def frozen():
        model = net(normalises=True)
        model.backbone.requires_grad_(False).eval()
        model.backbone[0][0].register_forward_hook(lambda layer, args, output: met.append(output.device))
        return model

    def pool():
        return ActiveLearningDataModule(data(340), initial=8)

    rounds, watched = run(model=frozen(), datamodule=pool())
    assert [record.frozen for record in rounds if record.acquired] == ["backbone", "backbone"]
    assert (tmp_path / "run" / "frozen" / "rows.bin").exists()
    assert set(met) == {device}
    assert watched.places() == {device}
    monkeypatch.setattr("al_lightning.pool.frozen.LEAST_POINTS", 10**9)
    whole, as_usual = run(model=frozen(), datamodule=pool(), folder="usual")
    assert [record.frozen for record in whole if record.acquired] == [None, None]
    close(rounds, whole)
    assert_close(watched.seen[0][0].log_probs_N_K_C, as_usual.seen[0][0].log_probs_N_K_C, atol=1e-5, rtol=1e-5)


def test_after_a_run_samples_are_drawn_from_the_model_on_the_device(run, device, net, data):
    model = net()
    run(model=model)
    inputs = data().train_dataloader().dataset.tensors[0][:5].to(device)
    with MCDropout().sample(model.to(device), NUM_SAMPLES, seed=0) as predict:
        assert predict(inputs).device == device
