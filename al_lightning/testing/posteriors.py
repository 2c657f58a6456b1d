"""Check of a posterior: shape and values of its predictions, its draws, and the model that it hands back."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import numpy as np
import torch
from torch import Tensor, nn

from al_lightning.information import check_log_probs
from al_lightning.posterior import Posterior, Predict
from al_lightning.posterior.checks import rounding_tolerance
from al_lightning.posterior.ensemble.deep_ensemble import TrainedEnsemble
from al_lightning.posterior.model import leaves, map_tensors, num_rows_of
from al_lightning.posterior.model_state import ModelState, handed_back, seed_generators
from al_lightning.records.header import as_data, check_object

NUM_NAMED = 3
"""Changes of a model that an error names at most."""


def check_posterior(
    posterior: Posterior, model: nn.Module, batch: object, *, num_samples: int | None = None, seed: int = 0
) -> None:
    """Raise an AssertionError that says which part of the contract of a posterior is broken.

    The posterior is fitted to the batch, whose points count as of class 0 and 1 in turn, previewed and sampled: twice
    with one seed, once with another, for the whole batch, for its points one by one and in reverse, and from a model in
    training and in evaluation mode. After each, and after an error of the caller's, the model and the global random
    generators must be what they were.

    Args:
        posterior: Yours; an ensemble with its members.
        model: A trained model.
        batch: Some points, as your pool loader yields them: tensors whose first axis is the points, nested or not.
        num_samples: K; by default the posterior's usual number.
        seed: Seed of the networks that are drawn.

    Example:
        >>> from al_lightning import MCDropout
        >>> check_posterior(MCDropout(), nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), torch.rand(5, 4), num_samples=4)
    """
    if num_rows_of(batch) is None:
        raise ValueError("`batch` has no rows that could be taken one by one. Pass tensors of one row for each point.")
    try:
        check_object(posterior, Posterior, argument="posterior", example="MCDropout()")
        if not isinstance(posterior, TrainedEnsemble):  # whose members are no settings
            as_data(posterior, argument="posterior")  # or a run would refuse it
    except (TypeError, ValueError) as error:
        raise AssertionError(str(error)) from error
    check = _Check(posterior, model, batch, posterior.checked_num_samples(num_samples))
    check.preview()
    once_B_K_C = check.predictions(seed)
    check.same_networks(once_B_K_C, seed=seed)
    check.other_networks(once_B_K_C, seed=seed)
    check.error(seed=seed)
    for mode in ("training", "evaluation"):
        with handed_back(model):
            model.train(mode == "training")
            _Check(posterior, model, batch, check.num_samples).same_mode(once_B_K_C, seed=seed, mode=mode)


class _Stopped(Exception):  # noqa: N818 - never leaves this file
    """An error of the caller's."""


class _Check:
    """The clauses of the contract, each of which raises if it is broken."""

    def __init__(self, posterior: Posterior, model: nn.Module, batch: object, num_samples: int) -> None:
        self.posterior, self.model, self.batch, self.num_samples = posterior, model, batch, num_samples
        self.num_points = num_rows_of(batch) or 0
        targets_N = torch.arange(self.num_points) % 2  # classes that every model has
        with self.handing_back("`fit`"):
            self.fitted = posterior.fit_to_labels(model, [batch], targets_N)

    def preview(self) -> None:
        """Check that the preview is the prediction of one network."""
        with self.handing_back("`preview`"):
            log_probs_B_C = self.posterior.preview(self.model, self.batch)
        shape = tuple(log_probs_B_C.shape)
        is_fine = len(shape) == 2 and shape[0] == self.num_points  # noqa: PLR2004 - B and C
        self._expect(is_fine, f"returns a preview of shape {shape}: return (B, C) with B = {self.num_points}")
        self._check_values(log_probs_B_C[:, None])

    def predictions(self, seed: int, *batches: object) -> Tensor:
        """Predict the batch, or some, by K networks, and check shape and values."""
        with self.handing_back("`sample`"), self._sampled(seed) as predict:
            return torch.cat([self._predicted(predict, batch) for batch in batches or (self.batch,)])

    def same_networks(self, once_B_K_C: Tensor, *, seed: int) -> None:
        """Check that one seed is the same networks, whatever the global generators, for every batch and position."""
        tolerance = rounding_tolerance(once_B_K_C, self.model, at_least=0.0)
        order = torch.arange(self.num_points)
        one_by_one, reverse = [self._rows(row) for row in torch.split(order, 1)], self._rows(order.flip(0))
        with handed_back(self.model):
            seed_generators(self.model, seed + 1)
            again_3B_K_C = self.predictions(seed, self.batch, *one_by_one, reverse)
        again = torch.split(again_3B_K_C, self.num_points)
        for log_probs_B_K_C, broken in (
            (again[0], "predicts otherwise when it is sampled again: the `seed` alone must decide the networks"),
            (again[1], "predicts points one by one otherwise than in a batch: all calls must use the same networks"),
            (again[2].flip(0), "predicts points otherwise in another position of a batch"),
        ):
            difference = (log_probs_B_K_C.exp() - once_B_K_C.exp()).abs().max().item()
            self._expect(difference <= tolerance, f"{broken} (probabilities differ by up to {difference:.2g})")

    def other_networks(self, once_B_K_C: Tensor, *, seed: int) -> None:
        """Check that another seed is other networks, or the same where that is declared."""
        are_equal = torch.equal(self.predictions(seed + 1), once_B_K_C)
        if self.posterior.draws_anew:
            self._expect(not are_equal, "draws the same networks for two seeds: declare `draws_anew` False if it must")
        else:
            self._expect(are_equal, "draws other networks for another seed: declare `draws_anew` True")

    def same_mode(self, once_B_K_C: Tensor, *, seed: int, mode: str) -> None:
        """Check that a model in this mode is predicted as before."""
        self.preview()
        difference = (self.predictions(seed).exp() - once_B_K_C.exp()).abs().max().item()
        self._expect(
            difference <= rounding_tolerance(once_B_K_C, self.model, at_least=0.0),
            f"predicts otherwise when the model comes in {mode} mode (probabilities differ by up to {difference:.2g}): "
            "call it in evaluation mode always",
        )

    def error(self, *, seed: int) -> None:
        """Check that an error of the caller's passes, and leaves nothing behind."""
        with self.handing_back("`sample` and an error in its block"), suppress(_Stopped):
            self._stop(seed)
            raise AssertionError(f"`posterior` {self.posterior!r} swallows an error in the block of `sample`.")

    def _stop(self, seed: int) -> None:
        with self._sampled(seed) as predict:
            predict(self.batch)
            raise _Stopped

    def _sampled(self, seed: int) -> AbstractContextManager[Predict]:
        sampled = self.fitted.sample(self.model, self.num_samples, seed=seed)
        self._expect(
            hasattr(sampled, "__enter__"),
            f"returns a {type(sampled).__name__} from `sample`: write `@contextmanager` above it, and `yield predict`",
        )
        return sampled

    @contextmanager
    def handing_back(self, after: str) -> Iterator[None]:
        """Check that the block leaves model, batch and global generators as they were."""
        state, learning, generators = ModelState(self.model), self._learning(), _generators()
        batch = map_tensors(Tensor.clone, self.batch)
        yield
        changed = state.put_back()
        changed += [name for name, held in self._learning().items() if not _are_same(held, learning.get(name))]
        names = ", ".join(f"`{name}`" for name in changed[:NUM_NAMED])
        self._expect(not changed, f"hands the model back changed after {after}: {names}")
        self._expect(
            _generators() == generators,
            f"moves a global random generator in {after}: draw from a generator of your own",
        )
        are_equal = [torch.equal(*pair) for pair in zip(_tensors(batch), _tensors(self.batch), strict=True)]
        self._expect(all(are_equal), f"writes on the batch in {after}: work on a copy")

    def _predicted(self, predict: Predict, batch: object) -> Tensor:
        log_probs_B_K_C = predict(batch)
        shape, expected = tuple(log_probs_B_K_C.shape), (num_rows_of(batch), self.num_samples)
        is_fine = len(shape) == 3 and shape[:2] == expected  # noqa: PLR2004 - B, K and C
        self._expect(is_fine, f"predicts a tensor of shape {shape}: return (B, K, C) with (B, K) = {expected}")
        self._check_values(log_probs_B_K_C)
        return log_probs_B_K_C

    def _check_values(self, log_probs_B_K_C: Tensor) -> None:
        dtype = log_probs_B_K_C.dtype
        self._expect(dtype is torch.float32, f"predicts in {dtype}: return float32")
        self._expect(not log_probs_B_K_C.requires_grad, "predicts with a gradient: call the model without one")
        is_finite = bool(log_probs_B_K_C.exp().isfinite().all())
        self._expect(is_finite, "predicts what is not finite: the exponentials must be probabilities")
        try:
            check_log_probs(log_probs_B_K_C)
        except ValueError as error:
            raise AssertionError(f"`posterior` {self.posterior!r} predicts what is not normalised. {error}") from error

    def _rows(self, rows: Tensor) -> object:
        return map_tensors(lambda tensor: tensor[rows.to(tensor.device)], self.batch)

    def _learning(self) -> dict[str, tuple[object, ...]]:
        tensors = self.model.named_parameters()
        return {name: (tensor.requires_grad, tensor.grad) for name, tensor in tensors}

    def _expect(self, holds: bool, broken: str) -> None:  # noqa: FBT001 - reads as a sentence
        if not holds:
            raise AssertionError(f"`posterior` {self.posterior!r} {broken}.")


def _are_same(held: tuple[object, ...], before: tuple[object, ...] | None) -> bool:
    return before is not None and all(one is other for one, other in zip(held, before, strict=True))


def _tensors(batch: object) -> list[Tensor]:
    return [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]


def _generators() -> tuple[list[list[int]], object, str]:
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    of_torch = [state.tolist() for state in (torch.get_rng_state(), *on_gpus)]
    return of_torch, random.getstate(), repr(np.random.get_state())  # noqa: NPY002 - the one that users' code draws from
