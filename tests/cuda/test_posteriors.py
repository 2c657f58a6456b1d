"""Predictions of K networks on the device, against those of the same networks on the CPU."""

import copy

import pytest
import torch
from torch.testing import assert_close

from al_lightning.posterior import AnchoredHeads, DeepEnsemble, LastLayerLaplace, MCDropConnect, MCDropout, Point

pytestmark = pytest.mark.cuda

WORST = 1e-4
K = 12

DRAWN = [
    LastLayerLaplace(),
    LastLayerLaplace(prior_precision=3.0, structure="kron"),
    AnchoredHeads(),
    AnchoredHeads(class_weights="balanced"),
    MCDropConnect(0.2),
    MCDropout(),
]
KINDS = ["linear", "conv", "attention", "lstm"]


def predicted(posterior, model, batches, targets_N, device, *, num_samples=K):
    """Fit and sample on a device; return log-probabilities of all batches, and what `predict` tells."""
    model = copy.deepcopy(model).to(device).train()
    batches = [
        tuple(x.to(device) for x in batch) if isinstance(batch, tuple) else batch.to(device) for batch in batches
    ]
    with torch.no_grad():
        posterior.preview(model, batches[0])
    fitted = posterior.fit_to_labels(model, batches, targets_N)
    with fitted.sample(model, num_samples, seed=4) as predict:
        found = torch.cat([predict(batch) for batch in batches])
        path = getattr(predict, "path", None)
    assert model.training
    assert {parameter.device for parameter in model.parameters()} == {device}
    return found, path


@pytest.mark.filterwarnings("ignore:.*fit the labelled points")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("posterior", DRAWN, ids=repr)
def test_the_same_seed_draws_the_same_networks_on_each_device(device, trained, kinds, kind, posterior):
    if isinstance(posterior, MCDropConnect) and kind in {"attention", "lstm"}:
        posterior = MCDropConnect(0.2, layers=("last",))
    model, inputs, targets_N = trained(kinds[kind])
    batches = inputs.split(10)
    found, _ = predicted(posterior, model, batches, targets_N, device)
    expected, _ = predicted(posterior, model, batches, targets_N, torch.device("cpu"))
    assert found.device == device
    assert found.shape == (24, K, 4)
    assert found.dtype == torch.float32
    assert_close(found.cpu(), expected, atol=WORST, rtol=1e-4)
    assert found.std(dim=1).amax() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_all_networks_of_mc_dropout_at_once_are_those_of_a_loop_on_the_device(
    device, trained, kinds, kind, monkeypatch
):
    model, inputs, targets_N = trained(kinds[kind])
    batches = inputs.split(10)
    found, path = predicted(MCDropout(), model, batches, targets_N, device)
    if device.type == "cuda":  # on a CPU the loop may be faster
        assert path == "vmap"

    def refused(*_):
        raise RuntimeError("not at once")

    monkeypatch.setattr("al_lightning.posterior.dropout.vmapped.Vectorised.__call__", refused)
    looped, path = predicted(MCDropout(), model, batches, targets_N, device)
    assert path == "loop"
    assert_close(found, looped, atol=WORST, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("posterior", [MCDropout(), LastLayerLaplace()], ids=repr)
def test_under_autocast_to_bfloat16_probabilities_are_finite_and_sum_to_one(device, trained, kinds, kind, posterior):
    model, inputs, targets_N = trained(kinds[kind])
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found, _ = predicted(posterior, model, inputs.split(10), targets_N, device)
    exact, _ = predicted(posterior, model, inputs.split(10), targets_N, device)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    assert_close(found.exp().sum(dim=2), torch.ones_like(found[:, :, 0]), atol=1e-5, rtol=0)
    assert (found.exp() - exact.exp()).abs().mean() < 0.03


def test_texts_of_other_lengths_get_the_masks_of_the_cpu(device, trained, kinds):
    model, inputs, targets_N = trained(kinds["attention"])
    batches = [inputs[:8], inputs[8:16, :3], torch.cat([inputs[16:], inputs[16:]], dim=1)]
    found, _ = predicted(MCDropout(), model, batches, targets_N, device)
    expected, _ = predicted(MCDropout(), model, batches, targets_N, torch.device("cpu"))
    assert_close(found.cpu(), expected, atol=WORST, rtol=1e-4)


def test_packed_sequences_get_the_masks_of_the_cpu(device, trained, kinds):
    model, inputs, targets_N = trained(kinds["lstm"])
    lengths_N = torch.arange(24) % 5 + 1

    def predict(module, batch):
        x, lengths_B = batch
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
        return module.last(module.lstm(packed)[1][0][-1])

    posterior = MCDropout(predict=predict)
    batches = list(zip(inputs.split(8), lengths_N.split(8), strict=True))
    found, _ = predicted(posterior, model, batches, targets_N, device)
    expected, _ = predicted(posterior, model, batches, targets_N, torch.device("cpu"))
    assert_close(found.cpu(), expected, atol=WORST, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_an_ensemble_from_files_on_the_cpu(device, trained, kinds, kind, tmp_path):
    model, inputs, targets_N = trained(kinds[kind])
    paths = []
    for number in range(3):
        state = {
            name: tensor + 0.05 * number if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        }
        paths.append(tmp_path / f"{number}.pt")
        torch.save(state, paths[-1])
    posterior = DeepEnsemble(checkpoints=paths)
    found, _ = predicted(posterior, model, inputs.split(10), targets_N, device, num_samples=3)
    expected, _ = predicted(posterior, model, inputs.split(10), targets_N, torch.device("cpu"), num_samples=3)
    assert found.device == device
    assert_close(found.cpu(), expected, atol=WORST, rtol=1e-4)


def test_one_network_is_the_model_itself(device, trained, kinds):
    model, inputs, targets_N = trained(kinds["conv"])
    found, _ = predicted(Point(), model, inputs.split(10), targets_N, device, num_samples=1)
    with torch.no_grad():
        expected = model.eval()(inputs).log_softmax(dim=1)
    assert_close(found.squeeze(1).cpu(), expected, atol=WORST, rtol=1e-4)


def test_the_generators_of_the_device_are_left_as_they_were(device, trained, kinds):
    model, inputs, targets_N = trained(kinds["linear"])

    def states():
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    before = states()
    for posterior in (MCDropout(), LastLayerLaplace(), MCDropConnect(0.2)):
        predicted(posterior, model, inputs.split(10), targets_N, device)
    assert all(map(torch.equal, before, states()))
