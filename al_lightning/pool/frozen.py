"""Outputs of the frozen part of a model: computed once for all rounds, and predicted from afterwards."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from al_lightning._lightning import rank_zero_info, rank_zero_warn
from al_lightning.data.rows import rows_of
from al_lightning.distributed import Ranks
from al_lightning.pool.kept import Header, Kept
from al_lightning.posterior.frozen import FrozenPart, evaluated, frozen_parts
from al_lightning.posterior.model import Call, leaves, map_tensors
from al_lightning.posterior.passes import are_alike

LEAST_POINTS = 1024
"""Points from which on rows are looked for: with fewer, to see whether they may be used takes as long as it saves."""
LEAST_ROW = 2**14
"""Bytes that a row may take in any case; above, no more than the inputs of a point."""
ROUNDING = 1e-5
"""Difference of two predictions from equal rows, at most: probabilities, or numbers beside the largest one."""
MIB = 2**20

Predicting = Callable[[], AbstractContextManager[Callable[[object], list[Tensor]]]]
"""Yields a function that makes all that a choice reads of a batch, by the same draws each time."""
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Usual:
    """Prediction of points as it is without kept rows.

    Args:
        call: Call of the model, as the posterior calls it.
        batches: Returns batches of points on the device, from their ids and a batch size.
        predicting: What the choice reads of a batch.
        is_shown: Show a progress bar.
    """

    call: Call
    batches: Callable[[Sequence[int], int], Iterator[object]]
    predicting: Predicting
    is_shown: bool


@dataclass(frozen=True, eq=False)
class Frozen:
    """Frozen part of a model whose output is kept for some points.

    Args:
        part: The part.
        batch: A batch of points as the pool loader yields it.
        kept: Place of the rows.
        header: Their description.
    """

    part: FrozenPart
    batch: object
    kept: Kept
    header: Header

    def loader(self, indices: Sequence[int], batch_size: int) -> DataLoader[Any]:
        """Return a loader of the rows of some points."""
        return DataLoader(FrozenPoints(self, indices), batch_size=batch_size, collate_fn=_as_they_are)

    def replaced(self, model: nn.Module) -> AbstractContextManager[None]:
        """Feed the model batches of rows within the block."""
        return self.part.replaced(model)

    def batch_of(self, rows_B_D: Tensor) -> object:
        """Return a batch with rows in the place of each tensor that has a row for each point."""
        num_rows = len(self.part.output_B)
        return map_tensors(lambda x: rows_B_D if x.dim() and len(x) == num_rows else x, self.batch)


class FrozenPoints(Dataset[Any]):
    """Points by the kept rows of a model's frozen part.

    Args:
        frozen: The part.
        indices: Ids of the points.
    """

    def __init__(self, frozen: Frozen, indices: Sequence[int]) -> None:
        self.frozen = frozen
        self.indices = indices
        self._rows = frozen.kept.rows(frozen.header)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> Tensor:
        """Return some rows (n, D)."""
        return self._rows.of([self.indices[position] for position in positions])


def taking_rows(model: nn.Module, batches: DataLoader[Any]) -> AbstractContextManager[None]:
    """Feed a model kept rows within the block, if a loader yields such."""
    points = batches.dataset
    return points.frozen.replaced(model) if isinstance(points, FrozenPoints) else nullcontext()


def _as_they_are(rows_n_D: Any) -> Any:  # noqa: ANN401 - `__getitems__` has made a batch of them
    return rows_n_D


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

        There is none if its output is large, if what is read of a batch depends on more than its output, if the points
        differ each time they are read, and if it has changed since its rows were made.
        """
        has_frozen = any(not x.requires_grad for x in self.usual.call.model.parameters())
        if len(indices_N) < LEAST_POINTS or not (has_frozen or self.kept.part):
            return None
        if not self._all(self.kept.folder.parent.is_dir()):
            return self._given_up("not all nodes see the run folder")
        ids = self._tried(indices_N)
        first = self.ranks.together(lambda: next(self.usual.batches(ids, len(ids))))
        frozen = self._same_on_all(self._found(first, len(ids)))
        if frozen is None:
            return self._given_up("what follows it depends on more than its output, or it is not frozen any more")
        why = self._begin_or_check(frozen, ids) or self._fill_up(frozen, indices_N)
        return frozen if why is None else self._given_up(why, part=frozen.part.name)

    def _tried(self, indices_N: Tensor) -> list[int]:
        """Return ids of a few points that fit into one batch, at least two."""
        rows = rows_of(len(indices_N))
        ids: list[int] = indices_N[rows[:: -(-len(rows) // max(2, self.batch_size))]].tolist()
        return ids

    def _all(self, is_so: bool) -> bool:  # noqa: FBT001 - of this rank
        return bool(self.ranks.gather(torch.tensor(is_so)).all())

    def _by_first(self, work: Callable[[], Result]) -> Result | None:
        """Run `work` on rank 0, which the others wait for."""
        return self.ranks.together(lambda: work() if self.ranks.rank == 0 else None)

    def _given_up(self, why: str, *, part: str | None = None) -> Frozen | None:
        """Return None, and say why if a part was known; its rows are deleted, for later rounds run the whole model."""
        if (name := part or self.kept.part) is not None:
            self._by_first(self.kept.clear)
            rank_zero_warn(f"`{name}` is frozen, but its output is computed in each round: {why}.")
        return None

    def _found(self, batch: object, num_rows: int) -> list[Frozen]:
        """Return the frozen part from whose output the same is read as from a batch: the longest one, or none."""
        call = self.usual.call
        inputs = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]
        most = max(LEAST_ROW * num_rows, sum(leaf.nbytes for leaf in inputs))
        try:
            parts = [part for part in frozen_parts(call, call.inputs(batch), num_rows) if part.output_B.nbytes <= most]
            known = [part for part in parts if self.kept.part in {None, part.name}]
            if not known:
                return []
            with warnings.catch_warnings(), self.usual.predicting() as predict:
                warnings.simplefilter("ignore")  # the prediction of the pool warns
                expected = predict(batch)
                # In another order, so that nothing that the model remembers of a batch fits the rows by accident.
                predict(map_tensors(lambda x: x.flip(0) if x.dim() and len(x) == num_rows else x, batch))
                same = (each for part in known if self._is_same(each := self._of(part, batch), predict, expected))
                return [*islice(same, 1)]
        except Exception:  # noqa: BLE001 - an error of the model itself is raised by its prediction as usual
            return []

    def _of(self, part: FrozenPart, batch: object) -> Frozen:
        dtype = str(part.output_B.dtype).removeprefix("torch.")
        header = Header(part.name, part.digest(self.usual.call.model), part.rows_B_D.shape[1], dtype)
        return Frozen(part, batch, self.kept, header)

    def _is_same(self, frozen: Frozen, predict: Callable[[object], list[Tensor]], expected: list[Tensor]) -> bool:
        try:
            with frozen.replaced(self.usual.call.model):
                found = predict(frozen.batch_of(frozen.part.rows_B_D))
        except Exception:  # noqa: BLE001 - what follows the part needs the inputs, and is computed as usual
            return False
        return all(map(_are_equal_to_rounding, found, expected))

    def _same_on_all(self, found: Sequence[Frozen]) -> Frozen | None:
        """Return the part that was found, if each rank has found the same."""
        own = found[0].header if found else None
        expected = self.ranks.first(own)
        return found[0] if self._all(own is not None and own == expected) else None

    def _begin_or_check(self, frozen: Frozen, ids: Sequence[int]) -> str | None:
        """Begin rows, or check those of earlier rounds; return why none can be used, or None."""
        before = self.ranks.first(self._by_first(self.kept.header)) if self.kept.part is not None else None
        if before is None:  # a run that begins, or whose rows someone has deleted
            if not self._all(self.ranks.together(lambda: self._is_fixed(frozen.part, ids))):
                return (
                    "points differ each time they are read, and `pool=` of the data module gives them without "
                    "transforms; or the output for a point depends on the others of its batch"
                )
            self._by_first(lambda: self.kept.begin(frozen.header))
        elif not self._all(self.ranks.together(lambda: self._is_as_before(frozen, before, ids))):
            return (
                "it has changed since its output was kept, although no gradient reaches it, or the points have. "
                "Normalisation needs evaluation mode to stay as it is"
            )
        return None

    def _is_fixed(self, part: FrozenPart, ids: Sequence[int]) -> bool:
        """Read some points again, in another order and in two batches, and compare the output."""
        call = self.usual.call
        found = [part.rows(call, call.inputs(batch)) for batch in self.usual.batches(ids[::-1], -(-len(ids) // 2))]
        rows = [rows_and_output[0] for rows_and_output in found if rows_and_output is not None]
        return len(rows) == len(found) and are_alike(part.rows_B_D, torch.cat(rows).flip(0))

    def _is_as_before(self, frozen: Frozen, before: Header, ids: Sequence[int]) -> bool:
        """Compare the description of rows, and those of some points, with what is computed now."""
        if before != frozen.header:
            return False
        made_B = self.kept.made(self.num_points)[list(ids)]
        made = [index for index, is_made in zip(ids, made_B.tolist(), strict=True) if is_made]
        now_b_D = frozen.part.rows_B_D.cpu()[made_B]
        return not made or are_alike(now_b_D, self.kept.rows(before).of(made))

    def _fill_up(self, frozen: Frozen, indices_N: Tensor) -> str | None:
        """Make the rows that are lacking; return why that is not possible, or None."""
        kept, header, ranks = self.kept, frozen.header, self.ranks
        is_made_N = ranks.together(lambda: kept.made(self.num_points))
        lacking = indices_N[~is_made_N[indices_N]].tolist()
        if not lacking:
            return None
        needed = len(lacking) * header.num_bytes
        free = ranks.first(self._by_first(kept.num_free)) or 0
        if free < needed:
            return (
                f"that of {len(lacking)} points takes {-(-needed // MIB)} MiB, and only {free // MIB} MiB are free in "
                f"{kept.folder}. Another folder is named by `ActiveLearning(folder=...)`"
            )
        if not bool(is_made_N.any()):
            rank_zero_info(
                f"`{header.part}` is frozen: its output for {len(lacking)} points is computed once, and kept in "
                f"{kept.folder} ({-(-needed // MIB)} MiB)."
            )
        self._by_first(lambda: kept.extend(header, self.num_points))
        part = ranks.part(len(lacking), self.batch_size)
        if not self._all(ranks.together(lambda: self._fill(frozen, lacking[part.start : part.stop]))):
            return "for some points the model makes something else of it, or it has another shape"
        self._by_first(lambda: kept.mark(lacking, self.num_points))
        return None

    def _fill(self, frozen: Frozen, indices: Sequence[int]) -> bool:
        """Compute and write the rows of some points; return False if the model makes something else of one of them."""
        if len(indices) == 0:
            return True
        call, size = self.usual.call, self.batch_size
        batches = tqdm(
            self.usual.batches(indices, size),
            total=-(-len(indices) // size),
            desc=f"Computing `{frozen.part.name}` once",
            leave=False,
            disable=None if self.usual.is_shown else True,
        )
        for number, batch in enumerate(batches):
            found = frozen.part.rows(call, call.inputs(batch))
            if found is None or not self._is_made_of(frozen, *found):
                return False
            self.kept.write(frozen.header, indices[number * size : (number + 1) * size], found[0])
        return True

    def _is_made_of(self, frozen: Frozen, rows_n_D: Tensor, output_n_C: Tensor) -> bool:
        """Tell whether the model makes an output of rows; in another order than it has just computed them."""
        call = self.usual.call
        with frozen.replaced(call.model):
            again_n_C = evaluated(call, call.inputs(frozen.batch_of(rows_n_D.flip(0))))
        return are_alike(output_n_C, again_n_C.flip(0))


def _are_equal_to_rounding(found: Tensor, expected: Tensor) -> bool:
    size = max(1.0, expected.nan_to_num(0, 0, 0).abs().max().item())
    is_like = found.shape == expected.shape
    return is_like and torch.allclose(found, expected, rtol=0, atol=ROUNDING * size, equal_nan=True)
