"""Nets of the configurations, and the LightningModule that trains them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from al_lightning._lightning import LightningModule


class MLP(nn.Module):
    """Fully connected net with dropout after each hidden layer; images are flattened.

    Example:
        >>> MLP(64, num_classes=10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, *, num_classes: int, hidden: Sequence[int] = (128, 128), dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.in_features = in_features
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in itertools.pairwise((in_features, *hidden)):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear((in_features, *hidden)[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, C).

        Raises:
            ValueError: If the inputs have another number of values than `in_features`.
        """
        shape = tuple(inputs.shape[1:])
        if (given := math.prod(shape)) != self.in_features:
            sizes = f", {' x '.join(map(str, shape))}" if len(shape) > 1 else ""
            raise ValueError(
                f"An input has {given} values{sizes}, and the MLP takes {self.in_features}: set `in_features` "
                f"to {given}."
            )
        logits: Tensor = self.layers(inputs)
        return logits


class PaperCNN(nn.Module):
    """Net of the BatchBALD paper for MNIST: 28 x 28 images, dropout of whole channels after each convolution.

    Example:
        >>> PaperCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, channels: int = 1, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class EMNISTCNN(nn.Module):
    """Net of the BatchBALD paper for EMNIST: 28 x 28 images, dropout of whole channels after each convolution.

    Example:
        >>> EMNISTCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 47])
    """

    def __init__(self, *, num_classes: int = 47, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3),
            nn.Dropout2d(dropout),
            nn.ReLU(),
            nn.Conv2d(64, 128, kernel_size=3),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 512),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class VGG16(nn.Module):
    """Net of the BatchBALD paper for CINIC-10: VGG-16 with batch normalisation, dropout before a smaller head.

    Args:
        num_classes: Number of classes.
        dropout: Probability of dropping a feature.
        pretrained: File with the weights of torchvision's `vgg16_bn`; those of the convolutions are loaded. By default
            all weights are random.

    Example:
        >>> VGG16()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.5, pretrained: str | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, num_convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(num_convolutions):
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
        if pretrained is not None:
            states = torch.load(pretrained, map_location="cpu", weights_only=True)
            start = "features."
            self.features.load_state_dict(
                {name[len(start) :]: states[name] for name in states if name.startswith(start)}
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class EncoderClassifier(nn.Module):
    """Encoder, dropout and a linear layer, all of which are trained.

    Args:
        encoder: Encoder from inputs to features (B, D), such as `ConvEncoder(28)`, or `Pretrained` to begin with
            weights that were found without labels.
        in_features: D.
        num_classes: Number of classes.
        dropout: Probability of dropping a feature.

    Example:
        >>> EncoderClassifier(nn.Flatten(), in_features=64, num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, encoder: nn.Module, *, in_features: int, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(in_features, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.head(self.encoder(inputs))
        return logits


class Classifier(LightningModule):
    """LightningModule of any net that returns logits: cross-entropy, Adam, batches of (inputs, integer targets).

    Logs `train_loss`, `val_loss`, `val_acc`, `test_loss` and `test_acc`, each over a whole epoch and all ranks.

    Args:
        net: Net from inputs to logits (B, C).
        lr: Learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        has_reject: The last output is that of rejected points (`ActiveLearningDataModule(reject="train")`): it is
            trained, and left out of the losses and accuracies of validation and test.
    """

    def __init__(
        self, net: nn.Module, *, lr: float = 1e-3, weight_decay: float = 0.0, has_reject: bool = False
    ) -> None:
        if not lr > 0 or not math.isfinite(lr):
            raise ValueError(f"`lr` is {lr}, but a learning rate must be positive and finite.")
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.net = net
        self.lr = lr
        self.weight_decay = weight_decay
        self.has_reject = has_reject
        # Mean of correct (1) and wrong (0): unlike an accuracy metric, it needs no number of classes.
        self.val_acc = MeanMetric()
        self.test_acc = MeanMetric()

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Refuse metrics of other classes than those that the data module trains."""
        trains_rejected = getattr(getattr(self.trainer, "datamodule", None), "trains_rejected", self.has_reject)
        if trains_rejected != self.has_reject:
            effect = "counts the output of rejected points as a class" if trains_rejected else "leaves out a real class"
            raise ValueError(
                f"`has_reject` is {self.has_reject}, but `reject` of the data module is "
                f"{'train' if trains_rejected else 'set_aside'!r}, so that the accuracy {effect}. Say "
                f"`Classifier(has_reject={trains_rejected})`."
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.net(inputs)
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Return the cross-entropy of a batch."""
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log loss and accuracy."""
        self._evaluate("val", batch, self.val_acc)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log loss and accuracy."""
        self._evaluate("test", batch, self.test_acc)

    def predict_step(self, batch: Sequence[Tensor] | Tensor, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the logits of the inputs; targets in the batch are ignored."""
        logits: Tensor = self(batch[0] if not isinstance(batch, Tensor) else batch)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all parameters; LightningCLI's `--optimizer` replaces it."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def _evaluate(self, stage: str, batch: Sequence[Tensor], accuracy: MeanMetric) -> None:
        inputs, targets = batch
        logits = self(inputs)
        if self.has_reject:
            logits = logits[:, :-1]
        _refuse_outside(targets, num_classes=logits.shape[1], stage=stage, has_reject=self.has_reject)
        loss = nn.functional.cross_entropy(logits, targets)
        accuracy.update((logits.argmax(dim=1) == targets).float())
        self.log(f"{stage}_loss", loss, prog_bar=True, sync_dist=True, batch_size=len(targets))
        self.log(f"{stage}_acc", accuracy, prog_bar=True)


class TextClassifier(LightningModule):
    """Small BERT for texts, trained from scratch, with AdamW; batches are those of `TextDataModule`.

    Nothing is downloaded: transformers, an extra, builds the net from its configuration. Logs `train_loss`, `test_acc`
    and `test_mean_recall`, the mean over classes, in which a rare class counts as much as a frequent one.

    Args:
        num_classes: Classes of the texts.
        vocab_size: That of the data module.
        max_length: That of the data module.
        width: Of the token vectors; the hidden layers are four times as wide.
        num_layers: Transformer layers.
        num_heads: Attention heads of each.
        dropout: Everywhere: of embeddings, attention, hidden layers and the head.
        lr: Learning rate of AdamW.

    Raises:
        ModuleNotFoundError: Without transformers.
    """

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        *,
        num_classes: int = 6,
        vocab_size: int = 10_000,
        max_length: int = 64,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        lr: float = 1e-3,
    ) -> None:
        if find_spec("transformers") is None:
            raise ModuleNotFoundError('`TextClassifier` needs transformers: `pip install "al-lightning[text]"`.')
        from transformers import BertConfig, BertForSequenceClassification  # noqa: PLC0415 - an extra

        super().__init__()
        self.save_hyperparameters()
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_length,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            num_labels=num_classes,
            pad_token_id=0,
        )
        self.bert = BertForSequenceClassification(config)
        self.lr = lr
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_mean_recall = MulticlassAccuracy(num_classes, average="macro")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Return the cross-entropy of a batch."""
        loss = nn.functional.cross_entropy(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch["labels"]))
        return loss

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log accuracy and mean recall over classes, both without dropout."""
        logits = self(batch["input_ids"], batch["attention_mask"])
        for name in ("test_acc", "test_mean_recall"):
            metric = getattr(self, name)
            metric.update(logits, batch["labels"])
            self.log(name, metric, batch_size=len(batch["labels"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def _refuse_outside(targets: Tensor, *, num_classes: int, stage: str, has_reject: bool) -> None:
    outside = targets[targets >= num_classes]
    if len(outside) == 0:
        return
    target = int(outside[0])
    if has_reject:
        raise ValueError(
            f"`has_reject` is True, so the net has {num_classes} classes, counted from 0, and one output for rejected "
            f"points, but {len(outside)} points of a batch of the {stage} data have the target {target}. Leave junk "
            f"out of the {stage} data, or give the net an output for each class and one more."
        )
    raise ValueError(
        f"The net has {num_classes} outputs, counted from 0, but {len(outside)} points of a batch of the {stage} data "
        f"have the target {target}. Leave points that are none of the classes out of the {stage} data, or give the net "
        "an output for each class."
    )
