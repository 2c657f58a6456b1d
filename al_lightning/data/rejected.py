"""Rejected points, which are none of the classes: set aside, or trained as one more class, the model's last output."""

from collections.abc import Callable, Collection
from typing import Any, Literal

from torch import Tensor

from al_lightning.data.answered import WithLabel

Reject = Literal["set_aside", "train"]
_LEAST_OUTPUTS = 2


def without_reject(logits: Tensor) -> Tensor:
    """Return log-probabilities of the real classes (..., C), given logits or log-probabilities (..., C + 1).

    The last output, that of rejected points, is dropped, and the others are normalised. For metrics of the real
    classes, as in your own `test_step`, where `ActiveLearningDataModule(reject="train")` trains rejected points. The
    training loss keeps all C + 1 outputs.

    Args:
        logits: Logits or log-probabilities of C classes and, last, of rejected points (..., C + 1).

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[0.1, 0.3, 0.6]]).log()  # rejected, most probably; of the real classes the second
        >>> without_reject(log_probs).exp(), without_reject(log_probs + 7).exp()
        (tensor([[0.2500, 0.7500]]), tensor([[0.2500, 0.7500]]))
    """
    if logits.ndim == 0 or logits.shape[-1] < _LEAST_OUTPUTS:
        raise ValueError(
            f"`logits` have the shape {tuple(logits.shape)}, but the last axis must be that of C + 1 outputs: at least "
            "one class, and rejected points."
        )
    return logits[..., :-1].log_softmax(dim=-1)


def refuse_rejected(targets_B: Tensor, num_classes: int) -> None:
    """Refuse test points that are none of the real classes, which alone are measured."""
    outside = targets_B[targets_B >= num_classes]
    if len(outside) > 0:
        raise ValueError(
            f"{len(outside)} of {len(targets_B)} points of a test batch have targets that are none of the "
            f"{num_classes} real classes, such as {outside[0].item()}: the output of rejected points is not measured. "
            "Leave points that are none of the classes out of the test data."
        )


def checked_reject(reject: object) -> Reject:
    """Validate `reject`."""
    if reject == "set_aside":
        return "set_aside"
    if reject == "train":
        return "train"
    raise ValueError(f"`reject` is {reject!r}, but must be 'set_aside' or 'train'.")


def checked_junk(junk: object, *, has_classes: bool) -> int | str | None:
    """Validate `junk`: a target of the dataset, or None.

    Example:
        >>> checked_junk(10, has_classes=False), checked_junk("background", has_classes=True)
        (10, 'background')
    """
    if junk is not None and (isinstance(junk, bool) or not isinstance(junk, int | str)):
        raise TypeError(f"`junk` is {junk!r}, but must be a target of the dataset, a number or a name, or None.")
    if isinstance(junk, str) and not has_classes:
        raise ValueError(
            f"`junk` is {junk!r}, a name, but nothing names the classes. Give them, without it: "
            "`classes=['cat', 'dog']`."
        )
    if has_classes and isinstance(junk, int) and junk < 0:
        raise ValueError(
            f"`junk` is {junk}, but where `classes` are named a negative target is that of a point whose class nobody "
            "knows. Give junk another target in the dataset."
        )
    return junk


class Outputs:
    """Number of the model's outputs, found when a fit begins; the last output is that of rejected points."""

    def __init__(self) -> None:
        self.num: int | None = None

    @property
    def last(self) -> int:
        """Return the number of the last output."""
        if self.num is None:
            raise RuntimeError(
                "Rejected points are trained as the model's last output, and how many it has is found when a fit "
                "begins. Read the training data in a fit with an `ActiveLearning` callback."
            )
        return self.num - 1


class WithRejected:
    """Change of items for training: rejected points have the last output as their class, all others are as before.

    Args:
        rejected: Ids of the rejected points.
        outputs: Tells the last output, once the items are read.
        with_label: Returns an item with a label.
        change: Change of all other items; None leaves them as they are.

    Example:
        >>> from al_lightning.data.answered import with_label
        >>> outputs = Outputs()
        >>> change = WithRejected({1}, outputs, with_label)
        >>> outputs.num = 3  # two classes, and rejected points
        >>> [change(index, item) for index, item in enumerate([("a text", 1), ("noise", -1), ("a text", 0)])]
        [('a text', 1), ('noise', 2), ('a text', 0)]
    """

    def __init__(
        self,
        rejected: Collection[int],
        outputs: Outputs,
        with_label: WithLabel,
        change: Callable[[int, Any], Any] | None = None,
    ) -> None:
        self.rejected = frozenset(rejected)
        self.outputs = outputs
        self.with_label = with_label
        self.change = change

    def __call__(self, index: int, item: Any) -> Any:  # noqa: ANN401 - whatever items are
        """Return the item of point `index`."""
        if index in self.rejected:
            return self.with_label(item, self.outputs.last)
        return item if self.change is None else self.change(index, item)
