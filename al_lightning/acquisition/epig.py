"""EPIG: information about the labels of targets, points like those that the model will meet."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import Need, Predictions
from al_lightning.acquisition.pointwise import Scoring, scores_of
from al_lightning.distributed import ALONE, Exchange
from al_lightning.information import expected_predictive_information


@dataclass(frozen=True)
class EPIG(Scoring):
    """Points of the highest information about labels of targets (`expected_predictive_information`).

    Bickford Smith et al. 2023, "Prediction-Oriented Bayesian Active Learning". BALD pays for all that a label tells
    about the model; EPIG for what it tells about predictions of the points of `datamodule.target_dataloader()`, which
    need no labels. On 2 cores, 2,000 points take 2 s for 1,000 targets of 10 classes (K = 100), and a hundred times as
    long for 100 classes: behind a large pool use `Screening`, with or without `score=EPIG()`.

    Example:
        >>> import torch
        >>> of_first, of_second = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
        >>> pool_2_K_C = torch.tensor([of_first, of_second]).log()  # BALD is the same for both
        >>> predictions = Predictions(pool_2_K_C, target_log_probs_T_K_C=pool_2_K_C[1:])
        >>> EPIG()(predictions, 1, generator=torch.Generator()).positions
        tensor([1])
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"predictions", "disagreement", "targets"})

    @override
    def scores(self, predictions: Predictions, *, exchange: Exchange = ALONE) -> Tensor:
        targets_T_K_C = predictions.target_log_probs_T_K_C
        if targets_T_K_C is None:
            raise ValueError(
                "`target_log_probs_T_K_C` is None, but EPIG needs predictions of targets: in a run those of "
                "`target_dataloader()` of the data module."
            )
        return scores_of(
            lambda rows: expected_predictive_information(rows, targets_T_K_C), predictions, exchange=exchange
        )
