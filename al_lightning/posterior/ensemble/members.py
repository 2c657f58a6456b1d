"""Members of an ensemble: their weights, and the new ones from which each is trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from al_lightning.posterior.compiled import named_originals, original

State = Mapping[str, Tensor]
"""Parameters and buffers by name, those that a `state_dict` leaves out included."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, each once, under the first of their names.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> list(tensors_of(nn.Sequential(layer, nn.BatchNorm1d(1, affine=False), layer)))  # `layer` is in it twice
        ['0.weight', '0.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def state_of(model: nn.Module) -> State:
    """Copy the parameters and buffers of a model to the CPU.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> before = state_of(model)
        >>> _ = model.weight.data.add_(1)
        >>> torch.equal(model.weight, before["weight"])  # a copy, which training leaves alone
        False
    """
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors_of(model).items()}


def load_state(model: nn.Module, state: State) -> None:
    """Write a state into a model, in place: LightningCLI binds optimizers to its parameters.

    Example:
        >>> model, other = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> weight = model.weight
        >>> load_state(model, state_of(other))
        >>> model.weight is weight, torch.equal(model.weight, other.weight)
        (True, True)
    """
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(state[name])


@dataclass(frozen=True)
class Members:
    """Members of an ensemble that are trained one after another, in the one model that the user holds.

    Args:
        num: How many members there are.
        fresh: Names of the submodules that every member starts with new weights; None for the whole model.
        init: What gives such a submodule new weights, drawn from the global generator.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> before = state_of(model)
        >>> Members(5, fresh=["1"]).start(model)
        >>> [torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items()]
        [True, True, False, False]
    """

    num: int
    fresh: Sequence[str] | None = None
    init: Callable[[nn.Module], None] | None = None

    @property
    def replaces_all_weights(self) -> bool:
        """Return whether nothing of the model's own weights is left to a member."""
        return self.fresh is None and self.init is None

    def start(self, model: nn.Module) -> None:
        """Give `model` the new weights from which the fit of a member starts."""
        if not tensors_of(model):  # `configure_model` is going to make it, with new weights
            return
        for part in self._fresh_parts(model):
            (reset_parameters if self.init is None else self.init)(part)

    def _fresh_parts(self, model: nn.Module) -> list[nn.Module]:
        if self.fresh is None:
            return [model]
        parts = dict(named_originals(model))
        unknown = [name for name in self.fresh if name not in parts]
        if unknown:
            raise ValueError(
                f"`fresh` of the ensemble names {', '.join(map(repr, unknown))}, but the submodules of "
                f"{type(model).__name__} are {', '.join(map(repr, filter(None, parts)))}."
            )
        return [parts[name] for name in self.fresh]


def last_learning(model: nn.Module) -> str | None:
    """Return the name of the last submodule with learning parameters of its own, often the head; None without one.

    Example:
        >>> last_learning(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3), nn.ReLU()))
        '1'
    """
    found = [
        name
        for name, module in named_originals(model)
        if name and any(each.requires_grad for each in module.parameters(recurse=False))
    ]
    return found[-1] if found else None


def reset_parameters(module: nn.Module) -> None:
    """New values for all parameters that learn, by each submodule's own `reset_parameters`, as at its construction.

    Parameters that do not learn stay as they are, and tensors of zeros in an adapter, as PEFT's, stay zeros: it adds
    nothing yet. A parameter that learns and that no reset writes is an error, after which the module is as it was.

    Example:
        >>> layers = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1))
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     reset_parameters(layers)
        ...     _ = torch.manual_seed(0)
        ...     torch.equal(layers[0].weight, nn.Linear(1, 1).weight)
        True
    """
    before = {name: tensor.detach().clone() for name, tensor in tensors_of(module).items()}
    parameters = dict(module.named_parameters())
    learning = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not learning:
        raise ValueError(
            f"No parameter of the {type(module).__name__} that every member is to start afresh learns "
            "(`requires_grad`), so all members would be the same network. Name parts that learn in `fresh` of the "
            "ensemble."
        )
    with torch.no_grad():
        for name in learning:
            parameters[name].fill_(torch.nan)  # what is NaN afterwards was not written by any reset
        for submodule in _children_first(module):
            _reset(submodule)
        adapters = _in_adapters(module)
        for name in learning:
            if id(parameters[name]) in adapters and not before[name].any():
                parameters[name].zero_()  # or a pretrained layer would start with noise added to it
        unwritten = [name for name in learning if parameters[name].isnan().any()]
        now = tensors_of(module)
        for name in before if unwritten else parameters.keys() - set(learning):
            now[name].copy_(before[name])
    if unwritten:
        raise ValueError(
            f"No `reset_parameters` of {type(module).__name__} or of its submodules writes {', '.join(unwritten)} in "
            "place, so members would start with the same values there. Give the module that owns them such a method, "
            "say how with `init=function` of the ensemble, called with the model, or name in `fresh` the parts that "
            "start afresh while the others keep the model's weights."
        )


def _in_adapters(module: nn.Module) -> set[int]:
    """Return the ids of the parameters of adapters: those in the parts that PEFT's layers list."""
    parts = (getattr(layer, part, None) for layer in module.modules() for part in _adapter_parts(layer))
    return {id(tensor) for part in parts if isinstance(part, nn.Module) for tensor in part.parameters()}


def _adapter_parts(layer: nn.Module) -> tuple[str, ...]:
    return getattr(layer, "adapter_layer_names", ())


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    """The order of construction, so that a parent's reset has the last word on its children."""
    for child in original(module).children():
        yield from _children_first(child)
    yield original(module)


def _reset(module: nn.Module) -> None:
    if any(parameter.requires_grad for parameter in module.parameters()):  # frozen ones keep their statistics too
        # nn.MultiheadAttention and nn.Transformer have theirs under the second name.
        own = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if own is not None:
            own()
