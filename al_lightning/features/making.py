"""Making of features: each rank encodes a part of the points, and all of them read the file that results."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from al_lightning._lightning import LightningDataModule, Trainer
from al_lightning.data.answered import Changed
from al_lightning.data.collation import NUM_LOOKED_AT, refuse_own_order
from al_lightning.data.label_key import LabelKey, WithoutLabel
from al_lightning.data.loaders import sequential_loader
from al_lightning.data.rows import digest, rows_of
from al_lightning.distributed import Ranks
from al_lightning.features.dataset import Form
from al_lightning.features.encoder import (
    NUM_NAMED,
    ONE_BY_ONE,
    TOLERANCE,
    PoolEncoder,
    device_of,
    encoding,
    is_coarse,
    largest_difference,
    read_by,
    refuse_broken,
    refuse_dependence_on_batch,
    refuse_random,
)
from al_lightning.features.pool_encoders import parts_of
from al_lightning.features.stored import Header, Rows, Store
from al_lightning.posterior.model import has_rows, map_tensors
from al_lightning.randomness import derived_seed, seeded

PROBE, FITTED = "probe", "fitted."
MOST_ROUNDED = 0.01  # of the spread of features
Fitted = Mapping[str, Tensor]


class View(Dataset[Any]):
    """Points of a dataset whose transforms are random, as one view of them: each item by a seed of its own."""

    def __init__(self, dataset: Dataset[Any], number: int) -> None:
        self.dataset = dataset
        self.number = number

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type] # checked

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - whatever items are
        with seeded(derived_seed(index, self.number, "view")):
            return self.dataset[index]


@dataclass(frozen=True)
class Source:
    """Points whose features are made.

    Args:
        name: Name of the dataset, such as `train`.
        dataset: The points.
        loader: Loader with the user's settings, of a dataset of such points.
        form: Form of their items; None to take items as they are.
        label_key: Key of the label in dict items, where it is no usual one: the encoder is not given it.
        num_views: V, the number of views of each point, where transforms are random.
    """

    name: str
    dataset: Dataset[Any]
    loader: DataLoader[Any]
    form: Form | None
    label_key: LabelKey | None
    num_views: int = 1

    @property
    def num_points(self) -> int:
        """Count the points."""
        return len(self.dataset)  # type: ignore[arg-type] # checked

    def batches(self, indices: list[int], view: int, batch_size: int) -> DataLoader[Any]:
        """Return a loader of the given points in their order, labels hidden."""
        dataset = self.dataset if self.num_views == 1 else View(self.dataset, view)
        if self.form is not None:
            dataset = Changed(dataset, self.form.without_label)
        loader = sequential_loader(self.loader, dataset, indices, batch_size=batch_size, seed=0)
        if self.label_key is not None:
            loader.collate_fn = WithoutLabel(loader.collate_fn, self.label_key)
        return loader

    def refuse_random(self, indices: list[int]) -> None:
        """Refuse points that differ when they are read twice, if there is one view of each."""
        if self.num_views > 1:
            return
        changed = [index for index in indices if digest(self.dataset[index]) != digest(self.dataset[index])]
        way_out = (
            "Leave them out."
            if self.form is None
            else "Give the data module a method `pool_dataset()` that returns the same points without them, or "
            "`Embedded(..., pool=dataset)`, or `views=V` for the features of V draws of each point."
        )
        if changed:
            raise ValueError(
                f"{len(changed)} of {len(indices)} points of the {self.name} data that were read twice have changed in "
                f"between, first of the points {changed[:NUM_NAMED]}: random transforms, but features are made once. "
                f"{way_out}"
            )


@dataclass(frozen=True)
class Maker:
    """Maker of features.

    Args:
        encoder: The encoder.
        inner: Data module whose transfer hooks a batch goes through.
        folder: Folder of the features.
        dtype: Precision in which they are stored.
        batch_size: Points that are encoded at a time; None for those of the loader.
        is_checked: Encode some points anew at each start and compare; False if a version vouches for the features.
    """

    encoder: nn.Module
    inner: LightningDataModule
    folder: Path
    dtype: str
    batch_size: int | None
    is_checked: bool

    def made(self, source: Source, fitted: Callable[[], Fitted] | None, *, width: int | None = None) -> Rows:
        """Return the features of all points, made now where they are not on disk. All ranks call it at the same time.

        Args:
            source: The points.
            fitted: Returns what an encoder of the whole pool has found in it; None to fit it to these points.
            width: How many features each point must have; None for any number.
        """
        if source.num_points == 0:
            raise ValueError(f"The {source.name} data have no points, so there are no features to make.")
        ranks, store = Ranks(self._trainer), Store(self.folder, source.name)  # type: ignore[arg-type] # without a Trainer a process is alone
        if ranks.size > 1:
            ranks.same("the encoder's state or the form of its features", self.folder.name)
        with self._locked(store, ranks), seeded(0), self._encoding():
            header = ranks.together(store.header)
            if header is not None:
                _refuse_other_width(source.name, header.width, width, path=store.header_path)
                ranks.together(partial(self._check, source, store, header))
            if header is None or header.num_points < source.num_points:
                self._write(source, store, header, ranks, fitted, width)
                header = ranks.together(lambda: _seen(store))
            return store.rows(header)

    def width(self, name: str) -> int | None:
        """Return how many features the points of that dataset have; None if there are none."""
        header = Store(self.folder, name).header()
        return None if header is None else header.width

    def fitted(self, name: str) -> Fitted:
        """Return what an encoder of the whole pool has found in it."""
        store = Store(self.folder, name)
        return _fitted_in(store.beside(_seen(store)))

    @property
    def _trainer(self) -> Trainer | None:
        return self.inner.trainer

    @property
    def _device(self) -> torch.device:
        if self._trainer is not None:
            return self._trainer.strategy.root_device
        return device_of(self.encoder)

    @contextmanager
    def _locked(self, store: Store, ranks: Ranks) -> Iterator[None]:
        """Keep other runs out while features are looked up and made: the second run finds those of the first."""
        lock = FileLock(store.folder / ".lock")

        def acquire() -> None:
            if ranks.rank > 0:
                return
            try:
                store.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(
                    f"`folder` is {self.folder.parent}, where no folder can be made: {error}. Name one that can be "
                    "written."
                ) from error
            lock.acquire()

        ranks.together(acquire)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Set the Trainer to predicting, of which transfer hooks ask whether to augment, and the encoder likewise."""
        trainer = self._trainer
        stage = None if trainer is None else trainer.state.stage
        try:
            if trainer is not None:
                trainer.predicting = True
            with encoding(self.encoder, self._device):
                yield
        finally:
            if trainer is not None:
                trainer.state.stage = stage

    def _check(self, source: Source, store: Store, header: Header) -> None:
        """Refuse features of other points: fewer of them, or some that are encoded to other features now."""
        header_path = store.folder / f"{store.name}.json"
        way_out = f"Name another `folder`, or delete {header_path}, and they are made anew."
        if source.num_points < header.num_points:
            raise ValueError(
                f"{store.folder} holds features of {header.num_points} points of the {store.name} data, which has "
                f"{source.num_points} points now. {way_out}"
            )
        if not self.is_checked:
            return
        before_R_D = store.beside(header)[PROBE]
        now_R_D = self._probe(source, header.num_points)
        num_rows = len(rows_of(header.num_points))
        pairs = list(self._pairs(before_R_D, now_R_D))
        if all(largest_difference(old, new) <= TOLERANCE for old, new in pairs):
            return
        ids: list[int] = []
        if all(old.shape == new.shape for old, new in pairs):
            differs_P_R = torch.stack([_differing_rows(old, new) for old, new in pairs])
            differs = differs_P_R.view(-1, num_rows).any(dim=0)  # view after view
            ids = [rows_of(header.num_points)[row] for row in differs.nonzero().flatten().tolist()]
        raise ValueError(
            f"{store.folder} holds features of other points than the {store.name} data has, or the encoder has changed "
            f"in what its state does not hold: of {num_rows} points that were encoded anew, {len(ids) or num_rows} "
            f"have other features, first of the points {ids[:NUM_NAMED]}. New points go to the end of a dataset. "
            f"{way_out} If they are right all the same, `version='a name'` vouches for features without this check."
        )

    def _probe(self, source: Source, num_points: int) -> Tensor:
        """Return what the encoder reads of some points, view after view; refuse points and encoders that are random."""
        indices = rows_of(num_points)
        source.refuse_random(indices)
        refuse_own_order(source.batches(indices[:NUM_LOOKED_AT], 0, self._size(source)))
        found: list[Tensor] = []
        for view in range(source.num_views):
            for ids, batch in self._batches(source, indices, view):
                first_B_D = self._tried(source, batch)
                refuse_broken(first_B_D, ids, name=source.name)
                if found or not self._is_alike_in_parts(source, batch, first_B_D, ids):
                    for once_B_D, again_B_D in self._pairs(first_B_D, self._tried(source, batch)):
                        refuse_random(once_B_D, again_B_D, ids)
                found.append(first_B_D)
        return torch.cat(found)

    def _tried(self, source: Source, batch: object) -> Tensor:
        try:
            return read_by(self.encoder, batch).cpu()
        except TypeError as error:
            raise TypeError(f"Of the {source.name} data: {error}") from error
        except RuntimeError as error:
            raise ValueError(
                f"`encoder` cannot be called on a batch of the {source.name} data: {error} The inputs of all data must "
                "be of the kind and shape that it takes."
            ) from error

    def _alone(self, point: object, index: int) -> Tensor:
        try:
            return read_by(self.encoder, point).cpu()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"`encoder` cannot encode point {index} alone, as the last batch or an appended point may be: {error} "
                f"{ONE_BY_ONE}"
            ) from error

    def _is_alike_in_parts(self, source: Source, batch: object, first_B_D: Tensor, ids: list[int]) -> bool:
        """Return whether parts of a batch are encoded as the whole; refuse encoders of which the batch decides.

        The first part is one point, whose features differ the most, as an appended point may be encoded alone.
        """
        if len(ids) < 2 or not has_rows(batch, len(ids)):  # noqa: PLR2004 - two parts
            return False
        first, rest = (map_tensors(itemgetter(rows), batch) for rows in (slice(0, 1), slice(1, len(ids))))
        parts = [self._alone(first, ids[0]), self._tried(source, rest)]
        pairs = list(self._pairs(first_B_D, torch.cat(parts)))
        if all(largest_difference(*pair) <= TOLERANCE for pair in pairs):
            return True
        for once_B_D, again_B_D in self._pairs(first_B_D, self._tried(source, batch)):
            refuse_random(once_B_D, again_B_D, ids)
        for whole_B_D, parts_B_D in pairs:
            refuse_dependence_on_batch(whole_B_D, parts_B_D, ids, is_coarse=is_coarse(self.encoder))
        return True

    def _pairs(self, first_B_D: Tensor, second_B_D: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(parts_of(self.encoder, read_B_D) for read_B_D in (first_B_D, second_B_D)), strict=True)

    def _batches(self, source: Source, indices: list[int], view: int) -> Iterator[tuple[list[int], Any]]:
        """Yield batches on the device, and the ids of their points."""
        size, device, inner = self._size(source), self._device, self.inner
        for number, batch in enumerate(source.batches(indices, view, size)):
            given = inner.on_before_batch_transfer(batch, 0)
            moved = inner.transfer_batch_to_device(given, device, 0)
            yield indices[number * size : (number + 1) * size], inner.on_after_batch_transfer(moved, 0)

    def _size(self, source: Source) -> int:
        size = self.batch_size or source.loader.batch_size
        if size is None:
            raise ValueError(
                f"The loader of the {source.name} data has no batch size. Say how many points are encoded at a time: "
                "`Embedded(..., encoder_batch_size=256)`."
            )
        return size

    def _write(
        self,
        source: Source,
        store: Store,
        before: Header | None,
        ranks: Ranks,
        fitted: Callable[[], Fitted] | None,
        expected_width: int | None,
    ) -> None:
        """Make the features of the points that have none yet, and write those of all."""
        probe_R_D = ranks.together(lambda: self._probe(source, source.num_points))
        kept: Fitted = {}
        if isinstance(self.encoder, PoolEncoder):
            kept = self._fitted_for(source, store, before, ranks, probe_R_D.shape[1], fitted)
        beside = {PROBE: probe_R_D, **({} if fitted else {FITTED + name: kept[name] for name in kept})}
        start = 0 if before is None else before.num_points
        # Of the points that an encoder was fitted to the features are there already.
        num_there = max(start, len(kept["features"])) if kept and fitted is None else start
        width = (kept["features"] if kept else probe_R_D).shape[1]
        _refuse_other_width(source.name, width, expected_width)
        header = store.new_header((source.num_points, source.num_views, width), self.dtype)
        # In the end rank 0 alone knows the features that an encoder was fitted to.
        ranks.together(lambda: self._refuse_coarse(source, probe_R_D, kept) if ranks.rank == 0 else None)

        def begin() -> None:
            if ranks.rank == 0:
                store.begin(store.partial, header.shape, self.dtype)
                file = np.load(store.partial, mmap_mode="r+")
                if before is not None:
                    file[:start] = np.load(store.folder / before.file, mmap_mode="r")
                elif num_there:
                    file[:, 0] = kept["features"].numpy()
                file.flush()

        ranks.together(begin)
        ranks.together(lambda: self._fill(store.partial, source, ranks, num_there, kept))
        ranks.together(lambda: store.commit(header, beside) if ranks.rank == 0 else None)

    def _refuse_coarse(self, source: Source, probe_R_D: Tensor, kept: Fitted) -> None:
        """Refuse a precision in which points that differ become alike."""
        if self.dtype == "float32":
            return
        features_R_D = self._transformed(probe_R_D, kept).double()
        rounded_R_D = features_R_D.to(getattr(torch, self.dtype)).double()
        spread, error = (_spread(of_R_D) for of_R_D in (features_R_D, rounded_R_D - features_R_D))
        if rounded_R_D.isfinite().all() and error > MOST_ROUNDED * spread:  # what is too large is refused where written
            raise ValueError(
                f"`dtype` is {self.dtype!r}, but rounds the features of the {source.name} data by "
                f"{100 * error / spread:.0f} % of their spread, so that different points become alike. Let the encoder "
                "centre and scale its features, or keep `dtype='float32'`."
            )

    def _fitted_for(
        self,
        source: Source,
        store: Store,
        before: Header | None,
        ranks: Ranks,
        width: int,
        fitted: Callable[[], Fitted] | None,
    ) -> Fitted:
        """Return what the encoder has found in the whole pool; it is fitted to these points if it is them."""
        encoder: Any = self.encoder
        if fitted is not None:
            return fitted()
        if before is not None:
            return _fitted_in(store.beside(before))
        num_points = source.num_points

        def begin() -> None:
            if ranks.rank == 0:
                store.begin(store.partial_read, (num_points, 1, width), "float32")

        def fit() -> dict[str, Tensor]:
            if ranks.rank > 0:
                return {}
            read_N_D = torch.from_numpy(np.load(store.partial_read, mmap_mode="c"))[:, 0]
            found: dict[str, Tensor] = encoder.fit(read_N_D)
            refuse_broken(found["features"], range(num_points), name=source.name)
            return found

        ranks.together(begin)
        ranks.together(lambda: self._fill(store.partial_read, source, ranks, 0, {}))
        found = ranks.together(fit)
        # Other ranks need the width alone: no further point is encoded now.
        shape = ranks.gather(torch.tensor(found["features"].shape[1] if found else 0))[0]
        return found or {"features": torch.empty(num_points, int(shape))}

    def _encoded(self, batch: object, kept: Fitted) -> Tensor:
        """Return the features of a batch (B, D), on the CPU; what the encoder reads of it, while it is not fitted."""
        return self._transformed(read_by(self.encoder, batch).cpu(), kept)

    def _transformed(self, read_B_D: Tensor, kept: Fitted) -> Tensor:
        encoder: Any = self.encoder
        features_B_D: Tensor = encoder.transform(read_B_D, kept) if kept else read_B_D
        return features_B_D

    def _fill(self, path: Path, source: Source, ranks: Ranks, start: int, kept: Fitted) -> None:
        """Encode this rank's part of the points from `start` on, and write its rows."""
        size = self._size(source)
        part = ranks.part(source.num_points - start, size)
        indices = [start + position for position in part]
        file = np.load(path, mmap_mode="r+")
        num_views = file.shape[1]
        trainer = self._trainer
        is_hidden = ranks.rank > 0 or (trainer is not None and trainer.progress_bar_callback is None)
        # `None` shows the bar on a terminal alone.
        with tqdm(
            total=len(indices) * num_views,
            desc=f"Encoding the {source.name} data",
            unit=" points",
            leave=False,
            disable=True if is_hidden else None,
        ) as bar:
            for view in range(num_views):
                for ids, batch in self._batches(source, indices, view):
                    rows_B_D = self._encoded(batch, kept).to(getattr(torch, file.dtype.name))
                    self._refuse_other_shape(rows_B_D, (len(ids), file.shape[2]), ids)
                    refuse_broken(rows_B_D, ids, name=source.name)
                    file[ids[0] : ids[-1] + 1, view] = rows_B_D.numpy()
                    bar.update(len(ids))
        file.flush()

    def _refuse_other_shape(self, rows_B_D: Tensor, expected: tuple[int, int], ids: list[int]) -> None:
        if tuple(rows_B_D.shape) != expected:
            raise ValueError(
                f"`encoder` returned features of shape {tuple(rows_B_D.shape)} for the points {ids[:NUM_NAMED]}, but "
                f"the first ones show that it must be {expected}. Return one row of equally many numbers for each "
                "point."
            )


def _seen(store: Store) -> Header:
    header = store.header()
    if header is None:
        raise FileNotFoundError(
            f"The features were written into {store.folder}, but this rank does not see them. Name a `folder` that all "
            "nodes share."
        )
    return header


def _refuse_other_width(name: str, width: int, expected: int | None, *, path: Path | None = None) -> None:
    """Refuse features of another width than the training data's: a version vouches for those of two encoders."""
    if expected is None or width == expected:
        return
    way_out = "" if path is None else f" If those of the {name} data are wrong, delete {path}, and they are made anew."
    raise ValueError(
        f"The {name} data have {width} features, and the training data {expected}: their inputs are of another shape, "
        f"or `version` vouches for the features of two encoders. Name another `version` with each encoder.{way_out}"
    )


def _spread(features_R_D: Tensor) -> float:
    """Return the root mean square distance to the mean row."""
    return float((features_R_D - features_R_D.mean(dim=0)).square().sum(dim=1).mean().sqrt())


def _differing_rows(old_R_D: Tensor, new_R_D: Tensor) -> Tensor:
    scale = max(float(old_R_D.abs().max()), float(new_R_D.abs().max()))
    return (old_R_D - new_R_D).abs().amax(dim=1) > TOLERANCE * scale


def _fitted_in(beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(FITTED): tensor for name, tensor in beside.items() if name.startswith(FITTED)}


def checked_version(version: str | None) -> str | None:
    """Validate a version, which becomes the name of a folder."""
    if version is not None and not re.fullmatch(r"[\w.-]*\w", version):
        raise ValueError(f"`version` is {version!r}, but must be a name of letters, digits, '.', '_' and '-'.")
    return version
