"""Runs with people, in which the fit, the page, a script and Label Studio's push and pull are killed with SIGKILL.

    python benchmarks/reliability/killed_people.py --runs 200
    python benchmarks/reliability/killed_people.py --runs 5 --seed 3

Each run asks for four batches of four points. Until it ends, one of these is done in turn, drawn at random: the same
fit is started again, a script writes answers to some of the missing points, a page is served and answers are posted to
it, or tasks are pushed to a server that stands for Label Studio, annotated there and pulled. Every second of them is
killed: at a random moment, or at a random call or return in this package. Sometimes the script writes while the fit
waits.

What must hold: the batches, their scores, labels and every metric are those of the run whose dataset has all labels;
each answer on disk stands in exactly one record; what the page has acknowledged is on disk after a kill; no task is
there twice. Prints a line for each run in which something does not, and a summary, and writes the summary into
killed.csv and a table of docs/results/labels.md; ends with 1 if something does not hold. Needs `os.fork`.
"""

import argparse
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from killed_runs import PACKAGE, Blobs, Net, add_shared, in_child, keep
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_lightning import ActiveLearning, ActiveLearningDataModule, AskPeople, BatchBALD, active_fit, read_journal
from al_lightning.labelling.answers import normal_time
from al_lightning.labelling.asked import ANSWERS, now, read_asked
from al_lightning.labelling.label_studio.client import Project
from al_lightning.labelling.label_studio.sync import asked_by, pull, push, was_pushed
from al_lightning.labelling.page.command import serve

CLASSES = ["ant", "bee", "cat"]
BATCH, BUDGET = 4, 16
COMPARED = ("round", "acquired", "scores", "targets", "metrics", "information", "stopped", "bald", "predicted")
IDENTITY = ("id", "kind", "label", "who", "at")  # of an answer
MOST_ACTIONS = 200
MOST_STEPS = {"fit": 60_000, "push": 4_000, "pull": 4_000}


class Inputs(Dataset[Any]):
    """Points without a label."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Tensor:
        """Return the input alone."""
        return self.inputs[index]


class UnlabelledBlobs(Blobs):
    """The same points, whose labels people know."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the inputs alone."""
        inputs = super().train_dataloader().dataset.tensors[0]  # type: ignore[attr-defined]
        return DataLoader(Inputs(inputs), batch_size=8, shuffle=True)

    def render(self, item: Any) -> str:  # noqa: ANN401 - an input
        """Return what people see."""
        return str((item[0] if isinstance(item, tuple | list) else item).tolist())


def fit(folder: Path, data: LightningDataModule, oracle: AskPeople | None) -> None:
    """Run the command that is killed and started again."""
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        callbacks=[
            ActiveLearning(
                BatchBALD(num_configs=100),
                query_size=BATCH,
                num_samples=6,
                max_labelled=BUDGET,
                folder=folder,
                oracle=oracle,
            )
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = ActiveLearningDataModule(data, initial=0, classes=CLASSES, points_per_epoch=16)
    active_fit(trainer, Net(), module, seed=0)


class KilledAt:
    """Kills the process at the n-th call, return or C call in this package."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG002
        """Count a call, a return or a C call; the interpreter calls this."""
        if frame.f_code.co_filename.startswith(PACKAGE):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def truth(index: int) -> str:
    """Return the class that everyone knows."""
    return CLASSES[index % 3]


def missing(folder: Path) -> list[int]:
    """Return the asked points that no file answers yet."""
    batch = read_asked(folder) if folder.exists() else None
    if batch is None:
        return []
    there = {answer["id"] for answer in answers_on_disk(folder)}
    return [index for index in batch.ids if index not in there]


def answers_on_disk(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of all files of answers."""
    found = []
    for path in sorted((folder / ANSWERS).glob("*.jsonl")):
        text = path.read_bytes().decode()
        found += [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return found


@dataclass
class World:
    """One run and those around it.

    Args:
        folder: The run folder.
        chance: What draws.
        studio: The server that stands for Label Studio.
        killed: What was killed how often.
        problems: What did not hold.
    """

    folder: Path
    chance: random.Random
    studio: Any
    log: Path
    killed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def child(self, name: str, work: Callable[[], None]) -> None:
        """Do something in a process of its own, every second time killed."""
        kind = self.chance.choice(["whole", "whole", "moment", "step"])
        after = self.chance.uniform(0, 1.5 if name == "fit" else 0.2) if kind == "moment" else None
        steps = KilledAt(self.chance.randint(1, MOST_STEPS[name])) if kind == "step" and name in MOST_STEPS else None

        def watched() -> None:
            sys.setprofile(steps)
            work()

        status = in_child(watched, log=self.log, kill_after_s=after)
        if status is None:
            self.killed[name] += 1
        elif status != 0:
            self.problems.append(f"{name} failed: {self.log.read_text()[-1500:]}")

    def fits(self) -> None:
        """Start the same command."""
        self.child("fit", partial(fit, self.folder, UnlabelledBlobs(), AskPeople()))

    def fits_while_a_script_writes(self) -> None:
        """Start the command, which waits, while answers come."""
        ids = missing(self.folder)
        if not ids:
            return
        writer = os.fork()
        if writer == 0:
            try:
                write(self.folder, ids, who="slow", pause_s=0.05)
            finally:
                os._exit(0)
        self.child("fit", partial(fit, self.folder, UnlabelledBlobs(), AskPeople(wait=1.5)))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)

    def scripts(self) -> None:
        """Answer some of the missing points."""
        ids = missing(self.folder)
        if not ids:
            return
        some = self.chance.sample(ids, self.chance.randint(0, len(ids)))
        self.child("script", partial(write, self.folder, some, who=self.chance.choice(["ann", "bob"]), pause_s=0.01))

    def serves(self) -> None:
        """Serve the page, post some answers, and kill the server at once after one of them."""
        ids = missing(self.folder)
        if not ids:
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = os.fork()
        if server == 0:
            os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            serve(self.folder, "eve", "127.0.0.1", port, show_predictions=False)
            os._exit(0)
        try:
            acknowledged = self._post(port, ids[: self.chance.randint(1, len(ids))])
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            self.killed["page"] += 1
        there = {(answer["id"], answer["who"]) for answer in answers_on_disk(self.folder)}
        lost = [index for index in acknowledged if (index, "eve") not in there]
        self.problems += [f"the page acknowledged {lost}, which are not on disk"] if lost else []

    def _post(self, port: int, ids: list[int]) -> list[int]:
        acknowledged: list[int] = []
        until = time.monotonic() + 20
        while not is_listening(port) and time.monotonic() < until:
            time.sleep(0.02)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/state")
        run = json.loads(connection.getresponse().read())["run"]
        for index in ids:
            answer = {"run": run, "id": index, "kind": "label", "label": truth(index), "who": "eve", "at": now()}
            headers = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{port}"}
            connection.request("POST", "/answer", json.dumps(answer), headers)
            if (reply := connection.getresponse()).status != http.client.OK:
                self.problems.append(f"the page refused an answer: {reply.read()!r}")
                return acknowledged
            reply.read()
            acknowledged.append(index)
        return acknowledged

    def annotates(self) -> None:
        """Push the batch, annotate some tasks and pull."""
        if not missing(self.folder):
            return
        project = Project(self.studio.url, 1)
        self.child("push", lambda: push(self.folder, asked_by(self.folder), project) and None)
        done = {each["task"] for each in self.studio.annotations.values()}
        due = [task for number, task in self.studio.tasks.items() if number not in done]
        for task in self.chance.sample(due, self.chance.randint(0, len(due))):
            point = task["data"]["point"]
            self.studio.annotate(point, truth(point), task=task["id"], seconds=1.0)
        if was_pushed(self.folder):
            self.child("pull", lambda: pull(self.folder, asked_by(self.folder), project) and None)
        of_point = Counter((task["data"]["point"], task["data"].get("round")) for task in self.studio.tasks.values())
        twice = [place for place, count in of_point.items() if count > 1]
        self.problems += [f"tasks are there twice: {twice}"] if twice else []

    @property
    def has_ended(self) -> bool:
        """Return whether the run has committed its last round."""
        rounds = read_journal(self.folder)[1] if (self.folder / "rounds.jsonl").exists() else []
        return bool(rounds) and rounds[-1].stopped is not None

    def run(self) -> None:
        """Do something until the run ends."""
        actions = [self.fits, self.fits, self.scripts, self.serves, self.annotates, self.fits_while_a_script_writes]
        for _ in range(MOST_ACTIONS):
            if self.has_ended or self.problems:
                return
            self.chance.choice(actions)()
        self.problems.append(f"the run has not ended after {MOST_ACTIONS} steps")

    def check(self, expected: list[dict[str, Any]]) -> None:
        """Compare with the run whose dataset has all labels, and count each answer."""
        rounds = read_journal(self.folder)[1]
        found = compared(self.folder)
        if found != expected:
            self.problems.append(f"has other records: {found} and not {expected}")
        recorded = Counter(tuple(row[name] for name in IDENTITY) for record in rounds for row in record.answers)
        written = {
            (answer["id"], "label", CLASSES.index(answer["label"]), answer["who"], normal_time(answer["at"]))
            for answer in answers_on_disk(self.folder)
        }
        if set(recorded) - written or any(count > 1 for count in recorded.values()):
            self.problems.append(f"records hold answers twice, or some that nobody gave: {recorded}")
        if lost := written - set(recorded):
            self.problems.append(f"no record holds the answers {lost}")


def write(folder: Path, ids: list[int], *, who: str, pause_s: float) -> None:
    """Write answers, as a script does that is not ours: a line, flushed, one after another."""
    path = folder / ANSWERS / f"{who}-{os.getpid()}-{time.monotonic_ns()}.jsonl"
    with path.open("a") as file:
        for index in ids:
            line = json.dumps({"id": index, "label": truth(index), "who": who, "at": now()}) + "\n"
            for part in (line[:10], line[10:]):  # a kill between them leaves half a line
                file.write(part)
                file.flush()
                time.sleep(pause_s / 2)


def is_listening(port: int) -> bool:
    """Return whether a server answers."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def compared(folder: Path) -> list[dict[str, Any]]:
    """Return what must be equal of the rounds of a folder."""
    return [{name: getattr(record, name) for name in COMPARED} for record in read_journal(folder)[1]]


def studio_of_tests() -> Any:  # noqa: ANN401 - the tests' own server
    """Return the server that stands for Label Studio in the tests."""
    path = Path(__file__).parents[2] / "tests" / "labelling" / "label_studio" / "conftest.py"
    spec = importlib.util.spec_from_file_location("studio_of_tests", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    os.environ["LABEL_STUDIO_API_KEY"] = module.FakeStudio.LEGACY
    os.environ["no_proxy"] = "*"
    return module.FakeStudio


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of what is done and killed when")
    add_shared(parser)
    return parser.parse_args()


def main() -> int:
    """Run, kill, compare."""
    arguments = parsed()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # a forked process must not need its parent's threads
    problems, killed = 0, Counter[str]()
    studio_class = studio_of_tests()
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        log = Path(temporary) / "log"
        if in_child(partial(fit, whole, Blobs(), None), log=log) != 0:
            raise RuntimeError(log.read_text())
        expected = compared(whole)
        for number in range(arguments.runs):
            chance = random.Random(f"{arguments.seed}/{number}")  # noqa: S311 - moments, not secrets
            world = World(Path(temporary) / f"run-{number}", chance, studio_class(), log)
            world.run()
            if not world.problems:
                world.check(expected)
            world.studio.close()
            killed.update(world.killed)
            if world.problems:
                problems += 1
                print(f"run {number}: {world.problems}", flush=True)
            shutil.rmtree(world.folder, ignore_errors=True)
            if (number + 1) % 10 == 0:
                print(f"{number + 1 - problems} of {number + 1} so far", flush=True)
    words = ", ".join(f"{name} {count} times" for name, count in sorted(killed.items()))
    same = arguments.runs - problems
    print(f"{same} of {arguments.runs} runs equal the one with all labels; killed: {words}")
    figures = {
        "which": "people label",
        "command": f"killed_people.py --runs {arguments.runs} --seed {arguments.seed}",
        "runs": arguments.runs,
        "kills": killed.total(),
        "same": same,
    }
    keep(figures, commit=arguments.commit, results=arguments.results)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
