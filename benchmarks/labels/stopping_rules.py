"""Would another stopping rule than the paper's need fewer labels? One training of 30 epochs, seen by every rule.

    python benchmarks/labels/stopping_rules.py --data FOLDER --runs runs/paper/mnist/BatchBALD/seed-*

A net is trained without early stopping on the labels that each run of `paper.py` had at some numbers of labels. After
every epoch its dropout-free accuracy and loss on the validation set and its accuracy on the test set are taken down, so
that every rule can be applied afterwards to the same training: where it stops, and the weights it keeps.

Writes stopping_rules.csv, a row for each training and rule, and a table of docs/results/paper.md.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from al_lightning import ActiveLearningDataModule, IDXDataModule, read_journal
from al_lightning._lightning import LightningModule, Trainer, pl
from al_lightning.models import Classifier, PaperCNN

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS, MANUAL, RESULTS, Row, Table, find_provenance, write_rows

COLUMNS = ("seed", "labelled", "rule", "epoch", "test_acc")
RULES = {
    "accuracy, patience 3 (the paper's)": ("val_acc", 3),
    "accuracy, patience 10": ("val_acc", 10),
    "accuracy, no stopping": ("val_acc", 30),
    "loss, patience 3": ("val_loss", 3),
    "loss, patience 10": ("val_loss", 10),
}


class Epochs(pl.callbacks.Callback):
    """What each epoch of a training ends with."""

    def __init__(self, data: ActiveLearningDataModule) -> None:
        self.data, self.seen = data, []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test too, in evaluation mode as validation is."""
        metrics = {name: float(trainer.callback_metrics[name]) for name in ("val_acc", "val_loss")}
        right = [
            (pl_module(images).argmax(dim=1) == targets).float() for images, targets in self.data.test_dataloader()
        ]
        self.seen.append({**metrics, "test_acc": statistics.mean(value for part in right for value in part.tolist())})


def kept_epoch(values: list[float], *, rising: bool, patience: int) -> int:
    """The epoch whose weights a rule keeps: the best until none of `patience` epochs was better."""
    best = 0
    for epoch, value in enumerate(values):
        if (value > values[best]) if rising else (value < values[best]):
            best = epoch
        if epoch - best >= patience:
            break
    return best


def table(rows: Sequence[Row]) -> str:
    """Return the mean test accuracy after each rule, by number of labels."""
    labels = list(dict.fromkeys(row["labelled"] for row in rows))
    lines = [
        f"| a fit stops on | {' | '.join(f'at {each} labels (%)' for each in labels)} |",
        "| - |" + " -: |" * len(labels),
    ]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        of_rule = [
            [float(row["test_acc"]) for row in rows if (row["labelled"], row["rule"]) == (each, rule)]
            for each in labels
        ]
        lines.append(f"| {rule} | {' | '.join(f'{100 * statistics.mean(values):.1f}' for values in of_rule)} |")
    return "\n".join(lines)


TABLE = Table(
    "stopping_rules",
    MANUAL / "results" / "paper.md",
    "stopping_rules.csv",
    table,
    "python benchmarks/labels/stopping_rules.py --data FOLDER --runs RUN RUN RUN",
    commit="b7e1232",
)


def main() -> None:
    """Train once for each run and number of labels, and apply every rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data, which holds mnist/")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="finished runs of paper.py on MNIST")
    parser.add_argument("--labelled", type=int, nargs="+", default=[60, 100])
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    config = yaml.safe_load((CONFIGS / "mnist.yaml").read_text())["data"]["init_args"]
    rows, origin = [], asdict(find_provenance(threads=torch.get_num_threads(), device="cpu", commit=asked.commit))
    for run in asked.runs:
        header, rounds = read_journal(run)
        labels = [*header["initial"], *(index for one in rounds for index in one.acquired)]
        inner = config["datamodule"]["init_args"] | {"root": asked.data / "mnist", "seed": header["seed"]}
        for num_labelled in asked.labelled:
            data = ActiveLearningDataModule(
                IDXDataModule(**inner), initial=labels[:num_labelled], points_per_epoch=config["points_per_epoch"]
            )
            pl.seed_everything(header["seed"])
            epochs = Epochs(data)
            quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
            trainer = Trainer(max_epochs=30, callbacks=[epochs], num_sanity_val_steps=0, **quiet)
            trainer.fit(Classifier(PaperCNN(dropout=0.5), lr=0.001), data)
            for rule, (metric, patience) in RULES.items():
                values = [epoch[metric] for epoch in epochs.seen]
                epoch = kept_epoch(values, rising=metric == "val_acc", patience=patience)
                found = (header["seed"], num_labelled, rule, epoch, epochs.seen[epoch]["test_acc"])
                rows.append({**dict(zip(COLUMNS, found, strict=True)), **origin})
                print(*found, flush=True)
    write_rows(asked.results / "stopping_rules.csv", rows)
    TABLE.write(asked.results)


if __name__ == "__main__":
    main()
