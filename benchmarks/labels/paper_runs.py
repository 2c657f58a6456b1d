"""The runs of `paper.py`: what each is, whether it has ended, and how it is started or taken up again."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from al_lightning import Round, read_journal
from common import CONFIGS, Provenance, digest

CALLBACK = "--trainer.callbacks."
LABELS = (20, 290)  # where the paper's runs on MNIST begin and end


@dataclass(frozen=True)
class Experiment:
    """One setting of the paper, which several acquisitions share.

    Args:
        config: The name of its configuration.
        data: The folder of its files, within that of all data.
        flags: What differs from the configuration.
        max_labelled: Labels at the end.
        reference: The name of each acquisition's trials in the authors' raw results.
        overlay: The name of a configuration that replaces some of the first.
        datamodule: Where the configuration has the data module of the files.
    """

    config: str
    data: str = "mnist"
    flags: Sequence[str] = ()
    max_labelled: int = LABELS[1]
    reference: Mapping[str, str] = field(default_factory=dict)
    overlay: str | None = None
    datamodule: str = "data.datamodule"

    @property
    def configs(self) -> list[Path]:
        """The files of its configurations, each of which replaces some of those before it."""
        return [CONFIGS / f"{name}.yaml" for name in (self.config, self.overlay) if name is not None]


def _mnist(query_size: int, max_labelled: int, **reference: str) -> Experiment:
    return Experiment("mnist", "mnist", [f"{CALLBACK}query_size={query_size}"], max_labelled, reference)


def _repeated(repeat: int, *, num_samples: int, **reference: str) -> Experiment:
    flags = [f"--data.datamodule.repeat={repeat}", f"{CALLBACK}num_samples={num_samples}"]
    return Experiment("repeated_mnist", "mnist", flags, LABELS[1], reference)


EXPERIMENTS = {
    "mnist": _mnist(10, 290, BatchBALD="mnist_multibald_bald_k100_b10", BALD="mnist_independent_bald_k100_b10"),
    "mnist, screened": Experiment(
        "mnist",
        "mnist",
        [f"{CALLBACK}num_samples=1000", f"{CALLBACK}screening.num_points=2000", f"{CALLBACK}screening.num_samples=20"],
    ),
    "mnist, b = 1": _mnist(1, 290, BALD="mnist_independent_bald_k100_b1"),
    "mnist, b = 5": _mnist(5, 235, BatchBALD="mnist_multibald_bald_k100_b5"),
    "mnist, b = 40": _mnist(40, 300, BatchBALD="mnist_multibald_bald_k100_b40"),
    "repeated x3": _repeated(
        3,
        num_samples=10,
        BatchBALD="rmnist_w_noise_multibald_bald_k10_b10",
        BALD="rmnist_w_noise_independent_bald_k10_b10",
        Random="rmnist_w_noise_independent_random_k10_b5",
        MeanSTD="rmnist_w_noise_independent_mean_stddev_k10_b10",
        LeastConfidence="rmnist_w_noise_independent_variation_ratios_k10_b10",  # the paper's word for it
    ),
    "repeated x3, K = 100": _repeated(3, num_samples=100),
    **{
        f"repeated x{repeat}": _repeated(
            repeat,
            num_samples=10,
            BatchBALD=f"repeated_mnist_w_noise{repeat}_multibald_bald_k10_b10",
            BALD=f"repeated_mnist_w_noise{repeat}_independent_bald_k10_b10",
            Random=f"repeated_mnist_w_noise{repeat}_independent_random_k10_b10",
        )
        for repeat in (2, 5)
    },
    "fashion mnist": Experiment("fashion_mnist", "fashion_mnist"),
    "emnist": Experiment(
        "emnist",
        "emnist",
        max_labelled=300,
        reference={
            "BatchBALD": "emnist_multibald_bald_k10",
            "BALD": "emnist_independent_bald_k10",
            "Random": "emnist_balanced_independent_random_k10_b5",
        },
    ),
}
EXPERIMENTS |= {
    f"{name}, likelihood": replace(EXPERIMENTS[name], overlay="stop_on_likelihood") for name in ("mnist", "repeated x3")
}
EXPERIMENTS["mnist, augmented"] = replace(
    EXPERIMENTS["mnist"], overlay="mnist_augmented", datamodule="data.datamodule.datamodule"
)


def filename(experiment: str) -> str:
    """What its files and folders are called."""
    return "".join(letter for letter in experiment if letter.isalnum())


@dataclass(frozen=True)
class Job:
    """One run of the command line; all that it does depends on these fields.

    Args:
        experiment: Its name.
        acquisition: Its class.
        seed: Of everything: the validation set, the noise, the weights, the training, the draws.
        pool: Training images to use, before they are repeated; None for all.
        max_labelled: Labels at the end.
        extra: Further arguments of `al-lightning fit`.
    """

    experiment: str
    acquisition: str
    seed: int
    pool: int | None
    max_labelled: int
    extra: Sequence[str] = ()

    def __str__(self) -> str:
        pool = "" if self.pool is None else f", pool of {self.pool}"
        return f"{self.experiment}{pool}, {self.acquisition}, seed {self.seed}"

    def folder(self, root: Path) -> Path:
        """Where it runs."""
        pool = "" if self.pool is None else f"-pool{self.pool}"
        return root / f"{filename(self.experiment)}{pool}" / self.acquisition / f"seed-{self.seed}"

    @property
    def flags(self) -> list[str]:
        """What it changes of the configuration, its files and its folder apart."""
        experiment = EXPERIMENTS[self.experiment]
        pool = [] if self.pool is None else [f"--{experiment.datamodule}.num_train={self.pool}"]
        seeded = ("seed_everything", "data.seed", f"{experiment.datamodule}.seed")
        seeds = [f"--{name}={self.seed}" for name in seeded]
        limits = [f"{CALLBACK}max_labelled={self.max_labelled}", f"{CALLBACK}acquisition={self.acquisition}"]
        return [*experiment.flags, *pool, *seeds, *limits, *self.extra]

    def rounds(self, root: Path) -> list[Round]:
        """What it has done so far, up to its last number of labels: its folder may hold more."""
        return [entry for entry in self._tested(root) if entry.num_labelled <= self.max_labelled]

    def has_ended(self, root: Path) -> bool:
        """Whether its last round, test included, is on disk."""
        return any(entry.num_labelled >= self.max_labelled for entry in self._tested(root))

    def _tested(self, root: Path) -> list[Round]:
        folder = self.folder(root)
        return read_journal(folder)[1] if (folder / "rounds.jsonl").is_file() else []


@dataclass(frozen=True)
class Place:
    """Where and on what runs are made.

    Args:
        root: The folder of their folders.
        data: The folder of the data.
        threads: Of each run.
        provenance: The package, torch and the machine.
    """

    root: Path
    data: Path
    threads: int
    provenance: Provenance


def start(job: Job, place: Place, *, gpu: str | None) -> bool:
    """Run what is missing of a job; whether it ended as it should. Whatever it says is in `log.txt`."""
    folder = job.folder(place.root)
    folder.mkdir(parents=True, exist_ok=True)
    started_in = folder / f"start-{len(list(folder.glob('start-*')))}"  # Lightning saves a configuration but once
    experiment = EXPERIMENTS[job.experiment]
    configs = experiment.configs
    command = [sys.executable, "-m", "al_lightning", "fit", *(f"--config={path}" for path in configs), *job.flags]
    command += [f"--{experiment.datamodule}.root={place.data / experiment.data}"]
    command += [f"{CALLBACK}folder={folder}", "--trainer.logger=false", f"--trainer.default_root_dir={started_in}"]
    command += ["--trainer.enable_progress_bar=false", f"--trainer.accelerator={'cpu' if gpu is None else 'gpu'}"]
    command += ["--trainer.devices=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(place.threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    note(job, place, configs)
    started = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        code = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if code or not job.has_ended(place.root):
        print(f"{job}: FAILED with exit code {code}, see {folder / 'log.txt'}", flush=True)
        return False
    for checkpoints in folder.glob("start-*/checkpoints"):  # of rounds that are over: a run goes on without them
        shutil.rmtree(checkpoints)
    print(f"{job}: {time.perf_counter() - started:.0f} s", flush=True)
    return True


def note(job: Job, place: Place, configs: Sequence[Path]) -> None:
    """Add to the run's folder what it is made of now; a run that is taken up again may have several such lines."""
    entry = {
        **asdict(place.provenance),
        "config": " ".join(f"{config.name}@{digest([config])}" for config in configs),
        "flags": " ".join(job.flags),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with (job.folder(place.root) / "provenance.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def provenance_of(job: Job, root: Path) -> dict[str, str]:
    """What the run was made of, from its last start; `commit` names those of all starts."""
    lines = (job.folder(root) / "provenance.jsonl").read_text().splitlines()
    entries: list[dict[str, str]] = [json.loads(line) for line in lines]
    return {**entries[-1], "commit": " ".join(dict.fromkeys(entry["commit"] for entry in entries))}
