"""Deep ensembles: sample k is the k-th of several separately trained networks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.checks import fill_zeros
from al_lightning.posterior.compiled import name_before
from al_lightning.posterior.ensemble.members import Members, State, tensors_of
from al_lightning.posterior.ensemble.networks import Networks, own_states
from al_lightning.posterior.sampling import check_draws, until_the_end
from al_lightning.records.files import load_plain


@dataclass(frozen=True)
class DeepEnsemble(Posterior):
    """K networks of one architecture, each trained by itself; the model needs no dropout, and dropout is off.

    Either `active_fit` trains `num_members` of them in every round, one complete fit each that differs in its first
    weights and its shuffling, and acquires after the last; or they are given as `checkpoints` and stay the same, while
    the model is fitted once a round. K is their number.

    Unless told otherwise every member starts with new weights, those of a pretrained model too: name its head in
    `fresh` to keep the others. Parameters that do not learn (`requires_grad`) always stay. A metric of a round is the
    mean over its members. After a run, `callback.posterior.sample(model, K, seed=0)` gives the predictions of all.

    Args:
        num_members: How many networks `active_fit` trains a round.
        checkpoints: Files of trained networks instead: Lightning's checkpoints, or state dicts of the model.
        fresh: Names of the submodules that every member starts with new weights, as in `["net.fc"]`; the others start
            from the model's own. By default all.
        init: Gives a module new weights, in place and from the global generator. By default `reset_parameters()` of all
            its submodules, which must reach every parameter that learns.
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch; of a dict without its labels
            `module(**x)`.

    Example:
        >>> import torch
        >>> model, other = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> ensemble = DeepEnsemble(2).trained([dict(model.named_parameters()), dict(other.named_parameters())])
        >>> with ensemble.sample(model, 2, seed=0) as predict:
        ...     log_probs_B_K_C = predict(torch.ones(5, 2))
        >>> log_probs_B_K_C.shape, torch.allclose(log_probs_B_K_C[0, 1], other(torch.ones(2)).log_softmax(dim=0))
        (torch.Size([5, 2, 3]), True)
    """

    num_members: int | None = None
    _: KW_ONLY
    checkpoints: list[str | Path] | None = None
    fresh: list[str] | None = None
    init: Callable[[nn.Module], None] | None = None
    predict: Callable[[nn.Module, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if (self.num_members is None) == (self.checkpoints is None):
            raise ValueError(
                f"`num_members` is {self.num_members} and `checkpoints` is {self.checkpoints}: give one of them, "
                "`DeepEnsemble(5)` to train five networks a round, `DeepEnsemble(checkpoints=[...])` for trained ones."
            )
        for name in ("checkpoints", "fresh"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (list, tuple)) or not value):
                raise TypeError(f"`{name}` is {value!r}, but must be a list with something in it, or None.")
        if self.checkpoints is not None:
            if self.fresh is not None or self.init is not None:
                raise ValueError(
                    "`fresh` and `init` are about training, and `checkpoints` are trained. Leave them out."
                )
            _refuse_missing_or_repeated(self.checkpoints)
        if self.num_members is not None and (
            not isinstance(self.num_members, int) or isinstance(self.num_members, bool)
        ):
            raise TypeError(f"`num_members` is {self.num_members!r}, but must be an int: give a whole number.")
        if self._num_networks < 2:  # noqa: PLR2004 - one network has nobody to disagree with
            raise ValueError(
                f"The ensemble has {self._num_networks} members, but one network cannot disagree with itself, so every "
                "score would be 0. Take at least 2; 5 are usual."
            )

    @property
    def _num_networks(self) -> int:
        return len(self.checkpoints or []) if self.num_members is None else self.num_members

    @property
    @override
    def members(self) -> Members | None:
        """The networks that each round trains; None if they are given."""
        return None if self.num_members is None else Members(self.num_members, self.fresh, self.init)

    @override
    def trained(self, states: Sequence[State]) -> Posterior:
        return self if self.num_members is None else TrainedEnsemble(self, states)

    @property
    @override
    def draws_anew(self) -> bool:
        return False

    @property
    @override
    def way_to_more_samples(self) -> str:
        return "Raise `num_members`" if self.checkpoints is None else "Give more `checkpoints`"

    @override
    def checked_num_samples(self, num_samples: int | None) -> int:
        if num_samples not in {None, self._num_networks}:
            raise ValueError(
                f"`num_samples` is {num_samples}, but the ensemble has {self._num_networks} members, each of which is "
                "one sample. Leave `num_samples` out (null in YAML), or change `num_members`."
            )
        return self._num_networks

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        states = [read_state(path, model) for path in self.checkpoints or []]
        first = own_states(model, states[:1] or [tensors_of(model)])
        learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        networks = Networks(model, self.predict, first)
        return networks.preview(batch, smaller, fill=lambda: fill_zeros(first[0][name] for name in learning))

    @override
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> AbstractContextManager[Predict]:
        """All members; `num_samples` is their number, and `seed` changes nothing. See `Posterior.sample`."""
        check_draws(num_samples, seed=seed)
        self.checked_num_samples(num_samples)
        if self.checkpoints is None:
            raise RuntimeError(
                f"The {self.num_members} members of {self!r} are not trained. `active_fit(trainer, model, datamodule)` "
                "trains them in each round, and `callback.posterior` samples them then; networks that you have trained "
                "elsewhere are given as `DeepEnsemble(checkpoints=[...])`."
            )
        states = [read_state(path, model) for path in self.checkpoints]
        return TrainedEnsemble(self, states).sample(model, num_samples, seed=seed)


@dataclass(frozen=True, eq=False)
class TrainedEnsemble(Posterior):
    """`DeepEnsemble` after a round, as its `trained` returns it.

    Args:
        ensemble: The hyper-parameters.
        states: The weights of its members.
    """

    ensemble: DeepEnsemble
    states: Sequence[State]

    def __repr__(self) -> str:
        """Return that of the ensemble: weights are no words."""
        return repr(self.ensemble)

    @property
    @override
    def members(self) -> Members | None:
        return self.ensemble.members

    @property
    @override
    def draws_anew(self) -> bool:
        return False

    @property
    @override
    def way_to_more_samples(self) -> str:
        return self.ensemble.way_to_more_samples

    @override
    def checked_num_samples(self, num_samples: int | None) -> int:
        return self.ensemble.checked_num_samples(num_samples)

    @override
    def trained(self, states: Sequence[State]) -> Posterior:
        return self.ensemble.trained(states)

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        return self.ensemble.preview(model, batch, smaller=smaller)

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """All members; `num_samples` is their number, and `seed` changes nothing. See `Posterior.sample`."""
        check_draws(num_samples, seed=seed)
        self.checked_num_samples(num_samples)
        states = own_states(model, self.states)
        with until_the_end(Networks(model, self.ensemble.predict, states)) as predict:
            yield predict


def _refuse_missing_or_repeated(checkpoints: Sequence[str | Path]) -> None:
    missing = [str(path) for path in checkpoints if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`checkpoints` names {', '.join(missing)}, but there is no such file. The current folder is {Path.cwd()}."
        )
    if len({Path(path).resolve() for path in checkpoints}) < len(checkpoints):
        raise ValueError(
            f"`checkpoints` is {[str(path) for path in checkpoints]}, which names a file twice: give each member once."
        )


def read_state(path: str | Path, model: nn.Module) -> State:
    """A network of the kind of `model`, from a Lightning checkpoint or a saved `state_dict()`, on the CPU."""
    try:
        content = load_plain(path)
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as tensors and plain values alone ({error}). Save the weights by themselves: "
            f"`torch.save(model.state_dict(), path)`."
        ) from error
    stored = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    loaded = {name_before(name): tensor for name, tensor in stored.items()}
    expected = {name_before(name): tensor for name, tensor in model.state_dict().items()}
    missing, unexpected = expected.keys() - loaded.keys(), loaded.keys() - expected.keys()
    other = [name for name in loaded.keys() & expected.keys() if _shape(loaded[name]) != _shape(expected[name])]
    if missing or unexpected or other:
        raise ValueError(
            f"{path} holds another network than {type(model).__name__}: missing {_first(missing)}; not in the model "
            f"{_first(unexpected)}; of another shape {_first(other)}. Give checkpoints of this model."
        )
    return {name: loaded.get(name_before(name), tensor.detach()) for name, tensor in tensors_of(model).items()}


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _first(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"  # noqa: PLR2004
