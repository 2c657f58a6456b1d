"""Test metrics on one, two and three gloo ranks, whose shares of the points differ in size."""

import math
from types import SimpleNamespace

import pytest
import torch
import torchmetrics
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric
from torch.utils.data import DataLoader, Sampler, SubsetRandomSampler, TensorDataset

from al_lightning import ActiveLearningDataModule
from al_lightning.data.evaluation import OneRanksShare
from al_lightning.data.totals import LOCKSTEP, Share, total

VALUES = (1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)  # of seven points two are right


class Reversed(Sampler):
    def __init__(self, num):
        self.num = num

    def __iter__(self):
        return iter(range(self.num - 1, -1, -1))

    def __len__(self):
        return self.num


def loaders_of(kind, values):
    dataset = TensorDataset(torch.tensor(values))
    plain = DataLoader(dataset, batch_size=2)
    second = DataLoader(TensorDataset(torch.tensor(values[:5]) + 1), batch_size=3)
    return {
        "plain": lambda: plain,
        "two": lambda: [plain, second],
        "named": lambda: {"first": plain, "second": second},
        "shuffled": lambda: DataLoader(dataset, batch_size=2, shuffle=True),
        "subset": lambda: DataLoader(dataset, batch_size=2, sampler=SubsetRandomSampler([0, 1, 2, 4, 6])),
        "own": lambda: DataLoader(dataset, batch_size=2, sampler=Reversed(len(values))),
    }[kind]()


class Data(LightningDataModule):
    def __init__(self, kind, values):
        super().__init__()
        self.kind, self.values = kind, values

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(20.0)), batch_size=2)

    def test_dataloader(self):
        return loaders_of(self.kind, self.values)


class Logs(LightningModule):
    """Whatever `self.log` can be asked for; a batch is a vector of values."""

    def __init__(self, sync_dist):
        super().__init__()
        self.sync_dist = sync_dist
        self.mean_metric = torchmetrics.MeanMetric()
        self.seen = []

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        (values,) = batch
        self.seen.append(values)
        settings = {"on_step": False, "on_epoch": True, "sync_dist": self.sync_dist}
        self.log("mean", values.mean(), **settings)
        self.log("mean_of_one_name", values.mean(), batch_size=len(values), **settings)
        self.log("count", (values > 0).float().sum(), reduce_fx="sum", **settings)
        self.log("max", values.max(), reduce_fx="max", **settings)
        self.log("min", values.min(), reduce_fx="min", **settings)
        if (values > 0).any():  # a class of which some ranks have no point
            self.log("mean_of_positive", values[values > 0].mean(), batch_size=int((values > 0).sum()), **settings)
        self.log("step_and_epoch", values.mean(), on_step=True, on_epoch=True)
        if dataloader_idx == 0:
            self.mean_metric.update(values)
            self.log("torchmetrics", self.mean_metric, on_step=False, on_epoch=True)

    def on_test_epoch_end(self):
        everything = torch.cat(self.seen)
        self.log("of_epoch", everything.mean(), sync_dist=self.sync_dist)
        self.log("of_epoch_weighted", everything.mean(), batch_size=len(everything), sync_dist=self.sync_dist)


def trainer_of(num_ranks, **settings):
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = "ddp" if num_ranks > 1 else "auto"
    return Trainer(devices=num_ranks, strategy=strategy, **{**defaults, **settings})


def measured(num_ranks, kind="plain", values=VALUES, sync_dist=True, times=1, **settings):
    """What `trainer.test` gives back, and what callbacks see."""
    trainer, data = trainer_of(num_ranks, **settings), ActiveLearningDataModule(Data(kind, values), initial=[1])
    for _ in range(times):
        results = trainer.test(Logs(sync_dist), data, verbose=False)
    return [dict(sorted(result.items())) for result in results], {
        name: float(value) for name, value in sorted(trainer.callback_metrics.items())
    }


def of_every_kind(num_ranks):
    return {
        (kind, sync_dist): measured(num_ranks, kind, sync_dist=sync_dist)
        for kind in ("plain", "two", "named", "shuffled", "subset")
        for sync_dist in (True, False)
    }


@pytest.mark.filterwarnings("ignore:Your `test_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize(
    "num_ranks", [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.long)]
)
def test_every_metric_is_that_of_one_rank(on_ranks, num_ranks):
    expected = of_every_kind(1)
    assert expected["plain", True] == expected["plain", False]
    for ok, found in on_ranks(num_ranks, __file__, "of_every_kind", num_ranks=num_ranks):
        assert ok, found
        for case, (results, callback_metrics) in found.items():
            assert results == [pytest.approx(result, rel=1e-6) for result in expected[case][0]], case
            assert callback_metrics == pytest.approx(expected[case][1], rel=1e-6), case


@pytest.mark.slow
def test_seven_points_of_which_two_are_right_are_two_sevenths(on_ranks):
    for ok, found in on_ranks(2, __file__, "measured", num_ranks=2):
        assert ok, found
        (metrics,), _ = found
        for name in (
            "mean",
            "mean_of_one_name",
            "torchmetrics",
            "of_epoch",
            "of_epoch_weighted",
            "step_and_epoch_epoch",
        ):
            assert metrics[name] == pytest.approx(2 / 7), name
        assert (metrics["count"], metrics["max"], metrics["min"], metrics["mean_of_positive"]) == (2, 1, 0, 1)


@pytest.mark.slow
def test_a_class_that_only_a_later_rank_has_is_logged_and_so_it_is_in_another_test(on_ranks):
    values = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # on two ranks, the one point is rank 1's
    expected = measured(1, values=values)
    assert expected[0][0]["mean_of_positive"] == 1
    for ok, found in on_ranks(2, __file__, "measured", num_ranks=2, values=values, times=2):
        assert ok, found
        assert found[0][0] == pytest.approx(expected[0][0], rel=1e-6)


def swapped(num_ranks):
    """A second test with one Trainer, in which another rank has the only positive point."""
    trainer = trainer_of(num_ranks)
    results = []
    for position in (1, 0):
        values = tuple(float(number == position) for number in range(7))
        data = ActiveLearningDataModule(Data("plain", values), initial=[1])
        results += trainer.test(Logs(sync_dist=True), data, verbose=False)
    return results


def test_ranks_may_log_other_names_in_every_test_of_a_trainer(on_ranks):
    for ok, found in on_ranks(2, __file__, "swapped", num_ranks=2):
        assert ok, found
        first, second = found
        assert first == pytest.approx(second)
        assert first["mean"] == pytest.approx(1 / 7)


@pytest.mark.slow
def test_nan_is_not_turned_into_a_number(on_ranks):
    values = (*VALUES[:6], math.nan)
    for ok, found in on_ranks(3, __file__, "measured", num_ranks=3, values=values):
        assert ok, found
        assert all(math.isnan(found[0][0][name]) for name in ("mean", "max", "min", "of_epoch"))


class InStep(LightningModule):
    """Exchanges something in every batch."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def test_step(self, batch, batch_idx):
        if self.what == "log":
            self.log("value", batch[0].mean(), on_step=True, on_epoch=True, sync_dist=True)
        else:
            self.all_gather(batch[0])


def in_step(num_ranks, what, num_points, **settings):
    values = tuple(float(number) for number in range(num_points))
    trainer, data = trainer_of(num_ranks, **settings), ActiveLearningDataModule(Data("plain", values), initial=[1])
    return trainer.test(InStep(what), data, verbose=False)


@pytest.mark.parametrize(("what", "num_points"), [("log", 5), ("all_gather", 7)])
def test_an_exchange_in_batches_that_not_all_ranks_have_is_refused_on_all(on_ranks, what, num_points):
    for ok, words in on_ranks(2, __file__, "in_step", num_ranks=2, what=what, num_points=num_points):
        assert not ok
        assert "RuntimeError: The ranks' shares of the test data differ" in words
        assert "`self.log(..., on_step=False, on_epoch=True)`" in words


@pytest.mark.parametrize(
    ("what", "num_points", "settings"),
    [("log", 7, {}), ("all_gather", 8, {}), ("log", 5, {"limit_test_batches": 1})],
)
def test_an_exchange_in_batches_that_all_have_goes_on(on_ranks, what, num_points, settings):
    for ok, found in on_ranks(2, __file__, "in_step", num_ranks=2, what=what, num_points=num_points, **settings):
        assert ok, found


def own_sampler(num_ranks):
    return measured(num_ranks, "own")[0][0]["mean"]


def test_a_sampler_of_the_users_own_is_dealt_out_by_lightning_with_repetitions(on_ranks):
    for ok, found in on_ranks(2, __file__, "own_sampler", num_ranks=2):
        assert ok, found
        assert found == pytest.approx(2 / 8)  # its last point twice: a record says so


def validated(num_ranks, wrapped):
    """What `trainer.validate` measures, of which this package must change nothing."""

    class Validates(LightningModule):
        def validation_step(self, batch, batch_idx):
            self.log("value", batch[0].mean(), sync_dist=True)
            self.log("share", batch[0].mean())

    class Validated(Data):
        def val_dataloader(self):
            return self.test_dataloader()

    data = Validated("plain", VALUES)
    trainer = trainer_of(num_ranks)
    trainer.test(Logs(sync_dist=True), ActiveLearningDataModule(data, initial=[1]), verbose=False)
    data = ActiveLearningDataModule(data, initial=[1]) if wrapped else data
    return trainer.validate(Validates(), data, verbose=False)


def test_validation_stays_lightnings_bit_for_bit(on_ranks):
    plain, wrapped = (on_ranks(2, __file__, "validated", num_ranks=2, wrapped=wrapped) for wrapped in (False, True))
    assert plain == wrapped
    assert plain[0][1] == [{"value": pytest.approx(3 / 8), "share": pytest.approx(2 / 4)}]


def test_a_total_of_means_is_weighted_and_the_others_are_reduced_alike():
    assert total([Share("mean", 2.0, 4), Share("mean", 0.0, 3)]) == 2 / 7
    assert total([Share("sum", 2.0), Share("sum", 0.5)]) == 2.5
    assert (total([Share("max", 2.0), Share("max", 0.5)]), total([Share("min", 2.0), Share("min", 0.5)])) == (2.0, 0.5)


def test_what_is_private_of_lightning_is_where_it_was():
    trainer = trainer_of(1)
    assert all(callable(getattr(trainer._logger_connector, name)) for name in LOCKSTEP)
    assert trainer._results is None
    assert set(vars(trainer.test_loop._results)) >= {"batch", "batch_size", "dataloader_idx"}
    assert callable(trainer.test_loop._results.valid_items)
    metadata = _Metadata(fx="test_step", name="value")
    metadata.sync = SimpleNamespace(op="mean")
    metric = _ResultMetric(metadata, is_tensor=True)
    metric.update(torch.tensor(3.0), 2)
    assert (float(metric.value), int(metric.cumulated_batch_size), metric._computed) == (6.0, 2, None)
    assert (metric.update_count, metric.has_reset, metadata.is_mean_reduction) == (1, False, True)


def test_shares_are_a_partition():
    shares = [list(OneRanksShare(range(5), num_replicas=3, rank=rank)) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(5))
    assert OneRanksShare(range(5), num_replicas=3, rank=0).lengths() == [2, 2, 1]
