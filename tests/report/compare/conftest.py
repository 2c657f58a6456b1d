"""Run folders as a run leaves them, with curves that a person can check."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from al_lightning.records.round import Round

HEADER = {
    "acquisition": "BALD()",
    "posterior": "MCDropout()",
    "query_size": 10,
    "num_samples": 100,
    "max_predicted": None,
    "weights": "last",
    "warm_start": False,
    "seed": 0,
    "model": "Classifier",
    "datamodule": "DigitsDataModule",
    "num_points": 400,
    "initial": [3, 1, 2],
}


@pytest.fixture
def make_run(tmp_path: Path, write_run: Callable[..., None]) -> Callable[..., Path]:
    """Write a run whose test accuracy takes these values at 10, 20, ... labels; None is a test that is missing."""

    def make(name: str, values: Sequence[float | None], *, metric: str = "test_acc", **header: Any) -> Path:
        rounds = [
            Round(
                round=index,
                num_labelled=10 * (index + 1),
                num_pool=390 - 10 * index,
                metrics={"val_loss": 1.0} if value is None else {"val_loss": 1.0, metric: value},
            )
            for index, value in enumerate(values)
        ]
        write_run(tmp_path / name, {**HEADER, **header}, rounds)
        return tmp_path / name

    return make
