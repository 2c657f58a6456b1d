"""Weights that a run keeps, identified by a hash of their values and verified when read."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from al_lightning.records.files import load_plain

States = Sequence[Mapping[str, Tensor]]
"""Parameters and buffers by name: of the model, or of each member of an ensemble."""


def digest_of(states: States) -> str:
    """Return a hash of the names, types, shapes and values of weights, the same on every machine.

    Example:
        >>> one, other = ([{"w": torch.tensor([value])}] for value in (1.0, 2.0))
        >>> digest_of(one) == digest_of([{"w": torch.ones(1)}]), digest_of(one) == digest_of(other)
        (True, False)
    """
    found = hashlib.blake2b(digest_size=16)
    for member, state in enumerate(states):
        for name, tensor in state.items():
            found.update(f"{member} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_states(path: Path, *, digest: str, way_out: str) -> States:
    """Return the weights in a file; any but those of this hash are a ValueError with the path.

    Args:
        path: A file of weights, from a run folder.
        digest: Their hash, as the records have it.
        way_out: What to do, beside restoring the file.
    """
    try:
        states = load_plain(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}). Restore the file, or {way_out}.") from error
    if not _are_states(states):
        raise ValueError(f"{path} holds no weights of a run. Restore the file, or {way_out}.")
    if digest_of(states) != digest:
        raise ValueError(
            f"{path} holds other weights than the records beside it are of: it was damaged, or comes from another run. "
            f"Restore the file, or {way_out}."
        )
    return states  # type: ignore[no-any-return] # checked


def _are_states(states: object) -> bool:
    return isinstance(states, list) and all(
        isinstance(state, dict)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
        for state in states
    )
