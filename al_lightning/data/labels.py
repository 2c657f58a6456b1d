"""Label state: one integer for each point of the dataset, from which everything else is derived."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

IN_POOL = -1
EXCLUDED = -2
RESERVED = -3  # for the holdout, not answered yet
HELD_OUT = -4  # in the holdout, with a label: measured, never trained on


class Labels:
    """Label state of a dataset of N points: `round_of_N` is IN_POOL, EXCLUDED, or the round of labelling.

    Ids of points are rows of the dataset. The order of acquisition within a round is kept in the records, not here.

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
        return (
            f"Labels(num_labelled={self.num_labelled}, num_pool={self.num_pool}, "
            f"num_excluded={len(self.excluded_indices)})"
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
    def num_labelled(self) -> int:
        """Count the labelled points."""
        return int((self.round_of_N >= 0).sum())

    @property
    def num_pool(self) -> int:
        """Count the pool points."""
        return int((self.round_of_N == IN_POOL).sum())

    def label(self, indices: Iterable[int] | Tensor, *, round: int) -> None:  # noqa: A002 - the name in the state
        """Move points from the pool to the labelled ones; if one cannot be moved, none is, and an error is raised."""
        if round < 0:
            raise ValueError(f"`round` is {round}, but rounds count from 0, the round of the initial labels.")
        indices_B = self.checked(indices)
        self._refuse("are already labelled", indices_B[self.round_of_N[indices_B] >= 0], "Acquire pool points only.")
        self._refuse_excluded(indices_B)
        self.round_of_N[indices_B] = round

    def unlabel(self, indices: Iterable[int] | Tensor) -> None:
        """Put labelled or excluded points back into the pool; if one is there already, none is moved."""
        indices_B = self.checked(indices)
        in_pool_B = indices_B[self.round_of_N[indices_B] == IN_POOL]
        self._refuse("are in the pool already", in_pool_B, "Only labelled or excluded points can be put back.")
        self.round_of_N[indices_B] = IN_POOL

    def exclude(self, indices: Iterable[int] | Tensor) -> None:
        """Take points that nobody can label out of the pool; if one is not in the pool, none is moved."""
        indices_B = self.checked(indices)
        labelled_B = indices_B[self.round_of_N[indices_B] >= 0]
        self._refuse("are labelled", labelled_B, "Only pool points can be excluded; `unlabel` them first.")
        self._refuse_excluded(indices_B)
        self.round_of_N[indices_B] = EXCLUDED

    def replace(self, state_of: Mapping[int, int]) -> None:
        """Replace the label state by the given states by id; all other points are in the pool."""
        indices_B = self.checked(list(state_of))
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
        if int(round_of.min()) < EXCLUDED:
            raise ValueError(f"The label state holds {int(round_of.min())}, but {EXCLUDED} is its lowest value.")
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

    @staticmethod
    def _refuse(fault: str, offenders_B: Tensor, remedy: str) -> None:
        if len(offenders_B) == 0:
            return
        shown = ", ".join(str(index) for index in offenders_B[:5].tolist())
        rest = f", … ({len(offenders_B)} in all)" if len(offenders_B) > 5 else ""  # noqa: PLR2004 - as many as are named above
        raise ValueError(f"Points {shown}{rest} of `indices` {fault}. {remedy}")
