"""The models of `mc_dropout.py`, and the batches that they get."""

import functools
from collections.abc import Callable

from torch import Tensor, nn

from al_lightning.models import MLP, PaperCNN


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *(nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Of the same or half the size."""
        return (self.path(x) + self.shortcut(x)).relu_()


def resnet18() -> nn.Module:
    """ResNet-18 with dropout before its last layer."""
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    blocks = [
        nn.Sequential(Block(before, width, stride=stride), Block(width, width, stride=1))
        for before, width, stride in widths
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 10))


class Layer(nn.Module):
    """A layer of a transformer encoder, with dropout in all the usual places, attention among them."""

    def __init__(self, width: int = 64, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop_attention, self.drop_out = nn.Dropout(dropout), nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(4 * width, width), nn.Dropout(dropout)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) to the same."""
        rows, tokens, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(dim=-1)
        mixed = (self.drop_attention(attention) @ value).transpose(1, 2).reshape(rows, tokens, width)
        x = x + self.drop_out(self.out(mixed))
        return x + self.mlp(self.before_mlp(x))


def transformer() -> nn.Module:
    """Two layers on 32 tokens."""
    return nn.Sequential(nn.Linear(16, 64), Layer(), Layer(), nn.Flatten(), nn.Linear(32 * 64, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "PaperCNN": (PaperCNN, (64, 1, 28, 28)),
    "ResNet-18, dropout in the head": (resnet18, (32, 3, 64, 64)),
    "MLP": (functools.partial(MLP, 784, num_classes=10), (64, 1, 28, 28)),
    "Transformer, dropout everywhere": (transformer, (32, 32, 16)),
}


class Encoder(nn.Module):
    """Torch's transformer encoder of four layers on 32 tokens, with dropout in all its places, and a linear head."""

    tokens, features, width, heads, feedforward, layers, classes = 32, 16, 64, 4, 256, 4, 10

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Linear(self.features, self.width)
        layer = nn.TransformerEncoderLayer(self.width, self.heads, self.feedforward, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, self.layers, enable_nested_tensor=False)
        self.head = nn.Linear(self.width, self.classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, features) to (B, classes)."""
        return self.head(self.encoder(self.embedding(x)).mean(dim=1))

    @classmethod
    def flops(cls) -> tuple[int, int]:
        """Count multiplications and additions for one point: what all samples share, and what each has of its own.

        Nothing before the first dropout depends on the sample: the embedding, and in the first layer query, key, value
        and the scores, whose softmax is dropped first.
        """
        embedding = 2 * cls.tokens * cls.features * cls.width
        projections, scores = 2 * cls.tokens * cls.width * 3 * cls.width, 2 * cls.tokens**2 * cls.width
        others = scores + 2 * cls.tokens * cls.width * (
            cls.width + 2 * cls.feedforward
        )  # mixing values costs as scores
        every_layer = projections + scores + others
        shared = embedding + projections + scores
        return shared, cls.layers * every_layer - projections - scores + 2 * cls.width * cls.classes
