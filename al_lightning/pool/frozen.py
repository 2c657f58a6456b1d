"""Outputs of the frozen part of a model: computed once for all rounds, and predicted from afterwards."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from al_lightning._lightning import rank_zero_info, rank_zero_warn
from al_lightning.data.rows import NUM_ROWS, rows_of
from al_lightning.distributed import Ranks
from al_lightning.pool.kept import Header, Kept, put_rows, rows_in
from al_lightning.posterior.frozen import FrozenPart, evaluated, frozen_parts
from al_lightning.posterior.model import Call, leaves, map_tensors
from al_lightning.posterior.passes import are_alike

LEAST_POINTS = 16 * NUM_ROWS
"""Points from which on rows are looked for: with fewer, to see whether they may be used takes as long as it saves."""
LEAST_ROW = 2**14
"""Bytes that a row may take in any case; above, no more than the inputs of a point."""
MIB = 2**20

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Usual:
    """Prediction of points as it is without kept rows.

    Args:
        call: Call of the model, as the posterior calls it.
        batches: Returns batches of points on the device, from their ids and a batch size.
        predicting: Yields a function that predicts a batch, as probabilities or features, by the same draws each time.
        is_shown: Show a progress bar.
    """

    call: Call
    batches: Callable[[Sequence[int], int], Iterator[object]]
    predicting: Callable[[], AbstractContextManager[Callable[[object], Tensor]]]
    is_shown: bool


@dataclass(frozen=True, eq=False)
class Frozen:
    """Frozen part of a model whose output is kept for some points.

    Args:
        part: The part.
        is_single: How the rest of the model is computed: see `FrozenPart.replaced`.
        batch: A batch of points as the pool loader yields it.
        kept: Place of the rows.
        header: Their description.
    """

    part: FrozenPart
    is_single: bool
    batch: object
    kept: Kept
    header: Header

    def loader(self, indices: Sequence[int], batch_size: int) -> DataLoader[Any]:
        """Return a loader of the rows of some points."""
        return DataLoader(FrozenPoints(self, indices), batch_size=batch_size, collate_fn=_as_they_are)

    def replaced(self, model: nn.Module) -> AbstractContextManager[None]:
        """Let the model take batches of rows within the block."""
        return self.part.replaced(model, is_single=self.is_single)

    def batch_of(self, rows_B_D: Tensor) -> object:
        """Return a batch with rows in the place of the inputs."""
        return _with_rows(self.batch, len(self.part.output_B), rows_B_D)


class FrozenPoints(Dataset[Any]):
    """Points by the kept rows of a model's frozen part.

    Args:
        frozen: The part.
        indices: Ids of the points.
    """

    def __init__(self, frozen: Frozen, indices: Sequence[int]) -> None:
        self.frozen = frozen
        self.indices = indices
        self._mapped = frozen.kept.opened(frozen.header)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> Tensor:
        """Return some rows (n, D)."""
        return rows_in(self._mapped, self.frozen.header, [self.indices[position] for position in positions])


def taking_rows(model: nn.Module, batches: DataLoader[Any]) -> AbstractContextManager[None]:
    """Let a model take kept rows within the block, if a loader yields such."""
    points = batches.dataset
    return points.frozen.replaced(model) if isinstance(points, FrozenPoints) else nullcontext()


def _as_they_are(rows_n_D: Any) -> Any:  # noqa: ANN401 - `__getitems__` has made a batch of them
    return rows_n_D


def _with_rows(batch: object, num_rows: int, rows_B_D: Tensor) -> object:
    """Return a batch with rows in the place of each tensor that has a row for each point."""
    return map_tensors(lambda x: rows_B_D if x.dim() and len(x) == num_rows else x, batch)


@dataclass(frozen=True, eq=False)
class Keeper:
    """Keeper of the output of a model's frozen part. All ranks call it at the same time.

    Args:
        usual: Prediction as usual.
        kept: Place of the rows.
        ranks: The ranks, which share the work.
        num_points: Number of points of the dataset.
        batch_size: Number of points that are computed at a time.
    """

    usual: Usual
    kept: Kept
    ranks: Ranks
    num_points: int
    batch_size: int

    def __call__(self, indices_N: Tensor) -> Frozen | None:
        """Return the frozen part with rows of the given points, made now where there are none yet; None without one.

        There is none if its output is large, if what follows depends on more than its output, if the points differ each
        time they are read, and if it has changed since its rows were made.
        """
        if len(indices_N) < LEAST_POINTS or all(x.requires_grad for x in self.usual.call.model.parameters()):
            return None
        if not self._all(self.kept.folder.parent.is_dir()):  # a node that does not see the run folder
            return None
        before = self.ranks.first(self._by_first(self.kept.header))
        ids = indices_N[rows_of(len(indices_N))].tolist()
        first = self.ranks.together(lambda: next(self.usual.batches(ids, len(ids))))
        parts = self._parts(first, len(ids), before)
        if not self._all(bool(parts)) or before == Header(parts[0].name):
            return None
        frozen = self._first_alike(parts, first)
        if not self._all(frozen is not None) or frozen is None:
            self._refuse(parts[0].name)
            return None
        if (why := self._reason_against(frozen, before, ids)) is not None:
            self._refuse(frozen.part.name, why)
            return None
        if before is None or before.part != frozen.part.name:
            self._by_first(lambda: self.kept.describe(frozen.header))
        return frozen if self._make(frozen, indices_N) else None

    def _all(self, is_so: bool) -> bool:  # noqa: FBT001 - of this rank
        return bool(self.ranks.gather(torch.tensor(is_so)).all())

    def _by_first(self, work: Callable[[], Result]) -> Result | None:
        """Run `work` on rank 0, which the others wait for."""
        return self.ranks.together(lambda: work() if self.ranks.rank == 0 else None)

    def _refuse(self, part: str, why: str | None = None) -> None:
        """Keep no rows of a part in this run, and say why, once."""
        self._by_first(lambda: self.kept.describe(Header(part)))
        if why is not None:
            rank_zero_warn(f"`{part}` is frozen, but its output is computed in each round: {why}.")

    def _parts(self, batch: object, num_rows: int, before: Header | None) -> list[FrozenPart]:
        """Return the frozen parts whose output is not too large, the longest first; of a run that resumes its own."""
        call = self.usual.call
        inputs = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]
        most = max(LEAST_ROW, sum(leaf.nbytes for leaf in inputs) // num_rows)
        try:
            found = frozen_parts(call, call.inputs(batch), num_rows)
        except Exception:  # noqa: BLE001 - an error of the model itself is raised by its prediction as usual
            return []
        small = [part for part in found if part.output_B.nbytes <= most * num_rows]
        return [part for part in small if before is not None and part.name == before.part] or small

    def _first_alike(self, parts: Sequence[FrozenPart], batch: object) -> Frozen | None:
        """Return the first part from whose output the same is predicted as from a batch."""
        try:
            with warnings.catch_warnings(), self.usual.predicting() as predict:
                warnings.simplefilter("ignore")  # the prediction of the pool warns
                expected = predict(batch)
                candidates = (self._of(part, batch, is_single) for part in parts for is_single in (True, False))
                return next((frozen for frozen in candidates if self._is_alike(frozen, predict, expected)), None)
        except Exception:  # noqa: BLE001 - as above
            return None

    def _of(self, part: FrozenPart, batch: object, is_single: bool) -> Frozen:  # noqa: FBT001 - of two ways, each is tried
        dtype = str(part.output_B.dtype).removeprefix("torch.")
        header = Header(part.name, part.digest(self.usual.call.model), part.rows_B_D.shape[1], dtype)
        return Frozen(part, is_single, batch, self.kept, header)

    def _is_alike(self, frozen: Frozen, predict: Callable[[object], Tensor], expected: Tensor) -> bool:
        try:
            with frozen.replaced(self.usual.call.model):
                return are_alike(expected, predict(frozen.batch_of(frozen.part.rows_B_D)))
        except Exception:  # noqa: BLE001 - what follows the part needs the inputs, and is computed as usual
            return False

    def _reason_against(self, frozen: Frozen, before: Header | None, ids: Sequence[int]) -> str | None:
        """Return why rows that are to be made, or were made, cannot be used; None if they can."""
        if before is None or before.part != frozen.part.name:
            if self._all(self.ranks.together(lambda: self._is_fixed(frozen.part, ids))):
                return None
            return "points differ each time they are read, and `pool=` of the data module gives them without transforms"
        if self._all(self.ranks.together(lambda: self._is_as_before(frozen, before, ids))):
            return None
        return (
            "it has changed since its output was kept, although no gradient reaches it, or the points have. "
            "Normalisation needs evaluation mode to stay as it is"
        )

    def _is_fixed(self, part: FrozenPart, ids: Sequence[int]) -> bool:
        """Read some points again, in another order, and compare the output."""
        second = next(self.usual.batches(ids[::-1], len(ids)))
        again_B_D, _ = part.rows(self.usual.call, self.usual.call.inputs(second))
        return are_alike(part.rows_B_D, again_B_D.flip(0))

    def _is_as_before(self, frozen: Frozen, before: Header, ids: Sequence[int]) -> bool:
        """Compare the description of rows, and those of some points, with what is computed now."""
        if before != frozen.header:
            return False
        made_B = self.kept.made(self.num_points)[list(ids)]
        made = [index for index, is_made in zip(ids, made_B.tolist(), strict=True) if is_made]
        now_b_D = frozen.part.rows_B_D.cpu()[made_B]
        return not made or are_alike(now_b_D, rows_in(self.kept.opened(before), before, made))

    def _make(self, frozen: Frozen, indices_N: Tensor) -> bool:
        """Make the rows that are lacking; return False if the disk is too small for them."""
        kept, header, ranks = self.kept, frozen.header, self.ranks
        is_made_N = ranks.together(lambda: kept.made(self.num_points))
        lacking = indices_N[~is_made_N[indices_N]].tolist()
        if not lacking:
            return True
        needed = len(lacking) * header.num_bytes
        free = ranks.first(self._by_first(kept.num_free)) or 0
        if free < needed:
            self._refuse(
                header.part,
                f"that of {len(lacking)} points takes {-(-needed // MIB)} MiB, and only {free // MIB} MiB are free in "
                f"{kept.folder}. Another folder is named by `ActiveLearning(folder=...)`",
            )
            return False
        if not bool(is_made_N.any()):
            rank_zero_info(
                f"`{header.part}` is frozen: its output for {len(lacking)} points is computed once, and kept in "
                f"{kept.folder} ({-(-needed // MIB)} MiB)."
            )
        self._by_first(lambda: kept.extend(header, self.num_points))
        part = ranks.part(len(lacking), self.batch_size)
        if not self._all(ranks.together(lambda: self._fill(frozen, lacking[part.start : part.stop]))):
            self._refuse(header.part)
            return False
        self._by_first(lambda: kept.mark(lacking, self.num_points))
        return True

    def _fill(self, frozen: Frozen, indices: Sequence[int]) -> bool:
        """Compute and write the rows of some points; return False if the model makes something else of one of them."""
        if len(indices) == 0:
            return True
        call, header, size = self.usual.call, frozen.header, self.batch_size
        mapped = self.kept.opened(header, is_written=True)
        batches = tqdm(
            self.usual.batches(indices, size),
            total=-(-len(indices) // size),
            desc=f"Computing `{header.part}` once",
            leave=False,
            disable=None if self.usual.is_shown else True,
        )
        for number, batch in enumerate(batches):
            rows_n_D, output_n_C = frozen.part.rows(call, call.inputs(batch))
            with frozen.replaced(call.model):
                if not are_alike(output_n_C, evaluated(call, call.inputs(frozen.batch_of(rows_n_D)))):
                    return False
            put_rows(mapped, header, indices[number * size : (number + 1) * size], rows_n_D)
        kept_bytes: Any = mapped.base
        kept_bytes.flush()
        return True
