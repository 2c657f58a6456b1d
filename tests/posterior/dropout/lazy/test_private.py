import subprocess
import sys

import pytest
import torch

from al_lightning.posterior.dropout.lazy.private import NAMES, missing

# Run where torch lacks private names: what needs none works, and MC dropout says why it takes the loop.
WITHOUT = """
import operator, sys, warnings
import pytorch_lightning
import torch

with_all, *hidden = sys.argv[1:]
found = operator.attrgetter

def attrgetter(name):  # torch itself cannot be imported without them
    if f"torch.{name}" in hidden:
        raise AttributeError(name)
    return found(name)

operator.attrgetter = attrgetter
import al_lightning.posterior
operator.attrgetter = found

from torch import nn
from al_lightning.posterior import LastLayerLaplace, MCDropConnect, MCDropout

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.Flatten(),
    nn.Linear(32, 16), nn.Dropout(), nn.Linear(16, 3),
)
batch = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
fitted = LastLayerLaplace().fit(model, [batch])
for posterior in (fitted, MCDropConnect(0.1)):
    with posterior.sample(model, 4, seed=0) as predict:
        assert predict(batch).shape == (6, 4, 3)
with MCDropout().sample(model, 4, seed=0) as predict:
    log_probs = predict(batch)
    assert predict.path == "loop", predict.path
    assert all(name in predict.reason for name in hidden), predict.reason
if "torch.utils._python_dispatch.TorchDispatchMode" in hidden:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        MCDropout().preview(model, batch)
    assert any("TorchDispatchMode" in str(each.message) for each in seen), seen
torch.testing.assert_close(log_probs, torch.load(with_all, weights_only=True))
"""


def test_this_torch_has_every_private_name_that_is_used():
    assert missing == []  # else a name has changed: MC dropout is correct, and slow after Dropout2d


@pytest.fixture(scope="session")
def with_all(tmp_path_factory):
    """The same predictions with every private name there."""
    from torch import nn  # noqa: PLC0415

    from al_lightning.posterior import MCDropout  # noqa: PLC0415

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(32, 16), nn.Dropout(), nn.Linear(16, 3)),
        )
    path = tmp_path_factory.mktemp("with") / "log_probs.pt"
    with MCDropout().sample(model, 4, seed=0) as predict:
        torch.save(predict(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))), path)
        assert predict.path == "vmap"
    return path


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param(NAMES, marks=pytest.mark.slow, id="all"),
        *(pytest.param((NAMES[position],), marks=pytest.mark.long, id=NAMES[position]) for position in (0, 3, -2, -1)),
    ],
)
def test_without_private_names_mc_dropout_takes_the_loop_and_says_which_are_missing(hidden, with_all):
    command = [sys.executable, "-c", WITHOUT, str(with_all), *hidden]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
