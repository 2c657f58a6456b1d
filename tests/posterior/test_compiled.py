"""Posteriors on compiled models are those of the models before compiling, bit for bit, whose names they keep."""

import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior import (
    AnchoredHeads,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    Point,
    state_of,
)
from al_lightning.posterior.compiled import name_before, named_originals, original
from al_lightning.posterior.ensemble.deep_ensemble import read_state
from al_lightning.posterior.ensemble.members import reset_parameters
from al_lightning.testing import check_posterior

K = 5
pytestmark = pytest.mark.filterwarnings("ignore:torch.compile has compiled")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4))
            self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(functional.dropout(self.net(x), 0.2, self.training))


def compiled(part):
    return torch.compile(part, backend="eager")


def whole(model):
    return compiled(model)


def part(model):
    model.net = compiled(model.net)
    return model


def parts_within(model):
    model.net[0], model.net[3], model.net = compiled(model.net[0]), compiled(model.net[3]), compiled(model.net)
    return compiled(model)


def in_place(model):
    model.net.compile(backend="eager")
    model.compile(backend="eager", fullgraph=True)
    return model


def forward(model):
    model.forward = compiled(model.forward)
    return model


WAYS = [whole, part, parts_within, in_place, forward]


def points():
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(1))


def ensemble():
    states = []
    for k in range(K):
        model = Model()
        nn.init.normal_(model.last.weight, generator=torch.Generator().manual_seed(k))
        states.append(model)
    return states


POSTERIORS = [
    MCDropout(),
    LastLayerLaplace(),
    LastLayerLaplace(layer="last"),
    AnchoredHeads(),
    MCDropConnect(0.3),
    Point(),
]


def predictions(posterior, model, num_samples=K):
    fitted = posterior.fit_to_labels(model, [points()], torch.arange(len(points())) % 2)
    with fitted.sample(model, posterior.checked_num_samples(num_samples), seed=3) as predict:
        return predict(points())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("posterior", POSTERIORS, ids=repr)
def test_samples_are_those_of_the_model_before_it_was_compiled(posterior, way):
    num_samples = 1 if isinstance(posterior, Point) else K
    expected = predictions(posterior, Model(), num_samples)
    model = way(Model())
    assert torch.equal(predictions(posterior, model, num_samples), expected)
    model(points())  # compiles, and moves the running statistics
    expected = predictions(posterior, moved := Model().eval(), num_samples)
    moved.load_state_dict({name_before(name): tensor for name, tensor in model.state_dict().items()})
    assert torch.equal(predictions(posterior, model, num_samples), predictions(posterior, moved, num_samples))


@pytest.mark.parametrize("way", WAYS)
def test_an_ensemble_of_compiled_models_predicts_by_each_members_own_weights(way):
    members = ensemble()
    model = way(Model())
    states = [state_of(way(member)) for member in ensemble()]
    posterior = DeepEnsemble(K).trained(states)
    log_probs_B_K_C = predictions(posterior, model)
    with torch.no_grad():
        expected = [member.eval()(points()).log_softmax(dim=1) for member in members]
    torch.testing.assert_close(log_probs_B_K_C, torch.stack(expected, dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("posterior", POSTERIORS, ids=repr)
def test_the_contract_of_posteriors_is_kept(posterior, way):
    model = way(Model())
    model(points())
    check_posterior(posterior, model, points(), num_samples=1 if isinstance(posterior, Point) else K)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_sampling_between_passes_compiles_nothing_again(way, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "compiled", lambda part: torch.compile(part, backend=counting))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: _compile_in_place(self, counting))
    count = []

    def counting(graph, inputs):
        count.append(graph)
        return graph.forward

    torch._dynamo.reset()  # graphs of other tests count towards a limit
    model = way(Model())
    for _ in range(2):
        model(points()).sum().backward()
    before = len(count)
    assert before > 0
    for posterior in (MCDropout(), MCDropConnect(0.3), LastLayerLaplace()):
        predictions(posterior, model)
        posterior.preview(model, points())
    model(points()).sum().backward()
    assert len(count) == before


def _compile_in_place(module, backend):
    module._compiled_call_impl = torch.compile(module._call_impl, backend=backend)


def test_functions_that_are_compiled_within_forward_run_uncompiled_and_are_sampled():
    @torch.compile(backend="eager")
    def dropped(x, is_training):
        return functional.dropout(x, 0.5, is_training)

    class Functional(Model):
        def forward(self, x):
            return self.last(dropped(self.net(x), self.training))

    class Plain(Model):
        def forward(self, x):
            return self.last(functional.dropout(self.net(x), 0.5, self.training))

    assert torch.equal(predictions(MCDropout(), Functional()), predictions(MCDropout(), Plain()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("posterior", [*POSTERIORS, DeepEnsemble(2)], ids=repr)
def test_the_preview_says_once_that_the_original_predicts(posterior, way):
    model = way(Model())
    with pytest.warns(
        UserWarning, match=r"torch.compile has compiled .* That trains compiled, and predicts the pool as"
    ) as said:
        posterior.preview(model, points())
    assert len(said) == 1


def test_nothing_is_said_of_a_model_that_is_not_compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MCDropout().preview(Model(), points())


def test_a_batch_that_is_a_dict_is_passed_as_the_original_forward_takes_it():
    class OfBatch(Model):
        def forward(self, batch):
            return super().forward(batch["x"])

    class OfKeywords(Model):
        def forward(self, x):
            return super().forward(x)

    for kind in (OfBatch, OfKeywords):
        with MCDropout().sample(compiled(kind()), K, seed=3) as predict:
            log_probs_B_K_C = predict({"x": points(), "labels": torch.zeros(7)})
        assert torch.equal(log_probs_B_K_C, predictions(MCDropout(), Model()))


def test_names_in_errors_are_those_before_compiling():
    model = part(Model())
    with pytest.raises(ValueError, match=r"linear and convolutional layers of Model are: `net.0`, `last`"):
        MCDropConnect(layers=("first",)).preview(model, points())
    assert list(dict(named_originals(model))) == ["", "net", "net.0", "net.1", "net.2", "net.3", "last"]
    assert original(model.net) is dict(model.named_modules())["net._orig_mod"]


@pytest.mark.parametrize("stored", [part, lambda model: model], ids=["compiled", "plain"])
@pytest.mark.parametrize("read", [part, lambda model: model], ids=["into compiled", "into plain"])
def test_checkpoints_are_read_whether_or_not_they_are_of_a_compiled_model(stored, read, tmp_path):
    source = Model()
    nn.init.ones_(source.net[0].weight)
    source = stored(source)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    state = read_state(tmp_path / "model.pt", read(Model()))
    (weight,) = (tensor for name, tensor in state.items() if name_before(name) == "net.0.weight")
    assert (weight == 1).all()


def test_a_compiled_model_starts_afresh_with_the_same_weights_as_before_compiling():
    plain, model = Model(), parts_within(Model())
    for each in (plain, model):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            reset_parameters(each)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
