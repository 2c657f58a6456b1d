"""Selection of the next batch: predict the pool with a trained model, and ask the acquisition."""

import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from al_lightning._lightning import LightningModule, Trainer, isolate_rng
from al_lightning.acquisition import (
    Acquisition,
    Batch,
    Predictions,
    Screened,
    Screening,
    log_k_limit_warning,
    summarise,
    uncertified_warning,
)
from al_lightning.acquisition.base import Need, check_batch, check_disagreement, check_needs
from al_lightning.data import ActiveLearningDataModule
from al_lightning.data.collation import NUM_LOOKED_AT, refuse_own_order
from al_lightning.distributed import Ranks
from al_lightning.information import kernel_name, mutual_information
from al_lightning.pool.features import features_of, made_once, target_loader, targets_of, try_made_once
from al_lightning.pool.kept import Kept
from al_lightning.pool.predict import Draw, Few, Passes, Predictor, preview_pool
from al_lightning.pool.storage import Storage
from al_lightning.pool.training_step import try_training_step
from al_lightning.posterior import Point, Posterior
from al_lightning.posterior.model import leaves
from al_lightning.randomness import derived_seed

NUM_PREVIEWED = 8
NUM_LOOKED_THROUGH = 100
"""Batches of this many points that are searched for one of another shape, where a collate function may pad."""


@dataclass(frozen=True)
class Selection:
    """Points to label next, and numbers about them; fields of the same name are those of `Round`.

    Args:
        acquired: Ids of the points, best first.
        scores: Score that the acquisition gave each.
        targets: Labels of the points; None for one that is none of the classes.
        seconds: Wall time of predicting the pool and of the acquisition.
        bald: BALD of each point; None with K = 1, and, as the fields below, where nothing was predicted.
        predicted: Most probable class of each point.
        posterior: Posterior that drew the networks.
        information: Numbers about the acquisition.
        kernel: Kernel that evaluated the gains of BatchBALD.
        predict_path: Description of MC dropout's K forward passes.
        sampled: Dropouts that these sampled.
        frozen: Frozen part of the model from whose kept output the points were predicted.
        warnings: Warnings by subject.
        probs: Mean prediction for each point (B, C).
    """

    acquired: list[int]
    scores: list[float]
    targets: list[int | None] | None
    seconds: dict[str, float]
    bald: list[float] | None = None
    predicted: list[int] | None = None
    posterior: str | None = None
    information: dict[str, float | None] = field(default_factory=dict)
    kernel: Literal["torch", "triton"] | None = None
    predict_path: str | None = None
    sampled: str | None = None
    frozen: str | None = None
    warnings: dict[str, str] = field(default_factory=dict)
    probs: list[list[float]] | None = None


@dataclass(frozen=True)
class Chooser:
    """Selector of the points to label next.

    Args:
        acquisition: Acquisition that chooses the points.
        query_size: Number of points that a round acquires, unless fewer are left.
        posterior: Posterior that draws networks from the trained model.
        num_samples: K.
        max_predicted: Number of points to predict at most, drawn at random from the pool; None for all. An acquisition
            that needs no predictions chooses from the whole pool.
        screening: Screening of these points by few samples; None leaves all to the acquisition.
        storage: Place of the predictions.
        seed: Seed of all draws, together with the round.
        labels_are_known: The dataset has the labels of the pool.
        is_fitted: A model is trained; without one, features are those that the data module made once.
        measures: The posterior also predicts a holdout or the test set.
        kept: Place of the output of a frozen part of the model; None to compute it in each round.
    """

    acquisition: Acquisition
    query_size: int
    posterior: Posterior
    num_samples: int
    max_predicted: int | None
    screening: Screening | None
    storage: Storage
    seed: int
    labels_are_known: bool = True
    is_fitted: bool = True
    measures: bool = False
    kept: Kept | None = None

    def __post_init__(self) -> None:
        check_needs(self.acquisition)
        check_disagreement(self.acquisition, num_samples=self.num_samples, posterior=repr(self.posterior))
        if self.query_size < 1:
            raise ValueError(f"`query_size` is {self.query_size}, but must be at least 1.")
        if self.max_predicted is not None and self.max_predicted < self.query_size:
            raise ValueError(
                f"`max_predicted` is {self.max_predicted}, but must be at least `query_size`, {self.query_size}; None "
                "predicts the whole pool."
            )
        if self.screening is not None:
            if self.screening.num_points < self.query_size:
                raise ValueError(
                    f"`screening` is {self.screening}, but must leave at least `query_size`, {self.query_size}; "
                    "2000 are usual."
                )
            if not self.posterior.draws_anew:
                raise ValueError(
                    f"`screening` is {self.screening}, but {self.posterior!r} has no samples besides those that "
                    "choose. Leave `screening` out (null in YAML)."
                )

    @property
    def _predicts(self) -> bool:
        return "predictions" in self.acquisition.needs

    @property
    def _needs_of_screening(self) -> frozenset[Need]:
        return frozenset() if self.screening is None else self.screening.needs

    @property
    def _point(self) -> Posterior:
        """The model alone, called as the posterior calls it, where nothing but its outputs is looked at."""
        return Point(predict=getattr(self.posterior, "predict", None))

    def _reads_last_layer(self, datamodule: ActiveLearningDataModule) -> bool:
        return "features" in self.acquisition.needs and made_once(datamodule) is None

    def preview(self, trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule) -> None:
        """Refuse before the first training what would fail after it; the model is handed back as it was."""
        ranks = Ranks(trainer)
        with isolate_rng(), ExitStack() as quiet:  # random transforms of the pool must not shift the training's draws
            if ranks.rank > 0:  # one rank warns for all
                quiet.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            ranks.together(lambda: self._try(trainer, module, datamodule))

    def _try(self, trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule) -> None:
        # Once before the model is tried, because a collate function would stumble over a missing label.
        datamodule.check_targets_to_come(num_classes=None, pool_is_labelled=self.labels_are_known)
        self._try_features(datamodule)
        counts_outputs = datamodule.trains_rejected and self.is_fitted
        is_tried = self._samples(datamodule) or counts_outputs
        if is_tried:
            num_classes = self._try_model(trainer, module, datamodule)
            datamodule.check_targets_to_come(num_classes=num_classes, pool_is_labelled=self.labels_are_known)
            self._check_labels(datamodule)
        if self.is_fitted and datamodule.labels.num_labelled == 0 and not (self.labels_are_known and is_tried):
            self._try_training(trainer, module, datamodule)

    def _try_training(self, trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule) -> None:
        """Try a training step, where the first batch is chosen without one."""
        has_labels = self.labels_are_known
        of_pool = datamodule.labels.pool_indices[:NUM_PREVIEWED].tolist()
        few = datamodule.of_highest_class(NUM_PREVIEWED) if has_labels else of_pool
        if few:
            batches = datamodule.rehearsal_loader(few, has_labels=has_labels)
            hint = partial(_width_hint, datamodule, few)
            try_training_step(trainer, module, batches, hint=hint, has_labels=has_labels)

    def _samples(self, datamodule: ActiveLearningDataModule) -> bool:
        """Return whether a round asks the posterior for anything."""
        return self._predicts or self._reads_last_layer(datamodule) or self.measures

    def _check_labels(self, datamodule: ActiveLearningDataModule) -> None:
        if self.posterior.needs_labels and datamodule.targets_of(datamodule.labels.labelled_indices[:1]) is None:
            raise ValueError(
                f"`posterior` is {self.posterior!r}, which needs the classes of the labelled points, and nothing says "
                "where the dataset keeps them. Give it an attribute `targets` with one class for each point, or choose "
                "another posterior."
            )

    def _try_features(self, datamodule: ActiveLearningDataModule) -> None:
        """Look at the features of all points that a round reads, where no model gives them."""
        if "features" not in self.acquisition.needs:
            return
        if made_once(datamodule) is not None:
            labels = datamodule.labels
            try_made_once(datamodule, [*labels.pool_indices.tolist(), *labels.labelled_or_rejected_indices.tolist()])
        elif not self.is_fitted:
            raise ValueError(
                f"`cold_start` {self.acquisition!r} needs features before any fit, but the data module has made none, "
                "and the last layer of a model that is not trained gives none that mean anything. Make them "
                "once, as `Embedded(datamodule, GraphFeatures())` does or a method `features_of(indices)` of the data "
                "module, which returns a row for each point, or draw the first batch at random: `cold_start=Random()`."
            )

    def _try_model(self, trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule) -> int:
        """Predict a few points, and return the number of classes."""
        labels = datamodule.labels
        all_N = labels.pool_indices if labels.num_pool > 0 else labels.labelled_indices
        few_N = all_N[:NUM_PREVIEWED]
        batches = datamodule.pool_dataloader(few_N)
        if _may_differ_in_shape(batches):
            refuse_own_order(datamodule.pool_dataloader(all_N[:NUM_LOOKED_AT]))
            few_N = _smallest_first(datamodule, few_N)
            batches = datamodule.pool_dataloader(few_N)
        num_fewer = min(len(few_N), batches.batch_size or 1) // 2
        fewer = datamodule.pool_dataloader(few_N[:num_fewer]) if num_fewer else None
        asks_for_targets = "targets" in self.acquisition.needs or "targets" in self._needs_of_screening
        targets = target_loader(datamodule) if asks_for_targets else None
        few = Few(batches, fewer, _looked_through(datamodule, batches), targets)
        reads_last_layer = self._reads_last_layer(datamodule)
        posterior = self.posterior if self._samples(datamodule) else self._point
        try:
            num_classes = preview_pool(trainer, module, few, posterior, reads_last_layer=reads_last_layer).shape[1]
        except RuntimeError as error:
            if hint := _width_hint(datamodule, few_N.tolist()):
                raise RuntimeError(f"{error}{hint}") from error
            raise
        if not self._predicts:
            return num_classes
        num_points = len(self._considered(datamodule.labels.pool_indices, round_index=0))
        if self.screening is not None and num_points > self.screening.num_points:
            self.storage.check((num_points, self.screening.num_samples, num_classes))
            num_points = self.screening.num_points
        self.storage.check((num_points, self.num_samples, num_classes))
        return num_classes

    def select(  # noqa: PLR0913 - the round, and what its answers say of the pool
        self,
        trainer: Trainer,
        module: LightningModule,
        datamodule: ActiveLearningDataModule,
        *,
        round_index: int,
        batch_size: int,
        left_out: Sequence[int] = (),
        unsure: Sequence[int] = (),
    ) -> Selection:
        """Select the `batch_size` points to label after a round.

        Args:
            trainer: The Trainer at the end of a fit.
            module: The trained model.
            datamodule: The data, whose pool is chosen from.
            round_index: The round, of which all draws depend.
            batch_size: How many points.
            left_out: Points of the pool that are not to be chosen.
            unsure: Points outside the pool that have no label, because people were unsure of them.
        """
        ranks = Ranks(trainer)
        pool_indices_N = _without(datamodule.labels.pool_indices, left_out)
        indices_N = self._considered(pool_indices_N, round_index=round_index)
        ranks.same("the pool, whose ids have this fingerprint", blake2b(indices_N.numpy().tobytes()).hexdigest())
        started = time.perf_counter()
        predictions, screened, passes, frozen = Predictions(None, total=len(indices_N)), None, Passes(), None
        if self.acquisition.needs:
            make = Predictor.after_training if self._predicts else Predictor.unfitted
            predict = make(trainer, module, datamodule, self.posterior, self.storage)
            draw = Draw(self.num_samples, derived_seed(self.seed, round_index, "posterior"))
            predict = self._keeping(predict, indices_N, draw)
            frozen = None if predict.frozen is None else predict.frozen.part.name
            if self._predicts:
                screened = self._screened(indices_N, predict, round_index=round_index)
                if screened is not None:
                    indices_N = indices_N[screened.kept]
                predictions, passes = predict(indices_N, draw)
            asked = {*datamodule.labels.labelled_or_rejected_indices.tolist(), *unsure}
            asked_L = torch.tensor(sorted(asked), dtype=torch.long)
            predictions = self._with_more(predictions, indices_N, asked_L, predict, draw)
        predicted = time.perf_counter()
        batch = self.acquisition(
            predictions, batch_size, generator=self._generator(round_index, "acquisition"), exchange=ranks
        )
        # Together: an acquisition of the user's own may break its contract on one rank alone.
        ranks.together(lambda: check_batch(batch, batch_size, len(indices_N), acquisition=repr(self.acquisition)))
        acquired = time.perf_counter()
        chosen = indices_N[batch.positions.cpu()].tolist()
        ranks.same("the batch to label", chosen)
        num_classes = None if predictions.log_probs_N_K_C is None else predictions.log_probs_N_K_C.shape[2]
        selection = Selection(
            acquired=chosen,
            scores=batch.scores.tolist(),
            targets=datamodule.check_targets(chosen, num_classes=num_classes) if self.labels_are_known else None,
            seconds={"predict": predicted - started, "acquire": acquired - predicted},
            frozen=frozen,
        )
        if num_classes is None:
            return selection
        passes = ranks.first(passes)
        return replace(
            selection,
            **self._found(predictions, batch, screened, passes, ranks, round_index=round_index),
            predict_path=passes.path,
            sampled=passes.sampled,
            warnings=self._warnings(batch, screened, passes, num_points=len(indices_N)),
        )

    def _keeping(self, predict: Predictor, indices_N: Tensor, draw: Draw) -> Predictor:
        """Return a predictor that reads the points from what a frozen part of the model has made of them."""
        reads_last_layer = self._reads_last_layer(predict.datamodule)
        if self.kept is None or not (self._predicts or reads_last_layer):
            return predict
        return predict.keeping(self.kept, indices_N, draw, predicts=self._predicts, reads_last_layer=reads_last_layer)

    def _with_more(
        self, predictions: Predictions, indices_N: Tensor, asked_L: Tensor, predict: Predictor, draw: Draw
    ) -> Predictions:
        """Add what the acquisition needs besides predictions of the pool."""
        if "features" in self.acquisition.needs:
            predictions = replace(
                predictions,
                features_N_D=features_of(predict, indices_N, is_divided=self._predicts),
                labelled_features_L_D=features_of(replace(predict, frozen=None), asked_L, is_divided=False),
            )
        if "targets" in self.acquisition.needs:
            predictions = replace(predictions, target_log_probs_T_K_C=targets_of(predict, draw))
        return predictions

    def predicted_classes(
        self,
        trainer: Trainer,
        module: LightningModule,
        datamodule: ActiveLearningDataModule,
        indices: Sequence[int],
        *,
        round_index: int,
    ) -> list[int]:
        """Return the most probable class of some points by the mean prediction of the round's posterior samples.

        With `reject="train"` of the data module the last output, that of rejected points, is none.
        """
        predict = Predictor.after_training(trainer, module, datamodule, self.posterior, self.storage)
        draw = Draw(self.num_samples, derived_seed(self.seed, round_index, "posterior"))
        predictions, _ = predict(torch.tensor(indices, dtype=torch.long), draw)
        rows_B_K_C = predictions.rows(torch.arange(len(indices)), exchange=Ranks(trainer))
        means_B_C = rows_B_K_C.logsumexp(dim=1)
        means_B_C = means_B_C[:, :-1] if datamodule.trains_rejected else means_B_C
        classes: list[int] = means_B_C.argmax(dim=1).tolist()
        return classes

    def _considered(self, pool_indices_N: Tensor, *, round_index: int) -> Tensor:
        """Return the points to predict, in the order of the pool: all, or a random part, another in each round."""
        num_points = len(pool_indices_N)
        if not self._predicts or self.max_predicted is None or self.max_predicted >= num_points:
            return pool_indices_N
        drawn = torch.randperm(num_points, generator=self._generator(round_index, "pool"))[: self.max_predicted]
        return pool_indices_N[drawn.sort().values]

    def _screened(self, indices_N: Tensor, predict: Predictor, *, round_index: int) -> Screened | None:
        """Screen the points; None where all are left to the acquisition."""
        screening = self.screening
        if screening is None or len(indices_N) <= screening.num_points:
            return None
        draw = Draw(screening.num_samples, derived_seed(self.seed, round_index, "screening"))
        generator = self._generator(round_index, "screened")
        predictions, _ = predict(indices_N, draw)
        if "targets" in screening.needs:
            predictions = replace(predictions, target_log_probs_T_K_C=targets_of(predict, draw))
        return screening(predictions, generator=generator, exchange=Ranks(predict.trainer))

    def _found(
        self,
        predictions: Predictions,
        batch: Batch,
        screened: Screened | None,
        passes: Passes,
        ranks: Ranks,
        *,
        round_index: int,
    ) -> dict[str, Any]:
        """Return the fields of the record that describe the batch."""
        generator = self._generator(round_index, "information")
        kernel = None if predictions.log_probs_N_K_C is None else kernel_name(predictions.log_probs_N_K_C)
        rows_B_K_C = predictions.rows(batch.positions, exchange=ranks)
        information = summarise(predictions, batch, rows_B_K_C, generator=generator, exchange=ranks)
        if screened is not None:
            information |= screened.numbers(batch.by_score)  # its mean BALD is that of the whole pool
        if passes.labelled_fit is not None:
            information |= passes.labelled_fit.numbers()
        return {
            "bald": mutual_information(rows_B_K_C).tolist() if self.num_samples > 1 else None,
            "predicted": rows_B_K_C.logsumexp(dim=1).argmax(dim=1).tolist(),
            "probs": None if self.labels_are_known else rows_B_K_C.exp().mean(dim=1).tolist(),
            "posterior": repr(self.posterior),
            "information": information,
            "kernel": None if batch.search is None else kernel,
        }

    def _warnings(self, batch: Batch, screened: Screened | None, passes: Passes, *, num_points: int) -> dict[str, str]:
        messages = {
            "labelled fit": None if passes.labelled_fit is None else passes.labelled_fit.warning(),
            "screening": None if screened is None else screened.warning(batch.by_score),
            "saturation": log_k_limit_warning(
                batch, num_samples=self.num_samples, more=self.posterior.way_to_more_samples
            ),
            "certificates": uncertified_warning(batch, num_points=num_points),
        }
        return {subject: message for subject, message in messages.items() if message is not None}

    def _generator(self, round_index: int, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, round_index, purpose))


def _width_hint(datamodule: ActiveLearningDataModule, indices: Sequence[int]) -> str:
    """Return how many features a point has, for an error of a model; an empty text if the data module makes none."""
    made = made_once(datamodule)
    if made is None:
        return ""
    return (
        f" The data module's features are {made(indices[:1]).shape[1]} numbers a point: a first layer that reads them "
        "takes as many, as `in_features`."
    )


def _looked_through(datamodule: ActiveLearningDataModule, few: DataLoader[Any]) -> DataLoader[Any] | None:
    """Return a loader of small batches, among which one of another shape is looked for; None if all have one shape."""
    if not _may_differ_in_shape(few):
        return None
    indices = datamodule.labels.pool_indices[: NUM_PREVIEWED * NUM_LOOKED_THROUGH]
    return datamodule.pool_dataloader(indices, batch_size=few.batch_size and min(few.batch_size, NUM_PREVIEWED))


def _may_differ_in_shape(batches: DataLoader[Any]) -> bool:
    """Tell whether batches may differ in shape: torch's own collate function stacks points, which must have one."""
    return batches.collate_fn is not default_collate or batches.batch_size == 1


def _smallest_first(datamodule: ActiveLearningDataModule, indices_N: Tensor) -> Tensor:
    """Return ids by the size of their points, so that the first half of a batch is padded to less than the whole."""
    sizes_N = [
        sum(leaf.numel() for leaf in leaves(batch) if isinstance(leaf, Tensor))
        for batch in datamodule.pool_dataloader(indices_N, batch_size=1)
    ]
    return indices_N[torch.tensor(sizes_N).argsort(stable=True)]


def _without(indices_N: Tensor, left_out: Sequence[int]) -> Tensor:
    """Return ids without some, in their order."""
    if len(left_out) == 0:
        return indices_N
    return indices_N[~torch.isin(indices_N, torch.tensor(list(left_out), dtype=indices_N.dtype))]
