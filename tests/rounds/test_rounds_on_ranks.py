"""Whole runs on several gloo ranks, equal to the run on one: with a module that trains alike on any number."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import (
    BALD,
    ActiveLearning,
    ActiveLearningDataModule,
    AnchoredHeads,
    BatchBALD,
    DeepEnsemble,
    MeanPrediction,
    MeanSTD,
    Random,
    Screening,
    active_fit,
)
from al_lightning.acquisition import Acquisition, Batch
from al_lightning.records.journal import read_journal


def parts():
    """The module and data of conftest.py, which a rank cannot import by name."""
    spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_parts"] = module  # the command line imports the modules of all classes that it may be given
    spec.loader.exec_module(module)
    return module


def run(folder, *, num_ranks, acquisition=None, num_train=61, seed=5, pool_batch_size=4, callbacks=(), **settings):
    """Two rounds or more of a tiny run; what it recorded, and what rank and labels it ended with."""
    tiny = parts()

    class RankFree(tiny.TinyModule):
        """Its weights are a function of the round's labels alone, whatever the batches and ranks: a fit in one step."""

        def __init__(self):
            super().__init__()
            self.net.insert(2, nn.BatchNorm1d(16))

        def _log(self, stage, batch):
            inputs, targets = batch
            logits = self(inputs)
            self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, targets), sync_dist=True)
            self.log(f"{stage}_acc", (logits.argmax(1) == targets).float().mean(), sync_dist=True)

        def training_step(self, batch, batch_idx):
            everything = self.trainer.datamodule.labels.labelled_indices
            dataset = self.trainer.datamodule.train_dataloader().dataset.dataset
            inputs, targets = dataset[everything]
            self.eval()  # no dropout, which each rank would draw for itself
            loss = nn.functional.cross_entropy(self.net(inputs), targets)
            self.train()
            return loss

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RankFree()
    data = ActiveLearningDataModule(tiny.TinyData(num_train), initial=6, pool_batch_size=pool_batch_size)
    callback = ActiveLearning(
        acquisition or BatchBALD(num_configs=200),
        query_size=5,
        num_samples=8,
        folder=folder,
        **{"max_rounds": 3, **settings},
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=3,
        limit_train_batches=1,  # as many steps on any number of ranks
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, *callbacks],
    )
    rounds = active_fit(trainer, model, data, seed=seed)
    return (
        [record.acquired for record in rounds],
        data.labels.round_of_N.tolist(),
        [record.metrics for record in rounds],
    )


def on_one(folder, **settings):
    return run(folder, num_ranks=1, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_run_on_several_ranks_acquires_what_one_rank_acquires(on_ranks, tmp_path, num_ranks):
    expected, labels, metrics = on_one(tmp_path / "one")
    answers = on_ranks(num_ranks, __file__, "run", folder=str(tmp_path / "many"), num_ranks=num_ranks)
    for ok, found in answers:
        assert ok, found
        assert found[0] == expected
        assert found[1] == labels
    assert len(expected[0]) == 5
    _, rounds = read_journal(tmp_path / "many")
    assert [record.acquired for record in rounds] == expected
    for record, single in zip(rounds, metrics, strict=True):
        assert record.metrics["test_acc"] == pytest.approx(single["test_acc"])  # 30 test samples, none counted twice
        assert record.metrics["test_loss"] == pytest.approx(single["test_loss"], abs=1e-5)


@pytest.mark.slow
def test_heads_are_the_same_on_every_rank(on_ranks, tmp_path):
    settings = {"posterior": AnchoredHeads(), "screening": Screening(num_points=20, num_samples=4)}
    expected, labels, _ = on_one(tmp_path / "one", **settings)
    for ok, found in on_ranks(2, __file__, "run", folder=str(tmp_path / "many"), num_ranks=2, **settings):
        assert ok, found
        assert found[:2] == (expected, labels)
    once, many = (read_journal(tmp_path / folder)[1] for folder in ("one", "many"))
    for name in ("labelled_acc_samples", "labelled_acc_model"):
        assert [record.information.get(name) for record in many] == [record.information.get(name) for record in once]
    assert 0 < once[0].information["labelled_acc_samples"] <= 1


def other_acquisitions(folder, num_ranks):
    return [
        run(Path(folder) / type(rule).__name__, num_ranks=num_ranks, acquisition=rule, max_rounds=2)[:2]
        for rule in (BALD(), MeanSTD(), Random())
    ]


@pytest.mark.slow
def test_the_other_acquisitions_do_so_too(on_ranks, tmp_path):
    expected = other_acquisitions(tmp_path / "one", 1)
    for ok, found in on_ranks(2, __file__, "other_acquisitions", folder=str(tmp_path / "many"), num_ranks=2):
        assert ok, found
        assert found == expected


@pytest.mark.slow
def test_a_rank_may_have_no_part_of_the_pool(on_ranks, tmp_path):
    settings = {"num_train": 15, "pool_batch_size": 16, "max_rounds": 2}
    expected = on_one(tmp_path / "one", **settings)[:2]
    for ok, found in on_ranks(3, __file__, "run", folder=str(tmp_path / "many"), num_ranks=3, **settings):
        assert ok, found
        assert found[:2] == expected


def screened(folder, num_ranks):
    screening = Screening(num_points=9, num_samples=4)  # fewer than a rank's part: the points left are shared out anew
    return run(folder, num_ranks=num_ranks, screening=screening, max_rounds=2)[:2]


@pytest.mark.slow
def test_screening_leaves_the_same_points_on_several_ranks(on_ranks, tmp_path):
    expected = screened(tmp_path / "one", 1)
    assert expected[0] != on_one(tmp_path / "unscreened", max_rounds=2)[0]
    for ok, found in on_ranks(3, __file__, "screened", folder=str(tmp_path / "many"), num_ranks=3):
        assert ok, found
        assert found == expected


def stopping_early(folder, num_ranks):
    stopping = EarlyStopping("val_loss", patience=1, mode="min")
    found = run(folder, num_ranks=num_ranks, callbacks=[stopping], monitor="val_acc", target=2.0)
    return found[0], stopping.wait_count


@pytest.mark.slow
def test_early_stopping_and_a_monitored_metric_work_on_ranks(on_ranks, tmp_path):
    first, second = on_ranks(2, __file__, "stopping_early", folder=str(tmp_path), num_ranks=2)
    assert first[0], first
    assert first == second


class Breaks(Callback):
    """One rank's predictions fail."""

    def __init__(self, rank):
        self.rank = rank

    def on_train_end(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.nan)


def breaking(folder, num_ranks, rank):
    return run(folder, num_ranks=num_ranks, callbacks=[Breaks(rank)])


@pytest.mark.slow
def test_predictions_that_fail_on_one_rank_end_the_run_on_all_long_before_a_time_out(on_ranks, tmp_path):
    answers = on_ranks(2, __file__, "breaking", folder=str(tmp_path), num_ranks=2, rank=1)
    assert [ok for ok, _ in answers] == [False, False]
    assert "Rank 1 failed, so all stop. ValueError: The model's predictions are NaN" in answers[0][1]
    assert answers[1][1].startswith("ValueError: The model's predictions are NaN")
    assert read_journal(tmp_path)[1] == []


@dataclass(frozen=True)
class BreaksItsContract(Acquisition):
    """Takes the first points, and on one rank the first one several times."""

    rank: int

    def __call__(self, predictions, batch_size, *, generator, exchange=None):
        is_broken = int(os.environ["LOCAL_RANK"]) == self.rank
        positions = torch.zeros(batch_size, dtype=torch.long) if is_broken else torch.arange(batch_size)
        return Batch(positions, torch.zeros(batch_size, dtype=torch.float64))


def breaking_its_contract(folder, num_ranks, rank):
    return run(folder, num_ranks=num_ranks, acquisition=BreaksItsContract(rank))


@pytest.mark.slow
def test_a_batch_that_is_broken_on_one_rank_alone_ends_the_run_on_all(on_ranks, tmp_path):
    answers = on_ranks(2, __file__, "breaking_its_contract", folder=str(tmp_path), num_ranks=2, rank=1)
    assert [ok for ok, _ in answers] == [False, False]
    assert "Rank 1 failed, so all stop. ValueError: `acquisition` BreaksItsContract(rank=1)" in answers[0][1]
    assert "has chosen the positions [0] more than once" in answers[1][1]
    assert read_journal(tmp_path)[1] == []


def different_data(folder, num_ranks, rank):
    own = int(os.environ["LOCAL_RANK"])
    return run(folder, num_ranks=num_ranks, num_train=61 if own != rank else 70)


@pytest.mark.slow
def test_ranks_with_different_data_are_refused_at_the_start(on_ranks, tmp_path):
    for ok, words in on_ranks(2, __file__, "different_data", folder=str(tmp_path), num_ranks=2, rank=1):
        assert not ok
        assert "disagree about the data, the initial labels or the settings" in words


class LabelsElsewhere(Callback):
    """One rank chooses by itself, as every rank does in other packages."""

    def on_train_end(self, trainer, pl_module):
        if trainer.global_rank == 1:
            trainer.datamodule.label(trainer.datamodule.labels.pool_indices[:1], round=0)


def labels_differ(folder, num_ranks):
    return run(folder, num_ranks=num_ranks, callbacks=[LabelsElsewhere()])


def test_labels_that_differ_between_ranks_are_noticed(on_ranks, tmp_path):
    for ok, words in on_ranks(2, __file__, "labels_differ", folder=str(tmp_path), num_ranks=2):
        assert not ok
        assert "disagree about who is labelled" in words


class LabelsManyElsewhere(Callback):
    """One rank has more batches than the others, which would wait for it to no end."""

    def on_fit_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            trainer.datamodule.label(trainer.datamodule.labels.pool_indices[:40], round=0)

    def on_train_batch_end(self, *arguments):
        raise AssertionError("a batch was trained")


def labels_differ_before_the_training(folder, num_ranks):
    return run(folder, num_ranks=num_ranks, callbacks=[LabelsManyElsewhere()])


@pytest.mark.slow
def test_labels_that_differ_between_ranks_are_noticed_before_a_batch_is_trained(on_ranks, tmp_path):
    name = "labels_differ_before_the_training"
    for ok, words in on_ranks(2, __file__, name, folder=str(tmp_path), num_ranks=2):
        assert not ok
        assert "disagree about who is labelled" in words


def resumed(folder, num_ranks, max_rounds):
    return run(folder, num_ranks=num_ranks, max_rounds=max_rounds)[:2]


@pytest.mark.slow
def test_a_run_goes_on_on_other_ranks_than_it_began(on_ranks, tmp_path):
    expected = on_one(tmp_path / "whole")[:2]
    on_one(tmp_path / "parts", max_rounds=2)
    for ok, found in on_ranks(2, __file__, "resumed", folder=str(tmp_path / "parts"), num_ranks=2, max_rounds=3):
        assert ok, found
        assert found == expected


@pytest.mark.slow
def test_the_test_set_is_seen_once(on_ranks, tmp_path):
    for ok, seen in on_ranks(3, __file__, "seen_samples", num_ranks=3):
        assert ok, seen
        assert sorted(seen) == list(range(7))


def seen_samples(num_ranks):
    """Which test samples all ranks have seen together (run on the ranks)."""

    class Data(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.arange(20.0)), batch_size=2)

        def test_dataloader(self):
            return DataLoader(TensorDataset(torch.arange(7.0)), batch_size=2)

    class Collects(LightningModule):
        def __init__(self):
            super().__init__()
            self.seen = []

        def test_step(self, batch, batch_idx):
            self.seen += batch[0].tolist()

    trainer = Trainer(
        accelerator="cpu", devices=num_ranks, strategy="ddp", logger=False, enable_progress_bar=False, barebones=False
    )
    model = Collects()
    trainer.test(model, ActiveLearningDataModule(Data(), initial=[1]), verbose=False)
    every = [None] * num_ranks
    torch.distributed.all_gather_object(every, model.seen)
    return [int(sample) for part in every for sample in part]


def seven_tested(folder, num_ranks, posterior=None, callbacks=(), sync_dist=True):
    """A run whose 7 test points and 13 of validation no two ranks share evenly."""
    tiny = parts()

    class Data(tiny.TinyData):
        def val_dataloader(self):
            return DataLoader(self._part(13, 1), batch_size=4)

        def test_dataloader(self):
            return DataLoader(self._part(7, 2), batch_size=2)

    class Constant(tiny.TinyModule):
        """The same net whatever the ranks have trained, so that the metrics alone are compared."""

        def training_step(self, batch, batch_idx):
            return 0 * super().training_step(batch, batch_idx)

        def _log(self, stage, batch):
            inputs, targets = batch
            self.log(f"{stage}_acc", (self(inputs).argmax(1) == targets).float().mean(), sync_dist=sync_dist)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Constant()
    callback = ActiveLearning(BALD(), query_size=5, posterior=posterior, max_rounds=1, folder=folder, seed=1)
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=1,
        limit_train_batches=1,
        logger=CSVLogger(folder, name="logs", version=0),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, *callbacks],
    )
    (record,) = active_fit(trainer, model, ActiveLearningDataModule(Data(), initial=6))
    return {name: value for name, value in record.metrics.items() if "test" in name}, record.repeated_points


def every_seven_tested(folder, num_ranks):
    return [
        seven_tested(f"{folder}/plain", num_ranks),
        seven_tested(f"{folder}/unsynced", num_ranks, sync_dist=False),
        seven_tested(f"{folder}/ensemble", num_ranks, posterior=DeepEnsemble(2)),
        seven_tested(f"{folder}/mean", num_ranks, callbacks=[MeanPrediction(num_samples=8)]),
    ]


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_record_tells_the_same_test_metrics_on_any_number_of_ranks(on_ranks, tmp_path, num_ranks):
    expected = every_seven_tested(tmp_path / "one", 1)
    assert set(expected[3][0]) == {"test_acc", "test_mean_acc", "test_mean_loss", "test_mean_num_samples"}
    answers = on_ranks(num_ranks, __file__, "every_seven_tested", folder=str(tmp_path / "many"), num_ranks=num_ranks)
    for ok, found in answers:
        assert ok, found
        for (metrics, repeated), (alone, none) in zip(found, expected, strict=True):
            assert metrics == pytest.approx(alone, rel=1e-5)
            assert round(7 * metrics["test_acc"], 4) % (0.5 if alone is expected[2][0] else 1) == 0  # of two members
            assert (repeated, none) == ({"val": -13 % num_ranks}, {})
    (record,) = read_journal(tmp_path / "many" / "plain")[1]
    assert record.metrics["test_acc"] == pytest.approx(expected[0][0]["test_acc"])
    assert record.repeated_points == {"val": -13 % num_ranks}
    logged = (tmp_path / "many" / "plain" / "logs" / "version_0" / "metrics.csv").read_text()
    assert f"{expected[0][0]['test_acc']:.6f}"[:6] in logged


def folder_of_rank_zero_alone(folder, num_ranks):
    elsewhere = Path(__file__) / "no-folder"  # below a file: nothing can be written there
    return run(folder if os.environ["LOCAL_RANK"] == "0" else elsewhere, num_ranks=num_ranks, predictions_budget_mib=0)


@pytest.mark.slow
def test_only_rank_zero_needs_to_see_the_run_folder(on_ranks, tmp_path):
    expected = on_one(tmp_path / "one")[:2]
    for ok, found in on_ranks(2, __file__, "folder_of_rank_zero_alone", folder=str(tmp_path / "two"), num_ranks=2):
        assert ok, found
        assert found[:2] == expected
    assert [record.acquired for record in read_journal(tmp_path / "two")[1]] == expected[0]
