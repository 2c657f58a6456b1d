"""Promises of every posterior: add yours to POSTERIORS of `conftest.py`. `test_base.py` has more kinds of models."""

import copy
import pickle
from dataclasses import fields
from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional

import al_lightning.posterior  # short class names are those of what is imported
from al_lightning.posterior import Posterior, state_of
from al_lightning.testing import check_posterior

K = 5


class Model(nn.Module):
    """With dropout, running statistics, a mixture of flags, and a buffer that `forward` would write on in training."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)).relu_()))


def points(num_points=11):
    return torch.randn(num_points, 6, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Model()
        model(points())  # moves the running statistics off their start
    model.first.eval()
    return model


@pytest.fixture
def unfitted(each_posterior):
    if each_posterior.members is None:
        return each_posterior
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return each_posterior.trained([state_of(Model()) for _ in range(K)])


@pytest.fixture
def posterior(unfitted, model):
    targets_N = torch.arange(11) % 3
    batches = [(points()[:6], targets_N[:6]), (points()[6:], targets_N[6:])]
    return unfitted.fit_to_labels(model, batches, targets_N)


def predictions(posterior, model, inputs, *, seed=3, batch_size=4):
    with posterior.sample(model, K, seed=seed) as predict:
        return torch.cat([predict(batch) for batch in inputs.split(batch_size)])


def state(model):
    hooks = [
        {
            name: list(value.items())
            for name, value in vars(module).items()
            if "hook" in name and isinstance(value, dict)
        }
        for module in model.modules()
    ]
    tensors = {
        name: (id(tensor), tensor.detach().clone(), tensor.requires_grad, tensor.grad)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    return [module.training for module in model.modules()], hooks, [set(vars(m)) for m in model.modules()], tensors


def assert_as_before(model, before):
    *others, tensors = state(model)
    assert others == list(before[:3])
    assert tensors.keys() == before[3].keys()
    for name, (identity, tensor, *flags) in tensors.items():
        assert [identity, *flags] == [before[3][name][0], *before[3][name][2:]]
        assert torch.equal(tensor, before[3][name][1])


def raise_after(predict, batch):
    predict(batch)
    raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.parametrize("batch", [points(), (points(), torch.arange(11) % 3)], ids=["x", "x, y"])
def test_the_check_for_posteriors_of_the_users_own_passes(unfitted, model, batch):
    before = state(model)
    check_posterior(unfitted, model, batch, num_samples=K, seed=3)
    assert_as_before(model, before)


def test_predictions_are_normalised_float32_of_k_samples_without_gradient(posterior, model):
    log_probs_N_K_C = predictions(posterior, model, points())
    assert log_probs_N_K_C.shape == (11, K, 3)
    assert (log_probs_N_K_C.dtype, log_probs_N_K_C.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(log_probs_N_K_C.exp().sum(dim=2), torch.ones(11, K))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_a_point_is_predicted_alike_in_every_batch_and_position(posterior, model, batch_size):
    expected_N_K_C = predictions(posterior, model, points()).exp()
    for order in (torch.arange(11), torch.arange(11).flip(0), torch.arange(11).roll(5)):
        again_N_K_C = torch.empty(11, K, 3)
        again_N_K_C[order] = predictions(posterior, model, points()[order], batch_size=batch_size).exp()
        torch.testing.assert_close(again_N_K_C, expected_N_K_C, rtol=0, atol=1e-6)


def test_two_seeds_are_other_networks_and_one_seed_is_the_same_bit_for_bit(posterior, model):
    once, again, other = (predictions(posterior, model, points(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(once, again)
    if posterior.members is not None:  # they are trained, not drawn
        assert torch.equal(once, other)
        return
    assert (once.exp() - other.exp()).abs().max() > 1e-3


def test_samples_disagree_with_each_other(posterior, model):
    probs_N_K_C = predictions(posterior, model, points()).exp()
    for k in range(1, K):
        assert (probs_N_K_C[:, k] - probs_N_K_C[:, 0]).abs().max() > 1e-3


def test_the_model_is_handed_back_bit_for_bit(unfitted, model):
    before = state(model)
    posterior = unfitted.fit_to_labels(model, [points()], torch.arange(11) % 3)
    assert_as_before(model, before)
    posterior.preview(model, points())
    predictions(posterior, model, points())
    assert_as_before(model, before)


def test_the_model_is_handed_back_bit_for_bit_after_an_error(unfitted, posterior, model):
    before = state(model)
    with pytest.raises(ZeroDivisionError), posterior.sample(model, K, seed=3) as predict:
        raise_after(predict, points())
    for call in (posterior.preview, lambda model, batch: predictions(posterior, model, batch)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            call(model, torch.zeros(4, 5))
    assert_as_before(model, before)


def test_the_model_trains_on_afterwards(posterior, model):
    predictions(posterior, model, points())
    functional.cross_entropy(model(points()), torch.zeros(11, dtype=torch.long)).backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if name != "first.bias")


def test_the_global_generator_is_neither_used_nor_moved(unfitted, model):
    before = torch.random.get_rng_state()
    fit = partial(unfitted.fit_to_labels, model, [points()], torch.arange(11) % 3)
    once = predictions(fit(), model, points())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(predictions(fit(), model, points()), once)


def test_the_batch_is_not_written_on(posterior, model):
    inputs = points()
    predictions(posterior, model, inputs, batch_size=11)
    assert torch.equal(inputs, points())


@pytest.mark.parametrize(
    ("num_samples", "error"), [(1, ValueError), (0, ValueError), (5.0, TypeError), (True, TypeError)]
)
def test_a_number_of_samples_that_is_no_int_of_at_least_two_is_refused(posterior, model, num_samples, error):
    with pytest.raises(error, match=f"`num_samples` is {num_samples}"), posterior.sample(model, num_samples, seed=0):
        pass


def test_a_seed_that_is_no_int_is_refused(posterior, model):
    with pytest.raises(TypeError, match="`seed` is None, but must be an int"), posterior.sample(model, K, seed=None):
        pass


def test_predicting_after_the_block_is_refused(posterior, model):
    with posterior.sample(model, K, seed=3) as predict:
        predict(points())
    with pytest.raises(RuntimeError, match=r"ended with their `with posterior.sample"):
        predict(points())


def test_preview_is_the_prediction_of_one_network(unfitted, model):
    log_probs_B_C = unfitted.preview(model, (points(), torch.zeros(11)))
    assert log_probs_B_C.shape == (11, 3)
    torch.testing.assert_close(log_probs_B_C.exp().sum(dim=1), torch.ones(11))


def test_it_is_its_hyperparameters_through_repr_copy_and_pickle(each_posterior):
    built = eval(repr(each_posterior), vars(al_lightning.posterior))  # noqa: S307 - the constructor call that it is
    assert built == each_posterior
    assert copy.deepcopy(each_posterior) == each_posterior
    assert pickle.loads(pickle.dumps(each_posterior)) == each_posterior  # noqa: S301 - written right here


def test_what_is_sampled_can_be_copied_and_pickled(posterior, model):
    expected = predictions(posterior, model, points())
    for again in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):  # noqa: S301 - written right here
        assert torch.equal(predictions(again, model, points()), expected)


def test_yaml_builds_it_by_its_short_class_name(each_posterior, tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--posterior", type=Posterior)
    arguments = {field.name: getattr(each_posterior, field.name) for field in fields(each_posterior)}
    lines = [f"    {name}: {list(value) if isinstance(value, tuple) else value}" for name, value in arguments.items()]
    lines = [line.replace(": None", ": null") for line in lines]
    head = ["posterior:", f"  class_path: {type(each_posterior).__name__}", "  init_args:"]
    (tmp_path / "config.yaml").write_text("\n".join([*head, *lines]))
    config = parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])
    assert parser.instantiate_classes(config).posterior == each_posterior
