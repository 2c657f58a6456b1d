"""Lightning's tuners within the rounds and before them: the fits of a plain Trainer on the same labelled samples."""

import gc

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from al_lightning import BALD, ActiveLearning, ActiveLearningDataModule, active_fit
from al_lightning._lightning import has_only_tuned, is_tuning
from al_lightning.randomness import derived_seed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*`weights_only` was not set"),
    pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`"),
]
TARGETS = torch.arange(90) % 3
INPUTS = torch.eye(3, 4)[TARGETS] + 0.5 * torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
TOO_LARGE = 12


@pytest.fixture(autouse=True)
def _only_new_objects_are_collected():
    """Spare the tuners' many collections of garbage all that was there before: most of their time in a long session."""
    gc.freeze()
    yield
    gc.unfreeze()


class Shared(list):
    """A list that several fits share: it is not put back to empty."""

    def __deepcopy__(self, memo):
        return self


class Uncopied(TensorDataset):
    def __deepcopy__(self, memo):
        raise TypeError("a dataset is not to be copied")


class InAttribute(LightningDataModule):
    def __init__(self, only=None):
        super().__init__()
        self.batch_size, self.only = 8, only

    def train_dataloader(self):
        dataset = Uncopied(INPUTS, TARGETS)
        return DataLoader(
            dataset if self.only is None else Subset(dataset, self.only), batch_size=self.found, shuffle=True
        )

    def val_dataloader(self):
        return [DataLoader(Uncopied(INPUTS[:20], TARGETS[:20]), batch_size=self.found)]

    @property
    def found(self):
        return self.batch_size


class InHyperParameters(InAttribute):
    def __init__(self, only=None, batch_size=8):
        super(InAttribute, self).__init__()  # not its batch size
        self.save_hyperparameters(ignore=["only"])
        self.only = only

    @property
    def found(self):
        return self.hparams.batch_size


class Module(LightningModule):
    """Remembers its batches, and has no memory for large ones."""

    def __init__(self):
        super().__init__()
        self.lr, self.seen = 0.05, Shared()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        self.seen.append((len(batch[0]), batch[0].sum().item()))
        if len(batch[0]) >= TOO_LARGE:
            raise RuntimeError("CUDA out of memory.")
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Found(Callback):
    """What each training begins with."""

    def __init__(self):
        self.sizes, self.rates = Shared(), Shared()

    def on_train_start(self, trainer, pl_module):
        self.sizes.append(trainer.train_dataloader.batch_size)
        # what was found, and what is used: Lightning before 2.6 loses what its callback finds
        self.rates.append((pl_module.lr, trainer.optimizers[0].param_groups[0]["lr"]))


def acquiring(**settings):
    return ActiveLearning(BALD(), **{"query_size": 9, "num_samples": 4, "max_rounds": 3, **settings})


def plain_fits(make_trainer, rounds, initial, *callbacks, data=InAttribute, **arguments):
    """The fits on what was labelled in each round, each of a new Trainer, model and data module."""
    labelled, fits = list(initial), []
    for number, record in enumerate(rounds):
        model, found = Module(), Found()
        trainer = make_trainer(found, *[make() for make in callbacks], **arguments)
        seed_everything(derived_seed(0, number, "fit"), workers=True, verbose=False)
        trainer.fit(model, datamodule=data(only=sorted(labelled)))
        fits.append((model.seen, found))
        labelled += record.acquired
    return fits


@pytest.mark.slow
@pytest.mark.parametrize("data", [InAttribute, InHyperParameters])
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_found_in_each_round_is_that_of_a_plain_fit(make_trainer, data, mode):
    def finder():
        return BatchSizeFinder(mode=mode, steps_per_trial=2, max_trials=5)

    model, found = Module(), Found()
    datamodule = ActiveLearningDataModule(data(), initial=24)
    rounds = active_fit(make_trainer(finder(), found, acquiring(), max_epochs=1), model, datamodule)
    initial = datamodule.labels.initial_indices.tolist()
    fits = plain_fits(make_trainer, rounds, initial, finder, data=data, max_epochs=1)
    assert model.seen == [batch for seen, _ in fits for batch in seen]
    assert found.sizes == [size for _, found in fits for size in found.sizes]
    assert set(found.sizes) <= {8, 10, 11}  # the largest below TOO_LARGE, with binsearch's margin
    assert datamodule.inner.found == datamodule.found == fits[-1][1].sizes[-1]


@pytest.mark.slow
def test_a_run_that_goes_on_finds_the_batch_sizes_of_the_undisturbed_one(make_trainer, tmp_path):
    def seen(folder, **settings):
        model = Module()
        trainer = make_trainer(BatchSizeFinder(max_trials=5), acquiring(folder=folder, **settings), max_epochs=1)
        rounds = active_fit(trainer, model, ActiveLearningDataModule(InAttribute(), initial=24))
        return list(model.seen), [record.acquired for record in rounds]

    whole, picks = seen(tmp_path / "whole")
    first, _ = seen(tmp_path / "again", max_rounds=1)
    rest, picks_again = seen(tmp_path / "again")
    assert picks_again == picks
    assert rest == whole[: len(first)] + whole[len(first) :]  # the ended round is run again
    assert first == whole[: len(first)]


@pytest.mark.slow
def test_the_learning_rate_found_in_each_round_is_that_of_a_plain_fit(make_trainer):
    def finder():
        return LearningRateFinder(num_training_steps=24, early_stop_threshold=None)

    model, found = Module(), Found()
    datamodule = ActiveLearningDataModule(InAttribute(), initial=24)
    trainer = make_trainer(finder(), found, acquiring(), max_epochs=8)
    rounds = active_fit(trainer, model, datamodule)
    initial = datamodule.labels.initial_indices.tolist()
    fits = plain_fits(make_trainer, rounds, initial, finder, max_epochs=8)
    assert found.rates == [rate for _, found in fits for rate in found.rates]
    assert len({rate for rate, _ in found.rates} - {0.05}) > 1
    assert model.seen == [batch for seen, _ in fits for batch in seen]


class TwiceAsLarge(Callback):
    """Sets the batch size as users do, in the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.datamodule.batch_size *= 2


def test_what_a_callback_sets_holds_for_the_round_and_not_for_the_next(make_trainer):
    model = Module()
    inner = InAttribute()
    inner.batch_size = 4
    trainer = make_trainer(TwiceAsLarge(), acquiring(max_rounds=2), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    active_fit(trainer, model, ActiveLearningDataModule(inner, initial=24))
    sizes = [size for size, _ in model.seen]
    assert sizes[:15] == [4] * 12 + [8] * 3  # Lightning asks for the loader before an epoch starts
    assert sizes[15:] == [4] * 8 + [1] + [4] * 8 + [1] + [8] * 4 + [1]


@pytest.mark.slow
@pytest.mark.parametrize("folder", [False, True])
def test_a_trainer_that_was_tuned_runs_as_one_that_begins_with_what_was_found(make_trainer, tmp_path, folder):
    results = []
    for is_tuned in (True, False):
        model, found = Module(), Found()
        inner = InAttribute()
        inner.batch_size = 6
        settings = {"folder": tmp_path / str(is_tuned)} if folder else {}
        trainer = make_trainer(found, acquiring(**settings), max_epochs=1)
        datamodule = ActiveLearningDataModule(inner, initial=24)
        if is_tuned:
            size = Tuner(trainer).scale_batch_size(model, datamodule=datamodule, max_trials=5, init_val=4)
            assert (inner.batch_size, has_only_tuned(trainer)) == (size, True)
            assert not folder or not settings["folder"].exists()
        else:
            inner.batch_size = results[0][-1]
        del model.seen[:]
        rounds = active_fit(trainer, model, datamodule)
        results.append([[record.acquired for record in rounds], list(model.seen), list(found.sizes), inner.batch_size])
    assert results[0] == results[1]
    assert results[0][2] == [results[0][3]] * 3 != [6] * 3


class Asks(Callback):
    """Whether the fit is a Tuner's."""

    def __init__(self):
        self.answers = Shared()

    def setup(self, trainer, pl_module, stage):
        self.answers.append(is_tuning(trainer))


@pytest.mark.slow
def test_a_tuners_fit_is_told_from_others_and_leaves_a_trainer_that_has_not_trained(make_trainer):
    asks = Asks()
    trainer = make_trainer(asks, max_epochs=2)
    assert not has_only_tuned(trainer)
    Tuner(trainer).scale_batch_size(Module(), datamodule=InAttribute(), max_trials=1)
    Tuner(trainer).lr_find(Module(), datamodule=InAttribute(), num_training=3, update_attr=False)
    assert has_only_tuned(trainer)
    trainer.fit(Module(), datamodule=InAttribute())
    assert asks.answers == [True, True, False]
    assert not has_only_tuned(trainer)
    assert isinstance(trainer, Trainer)
