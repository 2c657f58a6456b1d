"""Real Trainers with models that no posterior can sample: refused before the first step, handed back as they were."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from al_lightning import (
    BALD,
    ActiveLearning,
    ActiveLearningDataModule,
    AnchoredHeads,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    active_fit,
)

POSTERIORS = [
    MCDropout,
    LastLayerLaplace,
    AnchoredHeads,
    MCDropConnect,
    lambda: DeepEnsemble(2, init=lambda module: None),
]


class Part(nn.Module):
    """Between two layers of a net, a function of itself and its input."""

    def __init__(self, function):
        super().__init__()
        self.function, self.state = function, None

    def forward(self, x):
        return self.function(self, x)


def kept(part, x):
    part.state = x if part.state is None else part.state + x
    return part.state


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.drop, self.last = nn.RNN(2, 16), nn.Dropout(), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.drop(self.rnn(x.reshape(-1, 2, 2).transpose(0, 1))[0])[-1])


NO_NETWORK = {
    "probabilities": (lambda net: net.append(nn.Softmax(dim=1)), r"probabilities|\(a softmax or sigmoid"),
    "noise": (lambda net: net.insert(1, Part(lambda _, x: x + torch.randn_like(x))), r"second pass.* first in `net.1`"),
    "batch statistics": (lambda net: net.insert(1, nn.BatchNorm1d(16, track_running_stats=False)), "in `net.1`"),
    "kept": (lambda net: net.insert(1, Part(kept)), r"second pass.*first in `net.1`, .*changes `net.1.state`"),
}
HIDDEN = {
    "behind an if": (
        lambda net: net.insert(1, Part(lambda part, x: functional.dropout(x, 0.3) if part.training else x)),
        r"inside `net.1` \(call 0 of dropout, in training mode alone\)",
    ),
    "of torch.ops": (
        lambda net: net.insert(1, Part(lambda part, x: torch.ops.aten.dropout(x, 0.3, part.training))),
        r"inside `net.1` \(bernoulli_\)",
    ),
}


@pytest.fixture
def refused(make_trainer, make_model, make_data, make_callback):
    def refused(change, posterior, words):
        """Run rounds with a changed model; how the model was before and is afterwards."""
        model = make_model()
        change(model.net)
        before = state(model)
        trainer = make_trainer(make_callback(posterior=posterior, num_samples=None))
        with pytest.raises(ValueError, match=words):
            active_fit(trainer, model, make_data())
        assert trainer.global_step == 0
        assert state(model) == before

    return refused


def state(model):
    parts = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = [(name, module.training, getattr(module, "state", None)) for name, module in model.named_modules()]
    return attributes, {name: tensor.tolist() for name, tensor in parts.items()}


@pytest.mark.slow
@pytest.mark.parametrize("posterior", POSTERIORS, ids=["dropout", "laplace", "heads", "connect", "ensemble"])
@pytest.mark.parametrize(("change", "words"), NO_NETWORK.values(), ids=NO_NETWORK.keys())
def test_what_is_no_network_is_refused_before_the_first_step(change, words, posterior, refused):
    refused(change, posterior(), words)


@pytest.mark.parametrize(("change", "words"), HIDDEN.values(), ids=HIDDEN.keys())
def test_dropout_that_would_be_left_out_is_refused_before_the_first_step(change, words, refused):
    refused(change, MCDropout(), words)


def test_time_before_batch_is_refused_before_the_first_step(make_trainer, make_model, make_data, make_callback):
    model, trainer = make_model(), make_trainer(make_callback())
    model.net = TimeFirst()
    with pytest.raises(ValueError, match=r"first axis of the input to dropout in `net.drop` .* not the batch axis"):
        active_fit(trainer, model, make_data())
    assert trainer.global_step == 0


class TimeFirstData(ActiveLearningDataModule):
    """Batches of time, point and feature, which cannot be cut by their first axis."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        inputs, targets = batch
        return inputs.reshape(-1, 2, 2).transpose(0, 1), targets


def test_time_before_batch_in_the_batch_itself_is_refused_before_the_first_step(
    make_trainer, make_model, make_data, make_callback
):
    class Model(type(make_model())):
        def forward(self, x):
            return self.net.last(self.net.drop(self.net.rnn(x)[0])[-1])

    model = Model()
    model.net = TimeFirst()
    posterior = MCDropout(predict=lambda module, batch: module(batch[0]))
    trainer = make_trainer(make_callback(posterior=posterior))
    data = make_data()
    data.on_before_batch_transfer = TimeFirstData.on_before_batch_transfer.__get__(data)
    with pytest.raises(ValueError, match=r"second axis of the input to dropout in `net.drop` .* is the batch axis"):
        active_fit(trainer, model, data)
    assert trainer.global_step == 0


@pytest.mark.slow
@pytest.mark.parametrize("posterior", POSTERIORS[:4], ids=["dropout", "laplace", "heads", "connect"])
def test_a_pool_of_a_single_point_runs(posterior, make_trainer, make_model, make_data, make_callback):
    data = make_data(7)
    callback = make_callback(posterior=posterior(), query_size=1)
    rounds = active_fit(make_trainer(callback), make_model(), data)
    assert [record.num_pool for record in rounds] == [1, 0]


def test_noise_that_is_meant_is_warned_of_once_in_a_run(make_trainer, make_model, make_data, make_callback):
    model = make_model()
    model.net.insert(1, Part(lambda part, x: x + 0.1 * torch.randn_like(x) if part.training else x))
    with pytest.warns(UserWarning, match="In training mode `net.1` draws random numbers") as caught:
        rounds = active_fit(make_trainer(make_callback()), model, make_data())
    assert len(rounds) == 3
    assert sum("draws random numbers" in str(one.message) for one in caught) == 1


@pytest.mark.slow
def test_a_look_before_the_training_changes_no_record(make_trainer, make_model, make_data, make_callback, monkeypatch):
    def run():
        rounds = active_fit(make_trainer(make_callback()), make_model(), make_data())
        return [(record.acquired, record.scores, record.metrics) for record in rounds]

    once = run()
    monkeypatch.setattr("al_lightning.pool.select.Chooser.preview", lambda *_: None)
    assert run() == once


class OwnThings:
    """What `forward` may write on in training, besides tensors: a generator, and an object of the user's own."""

    def __init__(self):
        self.generator, self.scale = torch.Generator().manual_seed(1), 1.0


def anneal(part, x):
    if not part.training:
        return x
    part.things.scale *= 0.9
    return x + part.things.scale * torch.randn(x.shape, generator=part.things.generator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:In training mode `net.1` draws random numbers")
def test_a_look_before_the_training_draws_nothing_of_what_the_model_holds(
    make_trainer, make_model, make_data, make_callback, monkeypatch
):
    def run():
        model = make_model()
        model.net.insert(1, Part(anneal))
        model.net[1].things = OwnThings()
        rounds = active_fit(make_trainer(make_callback()), model, make_data())
        return [(record.acquired, record.metrics) for record in rounds]

    once = run()
    monkeypatch.setattr("al_lightning.pool.select.Chooser.preview", lambda *_: None)
    assert run() == once


@pytest.mark.slow
@pytest.mark.parametrize("only_in_training", [True, False])
def test_a_forward_pass_that_logs_is_neither_refused_nor_warned_of(
    only_in_training, make_trainer, make_model, make_data, make_callback
):
    class Logs(type(make_model())):
        def forward(self, x):
            outputs = super().forward(x)
            if self.training or not only_in_training:
                self.log("mean", outputs.mean())
                self.log_dict({"largest": outputs.max()})
            return outputs

    model = Logs()
    rounds = active_fit(make_trainer(make_callback()), model, make_data())
    assert all({"mean", "largest"} <= record.metrics.keys() for record in rounds)
    assert not {"log", "log_dict"} & vars(model).keys()


def test_checkpointed_layers_are_not_warned_of_without_need(make_trainer, make_model, make_data, make_callback):
    def recomputed(part, x):
        return checkpoint(functional.relu, x, use_reentrant=True) if part.training else functional.relu(x)

    model = make_model()
    model.net.insert(1, Part(recomputed))  # torch warns where nothing wants gradients, and a warning is an error here
    assert len(active_fit(make_trainer(make_callback()), model, make_data())) == 3


def warned_on_ranks(folder, num_ranks, noisy):
    """What each rank is told of a model: warnings, or the error."""
    import warnings  # noqa: PLC0415 - a function that ranks import by name

    spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
    tiny = importlib.util.module_from_spec(spec)
    sys.modules["tiny_parts"] = tiny  # the command line imports the modules of all classes that it may be given
    spec.loader.exec_module(tiny)
    model = tiny.TinyModule()
    model.net.insert(1, Part(lambda part, x: x + torch.randn_like(x) if part.training or noisy else x))
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp",
        max_epochs=1,
        callbacks=[ActiveLearning(BALD(), query_size=4, num_samples=8, max_rounds=1, folder=folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            active_fit(trainer, model, ActiveLearningDataModule(tiny.TinyData(), initial=6))
        except (ValueError, RuntimeError) as error:
            return trainer.global_rank, trainer.global_step, str(error)
    said = [str(one.message) for one in caught if "draws random numbers" in str(one.message)]
    return trainer.global_rank, len(said)


@pytest.mark.long
def test_all_ranks_refuse_together_and_one_warns(on_ranks, tmp_path):
    def told(name, *, noisy):
        answers = on_ranks(2, __file__, "warned_on_ranks", folder=str(tmp_path / name), num_ranks=2, noisy=noisy)
        return sorted(found for _, found in answers)

    refusals = told("noisy", noisy=True)
    assert [(rank, step) for rank, step, _ in refusals] == [(0, 0), (1, 0)]
    assert all("first in `net.1`" in words for _, _, words in refusals)
    assert told("in training", noisy=False) == [(0, 1), (1, 0)]
