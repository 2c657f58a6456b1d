"""Label state: one integer for each point of the dataset, from which everything else is derived."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

IN_POOL = -1
"""Mark of a point of the pool: it has no label, and may be acquired."""
EXCLUDED = -2
"""Mark of a point that nobody can label; it is neither acquired nor trained on."""
RESERVED = -3
"""Mark of a point of the holdout that is not answered yet."""
HELD_OUT = -4
"""Mark of a point of the holdout that has a label: measured, never trained on."""
REJECTED = -5
"""Mark of a point that is none of the classes: set aside, or trained as one more class."""
LOWEST = REJECTED


class Labels:
    """Label state of a dataset of N points: `round_of_N` is the round of labelling, or one of five marks.

    The marks are IN_POOL, EXCLUDED, REJECTED (none of the classes), and for points of the holdout RESERVED (not
    answered yet) and HELD_OUT (with a label: measured, never trained on). Points of the holdout cannot be labelled,
    excluded or put into the pool: only their answers move them. Ids of points are rows of the dataset. The order of
    acquisition within a round is kept in the records, not here.

    Example:
        >>> labels = Labels(5)
        >>> labels.label([3, 1], round=0)
        >>> labels.labelled_indices, labels.pool_indices
        (tensor([1, 3]), tensor([0, 2, 4]))
    """

    def __init__(self, num_points: int) -> None:
        if num_points < 1:
            raise ValueError(f"`num_points` is {num_points}, but a label state needs at least one point.")
        self.round_of_N = torch.full((num_points,), IN_POOL, dtype=torch.long)

    def __setstate__(self, state: dict[str, Tensor]) -> None:
        """Copy the tensor: torch shares it with spawned processes, but each process keeps its own labels."""
        self.round_of_N = state["round_of_N"].clone()

    def __len__(self) -> int:
        return len(self.round_of_N)

    def __repr__(self) -> str:
        num_reserved = len(self.reserved_indices)
        holdout = f", num_reserved={num_reserved}, num_held_out={self.num_held_out}"
        rejected = f", num_rejected={self.num_rejected}" if self.num_rejected else ""
        return (
            f"Labels(num_labelled={self.num_labelled}, num_pool={self.num_pool}, "
            f"num_excluded={len(self.excluded_indices)}{rejected}"
            f"{holdout if num_reserved or self.num_held_out else ''})"
        )

    @property
    def labelled_indices(self) -> Tensor:
        """Return the ids of the labelled points, ascending."""
        return (self.round_of_N >= 0).nonzero().squeeze(1)

    @property
    def initial_indices(self) -> Tensor:
        """Return the ids of the points that were labelled to begin with, ascending."""
        return (self.round_of_N == 0).nonzero().squeeze(1)

    @property
    def pool_indices(self) -> Tensor:
        """Return the ids of the pool points, ascending."""
        return (self.round_of_N == IN_POOL).nonzero().squeeze(1)

    @property
    def excluded_indices(self) -> Tensor:
        """Return the ids of the points that nobody can label, ascending."""
        return (self.round_of_N == EXCLUDED).nonzero().squeeze(1)

    @property
    def reserved_indices(self) -> Tensor:
        """Return the ids of the points of the holdout that are not answered yet, ascending."""
        return (self.round_of_N == RESERVED).nonzero().squeeze(1)

    @property
    def held_out_indices(self) -> Tensor:
        """Return the ids of the points of the holdout that have a label, ascending."""
        return (self.round_of_N == HELD_OUT).nonzero().squeeze(1)

    @property
    def rejected_indices(self) -> Tensor:
        """Return the ids of the points that are none of the classes, ascending."""
        return (self.round_of_N == REJECTED).nonzero().squeeze(1)

    @property
    def labelled_or_rejected_indices(self) -> Tensor:
        """Return the ids of the points of which the answer is known, ascending; those of the holdout are left out."""
        return ((self.round_of_N >= 0) | (self.round_of_N == REJECTED)).nonzero().squeeze(1)

    @property
    def num_labelled(self) -> int:
        """Count the labelled points."""
        return int((self.round_of_N >= 0).sum())

    @property
    def num_pool(self) -> int:
        """Count the pool points."""
        return int((self.round_of_N == IN_POOL).sum())

    @property
    def num_held_out(self) -> int:
        """Count the points of the holdout that have a label."""
        return int((self.round_of_N == HELD_OUT).sum())

    @property
    def num_rejected(self) -> int:
        """Count the points that are none of the classes."""
        return int((self.round_of_N == REJECTED).sum())

    @property
    def num_paid(self) -> int:
        """Count what the label budget has paid for, labels of the holdout and rejected points included."""
        return self.num_labelled + self.num_held_out + self.num_rejected

    def label(self, indices: Iterable[int] | Tensor, *, round: int) -> None:  # noqa: A002 - the name in the state
        """Move points from the pool to the labelled ones; if one cannot be moved, none is, and an error is raised."""
        if round < 0:
            raise ValueError(f"`round` is {round}, but rounds count from 0, the round of the initial labels.")
        indices_B = self.checked(indices)
        self._refuse("are already labelled", indices_B[self.round_of_N[indices_B] >= 0], "Acquire pool points only.")
        self._refuse_excluded(indices_B)
        self._refuse_rejected(indices_B)
        self._refuse_holdout(indices_B)
        self.round_of_N[indices_B] = round

    def unlabel(self, indices: Iterable[int] | Tensor) -> None:
        """Put labelled, excluded or rejected points back into the pool; if one is there already, none is moved."""
        indices_B = self.checked(indices)
        in_pool_B = indices_B[self.round_of_N[indices_B] == IN_POOL]
        self._refuse("are in the pool already", in_pool_B, "Only points that have left it can be put back.")
        self._refuse_holdout(indices_B)
        self.round_of_N[indices_B] = IN_POOL

    def exclude(self, indices: Iterable[int] | Tensor) -> None:
        """Take points that nobody can label out of the pool; if one is not in the pool, none is moved."""
        indices_B = self.checked(indices)
        labelled_B = indices_B[self.round_of_N[indices_B] >= 0]
        self._refuse("are labelled", labelled_B, "Only pool points can be excluded; `unlabel` them first.")
        self._refuse_excluded(indices_B)
        self._refuse_rejected(indices_B)
        self._refuse_holdout(indices_B)
        self.round_of_N[indices_B] = EXCLUDED

    def reject(self, indices: Iterable[int] | Tensor) -> None:
        """Take points out of the pool that are none of the classes; if one is not in the pool, none is moved."""
        indices_B = self.checked(indices)
        others_B = indices_B[self.round_of_N[indices_B] != IN_POOL]
        self._refuse("are not in the pool", others_B, "Reject pool points only; `unlabel` others first.")
        self.round_of_N[indices_B] = REJECTED

    def reserve(self, indices: Iterable[int] | Tensor) -> None:
        """Reserve pool points for the holdout, or take the answers of held out points back."""
        indices_B = self.checked(indices)
        states_B = self.round_of_N[indices_B]
        others_B = indices_B[(states_B != IN_POOL) & (states_B != HELD_OUT)]
        self._refuse("are neither in the pool nor held out", others_B, "Reserve pool points only.")
        self.round_of_N[indices_B] = RESERVED

    def hold_out(self, indices: Iterable[int] | Tensor) -> None:
        """Mark reserved points as answered: they are measured from now on, and never trained on."""
        indices_B = self.checked(indices)
        others_B = indices_B[self.round_of_N[indices_B] != RESERVED]
        self._refuse("are not reserved", others_B, "`reserve` draws the holdout before the initial labels.")
        self.round_of_N[indices_B] = HELD_OUT

    def grow(self, num_points: int) -> None:
        """Append points to the pool, up to `num_points` in all; the ids of the others stay.

        Example:
            >>> labels = Labels(2)
            >>> labels.label([0], round=0)
            >>> labels.grow(4)
            >>> labels.round_of_N
            tensor([ 0, -1, -1, -1])
        """
        if num_points < len(self):
            raise ValueError(f"`num_points` is {num_points}, but there are {len(self)}: points can only be appended.")
        if num_points > len(self):
            appended = torch.full((num_points - len(self),), IN_POOL, dtype=torch.long)
            self.round_of_N = torch.cat([self.round_of_N, appended])

    def replace(self, state_of: Mapping[int, int]) -> None:
        """Replace the label state by the given states by id; all other points are in the pool."""
        indices_B = self.checked(list(state_of))
        if (lowest := min(state_of.values(), default=IN_POOL)) < LOWEST:
            raise ValueError(f"`state_of` holds {lowest}, but {LOWEST} is the lowest label state.")
        self.round_of_N.fill_(IN_POOL)
        self.round_of_N[indices_B] = torch.tensor(list(state_of.values()), dtype=torch.long)

    def differences(self, state_of: Mapping[int, int]) -> dict[int, int]:
        """Return the states, by id, of the points that differ from `state_of`, ids ascending.

        A point that `state_of` does not name counts as in the pool.

        Example:
            >>> labels = Labels(4)
            >>> labels.label([0, 2], round=1)
            >>> labels.differences({2: 1, 3: 0})
            {0: 1, 3: -1}
        """
        before = Labels(len(self))
        before.replace(state_of)
        changed_B = (self.round_of_N != before.round_of_N).nonzero().squeeze(1)
        return dict(zip(changed_B.tolist(), self.round_of_N[changed_B].tolist(), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the array of states, as a checkpoint may hold it (`torch.load(weights_only=True)` reads it)."""
        return {"round_of": self.round_of_N.clone()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Copy the array of a `state_dict` into this state, in place."""
        round_of = state_dict.get("round_of")
        if not isinstance(round_of, Tensor) or round_of.dtype != torch.long or round_of.ndim != 1:
            raise ValueError(
                f"`state_dict` holds {sorted(state_dict)}, but a label state is {{'round_of': 1-D int64 tensor}}."
            )
        if len(round_of) != len(self):
            raise ValueError(
                f"The label state is of {len(round_of)} points, but the training dataset has {len(self)}: "
                "its ids would mean other points. Use the dataset (and split) that the state was saved with, "
                "or start a new run."
            )
        if int(round_of.min()) < LOWEST:
            raise ValueError(f"The label state holds {int(round_of.min())}, but {LOWEST} is its lowest value.")
        self.round_of_N.copy_(round_of)

    def checked(self, indices: Iterable[int] | Tensor) -> Tensor:
        """Return ids as a tensor, or raise unless they are distinct integers within the dataset."""
        indices_B = indices.cpu() if isinstance(indices, Tensor) else torch.tensor(list(indices))
        if indices_B.numel() == 0:
            return torch.empty(0, dtype=torch.long)
        if indices_B.ndim != 1 or indices_B.is_floating_point() or indices_B.dtype == torch.bool:
            raise TypeError(
                f"`indices` is of type {indices_B.dtype} and shape {tuple(indices_B.shape)}, but must be a flat "
                "sequence of integer point ids."
            )
        indices_B = indices_B.long()
        self._refuse(
            "are out of range",
            indices_B[(indices_B < 0) | (indices_B >= len(self))],
            f"Point ids of this dataset run from 0 to {len(self) - 1}.",
        )
        repeated_B = (torch.bincount(indices_B) > 1).nonzero().squeeze(1)
        self._refuse("are given more than once", repeated_B, "Give each point id once.")
        return indices_B

    def _refuse_excluded(self, indices_B: Tensor) -> None:
        excluded_B = indices_B[self.round_of_N[indices_B] == EXCLUDED]
        self._refuse("are excluded", excluded_B, "Put them back into the pool with `unlabel` first.")

    def _refuse_rejected(self, indices_B: Tensor) -> None:
        rejected_B = indices_B[self.round_of_N[indices_B] == REJECTED]
        self._refuse("are rejected", rejected_B, "Put them back into the pool with `unlabel` first.")

    def _refuse_holdout(self, indices_B: Tensor) -> None:
        states_B = self.round_of_N[indices_B]
        in_holdout_B = indices_B[(states_B == RESERVED) | (states_B == HELD_OUT)]
        self._refuse("are of the holdout", in_holdout_B, "It measures the accuracy, and only answers move its points.")

    @staticmethod
    def _refuse(fault: str, offenders_B: Tensor, remedy: str) -> None:
        if len(offenders_B) == 0:
            return
        shown = ", ".join(str(index) for index in offenders_B[:5].tolist())
        rest = f", … ({len(offenders_B)} in all)" if len(offenders_B) > 5 else ""  # noqa: PLR2004 - as many as are named above
        raise ValueError(f"Points {shown}{rest} of `indices` {fault}. {remedy}")
