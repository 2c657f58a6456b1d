"""Runs that are killed with SIGKILL and started again, against the run that nobody disturbed.

    python benchmarks/reliability/killed_runs.py --runs 200
    python benchmarks/reliability/killed_runs.py --runs 5 --seed 3
    python benchmarks/reliability/killed_runs.py --runs 50 --changes

Each run is killed up to `--kills` times, then left alone to its end. Every second kill falls at a random moment, the
others inside a random function of this package (at the n-th call, return or C call in it), so that the few milliseconds
in which a record is written, a batch is chosen or labels change are hit as often as the seconds of training.

With `--changes` a callback takes back, excludes and gives labels by hand in two hooks of two rounds, and half of the
runs stop after two rounds and go on with corrected targets. What, where and when differs from run to run.

The ids, their order, their scores and every metric must be those of the undisturbed run. Prints a line for each run
that differs and a summary, and writes the summary into killed.csv and a table of docs/results/labels.md; ends with 1 if
one differs. Needs `os.fork`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import al_lightning
from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, active_fit
from al_lightning.records.journal import read_journal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Row, Table, find_provenance, read_rows, write_rows

PACKAGE = str(Path(al_lightning.__file__).parent)
NOT_COMPARED = ("seconds", "logged_steps", "check", "weights")  # a check sum is over seconds too
INITIAL = [3, 8, 20, 34, 49, 61, 77, 90]


class Net(LightningModule):
    """A small net with dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.net(inputs)
        return logits

    def _loss(self, batch: list[Tensor], name: str) -> Tensor:
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": (logits.argmax(1) == batch[1]).float().mean()})
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy."""
        return self._loss(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log cross-entropy and accuracy."""
        self._loss(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log cross-entropy and accuracy."""
        self._loss(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Blobs(LightningDataModule):
    """Three noisy blobs in four dimensions.

    Args:
        corrected: Ids of training points that have another target than at first.
    """

    def __init__(self, corrected: Sequence[int] = ()) -> None:
        super().__init__()
        self.corrected = corrected

    def _loader(self, num: int, seed: int, *, shuffle: bool = False) -> DataLoader[Any]:
        targets = torch.arange(num) % 3
        for index in self.corrected if shuffle else ():
            targets[index] = (targets[index] + 1) % 3
        noise = torch.randn(num, 4, generator=torch.Generator().manual_seed(seed))
        inputs = torch.eye(3, 4)[torch.arange(num) % 3] + 0.6 * noise
        return DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a hundred points, few of them labelled."""
        return self._loader(100, 0, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return other points."""
        return self._loader(24, 1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return other points."""
        return self._loader(24, 2)


def takes_back(datamodule: ActiveLearningDataModule) -> None:
    """Unlabel three points."""
    datamodule.unlabel(datamodule.labels.labelled_indices[[0, 3, -1]])


def excludes(datamodule: ActiveLearningDataModule) -> None:
    """Exclude two points of the pool, and a labelled one by way of the pool."""
    labelled = datamodule.labels.labelled_indices[1:2]
    datamodule.unlabel(labelled)
    datamodule.exclude([*datamodule.labels.pool_indices[-2:].tolist(), *labelled.tolist()])


def gives(datamodule: ActiveLearningDataModule) -> None:
    """Label two points by hand, and one anew."""
    now = int(datamodule.labels.round_of_N.max())
    again, others = datamodule.labels.labelled_indices[2:3], datamodule.labels.pool_indices[5:7]
    datamodule.unlabel(again)
    datamodule.label([*others.tolist(), *again.tolist()], round=now)


HOOKS = ("setup", "on_fit_start", "on_train_start", "on_train_end", "on_fit_end", "on_test_start", "on_test_end")
METHODS = (takes_back, excludes, gives)


@dataclass(frozen=True)
class Plan:
    """Changes by hand in one run.

    Args:
        edits: Which method is called in which hook of which round.
        corrected: Ids whose targets are corrected after two rounds.
    """

    edits: tuple[tuple[int, str, Callable[[ActiveLearningDataModule], None]], ...] = ()
    corrected: tuple[int, ...] = ()

    @property
    def phases(self) -> list[dict[str, Any]]:
        """Return the commands of the run, one after another: how many rounds, with which targets corrected."""
        last = {"max_rounds": 4, "corrected": self.corrected}
        return [{"max_rounds": 2, "corrected": ()}, last] if self.corrected else [last]


def drawn_plan(chance: random.Random, initial: Sequence[int]) -> Plan:
    """Draw two edits in two rounds, and in half of the plans corrected targets of two initial points."""
    edits = tuple((number, chance.choice(HOOKS), chance.choice(METHODS)) for number in chance.sample(range(4), 2))
    return Plan(edits, tuple(chance.sample(list(initial), 2)) if chance.random() < 0.5 else ())


class Edits(Callback):
    """Change labels by hand, as a plan says."""

    def __init__(self, plan: Plan) -> None:
        for hook in {hook for _, hook, _ in plan.edits}:
            setattr(self, hook, partial(self._edit, plan, hook))

    @staticmethod
    def _edit(plan: Plan, hook: str, trainer: Trainer, module: LightningModule, stage: str = "fit") -> None:  # noqa: ARG004
        callback = next(callback for callback in trainer.callbacks if isinstance(callback, ActiveLearning))
        due = len(callback.rounds)
        for number, when, method in plan.edits:
            if (number, when, stage) == (due, hook, "fit"):
                method(trainer.datamodule)


def has_begun(folder: Path) -> bool:
    """Return whether the folder holds the weights that the run began with."""
    return (folder / "rounds.jsonl").exists() and read_journal(folder)[0].get("first_weights") is not None


def run(folder: Path, plan: Plan = Plan(), *, max_rounds: int = 4, corrected: Sequence[int] = ()) -> None:
    """Run the command that is killed and started again; each process draws other first weights of its own."""
    if not has_begun(folder):
        torch.manual_seed(0)  # killed before its first weights are kept, a run may begin with others
    model = Net()  # from the global generator, so each later process would begin with other weights
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=CSVLogger(folder, name="logs"),
        callbacks=[
            ModelCheckpoint(dirpath=folder / "checkpoints", monitor="val_loss"),
            EarlyStopping("val_loss", patience=1),
            ActiveLearning(
                BatchBALD(num_configs=100),
                query_size=4,
                num_samples=6,
                max_rounds=max_rounds,
                weights="best",
                folder=folder,
            ),
            Edits(plan),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    data = ActiveLearningDataModule(
        Blobs(corrected),
        initial=INITIAL,
        points_per_epoch=16,  # whatever is labelled, no batch of one is left to BatchNorm
        corrected=list(corrected),
    )
    active_fit(trainer, model, data)


Place = tuple[str, str]
"""A function of the package: its file and its name."""


class Steps:
    """Count what the interpreter does in each function of this package, and kill the process at one step of one."""

    def __init__(self, place: Place | None = None, at: int = 0) -> None:
        self.counts: Counter[Place] = Counter()
        self._place, self._at = place, at

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG002
        """Count a call or a return; the interpreter calls this."""
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            place = (code.co_filename, code.co_name)
            self.counts[place] += 1
            if place == self._place and self.counts[place] == self._at:
                os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None], *, log: Path, kill_after_s: float | None = None) -> int | None:
    """Do `work` in a child process, and return its exit status, or None if it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            torch.manual_seed(os.getpid())  # other weights in each process
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - a child must not go on as its parent; its traceback is in the log
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, state = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(state) else os.waitstatus_to_exitcode(state)


@dataclass
class Undisturbed:
    """Run that others are compared with.

    Args:
        records: Its rounds.
        seconds: How long it took.
        steps: How many steps it took in each function of the package.
    """

    records: list[dict[str, Any]]
    seconds: float
    steps: list[tuple[Place, int]]


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds of a folder without what no two runs share."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()[1:]
    read_journal(folder)
    return [{name: value for name, value in json.loads(line).items() if name not in NOT_COMPARED} for line in lines]


def undisturbed(folder: Path, plan: Plan) -> Undisturbed:
    """Run from beginning to end, and again to count the steps."""
    folder.mkdir()

    def counted() -> None:
        steps = Steps()
        sys.setprofile(steps)
        for phase in plan.phases:
            run(folder / "counted", plan, **phase)
        sys.setprofile(None)
        (folder / "steps").write_text(json.dumps(list(steps.counts.items())))

    def whole() -> None:
        for phase in plan.phases:
            run(folder / "whole", plan, **phase)

    begun = time.perf_counter()
    statuses = [in_child(whole, log=folder / "log")]
    seconds = time.perf_counter() - begun
    statuses.append(in_child(counted, log=folder / "log"))
    if statuses != [0, 0]:
        raise RuntimeError((folder / "log").read_text())
    steps = [((file, name), count) for (file, name), count in json.loads((folder / "steps").read_text())]
    return Undisturbed(records(folder / "whole"), seconds, steps)


@dataclass
class Outcome:
    """Outcome of a disturbed run.

    Args:
        rounds_when_killed: How many rounds were on disk after each kill, or after an end that came before it.
        num_killed: How many kills came before the end.
        problem: What differs from the undisturbed run; empty if nothing does.
    """

    rounds_when_killed: list[int] = field(default_factory=list)
    num_killed: int = 0
    problem: str = ""


def disturbed(folder: Path, plan: Plan, expected: Undisturbed, *, kills: int, chance: random.Random) -> Outcome:
    """Kill a run, start it again, and so on, and compare what it comes to."""
    folder.mkdir()
    outcome = Outcome()
    for phase in plan.phases:
        command = partial(run, folder, plan, **phase)
        _killed(command, folder, expected, outcome, kills=max(1, kills // len(plan.phases)), chance=chance)
        if not outcome.problem and in_child(command, log=folder / "log") != 0:
            outcome.problem = f"cannot go on: {(folder / 'log').read_text()[-2000:]}"
    if not outcome.problem and records(folder) != expected.records:
        outcome.problem = f"has other records: {records(folder)} and not {expected.records}"
    return outcome


def _killed(
    command: Callable[[], None],
    folder: Path,
    expected: Undisturbed,
    outcome: Outcome,
    *,
    kills: int,
    chance: random.Random,
) -> None:
    for number in range(kills):
        place, count = chance.choice(expected.steps)
        steps = Steps(place, chance.randint(1, count)) if number % 2 == 0 else None
        left = 1 - (outcome.rounds_when_killed or [0])[-1] / len(expected.records)
        kill_after_s = None if steps is not None else chance.uniform(0, left * expected.seconds)

        def work(steps: Steps | None = steps) -> None:
            sys.setprofile(steps)
            command()

        status = in_child(work, log=folder / "log", kill_after_s=kill_after_s)
        outcome.num_killed += status is None
        outcome.rounds_when_killed.append(len(records(folder)) if (folder / "rounds.jsonl").exists() else 0)
        if status not in (0, None):
            outcome.problem = f"failed: {(folder / 'log').read_text()[-2000:]}"
            return


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=3, help="how often each run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--changes", action="store_true", help="labels are changed by hand, and targets corrected")
    add_shared(parser)
    return parser.parse_args()


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where figures are kept, and of what commit they are."""
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)


def table(rows: Sequence[Row]) -> str:
    """Return how many runs were killed how often, and how many of them ended as the undisturbed one."""
    lines = [
        "| runs in which | script and its arguments | killed, times | with the same records |",
        "| - | - | -: | -: |",
    ]
    lines += [
        f"| {row['which']} | `{row['command']}` | {int(row['kills']):,} | {row['same']} of {row['runs']} |"
        for row in rows
    ]
    return "\n".join(lines)


TABLE = Table(
    "killed",
    MANUAL / "results" / "labels.md",
    "killed.csv",
    table,
    "python benchmarks/reliability/killed_runs.py --runs 200",
)


def keep(figures: Mapping[str, object], *, commit: str | None, results: Path) -> None:
    """Keep the figures of one kind of runs in the place of earlier ones, and write the table."""
    found = find_provenance(threads=1, device="cpu", commit=commit)
    row = {**{name: str(value) for name, value in figures.items()}, **asdict(found)}
    others = {other["which"]: other for other in read_rows(results / TABLE.file)}
    write_rows(results / TABLE.file, list({**others, row["which"]: row}.values()))
    TABLE.write(results)


def main() -> int:
    """Run, kill, compare."""
    arguments = parsed()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # a forked process must not need its parent's threads
    chance = random.Random(arguments.seed)  # noqa: S311 - moments, not secrets
    problems, kills, killed_in = 0, 0, Counter[int]()
    with tempfile.TemporaryDirectory() as temporary:
        plan, expected = Plan(), undisturbed(Path(temporary) / "plain", Plan())
        print(f"undisturbed: {len(expected.records)} rounds, {expected.seconds:.1f} s, {len(expected.steps)} functions")
        for number in range(arguments.runs):
            if arguments.changes:
                plan = drawn_plan(chance, INITIAL)
                expected = undisturbed(Path(temporary) / f"expected-{number}", plan)
            folder = Path(temporary) / f"run-{number}"
            outcome = disturbed(folder, plan, expected, kills=arguments.kills, chance=chance)
            killed_in.update(outcome.rounds_when_killed)
            kills += outcome.num_killed
            if outcome.problem:
                problems += 1
                print(f"run {number}, {plan}, {outcome.problem}", flush=True)
            shutil.rmtree(folder)
    places = ", ".join(f"{count} with {rounds} rounds on disk" for rounds, count in sorted(killed_in.items()))
    same = arguments.runs - problems
    print(f"{same} of {arguments.runs} runs equal the undisturbed one; {kills} kills: {places}")
    flags = " --changes" if arguments.changes else ""
    figures = {
        "which": "labels change by hand and targets are corrected" if arguments.changes else "all labels are known",
        "command": f"killed_runs.py --runs {arguments.runs} --kills {arguments.kills} --seed {arguments.seed}{flags}",
        "runs": arguments.runs,
        "kills": kills,
        "same": same,
    }
    keep(figures, commit=arguments.commit, results=arguments.results)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
