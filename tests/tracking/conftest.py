"""One tiny run of the main job with three loggers, started from the command line, and what W&B keeps of it on disk."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from al_lightning import read_journal
from al_lightning.cli.command import run

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAID = ["fit", *(f"--config={CONFIGS / name}" for name in ("repeated_digits.yaml", "repeated_digits_wandb.yaml"))]
QUICK = ["--trainer.max_epochs=2", "--trainer.callbacks.max_rounds=3", "--trainer.callbacks.num_samples=8"]
QUICK += ["--data.points_per_epoch=320", "--trainer.enable_progress_bar=false"]
TENSORBOARD = ["--trainer.logger+=TensorBoardLogger", "--trainer.logger.save_dir=runs/tensorboard"]
HEADER, BLOCK = 7, 32 * 1024  # bytes, of a record in LevelDB's log format
WHOLE, LAST = 1, 4  # the kinds of records with which something ends


def records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: LevelDB's log format after seven bytes of W&B's own."""
    data, position, payload = path.read_bytes(), HEADER, b""
    assert data.startswith(b":W&B")
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # the rest of a block is padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        payload += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in {WHOLE, LAST}:
            yield Record.FromString(payload)
            payload = b""


def items(pairs: Any) -> dict[str, Any]:
    """The entries of a history, a summary or a config, nested keys joined by dots."""
    return {".".join(pair.nested_key) or pair.key: json.loads(pair.value_json) for pair in pairs}


def read_wandb(folder: Path) -> SimpleNamespace:
    """What W&B would get: rows of its history, the summary, the config, the x axis of each metric, the artifacts."""
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    found = SimpleNamespace(
        rows=[], summary={}, config={}, axes={}, artifacts=[], files=path.parent / "files", run=None
    )
    for record in records(path):
        if record.HasField("history"):
            found.rows.append(items(record.history.item))
        found.summary |= items(record.summary.update)
        found.config |= items(record.config.update)
        if record.HasField("metric"):
            found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        if record.HasField("artifact"):
            found.artifacts.append(record.artifact)
        if record.HasField("run"):
            found.run = record.run
    return found


@pytest.fixture(scope="session")
def wandb_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B silent, and with all that it writes in a folder that goes away."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("wandb_home")
        for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(home / name))
        for name, value in {"MODE": "offline", "CONSOLE": "off", "SILENT": "true"}.items():
            patch.setenv(f"WANDB_{name}", value)
        yield


@pytest.fixture(scope="session")
def tracked(wandb_environment: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder of the run, its journal, and what the loggers hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tracked"))
        patch.setattr(sys, "argv", ["al-lightning"])
        wandb.teardown()  # it keeps the environment of the first test that has asked for it
        cli = run([*OVERLAID, *QUICK, *TENSORBOARD])
        wandb.finish()
        wandb.teardown()  # offline, `finish` alone does not wait until all is written
        folder = Path("runs/repeated_digits/version_0").resolve()
        header, rounds = read_journal(folder)
        return SimpleNamespace(
            folder=folder,
            header=header,
            rounds=rounds,
            datamodule=cli.datamodule,
            wandb=read_wandb(Path("runs/wandb").resolve()),
            tensorboard=Path(cli.trainer.loggers[2].log_dir).resolve(),
        )


@pytest.fixture
def wandb_files() -> Callable[[Path], SimpleNamespace]:
    return read_wandb
