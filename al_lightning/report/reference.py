"""The curves of the BatchBALD paper, from the raw results that its authors published."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class PaperCurve:
    """Median and quartiles of the test accuracy over the runs of one method, as far as every run goes."""

    query_size: int
    num_samples: int
    num_runs: int
    labels: Sequence[int]
    lower: Sequence[float]
    median: Sequence[float]
    upper: Sequence[float]
    acquisition: str

    @property
    def described(self) -> str:
        """Return the text of the legend."""
        settings = f"b={self.query_size}, K={self.num_samples}"
        return f"{self.acquisition}, the paper's median of {self.num_runs} ({settings})"


def _published() -> dict[str, Any]:
    published: dict[str, Any] = json.loads(files(__package__).joinpath("paper_curves.json").read_text(encoding="utf-8"))
    return published


def paper_datasets() -> list[str]:
    """The datasets of which there are curves."""
    return [name for name in _published() if name != "source"]


def paper_source() -> str:
    """Describe the curves and their source."""
    return str(_published()["source"])


def paper_curves(dataset: str) -> dict[str, PaperCurve]:
    """Return the curve of each acquisition on "mnist", or on "repeated_mnist": three noisy copies of each image.

    Example:
        >>> paper_curves("mnist")["BALD"].described
        "BALD, the paper's median of 6 (b=10, K=100)"
    """
    if dataset not in paper_datasets():
        raise ValueError(f"`dataset` is {dataset!r}, but the paper's curves are of {' and '.join(paper_datasets())}.")
    return {name: PaperCurve(**curve, acquisition=name) for name, curve in _published()[dataset].items()}
