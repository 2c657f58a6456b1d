"""From what a classifier returns to normalised log-probabilities, and what is refused on the way."""

import torch
from torch import Tensor

from al_lightning.posterior.batch import PREDICT_REMEDY

_FEWEST_IN_A_ROW = 16  # with fewer classes than fit into a register torch takes them one by one, in ten times the time


def checked_output(output: object, *, num_rows: int | None) -> Tensor:
    """A model's output as `logits_B_C`; (B,) is (B, 1), one sigmoid logit for each point.

    Args:
        output: What the model returned.
        num_rows: B, where it is known from the inputs.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The model returned a {type(output).__name__}, and a tensor of logits (B, C) is needed. "
            f"Pick it out: {PREDICT_REMEDY}."
        )
    if output.dim() not in (1, 2) or output.numel() == 0 or not output.is_floating_point():
        raise ValueError(
            f"The model returned {output.dtype} of shape {tuple(output.shape)}, and floating-point logits of shape "
            f"(B, C), or (B, 1) or (B,) for a sigmoid, are needed. Return one row for each point: {PREDICT_REMEDY}."
        )
    if num_rows is not None and output.shape[0] != num_rows:
        raise ValueError(
            f"The model returned shape {tuple(output.shape)} for a batch of {num_rows} rows. "
            f"Return one row of logits for each row of the batch, in the same order: {PREDICT_REMEDY}."
        )
    return output.unsqueeze(1) if output.dim() == 1 else output


def log_probs_of(logits_B_K_C: Tensor) -> Tensor:
    """`log_probs_B_K_C` in float32, log p(c) = z_c - log sum_c' exp z_c', of logits or log-probabilities alike.

    With C = 1 the logit z is a sigmoid's: log p = (log sigmoid(-z), log sigmoid(z)), two classes. A logit of -inf is a
    class of probability zero; NaN, +inf and a row of nothing but -inf give NaN, which no acquisition accepts: who knows
    the ids of the rows says which they are.

    Example:
        >>> log_probs_of(torch.tensor([[[0.0, float("-inf")]], [[3.0, 3.0]]])).exp()
        tensor([[[1.0000, 0.0000]],
        <BLANKLINE>
                [[0.5000, 0.5000]]])
    """
    logits_B_K_C = logits_B_K_C.float()  # before anything else: bf16 logits have two digits
    if logits_B_K_C.shape[-1] == 1:
        logits_B_K_C = torch.cat([torch.zeros_like(logits_B_K_C), logits_B_K_C], dim=-1)
    if logits_B_K_C.device.type != "cpu" or logits_B_K_C.shape[-1] >= _FEWEST_IN_A_ROW:
        return logits_B_K_C.log_softmax(dim=-1)
    turned = logits_B_K_C.transpose(-1, -2).contiguous()
    return turned.log_softmax(dim=-2).transpose(-1, -2).contiguous()


def refuse_probabilities(outputs_B_K_C: Tensor) -> None:
    """Refuse what already went through a softmax: another one would flatten it beyond recognition.

    Rows that are never negative and all sum to 1 are no logits; one row alone may be so by accident. A single output in
    [0, 1] may well be a logit, so its values say nothing: see `refuse_sigmoid`.
    """
    rows_BK_C = outputs_B_K_C.flatten(end_dim=1)
    if rows_BK_C.shape[1] == 1 or bool((rows_BK_C == rows_BK_C[:1]).all()):
        return
    tolerance = max(1e-3, 4 * torch.finfo(outputs_B_K_C.dtype).eps)
    sums_B_K = outputs_B_K_C.float().sum(dim=-1)
    if bool((outputs_B_K_C >= 0).all()) and bool(((sums_B_K - 1).abs() <= tolerance).all()):
        raise ValueError(
            "The model returns probabilities (no value is negative and every row sums to 1), and logits or "
            "log-probabilities are needed. Leave the softmax out of `forward`, or undo it: "
            "`MCDropout(predict=lambda module, batch: module(batch[0]).log())`."
        )


def refuse_sigmoid(output: Tensor, sigmoid: Tensor | None) -> None:
    """Refuse an output that is the result of a sigmoid, known by its memory and not guessed from its values.

    Args:
        output: What the model returned.
        sigmoid: The result of the last sigmoid in that forward pass.
    """
    if sigmoid is not None and output.untyped_storage().data_ptr() == sigmoid.untyped_storage().data_ptr():
        raise ValueError(
            "The model returns sigmoid probabilities, and logits are needed. Leave the sigmoid out of `forward`, or, "
            "for two classes, undo it: `MCDropout(predict=lambda module, batch: module(batch[0]).logit())`."
        )
