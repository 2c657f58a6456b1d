"""Predictions of a pool by a real MC-dropout net, written to an .npy file; run in a process of its own.

    python benchmarks/batchbald/joint_entropy_pool.py 10000 100 10 pool.npy

C = 10: scikit-learn's digits, two of each class labelled, the others repeated with noise of N(0, 0.1) until there are
N. Any other C: C Gaussian classes in 64 dimensions, three of each labelled. The net is a small MLP with dropout after
100 steps of Adam; its K networks keep their masks for all points.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from al_lightning import MCDropout
from al_lightning.models import MLP

NUM_FEATURES = 64
STEPS = 100
ROWS = 500


def digits(num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled inputs and targets, and the inputs of the pool."""
    inputs, targets = load_digits(return_X_y=True)
    inputs, targets = torch.from_numpy(inputs).float() / 16, torch.from_numpy(targets).long()
    labelled = torch.cat([(targets == label).nonzero().squeeze(1)[:2] for label in range(10)])
    is_pool = torch.ones(len(targets), dtype=torch.bool).index_fill(0, labelled, value=False)
    rows = torch.arange(num_points) % int(is_pool.sum())
    noise = 0.1 * torch.randn(num_points, NUM_FEATURES, generator=generator)
    return inputs[labelled], targets[labelled], inputs[is_pool][rows] + noise


def gaussians(num_points: int, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled inputs and targets, and the inputs of the pool."""
    centres = 0.6 * torch.randn(num_classes, NUM_FEATURES, generator=generator)
    labels = torch.arange(num_points + 3 * num_classes) % num_classes
    inputs = centres[labels] + torch.randn(len(labels), NUM_FEATURES, generator=generator)
    return inputs[: 3 * num_classes], labels[: 3 * num_classes], inputs[3 * num_classes :]


def trained(inputs: Tensor, targets: Tensor, *, num_classes: int) -> nn.Module:
    """A small MLP with dropout after a few steps on the labelled points."""
    torch.manual_seed(0)
    model = MLP(NUM_FEATURES, num_classes=num_classes)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    return model


def write_pool(path: Path, *, num_points: int, num_samples: int, num_classes: int) -> None:
    """`log_probs_N_K_C` in single precision; the file appears when it is whole."""
    generator = torch.Generator().manual_seed(0)
    some = digits(num_points, generator) if num_classes == 10 else gaussians(num_points, num_classes, generator)
    inputs, targets, pool = some
    model = trained(inputs, targets, num_classes=num_classes)
    unfinished = path.with_suffix(".part")
    shape = (num_points, num_samples, num_classes)
    written = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    with torch.no_grad(), MCDropout().sample(model, num_samples, seed=0) as predict:
        for start in range(0, num_points, ROWS):
            written[start : start + ROWS] = predict(pool[start : start + ROWS]).numpy()
    written.flush()
    unfinished.rename(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("num_points", "num_samples", "num_classes"):
        parser.add_argument(name, type=int)
    parser.add_argument("path", type=Path)
    write_pool(**vars(parser.parse_args()))
