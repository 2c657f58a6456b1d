"""Rounds with a deep ensemble: every member is an ordinary fit, and they acquire together."""

import copy
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Subset

from al_lightning import BALD, ActiveLearning, BatchBALD, DeepEnsemble, Random, active_fit, read_journal
from al_lightning.cli.command import run
from al_lightning.information import mutual_information
from al_lightning.randomness import derived_seed
from al_lightning.records.header import as_call

MEMBERS = 3
CONFIGS = Path(__file__).parents[2] / "configs"


class Seen(list):
    """A list that several fits share: it is not put back to empty."""

    def __deepcopy__(self, memo):
        return self


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class Weights(Callback):
    """Remembers the weights at the start and at the end of each training, and the first batch."""

    def __init__(self):
        self.starts, self.ends, self.batches = Seen(), Seen(), Seen()

    def on_train_start(self, trainer, pl_module):
        self.starts.append(weights_of(pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0 and trainer.current_epoch == 0:
            self.batches.append(batch[0])

    def on_train_end(self, trainer, pl_module):
        self.ends.append(weights_of(pl_module))


def equal(once, again):
    return all(torch.equal(once[name], again[name]) for name in once)


@pytest.fixture
def make_ensemble_callback(make_callback):
    def make(*arguments, **keywords):
        defaults = {"posterior": DeepEnsemble(MEMBERS), "num_samples": None, "max_rounds": 2}
        return make_callback(*arguments, **{**defaults, **keywords})

    return make


def test_an_ensemble_needs_nothing_but_its_name(make_trainer, make_model, make_data):
    callback = ActiveLearning(BatchBALD(), posterior=DeepEnsemble(MEMBERS), query_size=4, max_rounds=2)
    first, last = active_fit(make_trainer(callback), make_model(dropout=0.0), make_data())
    assert (first.num_labelled, last.num_labelled) == (6, 10)
    assert callback.settings.num_samples == first.information["num_samples"] == MEMBERS
    assert (len(first.acquired), last.acquired, last.stopped) == (4, [], "max_rounds=2 reached")
    assert {"val_loss", "test_acc"} <= set(last.metrics)


@pytest.mark.slow
def test_each_member_equals_a_stand_alone_fit_of_a_new_model_with_its_seed(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    spy, datamodule, model = Weights(), make_data(), make_model()
    rounds = active_fit(make_trainer(spy, make_ensemble_callback()), model, datamodule, seed=7)
    assert len(spy.ends) == len(rounds) * MEMBERS == 6
    train, of_N = datamodule.inner.train_dataloader().dataset, datamodule.labels.round_of_N
    for fit, ends in enumerate(spy.ends):
        index, member = divmod(fit, MEMBERS)
        labelled = ((of_N >= 0) & (of_N <= index)).nonzero().flatten().tolist()
        loader = DataLoader(Subset(train, labelled), batch_size=8, shuffle=True)
        seed_everything(derived_seed(7, index, f"member {member}"), verbose=False)
        alone = type(model)()
        make_trainer().fit(alone, loader, datamodule.inner.val_dataloader())
        assert equal(ends, alone.state_dict())
    assert equal(model.state_dict(), spy.ends[-1])


def test_members_differ_in_their_first_weights_and_in_their_shuffling(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    spy = Weights()
    active_fit(make_trainer(spy, make_ensemble_callback(max_rounds=1)), make_model(), make_data(initial=20))
    for values in ([start["net.0.weight"] for start in spy.starts], spy.batches):
        assert not any(torch.equal(values[a], values[b]) for a, b in [(0, 1), (0, 2), (1, 2)])


@pytest.mark.slow
def test_the_pool_is_scored_by_all_members_of_the_round(make_trainer, make_model, make_data, make_ensemble_callback):
    spy, datamodule, model = Weights(), make_data(), make_model()
    rounds = active_fit(make_trainer(spy, make_ensemble_callback(BALD())), model, datamodule)
    inputs = datamodule.inner.train_dataloader().dataset.tensors[0]
    log_probs = []
    for ends in spy.ends[:MEMBERS]:
        member = copy.deepcopy(model)
        member.load_state_dict(ends)
        log_probs.append(member.eval()(inputs).log_softmax(dim=1).detach())
    bald_N = mutual_information(torch.stack(log_probs, dim=1))
    bald_N[datamodule.labels.round_of_N == 0] = -1  # the initial ones were no pool
    assert rounds[0].acquired == bald_N.topk(4).indices.tolist()


@pytest.mark.slow
def test_the_ensemble_of_the_last_round_answers_after_the_run(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    spy, callback, model = Weights(), make_ensemble_callback(), make_model()
    active_fit(make_trainer(spy, callback), model, make_data())
    kept = callback.posterior.states
    assert all(equal(ends, state) for ends, state in zip(spy.ends[-MEMBERS:], kept, strict=True))
    with callback.posterior.sample(model, MEMBERS, seed=0) as predict:
        assert predict(torch.randn(5, 4)).shape == (5, MEMBERS, 3)


@pytest.mark.slow
def test_amid_a_round_the_posterior_is_that_of_the_round_before(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    class Reads(Callback):
        seen = Seen()

        def on_test_end(self, trainer, pl_module):
            states = getattr(callback.posterior, "states", None)
            self.seen.append(
                (callback.member, None if states is None else [state["net.0.bias"][0].item() for state in states])
            )

    callback = make_ensemble_callback()
    active_fit(make_trainer(Reads(), callback), make_model(), make_data())
    first, *_ = Reads.seen[MEMBERS:]
    assert [member for member, _ in Reads.seen] == [*range(MEMBERS)] * 2
    assert Reads.seen[0][1] is None  # nothing is trained yet
    assert all(states == first[1] for _, states in Reads.seen[MEMBERS:-1])
    assert Reads.seen[-1][1] != first[1]
    assert callback.member is None


def test_an_ensemble_that_one_run_has_used_carries_nothing_into_another(make_trainer, make_model, make_data):
    ensemble = DeepEnsemble(2)
    for seed in (0, 1):
        callback = ActiveLearning(BALD(), posterior=ensemble, query_size=4, max_rounds=1)
        assert callback.posterior is ensemble  # nothing of it is trained
        active_fit(make_trainer(callback), make_model(seed), make_data())
        assert callback.posterior is not ensemble
        assert (vars(ensemble), ensemble) == (vars(DeepEnsemble(2)), DeepEnsemble(2))


@pytest.mark.slow
def test_a_metric_of_a_round_is_the_mean_over_its_members_and_time_is_their_sum(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    class Metrics(Callback):
        def __init__(self):
            self.val, self.test = Seen(), Seen()

        def on_fit_end(self, trainer, pl_module):
            self.val.append(float(trainer.callback_metrics["val_loss"]))

        def on_test_end(self, trainer, pl_module):
            self.test.append(float(trainer.callback_metrics["test_acc"]))

    spy = Metrics()
    rounds = active_fit(make_trainer(spy, make_ensemble_callback()), make_model(), make_data())
    assert len(spy.val) == len(spy.test) == 6
    for index, record in enumerate(rounds):
        of_round = slice(index * MEMBERS, (index + 1) * MEMBERS)
        assert record.metrics["val_loss"] == pytest.approx(sum(spy.val[of_round]) / MEMBERS)
        assert record.metrics["test_acc"] == pytest.approx(sum(spy.test[of_round]) / MEMBERS)
        assert record.seconds["fit"] > 0
        assert record.seconds["test"] > 0


@pytest.mark.slow
def test_a_round_is_logged_once_and_the_step_axis_goes_on(
    make_trainer, make_model, make_data, make_ensemble_callback, tmp_path
):
    class Steps(CSVLogger):
        logged = Seen()

        def log_metrics(self, metrics, step=None):
            self.logged.append((step, metrics))
            super().log_metrics(metrics, step)

    rounds = active_fit(
        make_trainer(make_ensemble_callback(), logger=Steps(tmp_path)), make_model(), make_data(pool_batch_size=16)
    )
    steps = [step for step, _ in Steps.logged]
    assert steps == sorted(steps)
    assert [m["al/val_loss"] for _, m in Steps.logged if "al/val_loss" in m] == [e.metrics["val_loss"] for e in rounds]
    assert [m["al/test_acc"] for _, m in Steps.logged if "al/test_acc" in m] == [e.metrics["test_acc"] for e in rounds]
    _, read = read_journal(next(tmp_path.rglob("rounds.jsonl")).parent)
    assert read == rounds


@pytest.mark.slow
def test_early_stopping_counts_afresh_for_every_member(make_trainer, make_model, make_data, make_ensemble_callback):
    class Epochs(Callback):
        seen = Seen()

        def on_train_end(self, trainer, pl_module):
            self.seen.append(trainer.current_epoch)

    stopping = EarlyStopping("val_loss", patience=1, min_delta=10.0)  # nothing is ever better: two epochs a fit
    trainer = make_trainer(stopping, Epochs(), make_ensemble_callback(), max_epochs=9)
    active_fit(trainer, make_model(), make_data())
    assert len(set(Epochs.seen)) == 1
    assert len(Epochs.seen) == 6
    assert (stopping.wait_count, stopping.stopped_epoch) == (1, 1)


@pytest.mark.slow
def test_checkpoints_of_members_have_names_of_their_own(
    make_trainer, make_model, make_data, make_ensemble_callback, tmp_path
):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "ckpt", save_last=True)
    trainer = make_trainer(checkpoint, make_ensemble_callback(), enable_checkpointing=True)
    active_fit(trainer, make_model(), make_data())
    names = {path.name for path in (tmp_path / "ckpt").iterdir()}
    assert {f"round={r:03d}-member={m}-last.ckpt" for r in range(2) for m in range(MEMBERS)} < names
    assert len(names) == 12


def test_the_members_are_the_best_checkpoints_when_asked_for(
    make_trainer, make_model, make_data, make_ensemble_callback, tmp_path
):
    class Best(Callback):
        paths = Seen()

        def on_fit_end(self, trainer, pl_module):
            self.paths.append(trainer.checkpoint_callback.best_model_path)

    checkpoint = ModelCheckpoint(dirpath=tmp_path / "ckpt", monitor="val_loss", mode="max")  # not the last
    callback = make_ensemble_callback(weights="best", max_rounds=1)
    active_fit(make_trainer(checkpoint, Best(), callback, enable_checkpointing=True), make_model(), make_data())
    for path, state in zip(Best.paths, callback.posterior.states, strict=True):
        assert equal(torch.load(path, weights_only=True)["state_dict"], state)


@pytest.mark.slow
def test_warm_started_members_continue_each_from_its_own_weights(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    spy = Weights()
    active_fit(make_trainer(spy, make_ensemble_callback(max_rounds=3, warm_start=True)), make_model(), make_data())
    assert len(spy.starts) == 9
    for fit in range(MEMBERS, 9):
        assert equal(spy.starts[fit], spy.ends[fit - MEMBERS])
    assert not any(equal(spy.starts[a], spy.starts[b]) for a, b in [(0, 1), (0, 2), (1, 2)])
    assert not any(equal(start, end) for start, end in zip(spy.starts, spy.ends, strict=True))


@pytest.mark.slow
def test_a_pretrained_part_stays_and_the_named_head_is_new_in_every_fit(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    spy, model = Weights(), make_model()
    first = weights_of(model)
    callback = make_ensemble_callback(posterior=DeepEnsemble(MEMBERS, fresh=["net.3"]))
    active_fit(make_trainer(spy, callback), model, make_data())
    assert all(torch.equal(start["net.0.weight"], first["net.0.weight"]) for start in spy.starts)
    heads = [first["net.3.weight"], *(start["net.3.weight"] for start in spy.starts)]
    assert len({tuple(head.flatten().tolist()) for head in heads}) == 7


@pytest.mark.slow
def test_that_the_weights_of_the_model_are_not_used_is_said_once_unless_parts_are_named(
    make_trainer, make_model, make_data, make_ensemble_callback, caplog
):
    def said(**arguments):
        caplog.clear()
        callback = make_ensemble_callback(posterior=DeepEnsemble(MEMBERS, **arguments))
        with caplog.at_level(logging.INFO):
            active_fit(make_trainer(callback), make_model(), make_data())
        return [record.message for record in caplog.records if "starts with new weights" in record.message]

    (words,) = said()
    assert words.endswith(f"the parts that are to start afresh, as in `DeepEnsemble({MEMBERS}, fresh=['net.3'])`.")
    assert said(fresh=["net.3"]) == []


@pytest.mark.slow
def test_a_function_that_gives_weights_finds_those_of_the_model_in_every_fit(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    found, model = [], make_model()
    first = weights_of(model)

    def jitter(module):
        found.append(weights_of(module))
        for parameter in module.parameters():
            nn.init.normal_(parameter)

    callback = make_ensemble_callback(posterior=DeepEnsemble(MEMBERS, init=jitter))
    active_fit(make_trainer(callback), model, make_data())
    assert len(found) == 6
    assert all(equal(weights, first) for weights in found)


def test_a_model_that_is_built_in_the_fit_has_members_too(make_trainer, make_model, make_data, make_ensemble_callback):
    class Late(type(make_model())):
        def configure_model(self):
            if self.net is None:
                self.net = make_net()

    def make_net():
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    model, spy = Late(), Weights()
    model.net = None
    active_fit(make_trainer(spy, make_ensemble_callback()), model, make_data())
    assert len({tuple(start["net.0.weight"].flatten().tolist()) for start in spy.starts}) == 6


def test_a_parameter_that_nothing_resets_is_refused_before_anything_is_trained(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    model = make_model()
    model.temperature = nn.Parameter(torch.ones(()))
    trainer = make_trainer(make_ensemble_callback())
    with pytest.raises(ValueError, match="of its submodules writes temperature in place"):
        active_fit(trainer, model, make_data())
    assert trainer.global_step == 0
    assert model.temperature.item() == 1


def test_a_plain_fit_is_refused_with_the_way_out(make_trainer, make_model, make_data, make_ensemble_callback):
    trainer, datamodule = make_trainer(make_ensemble_callback()), make_data()
    with pytest.raises(
        RuntimeError, match=r"whose members take a fit each, and `trainer.fit` is one. Call `active_fit"
    ):
        trainer.fit(make_model(), datamodule=datamodule)
    assert trainer.global_step == 0


def test_a_plain_fit_after_the_rounds_is_refused_too(make_trainer, make_model, make_data, make_ensemble_callback):
    callback, model, datamodule = make_ensemble_callback(max_rounds=1), make_model(), make_data()
    active_fit(make_trainer(callback), model, datamodule)
    with pytest.raises(RuntimeError, match="whose members take a fit each"):
        make_trainer(callback).fit(model, datamodule=datamodule)


def test_another_number_of_samples_than_members_is_refused(make_ensemble_callback):
    with pytest.raises(ValueError, match="`num_samples` is 8, but the ensemble has 3 members"):
        make_ensemble_callback(num_samples=8)
    assert make_ensemble_callback(num_samples=3).settings.num_samples == 3


def test_random_trains_all_members_too_so_that_learning_curves_compare(
    make_trainer, make_model, make_data, make_ensemble_callback
):
    spy = Weights()
    active_fit(make_trainer(spy, make_ensemble_callback(Random())), make_model(), make_data())
    assert len(spy.ends) == 6


@pytest.mark.slow
def test_given_checkpoints_score_the_pool_while_the_model_is_fitted_once_a_round(
    make_trainer, make_model, make_data, make_ensemble_callback, tmp_path
):
    paths = [tmp_path / f"{k}.pt" for k in range(2)]
    for k, path in enumerate(paths):
        torch.save(make_model(k + 1).state_dict(), path)
    spy, datamodule = Weights(), make_data()
    callback = make_ensemble_callback(BALD(), posterior=DeepEnsemble(checkpoints=paths))
    first, last = active_fit(make_trainer(spy, callback), make_model(), datamodule)
    assert (len(spy.ends), callback.settings.num_samples, last.num_labelled) == (2, 2, 10)
    inputs = datamodule.inner.train_dataloader().dataset.tensors[0]
    log_probs = [make_model(k + 1).eval()(inputs).log_softmax(dim=1).detach() for k in range(2)]
    bald_N = mutual_information(torch.stack(log_probs, dim=1))
    bald_N[datamodule.labels.round_of_N == 0] = -1
    assert first.acquired == bald_N.topk(4).indices.tolist()
    plain = make_ensemble_callback(BALD(), posterior=DeepEnsemble(checkpoints=paths))
    make_trainer(plain).fit(make_model(), datamodule=make_data())
    assert plain.rounds[0].acquired == first.acquired


def test_a_checkpoint_of_another_model_is_refused_before_the_training(
    make_trainer, make_model, make_data, make_ensemble_callback, tmp_path
):
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path in paths:
        torch.save(nn.Linear(2, 2).state_dict(), path)
    trainer = make_trainer(make_ensemble_callback(posterior=DeepEnsemble(checkpoints=paths)))
    with pytest.raises(ValueError, match=r"a\.pt holds another network than TinyModule"):
        active_fit(trainer, make_model(), make_data())
    assert trainer.global_step == 0


@pytest.mark.slow
def test_the_command_line_builds_an_ensemble_and_its_config_runs_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    posterior = {"class_path": "DeepEnsemble", "init_args": {"num_members": 2, "fresh": ["net"]}}
    quick = ["--trainer.max_epochs=1", "--data.points_per_epoch=64", "--trainer.enable_progress_bar=false"]
    quick += ["--trainer.callbacks.max_rounds=2", "--trainer.callbacks.num_samples=null"]
    base = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml")]
    run([*base, *quick, f"--trainer.callbacks.posterior={json.dumps(posterior)}"])
    folder = Path("runs") / "repeated_digits"
    header, rounds = read_journal(folder / "version_0")
    assert as_call(header["posterior"]).startswith("DeepEnsemble(num_members=2, checkpoints=None, fresh=['net']")
    assert header["num_samples"] == 2
    run(["fit", "--config", str(folder / "version_0" / "config.yaml")])
    assert [e.acquired for e in read_journal(folder / "version_1")[1]] == [entry.acquired for entry in rounds]
