"""Fit of posterior samples to the labelled points, beside that of the trained model."""

from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 2**22
FAR_WORSE = 0.5
"""Share of the trained model's accuracy on the labelled points below which the samples' counts as far worse.

Samples whose disagreement was noise had 31 to 42 %, sound ones 99 to 100 %; sound ones of nets that a few labels have
trained for a few steps may have 70 %.
"""


@dataclass(frozen=True)
class LabelledFit:
    """Accuracy on the labelled points, of the posterior samples and of the trained model.

    Args:
        samples: Share of the pairs of a sample and a point that are classified as labelled.
        model: Share of the points that the trained model classifies as labelled.
        way_out: Advice on samples that fit far worse, a sentence.
    """

    samples: float
    model: float
    way_out: str

    def numbers(self) -> dict[str, float]:
        """Return both as a round records them."""
        return {"labelled_acc_samples": self.samples, "labelled_acc_model": self.model}

    def warning(self) -> str | None:
        """Advise on samples that fit far worse than the trained model; None where they do not.

        Example:
            >>> LabelledFit(0.99, 1.0, "Raise it.").warning()
            >>> LabelledFit(0.35, 1.0, "Raise it.").warning()[:72]
            'The posterior samples classify 35% of the labelled points as labelled, w'
        """
        if self.samples >= FAR_WORSE * self.model:
            return None
        return (
            f"The posterior samples classify {self.samples:.0%} of the labelled points as labelled, where the trained "
            f"model has {self.model:.0%}: they disagree about what the labels have told, and acquisitions that compare "
            f"them choose by noise. {self.way_out}"
        )


def labelled_fit(
    features_N_D: Tensor, logits_N_C: Tensor, deviations_K_C_D: Tensor, targets_N: Tensor, *, way_out: str
) -> LabelledFit:
    """Count the labelled points that samples and trained model classify as labelled.

    Args:
        features_N_D: Inputs of the last layer at the labelled points.
        logits_N_C: Its outputs there; with C = 1 the logit of the second of two classes.
        deviations_K_C_D: Weights of each sample, less those of the trained model.
        targets_N: Classes of the points.
        way_out: Advice on samples that fit far worse.

    Example:
        >>> opposite = torch.tensor([[[2.0]], [[-2.0]]])  # two samples of one logit, of a feature of 1
        >>> labelled_fit(torch.ones(1, 1), torch.ones(1, 1), opposite, torch.tensor([1]), way_out="")
        LabelledFit(samples=0.5, model=1.0, way_out='')
    """
    num_samples, num_outputs, _ = deviations_K_C_D.shape
    rows = max(1, NUMBERS_AT_ONCE // (num_samples * num_outputs))
    parts = zip(*(torch.split(tensor, rows) for tensor in (features_N_D, logits_N_C, targets_N)), strict=True)
    num_right = 0
    for features_n_D, logits_n_C, targets_n in parts:
        logits_n_K_C = torch.einsum("nd,kcd->nkc", features_n_D, deviations_K_C_D) + logits_n_C.unsqueeze(1)
        num_right += int((_classes(logits_n_K_C) == targets_n.unsqueeze(1)).sum())
    right_by_model = (_classes(logits_N_C) == targets_N).double().mean().item()
    return LabelledFit(num_right / (len(targets_N) * num_samples), right_by_model, way_out)


def _classes(logits: Tensor) -> Tensor:
    """Return the most probable class, from logits whose last axis is that of the outputs."""
    return logits.squeeze(-1) > 0 if logits.shape[-1] == 1 else logits.argmax(dim=-1)
