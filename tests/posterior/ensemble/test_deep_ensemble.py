from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from al_lightning.posterior import DeepEnsemble, state_of
from al_lightning.posterior.ensemble.deep_ensemble import read_state


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def net():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))


def points(num_points=6):
    return torch.randn(num_points, 5, generator=torch.Generator().manual_seed(3))


def expected(models):
    return torch.stack([model.eval()(points()).log_softmax(dim=1).detach() for model in models], dim=1)


def sampled(posterior, model, num_samples=3, *, seed=0):
    with posterior.sample(model, num_samples, seed=seed) as predict:
        return predict(points())


@pytest.fixture
def files(tmp_path):
    """Three networks and the files of their state dicts."""
    models = [net() for _ in range(3)]
    paths = [tmp_path / f"{k}.pt" for k in range(3)]
    for model, path in zip(models, paths, strict=True):
        model(points())
        torch.save(model.state_dict(), path)
    return models, paths


def test_an_ensemble_is_its_hyperparameters_and_training_does_not_change_it():
    ensemble = DeepEnsemble(2)
    trained = ensemble.trained([state_of(net()), state_of(net())])
    assert repr(ensemble) == "DeepEnsemble(num_members=2, checkpoints=None, fresh=None, init=None, predict=None)"
    assert repr(trained) == repr(ensemble)
    assert ensemble == DeepEnsemble(num_members=2)
    with pytest.raises(RuntimeError, match=r"The 2 members of .* are not trained"):
        sampled(ensemble, net(), 2)


def test_the_samples_of_a_trained_ensemble_are_its_members_whatever_the_seed():
    models = [net() for _ in range(3)]
    ensemble = DeepEnsemble(3).trained([state_of(model) for model in models])
    torch.testing.assert_close(sampled(ensemble, net()), expected(models))
    assert torch.equal(sampled(ensemble, net(), seed=1), sampled(ensemble, net(), seed=2))


def test_an_ensemble_that_is_not_trained_cannot_be_sampled():
    with pytest.raises(RuntimeError, match=r"The 3 members of .* are not trained. `active_fit\("):
        sampled(DeepEnsemble(3), net())


def test_the_preview_of_an_ensemble_yet_to_be_trained_is_the_model_itself():
    model = net()
    log_probs_B_C = DeepEnsemble(3).preview(model, points())
    assert model.training
    torch.testing.assert_close(log_probs_B_C, expected([model])[:, 0])


def test_state_dicts_are_members(files):
    models, paths = files
    ensemble = DeepEnsemble(checkpoints=list(map(str, paths)))
    assert ensemble.members is None
    torch.testing.assert_close(sampled(ensemble, net()), expected(models))
    torch.testing.assert_close(ensemble.preview(net(), points()), expected(models)[:, 0])


def test_checkpoints_of_lightning_are_members(make_trainer, make_model, make_data, tmp_path):
    models, paths = [make_model(seed) for seed in (1, 2)], []
    for model in models:
        checkpoint = ModelCheckpoint(dirpath=tmp_path / f"{len(paths)}")
        data = make_data().inner
        make_trainer(checkpoint, enable_checkpointing=True).fit(model, datamodule=data)
        paths.append(checkpoint.best_model_path)
    inputs = torch.randn(4, 4)
    with DeepEnsemble(checkpoints=paths).sample(make_model(3), 2, seed=0) as predict:
        log_probs_B_K_C = predict(inputs)
    expected_B_K_C = torch.stack([model.eval()(inputs).log_softmax(dim=1) for model in models], dim=1)
    torch.testing.assert_close(log_probs_B_K_C, expected_B_K_C.detach())


def test_buffers_that_a_file_leaves_out_by_intent_are_the_models_own(tmp_path):
    model = nn.Linear(5, 3)
    model.register_buffer("grid", torch.arange(3.0), persistent=False)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert read_state(tmp_path / "state.pt", model)["grid"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("0.bias"), "missing 0.bias; not in the model nothing; of another shape nothing"),
        (lambda state: state.update(extra=torch.zeros(1)), "not in the model extra;"),
        (lambda state: state.update({"3.weight": torch.zeros(2, 8)}), "of another shape 3.weight"),
        (lambda state: state.clear(), r"missing 0.bias, 0.weight, 1.bias and 6 more;"),
    ],
)
def test_a_file_of_another_network_is_refused_before_the_training_with_its_path(change, words, files):
    models, paths = files
    state = models[2].state_dict()
    change(state)
    torch.save(state, paths[2])
    with pytest.raises(ValueError, match=rf"2\.pt holds another network than Sequential: .*{words}"):
        DeepEnsemble(checkpoints=paths).preview(net(), points())


def test_a_file_that_is_not_of_weights_alone_is_refused_with_its_path(files):
    models, paths = files
    whole = paths[1].read_bytes()
    torch.save({"state_dict": models[1].state_dict(), "folder": Path("runs")}, paths[1])
    with pytest.raises(ValueError, match=r"1\.pt cannot be read as tensors and plain values alone"):
        sampled(DeepEnsemble(checkpoints=paths), net())
    for content in (whole[:-50], b"no file of torch", b""):
        paths[1].write_bytes(content)
        with pytest.raises(ValueError, match=r"1\.pt cannot be read as tensors and plain values alone"):
            sampled(DeepEnsemble(checkpoints=paths), net())
    torch.save([1, 2], paths[1])
    with pytest.raises(ValueError, match=r"1\.pt holds another network"):
        sampled(DeepEnsemble(checkpoints=paths), net())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "`num_members` is None and `checkpoints` is None: give one of them"),
        ({"num_members": 2, "checkpoints": ["a"]}, ValueError, r"`num_members` is 2 and `checkpoints` is \['a'\]"),
        ({"num_members": 1}, ValueError, "The ensemble has 1 members, but one network cannot disagree"),
        ({"num_members": 2.0}, TypeError, "`num_members` is 2.0, but must be an int"),
        ({"num_members": True}, TypeError, "`num_members` is True, but must be an int"),
        ({"checkpoints": "a.ckpt"}, TypeError, "`checkpoints` is 'a.ckpt', but must be a list"),
        ({"checkpoints": []}, TypeError, r"`checkpoints` is \[\], but must be a list with something in it"),
        ({"num_members": 2, "fresh": "head"}, TypeError, "`fresh` is 'head', but must be a list"),
        ({"checkpoints": ["a"], "fresh": ["head"]}, ValueError, "`fresh` and `init` are about training"),
        ({"checkpoints": ["no/a.ckpt", "no/b.ckpt"]}, FileNotFoundError, "names no/a.ckpt, no/b.ckpt, but there is no"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_said(arguments, error, words):
    with pytest.raises(error, match=words):
        DeepEnsemble(**arguments)


def test_one_file_is_no_ensemble_and_none_comes_twice(files):
    _, paths = files
    with pytest.raises(ValueError, match="The ensemble has 1 members"):
        DeepEnsemble(checkpoints=paths[:1])
    with pytest.raises(ValueError, match="names a file twice"):
        DeepEnsemble(checkpoints=[paths[0], str(paths[0])])


@pytest.mark.parametrize("num_samples", [2, 100])
def test_k_is_the_number_of_members_and_another_is_refused(num_samples, files):
    for ensemble in (DeepEnsemble(3), DeepEnsemble(checkpoints=files[1])):
        assert ensemble.checked_num_samples(None) == ensemble.checked_num_samples(3) == 3
        with pytest.raises(ValueError, match=rf"`num_samples` is {num_samples}, but the ensemble has 3 members"):
            ensemble.checked_num_samples(num_samples)
        with pytest.raises(ValueError, match=rf"`num_samples` is {num_samples}, but the ensemble has 3 members"):
            sampled(ensemble, net(), num_samples)


@pytest.mark.parametrize(("num_samples", "seed"), [(3.0, 0), (3, None)])
def test_numbers_that_are_no_int_are_refused(num_samples, seed):
    with pytest.raises(TypeError, match="but must be an int"):
        sampled(DeepEnsemble(3), net(), num_samples, seed=seed)


def test_predicting_after_the_block_says_so(files):
    with DeepEnsemble(checkpoints=files[1]).sample(net(), 3, seed=0) as predict:
        predict(points())
    with pytest.raises(RuntimeError, match=r"ended with their `with posterior.sample\(...\) as predict:` block"):
        predict(points())
