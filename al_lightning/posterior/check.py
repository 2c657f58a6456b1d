"""Whether what was sampled is a posterior: K networks that differ from each other and not from batch to batch."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from al_lightning.posterior.base import ANOTHER_POSTERIOR
from al_lightning.posterior.batch import has_rows, map_tensors
from al_lightning.posterior.interception import LayerMasks
from al_lightning.posterior.logits import log_probs_of
from al_lightning.posterior.masks import named

_DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def refuse_no_masks(model: nn.Module, masks: Mapping[tuple[str, int], LayerMasks]) -> None:
    """Raise if a forward pass met no dropout with 0 < p < 1, listing the dropout layers there are."""
    if masks:
        return
    layers = [
        f"{named(name)} ({type(module).__name__}, p={module.p})"
        for name, module in model.named_modules()
        if isinstance(module, _DROPOUT_LAYERS)
    ]
    raise ValueError(
        f"MCDropout drew no mask in a forward pass of {type(model).__name__}, whose dropout layers are: "
        f"{', '.join(layers) or 'none'}. Add nn.Dropout with 0 < p < 1 to `forward` and train with it (dropout behind "
        f"`if self.training` is not seen), or {ANOTHER_POSTERIOR}."
    )


def refuse_equal_samples(log_probs_B_K_C: Tensor, masks: Mapping[tuple[str, int], LayerMasks]) -> None:
    """Raise if every sample predicts the same for every row: all scores would be 0."""
    if bool((log_probs_B_K_C == log_probs_B_K_C[:, :1]).all()):
        layers = ", ".join(f"{named(layer)} (p={found.p})" for (layer, _), found in masks.items())
        raise ValueError(
            f"All {log_probs_B_K_C.shape[1]} samples predict exactly the same, although masks were drawn in {layers}. "
            f"Raise p or `num_samples`, or look whether what is dropped reaches the output and is not all zero."
        )


def rows_again(inputs: object, num_rows: int) -> tuple[object, Tensor]:
    """The second half of a batch in reverse, and which rows these are; all rows if the batch cannot be cut.

    Example:
        >>> rows_again(torch.tensor([10, 11, 12]), 3)
        (tensor([12, 11]), tensor([2, 1]))
    """
    if not has_rows(inputs, num_rows):
        return inputs, torch.arange(num_rows)
    rows = torch.arange(num_rows - 1, num_rows // 2 - 1, -1)
    return map_tensors(lambda tensor: tensor[rows.to(tensor.device)], inputs), rows


def refuse_fixed_first_axis(before: Mapping[tuple[str, int], int], after: Mapping[tuple[str, int], int]) -> None:
    """Raise if the first axis of a dropout's input keeps its length when the batch is cut: it is not the batch axis.

    One mask is shared along that axis, so it must hold the points. (A length of 1 shares nothing and is fine.)

    Args:
        before: Length for each call of dropout, in the whole batch.
        after: The same in a part of the batch.
    """
    for (layer, call), length in before.items():
        if length > 1 and after.get((layer, call)) == length:
            raise ValueError(
                f"The first axis of the input to dropout in {named(layer)} (call {call}) has length {length} whatever "
                f"the number of rows in the batch, so it is not the batch axis: a weight, or time before batch. Put "
                f"the batch first (`batch_first=True`), or leave this dropout out with p=0."
            )


def refuse_dependence_on_batch(once_b_C: Tensor, again_b_C: Tensor, *, tolerance: float) -> None:
    """Raise if one sample predicts something else for the same points in another batch.

    Args:
        once_b_C: Log-probabilities of some points.
        again_b_C: The same points, the same sample, another batch.
        tolerance: Largest difference of a probability that rounding may cause.
    """
    difference = (once_b_C.exp() - again_b_C.exp()).abs().max().item()
    if difference > tolerance:
        raise ValueError(
            f"One sample gave the same points other probabilities in another batch (by up to {difference:.3f}), so it "
            f"is not one network. Look for noise drawn in `forward` itself, for BatchNorm without running statistics, "
            f"and for operations that mix the rows of a batch."
        )


def refuse_other_outputs(looped_B_C: Tensor, vectorised_B_C: Tensor, *, tolerance: float) -> None:
    """Raise if one sample predicts something else when all samples are computed at once.

    Args:
        looped_B_C: Outputs of a plain forward pass.
        vectorised_B_C: The same points, the same sample.
        tolerance: Largest difference of a probability that rounding may cause.
    """
    once, again = log_probs_of(looped_B_C).exp(), log_probs_of(vectorised_B_C).exp()
    if not torch.allclose(once, again, rtol=0, atol=tolerance, equal_nan=True):
        raise RuntimeError(f"Computed at once, probabilities differ by up to {(once - again).abs().max().item():.2g}.")


def rounding_tolerance(outputs: Tensor, model: nn.Module, *, at_least: float = 0.002) -> float:
    """Largest difference of a probability that the coarsest number format in use may cause: 0.002, or 0.09 in bf16.

    Example:
        >>> rounding_tolerance(torch.zeros(1), nn.Linear(2, 2))
        0.002
    """
    dtypes = {outputs.dtype} | {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if torch.is_autocast_enabled(outputs.device.type):
        dtypes.add(torch.get_autocast_dtype(outputs.device.type))
    coarsest = max(torch.finfo(dtype).eps for dtype in dtypes)
    return max(at_least, math.sqrt(coarsest))
