"""Each round is the fit that a new model would have had, whatever the fits before it have done to this one."""

import itertools
import random
import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics
from pytorch_lightning import Callback, LightningModule, seed_everything
from pytorch_lightning.callbacks import LearningRateFinder
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, Subset

from al_lightning import DeepEnsemble, active_fit
from al_lightning.randomness import derived_seed

ROUNDS = 3


class Net(LightningModule):
    """What a user has; `factor` makes the training depend on whatever a subclass keeps."""

    def __init__(self):
        super().__init__()
        self.lr = 0.05
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        self.keep()

    def keep(self):
        """Where a subclass makes what it keeps."""

    def factor(self):
        return 1.0

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return nn.functional.cross_entropy(self(inputs), targets) * self.factor()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class EvaluatesItself(Net):
    def on_train_end(self):
        self.eval()


class FreezesItself(Net):
    def on_fit_end(self):
        self.freeze()


class EvaluatesALayer(Net):
    def teardown(self, stage):
        self.net[1].eval()


class AnnealsDropout(Net):
    def on_train_epoch_end(self):
        self.net[3].p *= 0.5


class AnnealsItsTemperature(Net):
    def keep(self):
        self.temperature = 1.0

    def factor(self):
        self.temperature *= 0.5
        return self.temperature


class GrowsAList(Net):
    def keep(self):
        self.losses = []

    def factor(self):
        self.losses.append(1.0)
        return float(len(self.losses))


class KeepsThingsInThings(Net):
    def keep(self):
        self.config = SimpleNamespace(groups=[{"scale": deque([1.0], maxlen=3)}], seen={0}, pair=([2.0], "x"))

    def factor(self):
        scale = self.config.groups[0]["scale"]
        scale.append(scale[-1] * 0.5)
        self.config.seen.add(len(self.config.seen))
        self.config.pair[0][0] *= 1.5
        return scale[-1] * len(self.config.seen) * self.config.pair[0][0]


class HasSlots(Net):
    class Slotted:
        __slots__ = ("steps", "until")

    def keep(self):
        self.slotted = self.Slotted()
        self.slotted.steps = 1

    def factor(self):
        self.slotted.steps += 1
        self.slotted.until = 3
        return float(self.slotted.steps)


class WritesTensors(Net):
    def keep(self):
        self.scale, self.scales = torch.ones(1), np.ones(2)

    def factor(self):
        self.scale.mul_(0.5)
        self.scales[1] *= 1.5
        return self.scale * float(self.scales[1])


class LearnsATensorByHand(Net):
    def keep(self):
        self.log_scale = torch.zeros(1, requires_grad=True)

    def factor(self):
        if self.log_scale.grad is not None:
            self.log_scale.data -= 0.1 * self.log_scale.grad
        return self.log_scale.exp()


class DrawsItself(Net):
    def keep(self):
        self.torch, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(2)
        self.old, self.python = np.random.RandomState(3), random.Random(4)  # noqa: S311

    def factor(self):
        drawn = torch.rand((), generator=self.torch).item() + self.numpy.random()
        return drawn + self.old.rand() + self.python.random()


def halve(parameter):
    parameter.grad.mul_(0.5)


class HooksItself(Net):
    def on_fit_start(self):
        self.net[0].register_forward_hook(lambda module, inputs, output: output * 1.1)
        self.net[4].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.9,))
        self.net[6].register_full_backward_hook(lambda module, grads, outputs: tuple(grad * 1.5 for grad in grads))
        self.net[0].weight.register_hook(lambda grad: grad * 2)
        self.net[4].weight.register_post_accumulate_grad_hook(halve)
        self.register_state_dict_post_hook(lambda *arguments: None)


class Normalises(Net):
    def on_fit_start(self):
        parametrizations.weight_norm(self.net[0])
        parametrizations.spectral_norm(self.net[4])
        self.trainer.strategy.setup_optimizers(self.trainer)


class Prunes(Net):
    def on_train_end(self):
        prune.l1_unstructured(self.net[0], "weight", 0.5)


class ReplacesLayers(Net):
    def on_train_end(self):
        self.net[3] = nn.Dropout(0.1)
        self.net[5] = nn.Tanh()
        self.net.append(nn.Linear(3, 3))
        self.other = nn.Linear(1, 1)


class RemovesALayer(Net):
    def on_train_end(self):
        del self.net[1]


class ReplacesAParameter(Net):
    def on_train_end(self):
        self.net[0].weight = nn.Parameter(torch.zeros(8, 4))
        self.net[0].bias = None


class ReplacesItsBuffers(Net):
    def keep(self):
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("means", torch.ones(2), persistent=False)
        self.register_buffer("off", None)

    def factor(self):
        self.count = self.count + 1
        self.means = torch.cat([self.means, self.means])[:64]
        self.off = torch.ones(()) if self.off is None else self.off + 1
        return self.count * self.means.sum() * self.off


class BecomesDouble(Net):
    def teardown(self, stage):
        if stage == "fit":
            self.double()


class ChangesItsMemoryFormat(Net):
    def teardown(self, stage):
        self.net[4].weight.data = self.net[4].weight.data.t().contiguous().t()


class HidesAModule(Net):
    """A mean teacher, which is no submodule."""

    def keep(self):
        self.teachers = [nn.Linear(4, 3)]

    def factor(self):
        teacher = self.teachers[0].train(not self.teachers[0].training)
        with torch.no_grad():
            teacher.weight.mul_(0.9)
        return teacher.weight.abs().mean() * (2.0 if teacher.training else 1.0)


class HidesAMetric(Net):
    def keep(self):
        self.metrics = {"mean": torchmetrics.MeanMetric()}

    def factor(self):
        self.metrics["mean"].update(float(self.metrics["mean"].update_count + 1))
        return float(self.metrics["mean"].compute())


class KeepsItsOptimizer(Net):
    def configure_optimizers(self):
        for group in self.kept.param_groups:
            group["lr"] *= 0.5
        return self.kept

    def __init__(self):
        super().__init__()
        self.kept = torch.optim.Adam(self.parameters(), lr=0.05)


class ChangesItsHyperparameters(Net):
    def __init__(self, scale=1.0):
        super().__init__()
        self.save_hyperparameters()

    def factor(self):
        self.hparams.scale *= 0.5
        return self.hparams.scale


class ChangesItsClass(Net):
    def on_train_end(self):
        self.net[2].__class__ = nn.Tanh


class CountsItsSetups(Net):
    def keep(self):
        self.setups = 0

    def setup(self, stage):
        self.setups += stage == "fit"

    def factor(self):
        return float(self.setups)


class WeighsClassesInSetup(Net):
    """Class weights of the labels that there are by now."""

    def setup(self, stage):
        targets = [target for _, targets in self.trainer.datamodule.train_dataloader() for target in targets.tolist()]
        self.register_buffer("class_weights", torch.bincount(torch.tensor(targets), minlength=3) / len(targets))

    def factor(self):
        return 1 + self.class_weights[0]


class IsEvaluatedBefore(Net):
    def keep(self):
        self.net[1].eval()

    def on_train_end(self):
        self.train()


class BuildsItselfInSetup(Net):
    """The whole net is a new one in every fit; the unnamed guard is a flag."""

    guarded = False

    def keep(self):
        self.net, self.built = None, False

    def setup(self, stage):
        if not (self.guarded and self.built):
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
            self.built = True


class BuildsItselfOnceByAFlag(BuildsItselfInSetup):
    guarded = True


class BuildsItselfInConfigureModel(BuildsItselfInSetup):
    def setup(self, stage):
        pass

    def configure_model(self):
        if self.net is None:
            super().setup("fit")


KINDS = [kind for kind in vars().copy().values() if isinstance(kind, type) and issubclass(kind, Net)]
LATE = [kind for kind in KINDS if issubclass(kind, BuildsItselfInSetup)]


class Seen(list):
    """A list that several rounds share: it is not put back to empty."""

    def __deepcopy__(self, memo):
        return self


class Weights(Callback):
    """Remembers the parameters and buffers at the start and at the end of each training."""

    def __init__(self):
        self.starts, self.ends = Seen(), Seen()

    def on_train_start(self, trainer, pl_module):
        self.starts.append(tensors_of(pl_module))

    def on_train_end(self, trainer, pl_module):
        self.ends.append(tensors_of(pl_module))


class SeededAtTheStart(Callback):
    """The generators as the driver leaves them where Lightning's hooks may have drawn from them."""

    def __init__(self, seed):
        self.seed = seed

    def on_fit_start(self, trainer, pl_module):
        seed_everything(self.seed, verbose=False)


def tensors_of(model):
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


@pytest.fixture
def stand_alone(make_trainer, make_data):
    """The parameters and buffers of a new model after a fit of its own on the labels of a round."""

    def stand_alone(kind, datamodule, index, *, seed=7, callbacks=()):
        labels = datamodule.labels.round_of_N
        chosen = ((labels >= 0) & (labels <= index)).nonzero().flatten().tolist()

        class Plain(type(datamodule.inner)):
            def train_dataloader(self):
                return DataLoader(Subset(super().train_dataloader().dataset, chosen), batch_size=8, shuffle=True)

        weights, seed = Weights(), derived_seed(seed, index, "fit")
        seed_everything(seed, verbose=False)
        trainer = make_trainer(SeededAtTheStart(seed), weights, *callbacks)
        trainer.fit(made(kind), datamodule=Plain())
        return weights.ends[0]

    return stand_alone


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LATE], ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore:.*in eval mode")
def test_each_round_of_a_model_that_changes_itself_is_a_fit_of_a_new_one(
    kind, stand_alone, make_trainer, make_data, make_callback
):
    datamodule, weights = make_data(), Weights()
    active_fit(make_trainer(weights, make_callback(max_rounds=ROUNDS)), made(kind), datamodule, seed=7)
    assert len(weights.ends) == ROUNDS
    for index, found in enumerate(weights.ends):
        assert_equal(found, stand_alone(kind, datamodule, index))


class BuiltBefore(Net):
    """The net that the late ones build, with the weights that they had in the first round."""

    first = None

    def keep(self):
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.load_state_dict(self.first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LATE, ids=lambda kind: kind.__name__)
def test_a_model_that_is_built_anew_in_each_fit_starts_it_from_the_same_weights(
    kind, stand_alone, make_trainer, make_data, make_callback, monkeypatch
):
    datamodule, weights = make_data(), Weights()
    active_fit(make_trainer(weights, make_callback(max_rounds=2)), made(kind), datamodule, seed=7)
    monkeypatch.setattr(BuiltBefore, "first", weights.starts[0])
    for index, found in enumerate(weights.ends):
        assert_equal(found, stand_alone(BuiltBefore, datamodule, index))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LATE, ids=lambda kind: kind.__name__)
def test_a_warm_model_that_is_built_anew_in_each_fit_continues_from_its_weights(
    kind, make_trainer, make_data, make_callback
):
    weights = Weights()
    active_fit(make_trainer(weights, make_callback(max_rounds=2, warm_start=True)), made(kind), make_data(), seed=7)
    assert_equal(weights.starts[1], weights.ends[0])


class BuildsAnotherOne(BuildsItselfInSetup):
    def setup(self, stage):
        if stage == "fit":
            width = self.trainer.datamodule.labels.num_labelled
            self.net = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 3))


def test_a_model_that_is_built_with_other_shapes_in_a_later_round_is_refused(make_trainer, make_data, make_callback):
    with pytest.raises(RuntimeError, match=r"`net.0.weight`.*has the shape \(10, 4\), and in the first fit \(6, 4\)"):
        active_fit(make_trainer(make_callback()), made(BuildsAnotherOne), make_data())


class WarmNet(Net):
    """All of a fit is the weights' but the temperature, which begins anew with each."""

    def keep(self):
        self.temperature = 1.0
        self.seen = Seen()

    def on_train_start(self):
        self.seen.append((self.temperature, self.net[1].training, self.net[3].p, len(self.net[0]._forward_hooks)))

    def on_train_end(self):
        self.temperature, self.net[3].p = 0.1, 0.9
        self.net[0].register_forward_hook(lambda *arguments: None)
        self.eval()


class WarmAndBuilt(WarmNet):
    def keep(self):
        super().keep()
        self.kept_net, self.net = [self.net], None

    def configure_model(self):
        if self.net is None:
            self.net = self.kept_net[0]


@pytest.mark.parametrize("kind", [WarmNet, WarmAndBuilt])
def test_a_warm_start_keeps_weights_alone(kind, make_trainer, make_data, make_callback):
    model, weights = made(kind), Weights()
    active_fit(make_trainer(weights, make_callback(max_rounds=2, warm_start=True)), model, make_data())
    assert model.seen == [(1.0, True, 0.5, 0)] * 2
    assert_equal(weights.starts[1], weights.ends[0])


class GrowsWarm(WarmNet):
    def forward(self, inputs):
        return super().forward(inputs)

    def on_train_end(self):
        super().on_train_end()
        self.head = nn.Linear(1, 1)


def test_a_warm_model_that_has_other_parts_by_now_keeps_them_with_its_attributes(
    make_trainer, make_data, make_callback
):
    model = made(GrowsWarm)
    active_fit(make_trainer(make_callback(max_rounds=2, warm_start=True)), model, make_data())
    assert model.seen == [(1.0, True, 0.5, 0), (0.1, True, 0.5, 0)]


def test_each_member_of_an_ensemble_begins_as_the_model_was(make_trainer, make_data, make_callback):
    model = made(WarmNet)
    callback = make_callback(max_rounds=2, posterior=DeepEnsemble(2), num_samples=None)
    active_fit(make_trainer(callback), model, make_data())
    assert model.seen == [(1.0, True, 0.5, 0)] * 4


@pytest.mark.slow
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_run_that_was_killed_begins_its_next_round_as_an_undisturbed_one(
    warm_start, make_trainer, make_data, make_callback, tmp_path
):
    class Dies(Callback):
        def on_train_start(self, trainer, pl_module):
            if trainer.datamodule.labels.num_labelled > 6:
                raise RuntimeError("killed")

    def run(folder, *callbacks):
        model = made(type("Both", (AnnealsDropout, AnnealsItsTemperature), {}))
        callback = make_callback(folder=tmp_path / folder, max_rounds=3, warm_start=warm_start)
        return active_fit(make_trainer(*callbacks, callback), model, make_data())

    with pytest.raises(RuntimeError, match="killed"):
        run("killed", Dies())
    found, expected = run("killed"), run("whole")
    assert [(record.acquired, record.metrics) for record in found] == [
        (record.acquired, record.metrics) for record in expected
    ]


class SaysItsLearningRate(Net):
    def keep(self):
        self.seen = Seen()

    def setup(self, stage):
        if stage == "fit":
            self.seen.append(self.lr)


@pytest.mark.slow
def test_what_the_learning_rate_finder_has_found_is_found_anew(make_trainer, make_data, make_callback):
    model = made(SaysItsLearningRate)
    finder = LearningRateFinder(num_training_steps=40, early_stop_threshold=None)
    trainer = make_trainer(finder, make_callback(max_rounds=2), max_epochs=40, limit_val_batches=0)
    active_fit(trainer, model, make_data())
    assert model.seen == [0.05] * 2
    assert model.lr != 0.05


class Cannot(Net):
    """What cannot be put back: `take` makes it, `change` is called at the end of each fit."""

    take, change = None, None

    def keep(self):
        self.held = type(self).take()

    def on_train_end(self):
        type(self).change(self)


def locked(value):
    return SimpleNamespace(lock=threading.Lock(), value=value)


CANNOT = {
    "iterator": (lambda: iter(list(range(9))), lambda model: next(model.held)),
    "generator": (lambda: (number for number in range(99)), lambda model: next(model.held)),
    "lock": (lambda: locked(0), lambda model: setattr(model.held, "value", 1)),
    "other lock": (lambda: locked(0), lambda model: setattr(model, "held", locked(0))),
    "bytes": (lambda: bytearray(b"a"), lambda model: model.held.extend(b"b")),
    "counter": (itertools.count, lambda model: next(model.held)),
    "file": (lambda: Path(__file__).open(), lambda model: model.held.close()),  # noqa: SIM115 - the test closes it
}
CAN = {
    "lock": (lambda: locked(0), lambda model: None),
    "sentinel": (object, lambda model: setattr(model, "held", object())),
    "bytes": (lambda: bytearray(b"a"), lambda model: setattr(model, "held", None)),
    "nothing": (lambda: None, lambda model: setattr(model, "held", iter([1]))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CANNOT)
@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support")
def test_what_has_changed_and_cannot_be_put_back_is_named_once(name, make_trainer, make_data, make_callback):
    take, change = CANNOT[name]
    kind = type("Kind", (Cannot,), {"take": staticmethod(take), "change": staticmethod(change)})
    with pytest.warns(UserWarning, match="The fit has changed") as warned:
        active_fit(make_trainer(make_callback(max_rounds=3)), made(kind), make_data())
    (text,) = [str(one.message) for one in warned if "The fit has changed" in str(one.message)]
    assert "The fit has changed `held` of the model, which cannot be put back" in text
    assert "Set it anew in the model's `on_fit_start`." in text


@pytest.mark.slow
@pytest.mark.parametrize("name", CAN)
def test_nothing_is_said_of_what_has_not_changed_or_is_put_back(name, make_trainer, make_data, make_callback):
    take, change = CAN[name]
    kind = type("Kind", (Cannot,), {"take": staticmethod(take), "change": staticmethod(change)})
    active_fit(make_trainer(make_callback(max_rounds=2)), made(kind), make_data())
