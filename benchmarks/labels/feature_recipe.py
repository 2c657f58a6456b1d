"""Recipes of configs/digits_features.yaml and configs/mnist_features.yaml, each chosen on labels of its training part.

    python benchmarks/labels/feature_recipe.py
    python benchmarks/labels/feature_recipe.py --set mnist --data FOLDER

The training part is cut in two. One piece is the pool: the encoder is trained on it, and labels are drawn from it. The
mean prediction is judged on the other piece, whose points are no part of the graph. These labels count as spent, and no
test point is looked at. Of the digits one half is the pool, four noisy copies of each as in the configuration; of
MNIST, whose files FOLDER holds, 50,000 of 60,000 images. The recipe is chosen in four steps, each by the mean accuracy
over labels and draws, which is what the benchmark of the pool compares; where it is the same to a tenth of a percent,
by the log loss:

1. the features, by `AnchoredHeads` with its default precision on random labels;
2. the precision of `AnchoredHeads`, and the number of steps before `LastLayerLaplace`, on these features;
3. the first ten labels, by the better of these posteriors;
4. the posterior, by rounds of BatchBALD after random first labels and after those of step 3.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import (
    AnchoredHeads,
    CoreSet,
    DigitsDataModule,
    IDXDataModule,
    LastLayerLaplace,
    ProbCover,
    Random,
    TypiClust,
)
from al_lightning.acquisition import Acquisition, Predictions, batchbald
from al_lightning.datasets.repeated import Repeated
from al_lightning.features import Combined, ConvEncoder, GraphFeatures, SimCLR
from al_lightning.posterior import Posterior
from al_lightning.posterior.last_layer.anchored_heads import PRIOR_STD
from al_lightning.rounds.mean_prediction import mean_log_probs

NUM_LABELS, NUM_DRAWS, NUM_SAMPLES = (10, 20, 40, 80), 10, 50
STDS, STEPS = (2.0, 4.0, 8.0, 16.0), (25, 50, 100, 200, 400)
FIRST, NUM_ROUNDS, NUM_SEEDS = 10, 6, 4
LR = 0.05
NUM_POOL = 50_000  # of MNIST's 60,000
COMBINATIONS = (
    ("pixels",),
    ("graph of pixels",),
    ("SimCLR",),
    ("graph of SimCLR",),
    ("graph of pixels", "SimCLR"),
    ("graph of pixels", "graph of SimCLR"),
    ("graph of pixels", "graph of SimCLR", "SimCLR"),
)

Fit = Callable[["Judged", Tensor, int], tuple[nn.Module, Posterior]]  # judged points, labelled positions, seed


@dataclass(frozen=True)
class Images:
    """Images and classes of the pool and of the judged points.

    Args:
        pool_N: Images of the pool.
        judged_T: Images on which predictions are judged.
        classes_N: Classes of the pool.
        classes_T: Classes of the judged points.
        size: Height and width.
        width: Features of the encoder.
        shift: Largest shift of SimCLR's views, in pixels.
        epochs: Epochs of its training.
        batch_size: Images in each of its batches.
    """

    pool_N: Tensor
    judged_T: Tensor
    classes_N: Tensor
    classes_T: Tensor
    size: int = 8
    width: int = 64
    shift: float = 0.7
    epochs: int = 10
    batch_size: int = 128


@dataclass(frozen=True)
class Judged:
    """Features and classes of the pool and of the judged points.

    Args:
        pool_N_D: Features of the pool.
        judged_T_D: Features of the judged points.
        pool_N: Classes of the pool.
        judged_T: Classes of the judged points.
    """

    pool_N_D: Tensor
    judged_T_D: Tensor
    pool_N: Tensor
    judged_T: Tensor


def digits() -> Images:
    """Return the two halves of the digits' training part, the first four times with noise."""
    data = DigitsDataModule()
    data.setup("fit")
    images, targets = zip(*data.train_dataloader().dataset, strict=True)
    half = len(images) // 2
    pool = TensorDataset(torch.stack(images[:half]), torch.tensor(targets[:half]))
    noisy, classes = zip(*Repeated(pool, 4, noise=0.1, seed=0), strict=True)
    return Images(torch.stack(noisy), torch.stack(images[half:]), torch.tensor(classes), torch.tensor(targets[half:]))


def mnist(folder: Path) -> Images:
    """Return the first 50,000 images of MNIST's training part, and the others."""
    data = IDXDataModule(folder, val_size=0)
    data.setup("fit")
    images, targets = zip(*data.train_dataloader().dataset, strict=True)
    images_N, targets_N = torch.stack(images), torch.tensor(targets)
    return Images(
        *(images_N[:NUM_POOL], images_N[NUM_POOL:], targets_N[:NUM_POOL], targets_N[NUM_POOL:]),
        size=28,
        width=128,
        shift=2.5,
        epochs=5,
        batch_size=256,
    )


def learnt(images: Images) -> nn.Module:
    """Return the encoder of configs/features_digits.yaml or configs/features_mnist.yaml, trained on the pool."""
    torch.manual_seed(0)
    model = SimCLR(ConvEncoder(images.size, width=images.width), shift=images.shift)
    dataset = TensorDataset(images.pool_N, torch.zeros(len(images.pool_N)))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=images.epochs, enable_model_summary=False, **quiet)
    trainer.fit(model, DataLoader(dataset, batch_size=images.batch_size, shuffle=True))
    return model.encoder.eval()


def parts_of(images: Images) -> dict[str, tuple[Tensor, Tensor]]:
    """Return features of the pool and of the judged points by each encoder alone."""
    encoder = learnt(images)
    encoders = {
        "pixels": nn.Flatten(),
        "graph of pixels": GraphFeatures(),
        "SimCLR": encoder,
        "graph of SimCLR": GraphFeatures(encoder),
    }
    return {name: features_by(Combined([one]), images) for name, one in encoders.items()}


def features_by(encoder: Combined, images: Images) -> tuple[Tensor, Tensor]:
    """Return features of the pool and of the judged points."""
    with torch.inference_mode():
        read_N, read_T = (
            torch.cat([encoder.read(batch) for batch in part.split(1000)]) for part in (images.pool_N, images.judged_T)
        )
        fitted = encoder.fit(read_N)
        found = fitted["features"], encoder.transform(read_T, fitted)
    return tuple(part.clone() for part in found)  # no tensors of the inference mode


def combined(parts: Sequence[tuple[Tensor, Tensor]], images: Images) -> Judged:
    """Return the features of some encoders side by side, as `Combined` has them."""
    sides = (torch.cat(side, dim=1) / math.sqrt(len(parts)) for side in zip(*parts, strict=True))
    return Judged(*sides, images.classes_N, images.classes_T)


def fit_heads(judged: Judged, labelled: Tensor, seed: int, *, std: float) -> tuple[nn.Module, Posterior]:  # noqa: ARG001
    """Return heads with this prior standard deviation of a logit, as the default precision has its own."""
    model = nn.Linear(judged.pool_N_D.shape[1], 10)
    batches, targets_n = [judged.pool_N_D[labelled]], judged.pool_N[labelled]
    usual = AnchoredHeads()
    precision = usual.precision_for(usual.fit_to_labels(model, batches, targets_n).labelled) * (PRIOR_STD / std) ** 2
    return model, AnchoredHeads(prior_precision=precision).fit_to_labels(model, batches, targets_n)


def fit_laplace(judged: Judged, labelled: Tensor, seed: int, *, steps: int) -> tuple[nn.Module, Posterior]:
    """Return the Laplace approximation of a layer after so many steps of Adam."""
    torch.manual_seed(seed)
    model = nn.Linear(judged.pool_N_D.shape[1], 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(judged.pool_N_D[labelled]), judged.pool_N[labelled]).backward()
        optimizer.step()
    return model, LastLayerLaplace().fit(model, [judged.pool_N_D[labelled]])


def judgement(judged: Judged, fit: Fit, labelled: Tensor, seed: int) -> tuple[float, float]:
    """Return log loss (nats) and accuracy of the mean prediction."""
    model, posterior = fit(judged, labelled, seed)
    with posterior.sample(model, NUM_SAMPLES, seed=seed) as predict:
        return judgement_of(judged, predict(judged.judged_T_D))


def judgement_of(judged: Judged, log_probs_T_K_C: Tensor) -> tuple[float, float]:
    """Return log loss (nats) and accuracy of the mean of these predictions."""
    log_probs_T_C = mean_log_probs(log_probs_T_K_C)
    is_right_T = log_probs_T_C.argmax(dim=1) == judged.judged_T
    return nn.functional.nll_loss(log_probs_T_C, judged.judged_T).item(), is_right_T.float().mean().item()


def rounds(judged: Judged, fit: Fit, labelled: Tensor, seed: int) -> list[tuple[float, float]]:
    """Return log loss and accuracy after each round of BatchBALD from these first labels on."""
    found = []
    for index in range(NUM_ROUNDS):
        model, posterior = fit(judged, labelled, seed)
        is_left_N = torch.ones(len(judged.pool_N), dtype=torch.bool).index_fill(0, labelled, value=False)
        rest = is_left_N.nonzero().flatten()
        with posterior.sample(model, NUM_SAMPLES, seed=seed) as predict:
            found.append(judgement_of(judged, predict(judged.judged_T_D)))
            log_probs_N_K_C = predict(judged.pool_N_D[rest])
        generator = torch.Generator().manual_seed(NUM_ROUNDS * seed + index)
        labelled = torch.cat([labelled, rest[batchbald(log_probs_N_K_C, FIRST, generator=generator).positions]])
    return found


def random_labels(judged: Judged, num_labels: int, seed: int) -> Tensor:
    """Return the positions of random points of the pool."""
    return torch.randperm(len(judged.pool_N), generator=torch.Generator().manual_seed(seed))[:num_labels]


def first_labels(judged: Judged, acquisition: Acquisition, seed: int) -> Tensor:
    """Return the positions that a cold start chooses."""
    predictions = Predictions(
        None, total=len(judged.pool_N), features_N_D=judged.pool_N_D, labelled_features_L_D=judged.pool_N_D[:0]
    )
    return acquisition(predictions, FIRST, generator=torch.Generator().manual_seed(seed)).positions


def compare(title: str, fits: Mapping[str, tuple[Judged, Fit]]) -> tuple[str, tuple[float, float]]:
    """Print log loss and accuracy of each by the number of random labels, and return the best one's name and means."""
    print(f"\n| {title} | {' | '.join(f'{num} labels' for num in NUM_LABELS)} | mean |")
    print("| - |" + " - |" * (len(NUM_LABELS) + 1))
    means = {}
    for name, (judged, fit) in fits.items():
        found = torch.tensor(
            [
                [judgement(judged, fit, random_labels(judged, num, seed), seed) for seed in range(NUM_DRAWS)]
                for num in NUM_LABELS
            ]
        ).mean(dim=1)
        nats, right = found.mean(dim=0).tolist()
        means[name] = (round(right, 3), -nats)
        print(f"| {name} | {' | '.join(map(shown, [*found.tolist(), found.mean(dim=0).tolist()]))} |", flush=True)
    best = max(means, key=means.__getitem__)
    print(f"Most accurate: {best}.")
    return best, means[best]


def shown(pair: Sequence[float]) -> str:
    """Show log loss and accuracy."""
    return f"{pair[0]:.3f}, {100 * pair[1]:.1f} %"


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--data", type=Path, help="folder of MNIST's files")
    asked = parser.parse_args()
    if asked.set == "mnist" and asked.data is None:
        parser.error("`--set mnist` needs the folder of its files: `--data FOLDER`.")
    images = digits() if asked.set == "digits" else mnist(asked.data)
    parts = parts_of(images)
    of_kind = {", ".join(names): combined([parts[name] for name in names], images) for names in COMBINATIONS}

    default = partial(fit_heads, std=PRIOR_STD)
    kind, _ = compare("1. features", {name: (judged, default) for name, judged in of_kind.items()})
    chosen = of_kind[kind]
    heads = {f"AnchoredHeads, standard deviation {std:g}": partial(fit_heads, std=std) for std in STDS}
    layers = {f"LastLayerLaplace, {steps} steps": partial(fit_laplace, steps=steps) for steps in STEPS}
    best = [compare("2. posterior", {name: (chosen, one) for name, one in fits.items()}) for fits in (heads, layers)]
    fit = (heads | layers)[max(best, key=lambda found: found[1])[0]]

    print(f"\n| 3. first {FIRST} labels | log loss, accuracy | classes among them |\n| - | - | - |")
    of_rule = {}
    for rule in (Random(), TypiClust(), CoreSet(), ProbCover()):
        firsts = [first_labels(chosen, rule, seed) for seed in range(NUM_DRAWS)]
        num_classes = [len(chosen.pool_N[labelled].unique()) for labelled in firsts]
        found = [judgement(chosen, fit, labelled, seed) for seed, labelled in enumerate(firsts)]
        of_rule[rule] = torch.tensor(found).mean(dim=0)
        print(f"| {rule!r} | {shown(of_rule[rule].tolist())} | {sum(num_classes) / NUM_DRAWS:.1f} |", flush=True)

    start = max(of_rule, key=lambda rule: of_rule[rule][1].item())
    labels = [FIRST * (1 + index) for index in range(NUM_ROUNDS)]
    print(f"\n| 4. rounds, first labels | {' | '.join(f'{num} labels' for num in labels)} | mean |")
    print("| - |" + " - |" * (NUM_ROUNDS + 1))
    for name, _ in best:
        for rule in (Random(), start):
            found = torch.tensor(
                [
                    rounds(chosen, (heads | layers)[name], first_labels(chosen, rule, seed), seed)
                    for seed in range(NUM_SEEDS)
                ]
            ).mean(dim=0)
            cells = map(shown, [*found.tolist(), found.mean(dim=0).tolist()])
            print(f"| {name}, {rule!r} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
