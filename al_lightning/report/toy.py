"""The method in one picture: what BALD and BatchBALD pick from a pool of near-copies in the plane."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from al_lightning.acquisition import BALD, Batch, Predictions, batchbald
from al_lightning.information import batch_information, mutual_information
from al_lightning.report.style import INK, LETTERS, OWN, SMALL_LETTERS, WIDTH, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_SAMPLES, BATCH_SIZE, COPIES = 200, 6, 8
DARKEST = 1.0  # nats; BALD of two classes is log 2 at most, so that the shade stays behind the points
LABELLED = torch.tensor([[-0.7, -0.6], [-0.25, 0.75], [0.15, -0.8]])
CENTRES = torch.tensor(
    [[0.85, 0.55], [0.8, -0.3], [0.25, 0.15], [-0.75, 0.15], [0.35, 0.85], [-0.3, -0.2], [-0.8, 0.8]]
)


@dataclass(frozen=True)
class Toy:
    """Groups of near-copies in [-1, 1]^2 and K functions on the plane that agree where labels are known.

    Args:
        points_N_2: The pool.
        group_N: Of which group each point is a copy.
        weights_K_F: Of the random features of each function.
        frequencies_F_2: Of the random features.
        phases_F: Of the random features.
    """

    points_N_2: Tensor
    group_N: Tensor
    weights_K_F: Tensor
    frequencies_F_2: Tensor
    phases_F: Tensor

    def log_probs(self, points_B_2: Tensor) -> Tensor:
        """Two classes, whose log-odds are the functions (B, K, 2)."""
        logits_B_K = 4 * _features(points_B_2, self.frequencies_F_2, self.phases_F) @ self.weights_K_F.T
        return torch.stack([logits_B_K, -logits_B_K], dim=2).log_softmax(dim=2)


def _features(points_B_2: Tensor, frequencies_F_2: Tensor, phases_F: Tensor) -> Tensor:
    scale = math.sqrt(2 / len(phases_F))
    return scale * torch.cos(points_B_2.double() @ frequencies_F_2.T + phases_F)


def make_toy(*, generator: torch.Generator, num_features: int = 400, length: float = 0.45) -> Toy:
    """A Gaussian process by random features, conditioned on few labelled points: Bayesian linear regression on them."""
    points_N_2 = CENTRES.repeat_interleave(COPIES, dim=0)
    points_N_2 = points_N_2 + 0.035 * torch.randn(points_N_2.shape, generator=generator)
    frequencies_F_2 = torch.randn(num_features, 2, generator=generator, dtype=torch.float64) / length
    phases_F = 2 * torch.pi * torch.rand(num_features, generator=generator, dtype=torch.float64)
    features_L_F = _features(LABELLED, frequencies_F_2, phases_F)
    weights_K_F = torch.randn(NUM_SAMPLES, num_features, generator=generator, dtype=torch.float64)
    # Matheron: a draw of the prior is moved by what it got wrong at the labels.
    covariance_L_L = features_L_F @ features_L_F.T + 1e-3 * torch.eye(len(LABELLED), dtype=torch.float64)
    values_L = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    wrong_K_L = values_L - weights_K_F @ features_L_F.T
    weights_K_F = weights_K_F + torch.linalg.solve(covariance_L_L, wrong_K_L.T).T @ features_L_F
    group_N = torch.arange(len(CENTRES)).repeat_interleave(COPIES)
    return Toy(points_N_2, group_N, weights_K_F, frequencies_F_2, phases_F)


def picks(toy: Toy, *, seed: int) -> dict[str, Batch]:
    """Choose from the toy's pool by both acquisitions."""
    log_probs_N_K_C = toy.log_probs(toy.points_N_2)
    predictions = Predictions(log_probs_N_K_C)
    generator = torch.Generator().manual_seed(seed)
    return {
        "BALD": BALD()(predictions, BATCH_SIZE, generator=generator),
        "BatchBALD": batchbald(log_probs_N_K_C, BATCH_SIZE, generator=generator),
    }


def toy_acquisitions(*, seed: int = 0) -> "Figure":
    """Draw BALD and BatchBALD on groups of near-copies in the plane, chosen by `BALD()` and `batchbald`.

    The shade is BALD, what the label of a single point would tell. The best points of a pool with copies are copies of
    one another, whose labels repeat what the first of them tells; BatchBALD pays for the joint information of a batch.
    """
    toy = make_toy(generator=torch.Generator().manual_seed(seed))
    side = torch.linspace(-1.05, 1.05, 90)
    grid_G_2 = torch.cartesian_prod(side, side)
    bald_90_90 = mutual_information(toy.log_probs(grid_G_2)).reshape(90, 90).T
    figure, all_axes = panels(1, 2, width=1.2 * WIDTH, height=0.79 * WIDTH)
    for axes, (name, batch) in zip(all_axes, picks(toy, seed=seed).items(), strict=True):
        image = axes.imshow(
            bald_90_90.numpy(),
            origin="lower",
            extent=(-1.05, 1.05, -1.05, 1.05),
            cmap="Greys",
            vmin=0,
            vmax=DARKEST,
            interpolation="bilinear",
        )
        _draw_picks(axes, toy, batch, name=name)
    bar = figure.colorbar(image, ax=all_axes, location="bottom", aspect=50, pad=0.02)
    bar.ax.set_xlim(0, bald_90_90.max().item())
    bar.set_label("what one label would tell: BALD (nats)", fontsize=SMALL_LETTERS, color=INK)
    bar.ax.tick_params(labelsize=SMALL_LETTERS, colors=INK)
    return figure


def _draw_picks(axes: "Axes", toy: Toy, batch: Batch, *, name: str) -> None:
    rows_B_K_C = toy.log_probs(toy.points_N_2[batch.positions])
    joint = batch_information(rows_B_K_C, generator=torch.Generator().manual_seed(0)).sum().item()
    num_groups = len(set(toy.group_N[batch.positions].tolist()))
    pool, labelled, chosen = (points.numpy() for points in (toy.points_N_2, LABELLED, toy.points_N_2[batch.positions]))
    axes.scatter(pool[:, 0], pool[:, 1], s=9, color="white", edgecolor=INK, linewidth=0.7, label="pool")
    axes.scatter(
        labelled[:, 0], labelled[:, 1], s=55, marker="X", color=INK, edgecolor="white", label="labelled before"
    )
    axes.scatter(chosen[:, 0], chosen[:, 1], s=45, color=OWN[name][0], edgecolor="white", zorder=3, label="picked")
    axes.set_title(
        f"{name}: {joint:.2f} nats\n{BATCH_SIZE} picks from {num_groups} of {len(CENTRES)} groups",
        loc="left",
        fontsize=LETTERS,
        color=INK,
    )
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=3,
        fontsize=SMALL_LETTERS,
        frameon=False,
        handletextpad=0,
        columnspacing=0.8,
    )
