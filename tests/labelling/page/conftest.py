from collections.abc import Callable
from pathlib import Path

import pytest

from al_lightning.labelling.asked import AskedBatch, AskedPoint, write_asked

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., AskedBatch]:
    """A batch of points that are each shown as a text."""

    def batch_of(ids, **fields) -> AskedBatch:
        points = [AskedPoint(index, shown=f"asked/{index}.txt") for index in ids]
        return AskedBatch(
            **{"round": 3, "points": points, "classes": ["cat", "dog", HOSTILE], "num_points": 1000, **fields}
        )

    return batch_of


@pytest.fixture(scope="session")
def write_run(batch_of) -> Callable[..., None]:
    """A run folder that asks for points."""

    def write_run(folder: Path, ids, **fields) -> None:
        (folder / "asked").mkdir(parents=True, exist_ok=True)
        for index in ids:
            (folder / "asked" / f"{index}.txt").write_text(f"text of {index}")
        write_asked(folder, batch_of(ids, **fields))

    return write_run


@pytest.fixture
def run(tmp_path, write_run) -> Path:
    folder = tmp_path / "run"
    write_run(folder, range(10, 20))
    return folder
