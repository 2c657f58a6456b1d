import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn

from al_lightning import (
    ActiveLearningDataModule,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropout,
    MeanPrediction,
    Random,
    active_fit,
)
from al_lightning.posterior import Posterior
from al_lightning.randomness import derived_seed
from tests.conftest import TinyData, TinyModule


def run(make_trainer, make_model, make_data, make_callback, *callbacks, posterior=None, rounds=2, **arguments):
    callback = make_callback(Random(), posterior=posterior, max_rounds=rounds, **arguments)
    trainer, model, datamodule = make_trainer(MeanPrediction(), *callbacks, callback), make_model(), make_data()
    return active_fit(trainer, model, datamodule, seed=5), trainer, model, datamodule


def test_the_metrics_are_those_of_the_mean_over_samples_taken_by_hand(
    make_trainer, make_model, make_data, make_callback
):
    records, _, model, datamodule = run(
        make_trainer, make_model, make_data, make_callback, posterior=MCDropout(), num_samples=7
    )
    inputs, targets = datamodule.test_dataloader().dataset.tensors  # 30 of them, in batches of 8, 8, 8 and 6
    with MCDropout().sample(model, 7, seed=derived_seed(5, 2, "test")) as predict:
        probs_N_K_C = predict(inputs).exp().tolist()
    right, loss = 0, 0.0
    for probs_K_C, target in zip(probs_N_K_C, targets.tolist(), strict=True):
        mean_C = [sum(probs_C[c] for probs_C in probs_K_C) / 7 for c in range(3)]
        right += mean_C.index(max(mean_C)) == target
        loss -= math.log(mean_C[target]) / 30
    assert records[-1].metrics["test_mean_acc"] == pytest.approx(right / 30)
    assert records[-1].metrics["test_mean_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_what_the_model_logs_and_what_is_acquired_stays_the_same(make_trainer, make_model, make_data, make_callback):
    with_it, *_ = run(make_trainer, make_model, make_data, make_callback)
    plain = active_fit(make_trainer(make_callback(Random(), max_rounds=2)), make_model(), make_data(), seed=5)
    for one, other in zip(with_it, plain, strict=True):
        assert one.acquired == other.acquired
        assert {name: value for name, value in one.metrics.items() if not name.startswith("test_mean")} == other.metrics


def test_a_posterior_that_learns_from_the_labelled_points_is_fitted_first(
    make_trainer, make_model, make_data, make_callback
):
    records, *_ = run(make_trainer, make_model, make_data, make_callback, posterior=LastLayerLaplace(), num_samples=20)
    assert all(0 <= record.metrics["test_mean_acc"] <= 1 for record in records)
    assert all(0 < record.metrics["test_mean_loss"] < 10 for record in records)


class Recorded(MCDropout):
    def sample(self, model: nn.Module, num_samples: int, *, seed: int):
        seeds.append(seed)
        sizes.append(num_samples)
        return super().sample(model, num_samples, seed=seed)


seeds: list[int] = []
sizes: list[int] = []


def test_each_round_has_samples_of_its_own_and_none_is_left_open(make_trainer, make_model, make_data, make_callback):
    seeds.clear()
    posterior: Posterior = Recorded()
    _, trainer, *_ = run(make_trainer, make_model, make_data, make_callback, posterior=posterior, rounds=3)
    assert seeds == [derived_seed(5, number, "test") for number in (1, 2, 3)]
    assert trainer.callbacks[0]._predict is None


def test_it_may_have_a_number_of_samples_of_its_own(make_trainer, make_model, make_data, make_callback):
    for own, expected in ((None, 8), (3, 3)):
        sizes.clear()
        trainer = make_trainer(MeanPrediction(own), make_callback(Random(), posterior=Recorded(), max_rounds=1))
        (record,) = active_fit(trainer, make_model(), make_data())
        assert sizes == [expected]
        assert record.metrics["test_mean_num_samples"] == expected
    with pytest.raises(ValueError, match="`num_samples` is 1, but must be at least 2"):
        active_fit(make_trainer(MeanPrediction(1), make_callback()), make_model(), make_data())


def test_an_error_in_a_test_lets_go_of_the_samples(make_trainer, make_model, make_data, make_callback):
    class Fails(type(make_model())):
        def test_step(self, batch, batch_idx):
            raise RuntimeError("no test today")

    trainer = make_trainer(MeanPrediction(), make_callback(Random()))
    with pytest.raises(RuntimeError, match="no test today"):
        active_fit(trainer, Fails(), make_data())
    assert next(c for c in trainer.callbacks if isinstance(c, MeanPrediction))._predict is None


def test_an_ensemble_whose_members_are_tested_one_by_one_is_refused_before_the_training(
    make_trainer, make_model, make_data, make_callback
):
    with pytest.raises(ValueError, match=r"`posterior` is DeepEnsemble\(.*MeanPrediction cannot test them together"):
        run(make_trainer, make_model, make_data, make_callback, posterior=DeepEnsemble(2), num_samples=None)


def test_a_posterior_that_cannot_be_sampled_is_refused_before_the_training_though_random_needs_none(
    make_trainer, make_data, make_callback, monkeypatch
):
    monkeypatch.setattr("tests.conftest.TinyModule.training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="MCDropout drew no mask"):
        run(make_trainer, lambda: TinyModule(dropout=0.0), make_data, make_callback, posterior=MCDropout())


def test_a_posterior_is_not_tried_where_no_test_asks_it(make_trainer, make_data, make_callback):
    class WithoutTest(TinyData):
        test_dataloader = LightningDataModule.test_dataloader

    trainer = make_trainer(MeanPrediction(), make_callback(Random(), max_rounds=1))
    datamodule = ActiveLearningDataModule(WithoutTest(), initial=6)
    assert len(active_fit(trainer, TinyModule(dropout=0.0), datamodule, seed=0)) == 1


def test_without_an_active_learning_callback_there_is_no_posterior(make_trainer, make_model, make_data):
    with pytest.raises(ValueError, match="has 0 ActiveLearning callbacks"):
        make_trainer(MeanPrediction()).fit(make_model(), datamodule=make_data())


def test_a_test_batch_without_targets_is_refused(make_model, make_data):
    callback = MeanPrediction()
    callback._predict = lambda batch: torch.zeros(2, 1, 3)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.datamodule = make_data()
    with pytest.raises(TypeError, match=r"The batch is .*\(shape \(2, 4\), float32\).*Use \(inputs, targets\)"):
        callback.on_test_batch_end(trainer, make_model(), None, torch.zeros(2, 4), 0)


def test_a_batch_before_the_samples_are_drawn_is_refused(make_trainer, make_model):
    with pytest.raises(RuntimeError, match="drawn in `on_test_start`"):
        MeanPrediction().on_test_batch_end(make_trainer(), make_model(), None, [torch.zeros(2, 4)] * 2, 0)


def run_that_trains_alike(folder, *, num_ranks):
    """The run of test_rounds_on_ranks.py, whose weights do not depend on the ranks; its mean predictions' metrics."""
    spec = importlib.util.spec_from_file_location("rounds_alike", Path(__file__).with_name("test_rounds_on_ranks.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["rounds_alike"] = module  # the command line imports the modules of all classes that it may be given
    spec.loader.exec_module(module)
    _, _, metrics = module.run(folder, num_ranks=num_ranks, callbacks=[MeanPrediction()])
    return [value for of_round in metrics for name, value in of_round.items() if name.startswith("test_mean")]


@pytest.mark.slow
def test_on_two_ranks_the_metrics_are_those_of_one(on_ranks, tmp_path):
    expected = run_that_trains_alike(tmp_path / "one", num_ranks=1)
    answers = on_ranks(2, __file__, "run_that_trains_alike", folder=tmp_path / "two", num_ranks=2)
    assert len(expected) == 3 * 3
    for is_good, found in answers:
        assert is_good, found
        assert found == pytest.approx(expected, rel=1e-5)
