"""A batch of one point, on which BatchNorm cannot train, is refused before the first step of a run."""

import copy

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule
from pytorch_lightning.callbacks import BatchSizeFinder
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset, WeightedRandomSampler

from al_lightning import BALD, ActiveLearning, ActiveLearningDataModule, DeepEnsemble, active_fit
from al_lightning.rounds.batch_norm import BatchNormWatch, Coming, Epoch
from al_lightning.rounds.limits import Limits

NETS = {
    "BatchNorm1d": lambda: [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Flatten()],
    "BatchNorm1d of sequences": lambda: [nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2), nn.Flatten()],
    "BatchNorm2d": lambda: [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.Flatten()],
    "BatchNorm2d of one pixel": lambda: [
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 8, 2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
    ],
    "GroupNorm": lambda: [nn.Linear(4, 8), nn.GroupNorm(2, 8)],
    "none": lambda: [nn.Linear(4, 8)],
}
WITH_ONE_VALUE = ("BatchNorm1d", "BatchNorm2d of one pixel")


class Seen(list):
    """A list that all rounds share: it is not put back to empty."""

    def __deepcopy__(self, memo):
        return self


class Module(LightningModule):
    def __init__(self, kind="BatchNorm1d"):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(*NETS[kind](), nn.Dropout(0.5), nn.LazyLinear(3))
            self.net(torch.zeros(2, 4))
        self.steps = Seen()

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.steps.append(batch_idx)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Data(LightningDataModule):
    def __init__(self, batch_size=8, num=60, **arguments):
        super().__init__()
        self.batch_size, self.num, self.arguments = batch_size, num, arguments

    def train_dataloader(self):
        dataset = TensorDataset(torch.randn(self.num, 4), torch.arange(self.num) % 3)
        return DataLoader(dataset, batch_size=self.batch_size, **self.arguments)


@pytest.fixture
def run(make_trainer):
    """Rounds of 7, 12, 17 and 22 labels: with batches of 8 the third leaves one sample over."""

    def run(model=None, data=None, callbacks=(), wrapper=(), trainer=(), **settings):
        datamodule = ActiveLearningDataModule(Data() if data is None else data, **{"initial": 7, **dict(wrapper)})
        settings = {"query_size": 5, "num_samples": 4, "max_rounds": 4, **settings}
        module = Module() if model is None else model
        arguments = {"max_epochs": 1, **dict(trainer)}
        rounds = active_fit(
            make_trainer(*callbacks, ActiveLearning(BALD(), **settings), **arguments), module, datamodule
        )
        return [record.num_labelled for record in rounds]

    return run


REFUSED = (
    r"In round 2, with 17 labelled points, an epoch has a last batch of one point \(the batch size is 8\), and the "
    r"layer 'net\.\d' \(BatchNorm.d\) cannot train on it: it has one value per channel\. Use another batch size \(9 "
    r"leaves none in any round\), `drop_last=True`, `points_per_epoch` as a multiple of it, or another `query_size` "
    r"or `initial`"
)


@pytest.mark.parametrize("kind", WITH_ONE_VALUE)
def test_it_is_refused_before_the_first_step_with_the_round_the_labels_and_the_remedy(run, kind):
    model = Module(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=REFUSED):
        run(model)
    assert len(model.steps) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in NETS if kind not in WITH_ONE_VALUE])
def test_layers_that_train_on_one_sample_are_left_alone(run, kind):
    assert run(Module(kind)) == [7, 12, 17, 22]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "num_labelled"),
    [
        ({"max_labelled": 15, "max_rounds": None}, [7, 12, 15]),
        ({"max_rounds": 2}, [7, 12]),
        ({"query_size": 6, "max_labelled": 22}, [7, 13, 19, 22]),
        ({"wrapper": {"points_per_epoch": 16}}, [7, 12, 17, 22]),
        ({"data": Data(batch_size=7, drop_last=True)}, [7, 12, 17, 22]),
        ({"data": Data(batch_size=9)}, [7, 12, 17, 22]),
        ({"trainer": {"limit_train_batches": 2}}, [7, 12, 17, 22]),
        ({"trainer": {"max_steps": 2, "max_epochs": -1}}, [7, 12, 17, 22]),
    ],
)
def test_rounds_and_batches_that_do_not_come_do_not_count(run, arguments, num_labelled):
    assert run(**arguments) == num_labelled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"data": Data(batch_size=1)},
            "In round 0, with 7 .* has batches of one point .* Use another batch size \\(5 leaves",
        ),
        ({"data": Data(batch_size=6)}, "In round 0, with 7 labelled points"),
        ({"wrapper": {"points_per_epoch": 17}}, "In round 0, with 7 labelled points"),
        ({"max_rounds": None}, r"In round 2, with 17 labelled points, .* leaves none in any round"),
        ({"max_rounds": None, "query_size": 10, "data": Data(num=25)}, r"In round 1, with 17 labelled points"),
        ({"max_rounds": None, "max_labelled": 25, "query_size": 9}, r"In round 2, with 25 labelled points"),
        ({"posterior": DeepEnsemble(2), "num_samples": None}, "In round 2, with 17 labelled points"),
        ({"trainer": {"limit_train_batches": 3}}, "In round 2, with 17 labelled points"),
    ],
)
def test_the_first_round_that_comes_to_it_is_named(run, arguments, words):
    with pytest.raises(ValueError, match=words):
        run(**arguments)


class Frozen(Module):
    """Fixes its BatchNorm in one of the hooks of training."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self._freeze)

    def _freeze(self, *arguments):
        self.net[1].eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training")
@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"])
def test_layers_that_a_hook_has_fixed_may_train_on_one_sample(run, hook):
    assert run(Frozen(hook)) == [7, 12, 17, 22]


def test_before_a_target_that_may_end_the_run_it_is_a_warning_once_and_then_an_error(run):
    class Logging(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss.detach())
            return loss

    reached = {"monitor": "loss", "target": 100.0, "mode": "min"}
    with pytest.warns(UserWarning, match=rf"{REFUSED}\. Unless 'loss' ends the run before, it will end there\."):
        assert run(Logging(), **reached) == [7]
    model = Logging()
    with (
        pytest.warns(UserWarning, match="Unless 'loss' ends the run before") as warned,
        pytest.raises(ValueError, match=REFUSED),
    ):
        run(model, **{**reached, "target": 0.0})
    assert sum("Unless" in str(warning.message) for warning in warned) == 1
    assert len(model.steps) == 3  # of the two rounds before


class Unlabels(Callback):
    """Takes a label back at the end of the first fit."""

    def on_fit_end(self, trainer, pl_module):
        if trainer.datamodule.labels.num_labelled == 7:
            trainer.datamodule.unlabel(trainer.datamodule.labels.labelled_indices[:1])


def test_each_round_is_looked_at_with_the_labels_that_it_has(run):
    model = Module()
    with pytest.raises(ValueError, match="In round 1, with 11 labelled points"):  # 12, 17, 22 would do
        run(model, callbacks=[Unlabels()], data=Data(batch_size=10))
    assert len(model.steps) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*`weights_only` was not set")
def test_where_each_round_finds_its_own_batch_size_only_this_round_is_known(run):
    assert run(callbacks=[BatchSizeFinder(max_trials=1, init_val=8)], max_rounds=2) == [7, 12]
    with pytest.raises(ValueError, match="In round 0, with 9 labelled points"):
        run(
            callbacks=[BatchSizeFinder(max_trials=1, init_val=4, steps_per_trial=1)],
            wrapper={"initial": 9},
            data=Data(4),
        )


@pytest.mark.parametrize("size", range(1, 6))
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("limit", [1.0, 2, 0.5, 1])
def test_batches_are_counted_as_a_loader_cuts_them(size, drop_last, limit):
    for num in range(1, 20):
        batches = list(DataLoader(range(num), batch_size=size, drop_last=drop_last))
        trained_on = batches[:limit] if isinstance(limit, int) else batches[: int(limit * len(batches))]
        epoch = Epoch(size, drop_last=drop_last, limit=limit)
        assert epoch.has_batch_of_one(num) == any(len(batch) == 1 for batch in trained_on)
        assert [epoch.size_of(index, num) for index in range(len(batches))] == [len(batch) for batch in batches]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("points_per_epoch", [None, 11])
def test_draws_of_a_rank_are_those_of_the_sampler_that_shares_them(num_ranks, points_per_epoch):
    datamodule = ActiveLearningDataModule(Data(), points_per_epoch=points_per_epoch)
    datamodule.setup("fit")
    for num_labelled in range(1, 20):
        share = DistributedSampler(range(points_per_epoch or num_labelled), num_replicas=num_ranks, rank=0)
        assert datamodule.draws_per_epoch(num_labelled, num_ranks=num_ranks) == len(share)


SAMPLERS = {
    "in order": lambda dataset: {},
    "shuffled": lambda dataset: {"shuffle": True},
    "as many as asked": lambda dataset: {"sampler": RandomSampler(dataset, num_samples=9)},
    "weighted": lambda dataset: {"sampler": WeightedRandomSampler([1.0] * len(dataset), len(dataset))},
    "weighted, as many as asked": lambda dataset: {"sampler": WeightedRandomSampler([1.0] * len(dataset), 9)},
}


@pytest.mark.parametrize("points_per_epoch", [None, 11])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_draws_are_those_of_the_training_loader(kind, points_per_epoch):
    if points_per_epoch is not None and "weighted" in kind:
        pytest.skip("the two are refused together")
    dataset = TensorDataset(torch.zeros(30, 4), torch.arange(30) % 3)
    inner = LightningDataModule()
    inner.train_dataloader = lambda: DataLoader(dataset, batch_size=4, **SAMPLERS[kind](dataset))
    datamodule = ActiveLearningDataModule(inner, initial=6, points_per_epoch=points_per_epoch)
    datamodule.setup("fit")
    drawn = sum(len(inputs) for inputs, _ in datamodule.train_dataloader())
    assert datamodule.draws_per_epoch(6, num_ranks=1) == drawn


def test_the_rounds_to_come_end_with_the_limits_or_the_pool():
    def coming(*limits, num_pool=100, **named):
        return list(Coming(4, Limits(*limits, **named), round=1, num_labelled=6, num_pool=num_pool).rounds())

    assert coming(max_rounds=3) == [(1, 6), (2, 10)]
    assert coming(max_labelled=11) == [(1, 6), (2, 10), (3, 11)]
    assert coming(num_pool=5) == [(1, 6), (2, 10), (3, 11)]
    assert coming(max_rounds=2, monitor="val_acc", target=0.9) == [(1, 6)]


def test_a_copy_of_the_model_made_meanwhile_is_free_afterwards():
    found = []
    model = nn.Sequential(nn.BatchNorm1d(3))
    watch = BatchNormWatch(model, 5, found.append)
    twin = copy.deepcopy(model)
    watch.end()
    twin(torch.zeros(5, 3)), model(torch.zeros(5, 3))
    assert found == []
