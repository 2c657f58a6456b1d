import logging
import os
import random

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, Subset

from al_lightning import BALD, BatchBALD, Random, active_fit, read_journal
from al_lightning.randomness import derived_seed
from al_lightning.rounds.resuming import locked


class Weights(Callback):
    """Remembers the weights at the end of each training."""

    def __init__(self, seen):
        self.seen = seen

    def on_train_end(self, trainer, pl_module):
        self.seen.append({name: value.clone() for name, value in pl_module.state_dict().items()})


class DiedError(Exception):
    """What stands for a failure in the user's code."""


class Seen(list):
    """A list that several rounds share: it is not put back to empty."""

    def __deepcopy__(self, memo):
        return self


def labelled_in_round(datamodule, index):
    of_N = datamodule.labels.round_of_N
    return ((of_N >= 0) & (of_N <= index)).nonzero().flatten().tolist()


def test_each_round_equals_a_stand_alone_fit_on_the_same_labels(make_trainer, make_model, make_data, make_callback):
    seen = Seen()
    datamodule, model = make_data(), make_model()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    active_fit(make_trainer(Weights(seen), make_callback(max_rounds=3)), model, datamodule, seed=7)
    for index, weights in enumerate(seen):
        alone = make_model(seed=99)
        alone.load_state_dict(first)
        train = datamodule.inner.train_dataloader().dataset
        loader = DataLoader(Subset(train, labelled_in_round(datamodule, index)), batch_size=8, shuffle=True)
        seed_everything(derived_seed(7, index, "fit"), verbose=False)
        make_trainer().fit(alone, loader, datamodule.inner.val_dataloader())
        for name, value in alone.state_dict().items():
            assert torch.equal(value, weights[name])
    assert len(seen) == 3


def test_the_label_state_tells_which_round_acquired_what(make_trainer, make_model, make_data, make_callback):
    datamodule = make_data()
    rounds = active_fit(make_trainer(make_callback(max_rounds=3)), make_model(), datamodule)
    assert [(entry.num_labelled, entry.num_pool) for entry in rounds] == [(6, 54), (10, 50), (14, 46)]
    for entry in rounds[:-1]:
        assert sorted(entry.acquired) == (datamodule.labels.round_of_N == entry.round + 1).nonzero().flatten().tolist()
    assert datamodule.labels.num_labelled == 14


def test_the_last_round_acquires_nothing(make_trainer, make_model, make_data, make_callback):
    last = active_fit(make_trainer(make_callback(max_rounds=2)), make_model(), make_data())[-1]
    assert (last.acquired, last.scores, last.stopped) == ([], [], "max_rounds=2 reached")
    assert "predict" not in last.seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "labelled", "stopped"),
    [
        ({"max_labelled": 15}, [6, 10, 14, 15], "max_labelled=15 reached"),
        ({"query_size": 27}, [6, 33, 60], "the pool is empty"),
        ({"query_size": 30}, [6, 36, 60], "the pool is empty"),
        ({"monitor": "val_acc", "target": 0.0}, [6], "val_acc reached 0.0"),
    ],
)
def test_the_rounds_end_at_the_budget_an_empty_pool_or_a_target(
    limits, labelled, stopped, make_trainer, make_model, make_data, make_callback
):
    callback = make_callback(**{"max_rounds": None, **limits})
    rounds = active_fit(make_trainer(callback), make_model(), make_data())
    assert [entry.num_labelled for entry in rounds] == labelled
    assert rounds[-1].stopped == stopped


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(make_trainer, make_model, make_data, make_callback):
    def acquired(seed):
        rounds = active_fit(make_trainer(make_callback(BatchBALD())), make_model(), make_data(), seed=seed)
        return [entry.acquired for entry in rounds]

    assert acquired(1) == acquired(1)
    assert acquired(1) != acquired(2)


@pytest.mark.slow
def test_the_seed_of_the_callback_wins_over_that_of_the_rounds(make_trainer, make_model, make_data, make_callback):
    def acquired(callback_seed, seed):
        callback = make_callback(Random(), seed=callback_seed)
        return [e.acquired for e in active_fit(make_trainer(callback), make_model(), make_data(), seed=seed)]

    assert acquired(5, 1) == acquired(5, 2) == acquired(None, 5)


def test_the_global_generators_and_the_environment_are_given_back(
    make_trainer, make_model, make_data, make_callback, monkeypatch
):
    monkeypatch.setenv("PL_GLOBAL_SEED", "123")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    active_fit(make_trainer(make_callback()), make_model(), make_data())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    assert os.environ["PL_GLOBAL_SEED"] == "123"
    assert "PL_SEED_WORKERS" not in os.environ


@pytest.mark.slow
def test_warm_start_continues_from_the_weights_of_the_round_before(make_trainer, make_model, make_data, make_callback):
    class Starts(Weights):
        def on_train_start(self, trainer, pl_module):
            self.on_train_end(trainer, pl_module)

    for warm_start in (False, True):
        seen = Seen()
        callback = make_callback(max_rounds=2, warm_start=warm_start)
        active_fit(make_trainer(Starts(seen), callback), make_model(), make_data())
        start, end, next_start, _ = (weights["net.0.weight"] for weights in seen)
        assert torch.equal(next_start, end if warm_start else start)
        assert not torch.equal(start, end)


def test_test_metrics_are_in_the_records_and_in_the_files(make_trainer, make_model, make_data, make_callback, tmp_path):
    logger = CSVLogger(tmp_path, name="logs")
    rounds = active_fit(make_trainer(make_callback(), logger=logger), make_model(), make_data())
    assert all({"test_acc", "test_loss", "val_loss"} <= set(entry.metrics) for entry in rounds)
    assert all(entry.seconds["test"] > 0 for entry in rounds)
    _, read = read_journal(tmp_path / "logs" / "version_0")
    assert read == rounds


def test_the_tested_weights_are_those_of_the_best_checkpoint_when_asked_for(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "ckpt", monitor="val_loss", mode="max")  # not the last
    callback = make_callback(max_rounds=2, weights="best")
    model = make_model()
    rounds = active_fit(make_trainer(checkpoint, callback, enable_checkpointing=True), model, make_data())
    best = torch.load(checkpoint.best_model_path, weights_only=True)
    assert "round=001-" in checkpoint.best_model_path
    for name, value in model.state_dict().items():
        assert torch.equal(value, best["state_dict"][name])
    assert rounds[-1].metrics["val_loss"] == pytest.approx(float(checkpoint.best_model_score))


@pytest.mark.slow
def test_early_stopping_counts_afresh_in_every_round(make_trainer, make_model, make_data, make_callback):
    stopping = EarlyStopping("val_loss", patience=1, min_delta=10.0)  # nothing is ever better: two epochs a round
    active_fit(make_trainer(stopping, make_callback(max_rounds=4), max_epochs=9), make_model(), make_data())
    assert (stopping.wait_count, stopping.stopped_epoch) == (1, 1)


def test_the_step_axis_of_the_loggers_goes_on(make_trainer, make_model, make_data, make_callback, tmp_path):
    class Steps(CSVLogger):
        seen = Seen()

        def log_metrics(self, metrics, step=None):
            self.seen.append(step)
            super().log_metrics(metrics, step)

    trainer = make_trainer(make_callback(), logger=Steps(tmp_path))
    active_fit(trainer, make_model(), make_data())
    assert Steps.seen == sorted(Steps.seen)
    assert Steps.seen[-1] > trainer.global_step


def test_the_seed_of_seed_everything_is_that_of_the_rounds_unless_one_is_given(
    make_trainer, make_model, make_data, make_callback
):
    def seeds(**arguments):
        callback = make_callback(max_rounds=1)
        active_fit(make_trainer(callback), make_model(), make_data(), **arguments)
        return callback.run.header["seed"], callback.run.header["fit_seed"]

    assert seeds() == (0, 0)
    seed_everything(5, verbose=False)
    assert seeds() == (5, 5)
    assert seeds(seed=3) == (3, 3)


def test_a_global_seed_that_is_no_number_is_refused(make_trainer, make_model, make_data, make_callback, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "five")
    with pytest.raises(ValueError, match=r"PL_GLOBAL_SEED is 'five', but must be a whole number.*seed=0"):
        active_fit(make_trainer(make_callback()), make_model(), make_data())


def test_a_fast_development_run_ends_after_its_second_round(make_trainer, make_model, make_data, make_callback):
    trainer = make_trainer(make_callback(max_rounds=9), fast_dev_run=True)
    assert [e.stopped for e in active_fit(trainer, make_model(), make_data())] == [
        None,
        "fast_dev_run ends after 2 rounds",
    ]


def test_one_line_a_round_and_a_table_at_the_end(make_trainer, make_model, make_data, make_callback, caplog):
    with caplog.at_level(logging.INFO):
        active_fit(make_trainer(make_callback(max_rounds=2)), make_model(), make_data())
    lines = [record.message for record in caplog.records if record.message.startswith("round ")]
    assert lines[0].startswith("round 0 | 6 labels | test_loss ")
    assert "batch tells" in lines[0]
    assert lines[1].endswith("max_rounds=2 reached")
    table = next(record.message for record in caplog.records if "joint MI" in record.message).splitlines()
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize("times", [0, 2])
def test_a_trainer_without_or_with_two_callbacks_is_refused(times, make_trainer, make_model, make_data, make_callback):
    trainer = make_trainer(*[make_callback() for _ in range(times)])
    with pytest.raises(ValueError, match=f"The Trainer has {times} ActiveLearning callbacks"):
        active_fit(trainer, make_model(), make_data())


def test_a_trainer_that_has_run_is_refused(make_trainer, make_model, make_data, make_callback):
    trainer = make_trainer(make_callback(max_rounds=1))
    active_fit(trainer, make_model(), make_data())
    with pytest.raises(ValueError, match="`trainer` has run already"):
        active_fit(trainer, make_model(), make_data())


def test_a_data_module_that_is_not_wrapped_is_refused(make_trainer, make_model, make_data, make_callback):
    with pytest.raises(TypeError, match=r"`datamodule` is a TinyData.*wrap yours as `ActiveLearningDataModule"):
        active_fit(make_trainer(make_callback()), make_model(), make_data().inner)


def test_a_model_of_the_wrong_kind_is_refused(make_trainer, make_data, make_callback):
    with pytest.raises(TypeError, match="`model` is a Linear, but must be a LightningModule"):
        active_fit(make_trainer(make_callback()), torch.nn.Linear(2, 2), make_data())


def test_ctrl_c_leaves_the_records_of_the_finished_rounds(make_trainer, make_model, make_data, make_callback, tmp_path):
    class Interrupt(Callback):
        def on_train_start(self, trainer, pl_module):
            if trainer.datamodule.labels.num_labelled > 10:
                raise KeyboardInterrupt

    callback = make_callback(folder=tmp_path / "run", max_rounds=9)
    trainer = make_trainer(Interrupt(), callback)
    with pytest.raises(SystemExit):
        active_fit(trainer, make_model(), make_data())
    _, rounds = read_journal(tmp_path / "run")
    assert [entry.num_labelled for entry in rounds] == [6, 10]
    assert rounds == callback.rounds
    assert all("test_acc" in entry.metrics for entry in rounds)


def test_the_users_callbacks_are_the_same_objects_before_and_after(make_trainer, make_model, make_data, make_callback):
    callbacks = [EarlyStopping("val_loss"), make_callback()]
    trainer = make_trainer(*callbacks)
    active_fit(trainer, make_model(), make_data())
    assert trainer.callbacks == callbacks


def test_random_never_predicts_the_pool(make_trainer, make_model, make_data, make_callback, monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("the pool was predicted")

    monkeypatch.setattr("al_lightning.pool.predict.predict_pool", refuse)
    rounds = active_fit(make_trainer(make_callback(Random())), make_model(), make_data())
    assert rounds[0].information == {}
    with pytest.raises(AssertionError, match="the pool was predicted"):
        active_fit(make_trainer(make_callback(BALD())), make_model(), make_data())


def test_a_callback_that_has_run_is_refused(make_trainer, make_model, make_data, make_callback):
    callback = make_callback(max_rounds=1)
    active_fit(make_trainer(callback), make_model(), make_data())
    with pytest.raises(ValueError, match="The ActiveLearning callback has run 1 rounds already"):
        active_fit(make_trainer(callback), make_model(), make_data())


def test_a_callback_whose_first_round_failed_begins_a_run_anew(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    class Fails(Callback):
        def on_train_start(self, trainer, pl_module):
            raise DiedError

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            with pytest.raises(RuntimeError, match="Another process writes into the run folder"):
                locked(tmp_path / "run")

    callback = make_callback(folder=tmp_path / "run", max_rounds=1)
    with pytest.raises(DiedError):
        active_fit(make_trainer(callback, Fails()), make_model(), make_data(), seed=3)
    (record,) = active_fit(make_trainer(callback, Looks()), make_model(1), make_data(initial=9, seed=5), seed=7)
    header, rounds = read_journal(tmp_path / "run")
    assert (header["fit_seed"], len(header["initial"]), rounds) == (7, 9, [record])
    assert record.changed == []


def test_a_plain_fit_cannot_add_a_round_to_those_of_active_fit(make_trainer, make_model, make_data, make_callback):
    class Fails(Callback):
        def on_train_start(self, trainer, pl_module):
            if callback.rounds:
                raise DiedError

    callback, datamodule = make_callback(), make_data()
    with pytest.raises(DiedError):
        active_fit(make_trainer(callback, Fails()), make_model(), datamodule)
    with pytest.raises(RuntimeError, match="`active_fit` has run 1 rounds with this ActiveLearning callback"):
        make_trainer(callback).fit(make_model(), datamodule=datamodule)


def test_model_and_callbacks_may_hold_the_run(make_trainer, make_model, make_data, make_callback):
    class Holds(Callback):
        def __init__(self, run, seen):
            self.run, self.seen = run, seen

        def on_train_start(self, trainer, pl_module):
            self.seen.append((len(self.run.rounds), len(pl_module.held[0].rounds)))

    callback, model, seen = make_callback(), make_model(), Seen()
    model.held = [callback.run]
    active_fit(make_trainer(callback, Holds(callback.run, seen)), model, make_data())
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_labels_of_an_earlier_run_are_refused(make_trainer, make_model, make_data, make_callback):
    datamodule = make_data()
    active_fit(make_trainer(make_callback(max_rounds=2)), make_model(), datamodule)
    with pytest.raises(ValueError, match="`datamodule` holds labels that an earlier run acquired"):
        active_fit(make_trainer(make_callback()), make_model(), datamodule)


def test_a_model_that_is_built_at_the_start_of_the_fit_starts_each_round_from_there(
    make_trainer, make_model, make_data, make_callback
):
    class Late(type(make_model())):
        def configure_model(self):
            if self.net is None:
                self.net = make_model().net

    model, seen = Late(), Seen()
    model.net = None

    class Starts(Weights):
        def on_train_start(self, trainer, pl_module):
            self.on_train_end(trainer, pl_module)

    active_fit(make_trainer(Starts(seen), make_callback(max_rounds=2)), model, make_data())
    assert torch.equal(seen[0]["net.0.weight"], seen[2]["net.0.weight"])
    assert not torch.equal(seen[1]["net.0.weight"], seen[2]["net.0.weight"])


def test_what_a_model_caches_while_predicting_is_of_use_in_its_next_training(
    make_trainer, make_model, make_data, make_callback
):
    class Caching(type(make_model())):
        scale = None

        def forward(self, inputs):
            if self.scale is None or len(self.scale) != len(inputs):
                self.scale = torch.ones(len(inputs), 1)
            return self.net(inputs * self.scale)

    with torch.random.fork_rng():
        model = Caching()
    trainer = make_trainer(make_callback(max_rounds=2), inference_mode=False)
    active_fit(trainer, model, make_data(pool_batch_size=8))


@pytest.mark.slow
def test_loader_workers_change_nothing(make_trainer, make_model, make_data, make_callback):
    found = []
    for num_workers in (0, 2):
        data = make_data()
        plain = data.inner.train_dataloader()
        data.inner.train_dataloader = lambda plain=plain, num=num_workers: DataLoader(
            plain.dataset, batch_size=8, shuffle=True, num_workers=num
        )
        rounds = active_fit(make_trainer(make_callback(max_rounds=2)), make_model(), data)
        found.append([(record.acquired, record.scores, record.metrics) for record in rounds])
    assert found[0] == found[1]
