"""SimCLR on small grey images: an encoder that is trained without labels (Chen et al. 2020, "A Simple Framework ...").

Two views of each image, changed by random affine maps, are to have features that are more alike than those of any other
image in the batch.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from al_lightning._lightning import LightningModule
from al_lightning.data.augmented import random_affine
from al_lightning.randomness import derived_seed

_AXES = 4  # points, channels, height and width


class ConvEncoder(nn.Module):
    """Three convolutions of stride 2 with batch normalisation, and a linear layer to the features.

    Args:
        size: Height and width of the images.
        channels: Channels of the images.
        width: Number of features.

    Example:
        >>> ConvEncoder(28)(torch.zeros(2, 1, 28, 28)).shape, ConvEncoder(8, width=32)(torch.zeros(2, 1, 8, 8)).shape
        (torch.Size([2, 128]), torch.Size([2, 32]))
    """

    def __init__(self, size: int, *, channels: int = 1, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_out, kernel_size in ((32, 5), (64, 3), (128, 3)):
            convolution = nn.Conv2d(channels, width_out, kernel_size, stride=2, padding=kernel_size // 2)
            layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU()]
            channels, size = width_out, math.ceil(size / 2)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, width))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, D)."""
        features: Tensor = self.layers(images)
        return features


def nt_xent(first_B_D: Tensor, second_B_D: Tensor, *, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of pairs of views (nats).

    For each of the 2B views it is -log of the share of its partner, exp(cos / temperature), in the sum over all other
    views of the batch.

    Args:
        first_B_D: Features of one view of each image.
        second_B_D: Features of another view, in the same order.
        temperature: Divisor of the cosines.

    Example:
        Of two images whose views agree and are orthogonal to each other's, the share is e / (e + 2).

        >>> views = torch.eye(2)
        >>> round(nt_xent(views, views, temperature=1.0).item(), 4), round(math.log((math.e + 2) / math.e), 4)
        (0.5514, 0.5514)
    """
    views_M_D = normalize(torch.cat([first_B_D, second_B_D]).float(), dim=1)
    cosines_M_M = (views_M_D @ views_M_D.T / temperature).fill_diagonal_(-torch.inf)
    num_pairs = len(first_B_D)
    partner_M = (torch.arange(2 * num_pairs, device=views_M_D.device) + num_pairs) % (2 * num_pairs)
    return cross_entropy(cosines_M_M, partner_M)


class SimCLR(LightningModule):
    """LightningModule that trains an encoder of images without labels; batches are images or (images, anything).

    On several ranks each compares the images of its own batch. Logs `train_loss`. The encoder is found in a checkpoint
    by `Pretrained(net, checkpoint, part="encoder")`.

    Args:
        encoder: Encoder from images (B, C, H, W) to features (B, D).
        temperature: Divisor of the cosines in the loss.
        lr: Largest learning rate of AdamW, in one cycle over all steps.
        degrees: Largest rotation of a view.
        scale: Largest share by which an axis of a view is stretched or squeezed.
        shear: Largest share by which a view is sheared.
        shift: Largest shift of a view, in pixels.
        seed: Seed of the views.
    """

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        encoder: nn.Module,
        *,
        temperature: float = 0.3,
        lr: float = 2e-3,
        degrees: float = 15.0,
        scale: float = 0.15,
        shear: float = 0.2,
        shift: float = 2.5,
        seed: int = 0,
    ) -> None:
        for name, value in (("temperature", temperature), ("lr", lr)):
            if not value > 0 or not math.isfinite(value):
                raise ValueError(f"`{name}` is {value}, but must be positive and finite.")
        super().__init__()
        self.save_hyperparameters(ignore=["encoder"])
        self.encoder = encoder
        self.temperature = temperature
        self.lr = lr
        self.maps = {"degrees": degrees, "scale": scale, "shear": shear, "shift": shift}
        self.seed = seed

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, D)."""
        features: Tensor = self.encoder(images)
        return features

    def training_step(self, batch: Sequence[Tensor] | Tensor, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of two views of each image, which the step and the rank decide."""
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(images, Tensor) or images.ndim != _AXES or not images.is_floating_point():
            found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"A batch of the training loader has {found} where images are to be. SimCLR takes batches of images, "
                "or (images, anything), of floating-point numbers (B, C, H, W)."
            )
        seed = derived_seed(self.seed, self.global_step, f"views of rank {self.global_rank}")
        generator = torch.Generator().manual_seed(seed)
        views = torch.cat([random_affine(images, **self.maps, generator=generator) for _ in range(2)])
        first_B_D, second_B_D = self(views).chunk(2)
        loss = nt_xent(first_B_D, second_B_D, temperature=self.temperature)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - a form of Lightning's
        """Return AdamW with one cycle of its learning rate over all steps."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError(
                "The training has no end that is known, so that its learning rate has no cycle. Give the Trainer "
                "`max_epochs` or `max_steps`."
            )
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
