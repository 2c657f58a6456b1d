"""Recurrent nets run layer by layer, so that dropout between their layers can use given masks."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from al_lightning.posterior.dropout.lazy.deferred import depends_on_sample
from al_lightning.posterior.dropout.masks import named

RECURRENT: frozenset[Callable[..., Any]] = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
_PADDED = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
_PACKED = ("data", "batch_sizes", *_PADDED[1:-1])
_AXES_OF_ONE = 2  # (T, D), without a batch axis


@dataclass(frozen=True, eq=False)
class Recurrence:
    """One call of torch.lstm, torch.gru, torch.rnn_tanh or torch.rnn_relu.

    Args:
        function: The function.
        x: Inputs (T, B, D); (B, T, D) with `batch_first`; (S, D) where they are packed: the first steps of all
            sequences, longest sequence first, then all second steps, and so on.
        batch_sizes: Sequences that have a step t, for each t, of packed inputs; None for others.
        states: First states, each (layers * directions, B, H): one, or two of an LSTM.
        weights: Weights and biases of all layers and directions, one after the other.
        has_biases: There are biases among the weights.
        num_layers: Number of layers.
        p: Dropout between the layers.
        training: The function's own `train`.
        bidirectional: Each layer has a second direction, from the last step to the first.
        batch_first: The inputs are (B, T, D).
    """

    function: Callable[..., Any]
    x: Tensor
    batch_sizes: Tensor | None
    states: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    has_biases: bool
    num_layers: int
    p: float
    training: bool
    bidirectional: bool
    batch_first: bool = False

    @classmethod
    def of(cls, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Recurrence":
        """Return the call of a function of `RECURRENT` with these arguments."""
        is_packed = "batch_sizes" in kwargs or (
            len(args) > 1 and isinstance(args[1], Tensor) and not args[1].is_floating_point()
        )
        given = dict(zip(_PACKED if is_packed else _PADDED, args, strict=False)) | dict(kwargs)
        states = given["hx"]
        return cls(
            function,
            x=given["data" if is_packed else "input"],
            batch_sizes=given.get("batch_sizes"),
            states=(states,) if isinstance(states, Tensor) else tuple(states),
            weights=tuple(given["params"]),
            has_biases=given["has_biases"],
            num_layers=given["num_layers"],
            p=given["dropout"],
            training=given["train"],
            bidirectional=given["bidirectional"],
            batch_first=given.get("batch_first", False),
        )

    @property
    def drops(self) -> bool:
        """Tell whether there is dropout between layers."""
        return self.num_layers > 1 and self.p > 0

    @property
    def batch_axis(self) -> int:
        """Return the axis of the inputs that the sequences are on, and packed ones are stacked on."""
        return 0 if self.batch_first or self.batch_sizes is not None else 1

    @property
    def batch_and_length(self) -> tuple[int, int]:
        """Return B and T, the longest length."""
        if self.batch_sizes is not None:
            return int(self.batch_sizes[0]), len(self.batch_sizes)
        axis = self.batch_axis
        return self.x.shape[axis], self.x.shape[1 - axis]

    def layers(self) -> list["Recurrence"]:
        """Return the layers as calls of their own; the inputs of each but the first are still to be set.

        Example:
            >>> weights = [torch.ones(3, 3) * layer for layer in (1.0, 1.0, 2.0, 2.0)]  # two layers without biases
            >>> call = Recurrence.of(torch.rnn_relu, (torch.ones(1, 1, 3), torch.ones(2, 1, 3), weights), dict(
            ...     has_biases=False, num_layers=2, dropout=0.5, train=False, bidirectional=False, batch_first=False))
            >>> [(layer.weights[0][0, 0].item(), layer.states[0].shape[0], layer.p) for layer in call.layers()]
            [(1.0, 1, 0.0), (2.0, 1, 0.0)]
        """
        directions = self.states[0].shape[0] // self.num_layers
        num_weights = len(self.weights) // self.num_layers
        return [
            replace(
                self,
                states=tuple(state[layer * directions : (layer + 1) * directions] for state in self.states),
                weights=self.weights[layer * num_weights : (layer + 1) * num_weights],
                num_layers=1,
                p=0.0,
            )
            for layer in range(self.num_layers)
        ]

    def run(self) -> tuple[Tensor, ...]:
        """Call the function, and return the outputs of the last layer and the last states."""
        states = self.states[0] if len(self.states) == 1 else self.states
        flags = (list(self.weights), self.has_biases, self.num_layers, self.p, self.training, self.bidirectional)
        result: tuple[Tensor, ...] = (
            self.function(self.x, states, *flags, self.batch_first)
            if self.batch_sizes is None
            else self.function(self.x, self.batch_sizes, states, *flags)
        )
        return result

    def spread(self, mask_T_D: Tensor) -> Tensor:
        """Return a mask by position in the axes of the inputs: a packed step takes that of its place in its sequence.

        Example:
            >>> call = Recurrence.of(torch.gru, (torch.ones(3, 1), torch.tensor([2, 1]), torch.ones(1, 2, 1), []), dict(
            ...     has_biases=False, num_layers=1, dropout=0.0, train=False, bidirectional=False))
            >>> call.spread(torch.tensor([[True], [False]])).flatten()  # two first steps and one second
            tensor([ True,  True, False])
        """
        if self.batch_sizes is None:
            return mask_T_D if self.batch_first else mask_T_D.unsqueeze(1)
        positions_S = torch.arange(len(self.batch_sizes)).repeat_interleave(self.batch_sizes)
        return mask_T_D.index_select(0, positions_S.to(mask_T_D.device))


def by_layer(
    recurrence: Recurrence,
    drop: Callable[[Recurrence], Tensor],
    run: Callable[[Recurrence], tuple[Tensor, ...]] = Recurrence.run,
) -> tuple[Tensor, ...]:
    """Return what `recurrence` does, with `drop` between its layers.

    Args:
        recurrence: A call.
        drop: Returns the inputs of a layer after dropout.
        run: Runs one layer.

    Example:
        >>> lstm = nn.LSTM(2, 3, num_layers=2)
        >>> x, zeros = torch.rand(5, 1, 2), torch.zeros(2, 1, 3)
        >>> args = (x, (zeros, zeros), [w.detach() for w in lstm.parameters()], True, 2, 0.5, False, False, False)
        >>> outputs, *_ = by_layer(Recurrence.of(torch.lstm, args, {}), drop=lambda layer: layer.x)
        >>> torch.allclose(outputs, lstm(x)[0])
        True
    """
    x, last_states = recurrence.x, []
    with warnings.catch_warnings():
        # cuDNN's advice to flatten the weights: those of a layer alone never are.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        for number, layer in enumerate(recurrence.layers()):
            given = replace(layer, x=x)
            x, *states = run(given if number == 0 else replace(given, x=drop(given)))
            last_states.append(states)
    return (x, *map(torch.cat, zip(*last_states, strict=True)))


def of_all_samples(recurrence: Recurrence) -> tuple[Tensor, ...]:
    """Return what `recurrence` does inside a `torch.vmap` over the samples, which are rows of one batch for it."""
    if not any(map(depends_on_sample, (recurrence.x, *recurrence.states, *recurrence.weights))):
        return recurrence.run()
    if any(map(depends_on_sample, recurrence.weights)):
        raise RuntimeError("The weights of a recurrent net differ from sample to sample.")
    result: tuple[Tensor, ...] = _OfAllSamples.apply(recurrence, recurrence.x, *recurrence.states)  # type: ignore[no-untyped-call]
    return result


class _OfAllSamples(torch.autograd.Function):
    """Call of a recurrence with a rule for `torch.vmap`: torch has none."""

    @staticmethod
    def forward(recurrence: Recurrence, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return replace(recurrence, x=x, states=states).run()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        """Keep nothing: there is no gradient."""

    @staticmethod
    def vmap(
        info: Any,  # noqa: ANN401 - torch's VmapInfo, which has no public name
        in_dims: tuple[int | None, ...],
        recurrence: Recurrence,
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Run a batch in which the samples of a sequence follow each other."""
        num_samples: int = info.batch_size
        axis = recurrence.batch_axis
        x, *states = (
            _with_samples(tensor, dim, num_samples, axis=axis if number == 0 else 1)
            for number, (tensor, dim) in enumerate(zip(tensors, in_dims[1:], strict=True))
        )
        sizes = None if recurrence.batch_sizes is None else recurrence.batch_sizes * num_samples
        outputs, *last = replace(recurrence, x=x, states=tuple(states), batch_sizes=sizes).run()
        results = (_by_sample(outputs, num_samples, axis=axis), *(_by_sample(one, num_samples, axis=1) for one in last))
        return results, (axis + 1, *(2 for _ in last))


def _by_sample(tensor: Tensor, num_samples: int, *, axis: int) -> Tensor:
    """Return what `_with_samples` took together, the samples on the axis behind that of the sequences."""
    return tensor.reshape(*tensor.shape[:axis], -1, num_samples, *tensor.shape[axis + 1 :])


def _with_samples(tensor: Tensor, dim: int | None, num_samples: int, *, axis: int) -> Tensor:
    """Return a tensor with the samples of each sequence one after the other on the axis of the sequences."""
    if dim is None:
        return tensor.repeat_interleave(num_samples, dim=axis)
    return tensor.movedim(dim, axis + 1).flatten(axis, axis + 1)


def refuse_unbatched(layer: str, module: nn.RNNBase, inputs: object) -> None:
    """Raise if a recurrent net with dropout gets one sequence without a batch axis: its masks serve all points alike.

    Example:
        >>> refuse_unbatched("rnn", nn.GRU(2, 3, 2, dropout=0.5), torch.ones(7, 2))
        Traceback (most recent call last):
            ...
        ValueError: `rnn` (GRU) got an input of shape (7, 2), ...
    """
    if isinstance(inputs, Tensor) and inputs.dim() == _AXES_OF_ONE and module.num_layers > 1 and module.dropout > 0:
        axes = "(B, T, D)" if module.batch_first else "(T, B, D)"
        raise ValueError(
            f"{named(layer)} ({type(module).__name__}) got an input of shape {tuple(inputs.shape)}, one sequence "
            f"without a batch axis: all points must pass its dropout={module.dropout} together to share its masks. "
            f"Give it all sequences at once, {axes} or packed, or set its dropout to 0."
        )
