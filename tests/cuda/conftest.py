"""The device of the tests that need a GPU, and tiny real models for them."""

import copy
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NUM_CLASSES = 4
NUM_FEATURES = 6


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Show what other packages warn of on an unfamiliar machine, and fail of nothing but this one's faults."""
    of_others = (
        "default::DeprecationWarning",
        "default::FutureWarning",
        "default::UserWarning",
        "ignore:.*does not have many workers",
        "ignore:GPU available but not used",
        "ignore:.*The number of training batches",
        "ignore:Checkpoint directory",
        "ignore:The batch tells .* of log K",
        "ignore:Found .* in eval mode at the start of training",
    )
    for item in items:
        if os.sep + "cuda" + os.sep in str(item.path):
            for words in of_others:
                item.add_marker(pytest.mark.filterwarnings(words))


def chosen_device() -> torch.device | None:
    """Return the device that the environment asks for, by default the GPU; None if it is not there."""
    device = torch.device(os.environ.get("AL_LIGHTNING_DEVICE", "cuda"))
    return device if device.type == "cpu" or torch.cuda.is_available() else None


@pytest.fixture(scope="session")
def device() -> torch.device:
    found = chosen_device()
    if found is None:
        pytest.skip("needs a GPU, or AL_LIGHTNING_DEVICE=cpu to rehearse")
    return torch.zeros(0, device=found).device  # with the number of the GPU, as tensors have it


@pytest.fixture
def on_gpu(device: torch.device) -> torch.device:
    """The device, where it is a GPU."""
    if device.type != "cuda":
        pytest.skip("needs a GPU; a rehearsal has none")
    return device


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cuDNN compute as the CPU does: its convolutions are in TF32 by default, of three digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 16), nn.ReLU())
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.net(x)))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Dropout(0.5))
        self.last = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.net(x.reshape(len(x), 1, 8, 8))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.2, batch_first=True)
        self.last = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x).mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 12, num_layers=2, dropout=0.4, batch_first=True)
        self.last = nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x)[0][:, -1])


SHAPES = {Linear: (NUM_FEATURES,), Conv: (64,), Attention: (5, 8), Recurrent: (5, 8)}


@pytest.fixture(scope="session")
def trained() -> Iterator[Callable[[type[nn.Module]], tuple[nn.Module, Tensor, Tensor]]]:
    """Return a model of a kind, trained a little on the CPU, with inputs and targets; the model is a copy."""
    made: dict[type[nn.Module], tuple[nn.Module, Tensor, Tensor]] = {}

    def make(kind: type[nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
        if kind not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)
                model = kind()
                targets_N = torch.arange(24) % NUM_CLASSES
                inputs = torch.randn(24, *SHAPES[kind]) + targets_N.float().view(-1, *(1 for _ in SHAPES[kind]))
                optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
                for _ in range(15):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(inputs), targets_N).backward()
                    optimizer.step()
                optimizer.zero_grad()
            made[kind] = model, inputs, targets_N
        model, inputs, targets_N = made[kind]
        return copy.deepcopy(model), inputs, targets_N

    yield make
    made.clear()


class Net(LightningModule):
    """Dropout, an optimizer and a metric; it notes the devices that its forward passes have met."""

    def __init__(self, *, normalises: bool = False) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(NUM_FEATURES, 32), nn.BatchNorm1d(32) if normalises else nn.Identity())
        self.backbone = nn.Sequential(first, nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(32, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        DEVICES.add((self.training, x.device.type, self.head[1].weight.device.type))
        return self.head(self.backbone(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_acc", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([x for x in self.parameters() if x.requires_grad], lr=0.3)


DEVICES: set[tuple[bool, str, str]] = set()
"""Whether in training, the device of the inputs, that of the weights: of each forward pass of `Net`."""


def blobs(num_points: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    targets_N = torch.arange(num_points) % NUM_CLASSES
    noise = torch.randn(num_points, NUM_FEATURES, generator=generator)
    return TensorDataset(torch.eye(NUM_CLASSES, NUM_FEATURES)[targets_N] + 0.5 * noise, targets_N)


class Blobs(LightningDataModule):
    def __init__(self, num_points: int = 90) -> None:
        super().__init__()
        self.num_points = num_points

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(blobs(self.num_points, 0), batch_size=16, shuffle=True, pin_memory=torch.cuda.is_available())

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(blobs(40, 1), batch_size=16)

    def target_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(blobs(12, 2), batch_size=5)


@pytest.fixture
def net() -> Callable[..., Net]:
    def make(**arguments: bool) -> Net:
        DEVICES.clear()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return Net(**arguments)

    return make


@pytest.fixture
def kinds() -> dict[str, type[nn.Module]]:
    return {"linear": Linear, "conv": Conv, "attention": Attention, "lstm": Recurrent}


@pytest.fixture
def devices() -> set[tuple[bool, str, str]]:
    return DEVICES


@pytest.fixture
def data() -> type[Blobs]:
    return Blobs
