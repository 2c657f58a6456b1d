"""What each fit starts from: the round that is due, its seed, and the run's first weights."""

import logging

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from al_lightning import BALD, DeepEnsemble, Random, active_fit
from al_lightning.records.journal import read_journal
from al_lightning.records.weights import read_states
from al_lightning.rounds.start import Start


class Seen(list):
    """A list that several fits share: it is not put back to empty."""

    def __deepcopy__(self, memo):
        return self


class Starts(Callback):
    """The weights at the start of each training, and a number that it would draw next; may die in a round."""

    def __init__(self, dies_in_fit=None):
        self.weights, self.draws, self.dies_in_fit = Seen(), Seen(), dies_in_fit

    def on_train_start(self, trainer, pl_module):
        self.weights.append({name: value.tolist() for name, value in pl_module.state_dict().items()})
        with torch.random.fork_rng():
            self.draws.append(torch.rand(()).item())
        if len(self.weights) == self.dies_in_fit:
            raise RuntimeError("killed")


@pytest.fixture
def fits(make_trainer, make_model, make_data, make_callback):
    """Run what is due of a run, and return what its fits started from."""

    def fits(folder, *, model, dies_in_fit=None, **settings):
        spy, callback = Starts(dies_in_fit), make_callback(folder=folder, **settings)
        trainer = make_trainer(spy, callback)
        if dies_in_fit is None:
            active_fit(trainer, model, make_data(), seed=3)
        else:
            with pytest.raises(RuntimeError, match="killed"):
                active_fit(trainer, model, make_data(), seed=3)
        return list(zip(spy.weights, spy.draws, strict=True))

    return fits


def layers():
    return [nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)]


@pytest.fixture
def make_late(make_model):
    """A model of which Lightning builds all, or the last layer, in one of its hooks."""
    tiny = type(make_model())

    class InConfigureModel(tiny):
        def configure_model(self):
            self.net.extend(layers()[len(self.net) :])

    class InSetup(tiny):
        def setup(self, stage):
            self.net.extend(layers()[len(self.net) :])

    def make(hook, *, num_built, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = {"configure_model": InConfigureModel, "setup": InSetup}[hook]()
            model.net = nn.Sequential(*layers()[:num_built])
        return model

    return make


SETTINGS = {
    "afresh": {},
    "warm": {"warm_start": True},
    "ensemble": {"posterior": DeepEnsemble, "num_samples": None, "max_rounds": 2},
    "warm ensemble": {"posterior": DeepEnsemble, "num_samples": None, "max_rounds": 2, "warm_start": True},
}


def settings_of(kind):
    settings = dict(SETTINGS[kind])
    return {**settings, "posterior": DeepEnsemble(2)} if "posterior" in settings else settings


@pytest.mark.long
@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize(("hook", "num_built"), [("configure_model", 0), ("setup", 3)])
def test_a_model_that_lightning_builds_starts_in_a_new_process_as_in_the_old(
    fits, make_late, tmp_path, kind, hook, num_built
):
    whole = fits(tmp_path / "whole", model=make_late(hook, num_built=num_built, seed=1), **settings_of(kind))
    per_round = 2 if "ensemble" in kind else 1
    for dies_in_fit in (1, per_round + 1):  # in the first round, and in the second
        folder = tmp_path / str(dies_in_fit)
        first = make_late(hook, num_built=num_built, seed=1)
        fits(folder, model=first, dies_in_fit=dies_in_fit, **settings_of(kind))
        again = fits(folder, model=make_late(hook, num_built=num_built, seed=2), **settings_of(kind))
        assert again == whole[dies_in_fit - 1 :]


@pytest.mark.slow
def test_all_fits_start_from_the_first_weights_of_the_first_process(fits, make_model, tmp_path):
    first = make_model(1)
    expected = {name: value.tolist() for name, value in first.state_dict().items()}
    before = fits(tmp_path, model=first, dies_in_fit=2)
    after = fits(tmp_path, model=make_model(2))
    assert [weights for weights, _ in before + after] == [expected] * 4
    (saved,) = first_weights(tmp_path)
    assert {name: value.tolist() for name, value in saved.items()} == expected


def first_weights(folder):
    header, _ = read_journal(folder)
    return read_states(folder / "first_weights.pt", digest=header["first_weights"], way_out="start anew")


def plain(weights):
    return {name: value.tolist() for name, value in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["last", "best", "ensemble", "warm", "late"])
def test_a_run_that_has_ended_gives_its_model_back(
    kind, make_model, make_late, make_trainer, make_data, make_callback, tmp_path, caplog
):
    def active(*, max_rounds=2):
        model = make_late("setup", num_built=2, seed=0) if kind == "late" else make_model(0)
        best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val_loss")
        settings = {"weights": "best"} if kind == "best" else {}
        settings |= {"posterior": DeepEnsemble(2), "num_samples": None} if kind == "ensemble" else {}
        settings |= {"warm_start": True} if kind == "warm" else {}
        callback = make_callback(folder=tmp_path / "run", max_rounds=max_rounds, **settings)
        trainer = make_trainer(best, callback, enable_checkpointing=True)
        active_fit(trainer, model, make_data(), seed=3)
        return plain(model.state_dict()), callback

    at_the_end, before = active()
    with caplog.at_level(logging.INFO):
        again, after = active()
    assert again == at_the_end
    if kind == "ensemble":
        states = zip(after.posterior.states, before.posterior.states, strict=True)
        assert all(plain(given_back) == plain(state) for given_back, state in states)
    assert "The model has the weights that the run ended with." in caplog.text
    assert active(max_rounds=3)[0] != at_the_end
    (tmp_path / "run" / "last_weights.pt").unlink()  # as an older version would have left the folder
    caplog.clear()
    with caplog.at_level(logging.INFO):
        first = active(max_rounds=3)[0]
    assert first == plain(first_weights(tmp_path / "run")[0])
    assert "The model has the weights that the run began with." in caplog.text


@pytest.mark.slow
def test_only_a_run_that_has_ended_keeps_its_model_and_goes_on_without_it(fits, make_model, tmp_path):
    fits(tmp_path, model=make_model(1), dies_in_fit=2)
    assert not (tmp_path / "last_weights.pt").exists()
    first, *_ = fits(tmp_path, model=make_model(1), max_rounds=2)
    assert (tmp_path / "last_weights.pt").exists()
    (more,) = fits(tmp_path, model=make_model(1), max_rounds=3)[-1:]
    assert more[0] == first[0]  # the first weights, not the last


def test_each_round_has_its_seed_in_any_process(fits, make_model, tmp_path):
    before = fits(tmp_path, model=make_model(1), dies_in_fit=2)
    after = fits(tmp_path, model=make_model(2))
    draws = [draw for _, draw in before + after]
    assert draws[1] == draws[2]  # the round that was killed, again
    assert len(set(draws)) == 3


def test_a_process_that_ended_before_its_first_training_leaves_no_weights(fits, make_model, make_data, tmp_path):
    class Early(type(make_model())):
        def on_fit_start(self):
            raise RuntimeError("killed")

    fits(tmp_path, model=make_model(1), dies_in_fit=1)
    assert (tmp_path / "first_weights.pt").exists()
    other = tmp_path / "other"
    model = make_model(1)
    model.__class__ = Early
    assert fits(other, model=model, dies_in_fit=1) == []
    assert not (other / "first_weights.pt").exists()


@pytest.mark.slow
def test_a_named_part_that_is_built_late_is_fresh_in_every_member(fits, make_late, tmp_path):
    model = make_late("configure_model", num_built=3, seed=1)
    backbone = model.net[0].weight.tolist()
    settings = {**settings_of("ensemble"), "posterior": DeepEnsemble(2, fresh=["net.3"])}
    found = [weights for weights, _ in fits(tmp_path, model=model, **settings)]
    assert all(weights["net.0.weight"] == backbone for weights in found)
    assert len({str(weights["net.3.weight"]) for weights in found}) == 4


@pytest.mark.slow
def test_whose_weights_an_ensemble_takes_is_said_in_the_first_process_alone(fits, make_model, tmp_path, caplog):
    for dies_in_fit, times in ((3, 1), (None, 0)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            fits(tmp_path, model=make_model(), dies_in_fit=dies_in_fit, **settings_of("ensemble"))
        assert sum("starts with new weights" in record.message for record in caplog.records) == times


@pytest.mark.slow
def test_the_checkpoints_of_a_run_that_goes_on_have_the_names_of_its_rounds(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    for max_rounds in (1, 2):
        callback = make_callback(folder=tmp_path / "run", max_rounds=max_rounds)
        checkpoint = ModelCheckpoint(dirpath=tmp_path / str(max_rounds))
        active_fit(make_trainer(callback, checkpoint, enable_checkpointing=True), make_model(), make_data())
    names = sorted(path.name[:9] for path in (tmp_path / "2").iterdir())
    assert names == ["round=000", "round=001"]  # the ended round is run again


@pytest.mark.slow
def test_a_checkpoint_in_a_new_folder_leaves_the_first_weights_those_of_the_model(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    def make(*callbacks, **arguments):
        return make_trainer(
            *callbacks, ModelCheckpoint(dirpath=tmp_path / "checkpoints"), enable_checkpointing=True, **arguments
        )

    active_fit(make(make_callback(max_rounds=1), max_epochs=1), make_model(1), make_data())
    (path,) = (tmp_path / "checkpoints").iterdir()
    spy, model = Starts(), make_model(2)
    first = {name: value.tolist() for name, value in model.state_dict().items()}
    active_fit(make(spy, make_callback()), model, make_data(), ckpt_path=path)
    assert spy.weights[0] != first
    assert spy.weights[1:] == [first, first]


def test_the_callback_is_gone_after_the_run(make_trainer, make_model, make_data, make_callback):
    trainer = make_trainer(make_callback(max_rounds=1))
    active_fit(trainer, make_model(), make_data())
    assert not any(isinstance(callback, Start) for callback in trainer.callbacks)


class Excludes(Callback):
    """Takes samples that nobody can label out of the pool, once."""

    def on_train_start(self, trainer, pl_module):
        labels = trainer.datamodule.labels
        if len(labels.excluded_indices) == 0:
            trainer.datamodule.exclude(labels.pool_indices[:5])


@pytest.mark.slow
def test_samples_that_were_excluded_stay_so_when_the_run_goes_on(
    tmp_path, make_trainer, make_model, make_data, make_callback
):
    first = make_data()
    active_fit(make_trainer(Excludes(), make_callback(folder=tmp_path, max_rounds=2)), make_model(), first)
    second = make_data()
    active_fit(make_trainer(make_callback(folder=tmp_path, max_rounds=3)), make_model(), second)
    assert second.labels.excluded_indices.tolist() == first.labels.excluded_indices.tolist()
    assert len(first.labels.excluded_indices) == 5


def test_random_transforms_of_the_pool_do_not_shift_the_training(
    make_trainer, make_model, make_data, make_callback, monkeypatch
):
    losses = []
    for rule in (BALD(), Random()):  # the one looks at the pool before the first training, the other does not
        data = make_data()
        monkeypatch.setattr(data.inner, "train_dataloader", lambda: DataLoader(Noisy(), batch_size=8, shuffle=True))
        rounds = active_fit(make_trainer(make_callback(rule, max_rounds=1)), make_model(), data)
        losses.append(rounds[0].metrics["val_loss"])
    assert losses[0] == losses[1]


class Noisy(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.eye(3, 4)[index % 3] + torch.randn(4), index % 3


def test_a_generator_of_the_users_own_begins_anew_with_each_fit(make_trainer, make_model, make_data, make_callback):
    def loader_of(generator):
        return DataLoader(Numbered(), batch_size=8, shuffle=True, generator=generator)

    orders = []
    for _ in range(2):
        data, generator = make_data(), torch.Generator().manual_seed(3)
        data.inner.train_dataloader = lambda generator=generator: loader_of(generator)
        data.setup("fit")
        orders.append([index for _, targets in data.train_dataloader() for index in targets.tolist()])
        data.setup("fit")  # the next fit, in this process or in another
        orders.append([index for _, targets in data.train_dataloader() for index in targets.tolist()])
    assert orders[0] == orders[1] == orders[2] == orders[3]


class Numbered(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.zeros(4), index % 3


def test_a_run_that_has_ended_leaves_the_trainer_as_it_was(
    tmp_path, make_trainer, make_model, make_data, make_callback
):
    for fit in ("active", "active", "plain"):
        callback, starts = make_callback(folder=tmp_path, max_rounds=1), Starts()
        trainer = make_trainer(callback, starts, max_epochs=2)
        callbacks = list(trainer.callbacks)
        if fit == "active":
            active_fit(trainer, make_model(), make_data())
        else:
            with pytest.raises(ValueError, match="`fit_seed` is 0, and this run's is None"):
                trainer.fit(make_model(), datamodule=make_data())
        assert trainer.max_epochs == 2
        assert trainer.callbacks == callbacks
    starts = Starts()
    for _ in range(2):
        trainer = make_trainer(make_callback(folder=tmp_path / "plain", max_rounds=1), starts, max_epochs=2)
        trainer.fit(make_model(), datamodule=make_data())
        assert trainer.max_epochs == 2
    assert len(starts.weights) == 1
