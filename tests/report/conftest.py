"""Run folders written by hand, so that every number of a report can be checked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from al_lightning.records.journal import Journal
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


def answer(index: int, kind: str = "label", label: int | None = None, **more: Any) -> dict[str, Any]:
    return {"id": index, "kind": kind, "label": label, "at": None, "seconds": None, **more}


def rounds_with_people(who: str) -> list[Round]:
    """No label, two labels, and the last round with three; one point is of the holdout.

    0 and 1 get labels, 2 is unsure, 3 is skipped; 1 is corrected later. 10 is of the holdout, 11 of it is rejected.
    """
    first = Round(
        0,
        0,
        18,
        acquired=[0, 1, 2, 3],
        scores=[0.5, 0.4, 0.3, 0.2],
        targets=[0, 0, None, None],
        asked_held_out=[10, 11],
        changed_after=[[2, -2, None], [10, -4, 1], [11, -2, None]],
        answers=[
            answer(0, label=0, who=who, seconds=1800.0),
            answer(0, label=0, who="bob", seconds=900.0),
            answer(1, label=0, who=who),
            answer(2, "unsure", who=who, seconds=900.0),
            answer(3, "skip", who=who),
            answer(10, label=1, who="bob"),
            answer(11, "reject", who="bob"),
        ],
    )
    second = Round(
        1,
        2,
        15,
        acquired=[4],
        scores=[0.5],
        targets=[1],
        num_held_out=1,
        changed_after=[[1, 1, 1]],
        metrics={"val_acc": 0.5},
        information={"joint_mi": 0.7, "num_samples": 100},
        answers=[
            answer(1, label=1, who=who, was=0, at="2026-01-02T00:00:00.000000Z"),
            answer(1, label=1, who="bob", was=0),
            answer(4, label=1, who=who),
            answer(4, label=0, who="bob"),
            answer(4, label=1, who="eve"),
        ],
        holdout={"num": 1, "num_right": 1, "acc": 1.0, "low": 0.025, "high": 1.0},
    )
    return [first, second, Round(2, 3, 14, num_held_out=1, metrics={"val_acc": 0.75}, stopped="max_rounds reached")]


@pytest.fixture
def make_people(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str = "people", *, who: str = "ann", **header: Any) -> Run:
        settings = {
            "initial": [],
            "reserved": [10, 11],
            "num_points": 20,
            "asks_people": True,
            "classes": ["ant", "bee"],
        }
        Journal(tmp_path / name, {**HEADER, **settings, **header}).write(rounds_with_people(who))
        return read_runs([tmp_path / name])[0]

    return make
