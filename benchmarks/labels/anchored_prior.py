"""Which prior standard deviation of a logit `AnchoredHeads` has by default, chosen on the digits' training part.

    python benchmarks/labels/anchored_prior.py

Labels are drawn from one half of the training part, and the mean prediction is judged on the other half; no test point
is looked at. Prints the log loss by features, labels and standard deviation, and the mean, whose smallest is chosen.
"""

import torch
from torch import Tensor, nn

from al_lightning import AnchoredHeads, DigitsDataModule
from al_lightning.posterior.last_layer import anchored_heads
from al_lightning.rounds.mean_prediction import mean_log_probs

STDS = (1, 2, 3, 4, 6, 8, 12, 16)
NUM_LABELS = (20, 50, 100)
NUM_DRAWS = 3
NUM_SAMPLES = 50


def features() -> tuple[dict[str, Tensor], Tensor]:
    """Return two kinds of features of the training part, and its classes."""
    data = DigitsDataModule()
    data.setup("fit")
    images, targets = zip(*data.train_dataloader().dataset, strict=True)
    pixels_N_D, targets_N = torch.stack(images).flatten(start_dim=1), torch.tensor(targets)
    return {
        "pixels": pixels_N_D,
        "centred, unit norm": nn.functional.normalize(pixels_N_D - pixels_N_D.mean(dim=0), dim=1),
    }, targets_N


def loss(features_N_D: Tensor, targets_N: Tensor, *, num_labels: int, seed: int) -> float:
    """Return the log loss (nats) on the second half of the points of heads with labels from the first."""
    half = len(targets_N) // 2
    labelled = torch.randperm(half, generator=torch.Generator().manual_seed(seed))[:num_labels]
    model = nn.Linear(features_N_D.shape[1], 10)
    posterior = AnchoredHeads().fit_to_labels(model, [features_N_D[labelled]], targets_N[labelled])
    with posterior.sample(model, NUM_SAMPLES, seed=seed) as predict:
        return nn.functional.nll_loss(mean_log_probs(predict(features_N_D[half:])), targets_N[half:]).item()


def main() -> None:
    """Print the loss by features, labels and standard deviation, and the mean over all."""
    kinds, targets_N = features()
    print(f"| features, labels | {' | '.join(map(str, STDS))} |\n|{' - |' * (len(STDS) + 1)}")
    losses = []
    for name, features_N_D in kinds.items():
        for num_labels in NUM_LABELS:
            losses.append([])
            for std in STDS:
                anchored_heads.PRIOR_STD = float(std)
                draws = [loss(features_N_D, targets_N, num_labels=num_labels, seed=seed) for seed in range(NUM_DRAWS)]
                losses[-1].append(sum(draws) / NUM_DRAWS)
            print(f"| {name}, {num_labels} | {' | '.join(f'{one:.3f}' for one in losses[-1])} |", flush=True)
    means = torch.tensor(losses).mean(dim=0)
    print(f"| mean | {' | '.join(f'{one:.3f}' for one in means.tolist())} |")


if __name__ == "__main__":
    main()
