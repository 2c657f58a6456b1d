"""Checks that samples are those of a posterior: K networks that differ from each other and not from batch to batch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from al_lightning.posterior.base import another_posterior
from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.dropout.function_mode import LayerMasks
from al_lightning.posterior.dropout.masks import named, some_of
from al_lightning.posterior.model import has_rows, leaves, log_probs_of, map_tensors, refuse_probabilities
from al_lightning.posterior.model_state import ModelState, handed_back, seed_generators
from al_lightning.posterior.passes import are_alike, first_difference

_DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_dropout(module: nn.Module | None) -> bool:
    """Tell whether a module is one of torch's dropout layers."""
    return isinstance(module, _DROPOUT_LAYERS)


def refuse_no_masks(model: nn.Module, masks: Mapping[tuple[str, int], LayerMasks]) -> None:
    """Raise if a forward pass used no dropout with 0 < p < 1; the error lists the dropout layers of the model."""
    if masks:
        return
    layers = [
        f"{named(name)} ({type(module).__name__}, p={module.p})"
        for name, module in named_originals(model)
        if is_dropout(module)
    ]
    raise ValueError(
        f"MCDropout drew no mask in a forward pass of {type(model).__name__}, whose dropout layers are: "
        f"{some_of(layers) or 'none'}. Add nn.Dropout with 0 < p < 1 to `forward` and train with it (called with "
        f"`training=False` it never drops), or {another_posterior('MCDropout')}. Entropy(), Margin() and "
        f"LeastConfidence() need no dropout with `posterior=Point()`."
    )


def refuse_dropout_without_effect(outputs_B_3_C: Tensor, masks: Mapping[tuple[str, int], LayerMasks]) -> None:
    """Raise if the three samples of `halves` predict the same."""
    if bool((outputs_B_3_C == outputs_B_3_C[:, :1]).all()):
        layers = ", ".join(f"{named(layer)} (p={found.p})" for (layer, _), found in masks.items())
        raise ValueError(
            f"Dropout changes nothing of what the model predicts, whatever it drops: {layers}. Look whether what is "
            f"dropped reaches the output and is not all zero, or {another_posterior('MCDropout')}."
        )


def halves(keep: Tensor) -> Tensor:
    """Return masks of three samples in the shape of one mask: keep all units, every second unit, the other units.

    Example:
        >>> halves(torch.tensor([True, False, False])).int()
        tensor([[1, 1, 1],
                [0, 1, 0],
                [1, 0, 1]], dtype=torch.int32)
    """
    is_odd = (torch.arange(keep.numel(), device=keep.device) % 2 == 1).reshape(keep.shape)
    return torch.stack([torch.ones_like(is_odd), is_odd, ~is_odd])


def refuse_equal_samples(log_probs_B_K_C: Tensor, masks: Mapping[tuple[str, int], LayerMasks]) -> None:
    """Raise if every sample predicts the same for every row: all scores would be 0."""
    if bool((log_probs_B_K_C == log_probs_B_K_C[:, :1]).all()):
        layers = ", ".join(f"{named(layer)} (p={found.p})" for (layer, _), found in masks.items())
        raise ValueError(
            f"All {log_probs_B_K_C.shape[1]} samples predict exactly the same, although masks were drawn in {layers}. "
            f"Raise p or `num_samples`, or look whether what is dropped reaches the output and is not all zero."
        )


def rows_again(inputs: object, num_rows: int) -> tuple[object, Tensor]:
    """Return the second half of a batch in reverse order and its row numbers; all rows if the batch cannot be cut.

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

    All entries of the first axis share one mask, so they must be the points. An axis of length 1 is accepted.

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


def refuse_points_second(
    before: Mapping[tuple[str, int], tuple[int, ...]],
    after: Mapping[tuple[str, int], tuple[int, ...]],
    num_rows: tuple[int, int],
) -> None:
    """Raise if the second axis of a dropout's input is that of the points, as another number of points shows.

    A mask has an entry for each position on the second axis, so a point's would depend on its place in the batch.

    Args:
        before: First two lengths for each call of dropout, in one batch.
        after: The same in another.
        num_rows: Points of both batches, not equally many.
    """
    for (layer, call), lengths in before.items():
        lengths_after = after.get((layer, call), ())
        is_points_second = (lengths[1:], lengths_after[1:]) == (num_rows[:1], num_rows[1:])
        if is_points_second and lengths[0] * num_rows[1] != lengths_after[0] * num_rows[0]:
            raise ValueError(
                f"The second axis of the input to dropout in {named(layer)} (call {call}) has length {num_rows[0]} in "
                f"a batch of {num_rows[0]} points and {num_rows[1]} in one of {num_rows[1]}, so it is the batch axis: "
                f"time before batch. Put the batch first (`batch_first=True`), or leave this dropout out with p=0."
            )


def refuse_dependence_on_batch(once_b_C: Tensor, again_b_C: Tensor, *, tolerance: float, seen: str = "") -> None:
    """Raise if one sample gives the same points other probabilities in another batch.

    Args:
        once_b_C: Log-probabilities of some points.
        again_b_C: The same points, the same sample, another batch.
        tolerance: Largest difference of a probability that rounding may cause.
        seen: Further findings for the error, as sentences.
    """
    difference = (once_b_C.exp() - again_b_C.exp()).abs().max().item()
    if difference > tolerance:
        raise ValueError(
            f"One sample gave the same points other probabilities in another batch (by up to {difference:.3f}), so it "
            f"is not one network.{seen} Look for noise drawn in `forward` itself, for BatchNorm without running "
            f"statistics, for something kept from one batch to the next, and for operations that mix the rows of a "
            f"batch."
        )


def check_rows(
    model: nn.Module, output: Callable[[object], Tensor], inputs: object, once_B_C: Tensor, state: ModelState
) -> None:
    """Raise if a network gives points other probabilities in a batch of other size and order.

    Args:
        model: The model.
        output: Its logits (B, C) for a batch.
        inputs: A batch.
        once_B_C: The logits of that batch.
        state: State of the model before that batch.
    """
    inputs_again, rows = rows_again(inputs, len(once_B_C))
    again_b_C = _again(output, inputs_again, state)
    seen = _batch_statistics(model) + _changed(state.put_back())
    tolerance = rounding_tolerance(once_B_C, model)
    refuse_dependence_on_batch(log_probs_of(once_B_C[rows]), log_probs_of(again_b_C), tolerance=tolerance, seen=seen)


def checked_first(model: nn.Module, output: Callable[[object], Tensor], inputs: object) -> Tensor:
    """Return the logits (B, C) of a first batch, after `check_rows`."""
    with handed_back(model) as state:
        once_B_C = output(inputs)
        check_rows(model, output, inputs, once_B_C, state)
    return once_B_C


def check_before_training(
    model: nn.Module, output: Callable[[object], Tensor], inputs: object, smaller: object = None
) -> None:
    """Raise if a model, not trained yet, does not return logits that depend on the points and weights alone.

    Args:
        model: The model, after `fill_zeros`: a layer of zeros would hide what precedes it.
        output: Its logits (B, C) for a batch.
        inputs: A batch.
        smaller: A batch of fewer points or of another shape, predicted too where it is given.
    """
    with handed_back(model) as state:
        once_B_C = output(inputs)
        refuse_probabilities(once_B_C.unsqueeze(1))
        again_B_C = _again(output, inputs, state)
        if not are_alike(once_B_C, again_B_C):
            changed = state.put_back()

            def run(seed: int) -> Tensor:
                seed_generators(model, 0 if changed else seed)  # state that is kept differs even under one seed
                return output(inputs)

            difference = (log_probs_of(once_B_C).exp() - log_probs_of(again_B_C).exp()).abs().max().item()
            raise ValueError(
                f"A second pass over the same points gave other probabilities (by up to {difference:.2g}), first in "
                f"{named(first_difference(model, run))}, so the model is not one network.{_changed(changed)} Let "
                f"`forward` draw and keep nothing in evaluation mode: `if self.training`."
            )
        check_rows(model, output, inputs, once_B_C, state)
        if smaller is not None:
            fewer_b_C = _again(output, smaller, state)
            if have_same_points(inputs, smaller):
                few_b_C = once_B_C[: len(fewer_b_C)]
                tolerance = rounding_tolerance(once_B_C, model)
                seen = _batch_statistics(model) + _other_length(inputs, smaller)
                refuse_dependence_on_batch(
                    log_probs_of(few_b_C), log_probs_of(fewer_b_C), tolerance=tolerance, seen=seen
                )


def _again(output: Callable[[object], Tensor], inputs: object, state: ModelState) -> Tensor:
    try:
        return output(inputs)
    except Exception as error:
        changed = state.put_back()
        if not changed:
            raise
        raise ValueError(
            f"The model predicted a batch and failed at the next one ({type(error).__name__}: {error})."
            f"{_changed(changed)} Start each `forward` afresh in evaluation mode: every batch must be predicted alike, "
            f"whatever came before it."
        ) from error


def have_same_points(batch: object, smaller: object) -> bool:
    """Tell whether a smaller batch holds the first points of a batch, padded to any length on the right or on the left.

    Example:
        >>> have_same_points({"x": torch.tensor([[1, 2, 0], [1, 2, 3]])}, {"x": torch.tensor([[1, 2]])})
        True
        >>> have_same_points({"x": torch.tensor([[0, 1, 2], [1, 2, 3]])}, {"x": torch.tensor([[1, 2]])})
        True
    """
    some, others = (_tensors(one) for one in (batch, smaller))
    return len(some) == len(others) and any(
        all(_are_padded_alike(*pair, on_left=on_left) for pair in zip(some, others, strict=True))
        for on_left in (False, True)
    )


def _tensors(batch: object) -> list[Tensor]:
    return [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


def _are_padded_alike(some: Tensor, others: Tensor, *, on_left: bool) -> bool:
    if some.dim() != others.dim() or some.shape[2:] != others.shape[2:]:
        return False
    if on_left and some.dim() > 1:
        some, others = some.flip(1), others.flip(1)
    both = tuple(slice(min(lengths)) for lengths in zip(some.shape[:2], others.shape[:2], strict=True))
    return torch.equal(some[both], others[both])


def _other_length(batch: object, smaller: object) -> str:
    pairs = zip(_tensors(batch), _tensors(smaller), strict=True)
    if all(some.shape[1:] == others.shape[1:] for some, others in pairs):
        return ""
    return (
        " The other batch is padded to another length: let the model mask the padding, and pad on the right where what "
        "it does depends on the position; or pad all to one length."
    )


def _changed(names: Sequence[str]) -> str:
    return f" A forward pass changes {', '.join(map(named, names))}." if names else ""


def _batch_statistics(model: nn.Module) -> str:
    found = [
        named(name)
        for name, module in named_originals(model)
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None
    ]
    return f" BatchNorm has no running statistics in {', '.join(found)}." if found else ""


def fill_zeros(tensors: Iterable[Tensor]) -> None:
    """Fill tensors of zeros with random values: before a training, a layer of zeros hides what precedes it.

    Example:
        >>> head, scale = torch.zeros(3), torch.tensor([0.0, 1.0])
        >>> fill_zeros([head, scale])
        >>> head.count_nonzero().item(), scale
        (3, tensor([0., 1.]))
    """
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors:
        if tensor.is_floating_point() and not tensor.any():
            tensor.data.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    torch.clear_autocast_cache()  # which holds the zeros in half precision


def learning(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a training changes, without lazy ones that have no values yet."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad and not is_lazy(parameter)]


def refuse_other_outputs(looped_B_C: Tensor, vectorised_B_C: Tensor, *, tolerance: float) -> None:
    """Raise if one sample has other probabilities when all samples are computed at once.

    Args:
        looped_B_C: Outputs of a plain forward pass.
        vectorised_B_C: The outputs of the same sample for the same points, computed at once with other samples.
        tolerance: Largest difference of a probability that rounding may cause.
    """
    once, again = log_probs_of(looped_B_C).exp(), log_probs_of(vectorised_B_C).exp()
    if not torch.allclose(once, again, rtol=0, atol=tolerance, equal_nan=True):
        raise RuntimeError(f"Computed at once, probabilities differ by up to {(once - again).abs().max().item():.2g}.")


def rounding_tolerance(outputs: Tensor, model: nn.Module, *, at_least: float = 0.002) -> float:
    """Return the largest rounding error of a probability in the coarsest number format in use: 0.002, or 0.09 in bf16.

    Example:
        >>> rounding_tolerance(torch.zeros(1), nn.Linear(2, 2))
        0.002
    """
    return max(at_least, math.sqrt(_coarsest(outputs, model)))


def is_fine(outputs: Tensor, model: nn.Module) -> bool:
    """Tell whether all number formats in use are at least single precision: half precision hides small effects."""
    return _coarsest(outputs, model) <= torch.finfo(torch.float32).eps


def _coarsest(outputs: Tensor, model: nn.Module) -> float:
    dtypes = {outputs.dtype} | {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if torch.is_autocast_enabled(outputs.device.type):
        dtypes.add(torch.get_autocast_dtype(outputs.device.type))
    return max(torch.finfo(dtype).eps for dtype in dtypes)
