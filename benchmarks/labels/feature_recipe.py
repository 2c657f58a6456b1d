"""Recipes of configs/digits_features.yaml and configs/mnist_features.yaml, each chosen on labels of its training part.

    python benchmarks/labels/feature_recipe.py --threads 1
    python benchmarks/labels/feature_recipe.py --threads 1 --set mnist --data FOLDER

The training part is cut in two. One piece is the pool: the encoder is trained on it, and labels are drawn from it. The
mean prediction is judged on the other piece, whose points are no part of the graph. These labels count as spent, and no
test point is looked at. Of the digits one half is the pool, four noisy copies of each as in the configuration; of
MNIST, whose files FOLDER holds, 50,000 of 60,000 images. The recipe is chosen in five steps, each by the mean accuracy
over labels and draws, which is what the benchmark of the pool compares; where it is the same to a tenth of a percent,
by the log loss:

1. the features, by `AnchoredHeads` with its default precision on random labels;
2. the precision of `AnchoredHeads`, and the number of steps before `LastLayerLaplace`, on these features;
3. the first ten labels, by the better of these posteriors;
4. the posterior, by rounds of BatchBALD after random first labels and after those of step 3;
5. the acquisition of the later rounds, with the posterior and the first labels of step 4.

Writes feature_recipe_digits.csv or feature_recipe_mnist.csv, after each step, and the tables of docs/results/pool.md.
With another number of threads the encoder differs by rounding, and close results change places.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import (
    BADGE,
    BAIT,
    BALD,
    AnchoredHeads,
    BatchBALD,
    CoreSet,
    DigitsDataModule,
    IDXDataModule,
    LastLayerLaplace,
    ProbCover,
    Random,
    TypiClust,
)
from al_lightning.acquisition import Acquisition, Predictions
from al_lightning.datasets.repeated import Repeated
from al_lightning.features import Combined, ConvEncoder, GraphFeatures, SimCLR
from al_lightning.posterior import Posterior
from al_lightning.posterior.last_layer.anchored_heads import PRIOR_STD
from al_lightning.rounds.mean_prediction import mean_log_probs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Row, Table, find_provenance, write_rows

NUM_LABELS, NUM_DRAWS, NUM_SAMPLES = (10, 20, 40, 80), 10, 50
STDS, STEPS = (2.0, 4.0, 8.0, 16.0), (25, 50, 100, 200, 400)
FIRST, NUM_ROUNDS, NUM_SEEDS = 10, 6, 4
LR = 0.05
NUM_POOL = 50_000  # of MNIST's 60,000
LATER = Random(), BALD(), BatchBALD(), BAIT(), BADGE(), CoreSet(), TypiClust()
COMBINATIONS = (
    ("pixels",),
    ("graph of pixels",),
    ("SimCLR",),
    ("graph of SimCLR",),
    ("graph of pixels", "SimCLR"),
    ("graph of pixels", "graph of SimCLR"),
    ("graph of pixels", "graph of SimCLR", "SimCLR"),
)

PAGE = MANUAL / "results" / "pool.md"
SETS = {"digits": "", "mnist": " --set mnist --data FOLDER"}
"""Options by which a set is asked for."""
HEADS = "AnchoredHeads"
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


def rounds(
    judged: Judged, fit: Fit, labelled: Tensor, seed: int, acquisition: Acquisition
) -> list[tuple[float, float]]:
    """Return log loss and accuracy after each round of an acquisition from these first labels on."""
    found = []
    for index in range(NUM_ROUNDS):
        model, posterior = fit(judged, labelled, seed)
        is_left_N = torch.ones(len(judged.pool_N), dtype=torch.bool).index_fill(0, labelled, value=False)
        rest = is_left_N.nonzero().flatten()
        with posterior.sample(model, NUM_SAMPLES, seed=seed) as predict:
            found.append(judgement_of(judged, predict(judged.judged_T_D)))
            log_probs_N_K_C = predict(judged.pool_N_D[rest])
        predictions = Predictions(
            log_probs_N_K_C,
            features_N_D=judged.pool_N_D[rest],
            labelled_features_L_D=judged.pool_N_D[labelled],
        )
        generator = torch.Generator().manual_seed(NUM_ROUNDS * seed + index)
        labelled = torch.cat([labelled, rest[acquisition(predictions, FIRST, generator=generator).positions]])
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


@dataclass(frozen=True)
class Measured:
    """What one choice of a step has come to, with so many labels.

    Args:
        step: Number of the step.
        name: The choice.
        labels: Number of labels.
        log_loss: Mean log loss over the draws (nats).
        accuracy: Mean accuracy over the draws.
        classes: Mean number of classes among the labels; None where it is not counted.
    """

    step: int
    name: str
    labels: int
    log_loss: float
    accuracy: float
    classes: float | None = None


def by_random_labels(step: int, fits: Mapping[str, tuple[Judged, Fit]]) -> list[Measured]:
    """Judge each fit on random labels."""
    found = []
    for name, (judged, fit) in fits.items():
        for num in NUM_LABELS:
            pairs = [judgement(judged, fit, random_labels(judged, num, seed), seed) for seed in range(NUM_DRAWS)]
            found.append(Measured(step, name, num, *mean_of(pairs)))
    return found


def by_first_labels(judged: Judged, fit: Fit, rules: Sequence[Acquisition]) -> list[Measured]:
    """Judge a fit on the first labels that each acquisition chooses."""
    found = []
    for rule in rules:
        firsts = [first_labels(judged, rule, seed) for seed in range(NUM_DRAWS)]
        pairs = [judgement(judged, fit, labelled, seed) for seed, labelled in enumerate(firsts)]
        classes = fmean(len(judged.pool_N[labelled].unique()) for labelled in firsts)
        found.append(Measured(3, named(rule), FIRST, *mean_of(pairs), classes))
    return found


def by_rounds(step: int, judged: Judged, runs: Mapping[str, tuple[Fit, Acquisition, Acquisition]]) -> list[Measured]:
    """Judge each run after each of its rounds: a fit, the acquisition of the first labels, and that of the others."""
    found = []
    for name, (fit, first, later) in runs.items():
        of_seed = [rounds(judged, fit, first_labels(judged, first, seed), seed, later) for seed in range(NUM_SEEDS)]
        for index, pairs in enumerate(zip(*of_seed, strict=True)):
            found.append(Measured(step, name, FIRST * (1 + index), *mean_of(pairs)))
    return found


def mean_of(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean log loss and the mean accuracy."""
    return fmean(nats for nats, _ in pairs), fmean(right for _, right in pairs)


def named(rule: Acquisition) -> str:
    """Return the name of an acquisition."""
    return type(rule).__name__


def best_of(rows: Sequence[Row]) -> str:
    """Return the choice of the highest mean accuracy, to a tenth of a percent, and then of the lowest log loss.

    Example:
        >>> best_of([{"name": name, "accuracy": "0.5", "log_loss": loss} for name, loss in [("a", "2"), ("b", "1")]])
        'b'
    """
    return max(dict.fromkeys(row["name"] for row in rows), key=lambda name: _merit(rows, name))


def _merit(rows: Sequence[Row], name: str) -> tuple[float, float]:
    accuracy, log_loss = _means(rows, name)
    return round(accuracy, 3), -log_loss


def _means(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Return mean accuracy and log loss of a choice, over its numbers of labels."""
    own = [row for row in rows if row["name"] == name]
    return fmean(float(row["accuracy"]) for row in own), fmean(float(row["log_loss"]) for row in own)


def table(rows: list[dict[str, str]], *, step: int) -> str:
    """Return the table of a step: a row for each choice, with the best in bold type.

    The two posteriors of step 2 are compared each by itself.
    """
    rows = [row for row in rows if row["step"] == str(step)]
    numbers = list(dict.fromkeys(row["labels"] for row in rows))
    heads = [row for row in rows if step == 2 and row["name"].startswith(HEADS)]
    others = [row for row in rows if row not in heads]
    best = {best_of(group) for group in (heads, others) if group}
    by_labels = [f"{number} labels" for number in numbers] if len(numbers) > 1 else []
    classes = ["classes among them"] if rows and rows[0]["classes"] else []
    what = ("features", "posterior", f"first {FIRST} labels", "rounds of BatchBALD", "rounds of")[step - 1]
    columns = [f"{step}. {what}", *by_labels, "mean accuracy", "mean log loss (nats)", *classes]
    lines = [f"| {' | '.join(columns)} |", f"|{' - |' * len(columns)}"]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        accuracy, log_loss = _means(rows, name)
        cells = [f"{100 * float(row['accuracy']):.1f} %" for row in own] if by_labels else []
        last = [f"{float(own[0]['classes']):.1f}"] if classes else []
        mean, shown = f"{100 * accuracy:.1f} %", f"**{name}**" if name in best else name
        lines.append(f"| {' | '.join([shown, *cells, mean, f'{log_loss:.3f}', *last])} |")
    return "\n".join(lines)


TABLES = tuple(
    Table(
        f"recipe_{name}_{step}",
        PAGE,
        f"feature_recipe_{name}.csv",
        partial(table, step=step),
        f"python benchmarks/labels/feature_recipe.py --threads 1{options}",
    )
    for name, options in SETS.items()
    for step in (1, 2, 3, 4, 5)
)


def main() -> None:
    """Measure step by step, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="digits")
    parser.add_argument("--data", type=Path, help="folder of MNIST's files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.set == "mnist" and asked.data is None:
        parser.error("`--set mnist` needs the folder of its files: `--data FOLDER`.")
    torch.set_num_threads(asked.threads)
    origin = asdict(find_provenance(threads=asked.threads, device="cpu", commit=asked.commit))
    rows: list[dict[str, str]] = []

    def best(measured: Sequence[Measured]) -> str:
        """Keep what was measured, and return the best of it."""
        new = [{**asdict(one), **origin} for one in measured]
        rows.extend({name: "" if value is None else str(value) for name, value in row.items()} for row in new)
        write_rows(asked.results / f"feature_recipe_{asked.set}.csv", rows)
        chosen = best_of(rows[-len(measured) :])
        print(f"Step {measured[0].step}: {chosen}.", flush=True)
        return chosen

    images = digits() if asked.set == "digits" else mnist(asked.data)
    parts = parts_of(images)
    of_kind = {", ".join(names): combined([parts[name] for name in names], images) for names in COMBINATIONS}
    default = partial(fit_heads, std=PRIOR_STD)
    chosen = of_kind[best(by_random_labels(1, {name: (judged, default) for name, judged in of_kind.items()}))]

    heads = {f"{HEADS}, standard deviation {std:g}": partial(fit_heads, std=std) for std in STDS}
    layers = {f"LastLayerLaplace, {steps} steps": partial(fit_laplace, steps=steps) for steps in STEPS}
    found = [by_random_labels(2, {name: (chosen, one) for name, one in fits.items()}) for fits in (heads, layers)]
    fits = {name: (heads | layers)[name] for name in map(best, found)}
    second = [row for row in rows if row["step"] == "2" and row["name"] in fits]

    rules = Random(), TypiClust(), CoreSet(), ProbCover()
    start = best(by_first_labels(chosen, fits[best_of(second)], rules))
    firsts = [rule for rule in rules if named(rule) in {"Random", start}]
    runs = {f"{name}, after {named(rule)}": (fit, rule, BatchBALD()) for name, fit in fits.items() for rule in firsts}
    fit, first, _ = runs[best(by_rounds(4, chosen, runs))]
    best(by_rounds(5, chosen, {named(later): (fit, first, later) for later in LATER}))
    for one in TABLES:
        if one.file == f"feature_recipe_{asked.set}.csv":
            one.write(asked.results)


if __name__ == "__main__":
    main()
