"""Run folders written by hand, so that every number of a report can be checked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from al_lightning.records.round import Round
from al_lightning.report.runs import Run, read_runs

HEADER = {
    "acquisition": "BatchBALD(num_configs=10000)",
    "posterior": "MCDropout(predict=None)",
    "query_size": 2,
    "num_samples": 100,
    "seed": 0,
    "model": "Classifier",
    "datamodule": "Digits",
    "num_points": 60,
    "initial": list(range(50, 60)),
}


def rounds_of(accuracies: Sequence[float | None], *, ended: bool) -> list[Round]:
    """A round for each accuracy: 10, 12, 14, ... labels; every batch is of two points of the classes 0 and 1."""
    rounds = []
    for index, accuracy in enumerate(accuracies):
        is_last = ended and index == len(accuracies) - 1
        batch: dict[str, Any] = {
            "acquired": [2 * index, 2 * index + 1],
            "scores": [0.5, 0.25],
            "targets": [0, 1],
            "information": {"joint_mi": 0.7, "num_samples": 100},
        }
        rounds.append(
            Round(
                round=index,
                num_labelled=10 + 2 * index,
                num_pool=50 - 2 * index,
                metrics={"test_acc": accuracy},
                seconds={"fit": 1.5},
                stopped="max_rounds reached" if is_last else None,
                **({} if is_last else batch),
            )
        )
    return rounds


@pytest.fixture
def make_folder(tmp_path: Path, write_run: Callable[..., None]) -> Callable[..., Path]:
    def make(
        name: str, accuracies: Sequence[float | None] = (0.5, 0.75, 0.9), *, ended: bool = True, **header: Any
    ) -> Path:
        write_run(tmp_path / name, {**HEADER, **header}, rounds_of(accuracies, ended=ended))
        return tmp_path / name

    return make


@pytest.fixture
def make_run(make_folder: Callable[..., Path]) -> Callable[..., Run]:
    def make(*arguments: Any, **settings: Any) -> Run:
        return read_runs([make_folder(*arguments, **settings)])[0]

    return make
