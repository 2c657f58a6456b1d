"""Encoders: modules that turn a batch of inputs into features, one row of numbers for each point."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from al_lightning.posterior.forward import CALL_REMEDY, PREDICT_REMEDY, arguments_of, called
from al_lightning.posterior.model import evaluating

NUM_NAMED = 20
TOLERANCE = 1e-4
"""Largest difference of features that count as the same, as a share of the largest of all that are compared."""
BATCH_TOLERANCE = 0.01
"""The same of batches of other sizes, in which sums are rounded otherwise."""
BATCH_TOLERANCE_OF_COARSE = 0.05
"""The same of an encoder in half precision or with quantized weights."""
QUANTIZED = "torch.ao.nn"
"""Package of torch's quantized layers, whose weights are no parameters."""
ONE_BY_ONE = (
    "Let it read points one by one: BatchNorm with running statistics (`track_running_stats=True`), no mean over the "
    "batch, no `squeeze()` of all axes, and a mask for what is padded."
)
_AXES = 2  # B and D
_COLLATE_IT = (
    "Let the `collate_fn` of the data module's loaders return a tensor, or a dict with the names of the encoder's "
    "arguments, as a tokenizer does."
)
_WRAP_IT = "Put the encoder into a module whose `forward` returns a tensor (B, D)"


@runtime_checkable
class PoolEncoder(Protocol):
    """Encoder whose features of a point depend on the whole pool; it is a module, like any other encoder.

    Example:
        >>> class Centred(nn.Module):  # features minus the mean of the pool
        ...     def read(self, batch):
        ...         return batch
        ...
        ...     def fit(self, read_N_D):
        ...         mean_D = read_N_D.mean(dim=0)
        ...         return {"features": read_N_D - mean_D, "mean": mean_D}
        ...
        ...     def transform(self, read_B_D, fitted):
        ...         return read_B_D - fitted["mean"]
        >>> fitted = Centred().fit(torch.tensor([[1.0], [3.0]]))
        >>> fitted["features"], Centred().transform(torch.tensor([[5.0]]), fitted)
        (tensor([[-1.],
                [ 1.]]), tensor([[3.]]))
        >>> isinstance(Centred(), PoolEncoder)
        True
    """

    def read(self, batch: Any) -> Tensor:  # noqa: ANN401 - whatever the loader yields
        """Return what is read of a batch (B, D), without the rest of the pool."""
        ...

    def fit(self, read_N_D: Tensor) -> dict[str, Tensor]:
        """Return the features of the pool (N, E) as "features", and whatever else `transform` needs."""
        ...

    def transform(self, read_B_D: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        """Return the features of further points (B, E)."""
        ...


def read_by(encoder: nn.Module, batch: object) -> Tensor:
    """Return what an encoder reads of a batch (B, D): of an ordinary one its features, float32.

    The encoder is called as a model is: with the input of an (x, y) batch, or with the entries of a dict as keywords,
    without labels. Of several outputs the only one that is a row of numbers for each point is taken.

    Example:
        >>> read_by(nn.Flatten(), (torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))).shape
        torch.Size([2, 4])
    """
    if isinstance(encoder, PoolEncoder):
        return encoder.read(batch)
    encoder = encoder.net if isinstance(encoder, Pretrained) else encoder
    try:
        arguments = arguments_of(encoder, batch)
    except TypeError as error:
        words = str(error).replace(CALL_REMEDY, _COLLATE_IT).replace(PREDICT_REMEDY, "a module around it")
        raise TypeError(f"`encoder` cannot be called on a batch. {words}") from error
    return _rows_of(called(encoder, arguments), encoder).float()


def _rows_of(output: object, encoder: nn.Module) -> Tensor:
    """Return the only tensor (B, D) in what an encoder returned."""
    entries: Iterable[object] = output.values() if isinstance(output, Mapping) else ()
    if isinstance(output, (tuple, list)):
        entries = output
    tensors = [one for one in (output, *entries) if isinstance(one, Tensor)]
    rows = [one for one in tensors if one.ndim == _AXES and one.is_floating_point() and one.shape[1] > 0]
    if len(rows) == 1:
        return rows[0].detach()
    shapes = ", ".join(str(tuple(one.shape)) for one in tensors) or "no tensor"
    raise ValueError(
        f"`encoder` ({type(encoder).__name__}) returned a {type(output).__name__} ({shapes}), and {len(rows)} tensors "
        f"in it are a row of floating-point numbers for each point. {_WRAP_IT}, as `nn.Sequential(encoder, "
        "nn.Flatten())` does for images."
    )


def device_of(encoder: nn.Module) -> torch.device:
    """Return the device of an encoder's first parameter or buffer; the CPU if it has none."""
    held = [*encoder.parameters(), *encoder.buffers()]
    return held[0].device if held else torch.device("cpu")


@contextmanager
def encoding(encoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Set an encoder to evaluation mode on a device, without gradients and in full float32; restore it afterwards."""
    before = device_of(encoder)
    try:
        encoder.to(device)
        with (
            evaluating(encoder),
            torch.no_grad(),
            torch.backends.cudnn.flags(
                enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        encoder.to(before)


def refuse_random(first_B_D: Tensor, second_B_D: Tensor, indices: Iterable[int]) -> None:
    """Refuse an encoder whose features of the same batch differ between two passes."""
    if largest_difference(first_B_D, second_B_D) <= TOLERANCE:
        return
    raise ValueError(
        f"`encoder` gives other features each time, as of the points {list(indices)[:NUM_NAMED]}, although it is in "
        "evaluation mode: it draws random numbers in `forward` (or a transfer hook of the data module does). Features "
        "are made once, so make it deterministic."
    )


def refuse_dependence_on_batch(whole_b_D: Tensor, part_b_D: Tensor, indices: Iterable[int], *, is_coarse: bool) -> None:
    """Refuse an encoder that gives points other features in a batch of fewer points.

    Args:
        whole_b_D: Features in one batch.
        part_b_D: Features of the same points in batches of fewer points.
        indices: Their ids.
        is_coarse: The encoder computes in half precision or with quantized weights.
    """
    if largest_difference(whole_b_D, part_b_D) <= (BATCH_TOLERANCE_OF_COARSE if is_coarse else BATCH_TOLERANCE):
        return
    raise ValueError(
        f"`encoder` gives the points {list(indices)[:NUM_NAMED]} other features in a batch of fewer points, so that "
        f"chance, the batch size and the number of ranks would decide them. {ONE_BY_ONE}"
    )


def is_coarse(encoder: nn.Module) -> bool:
    """Return whether an encoder has weights in half precision, or quantized ones.

    Example:
        >>> is_coarse(nn.Linear(2, 2)), is_coarse(nn.Linear(2, 2, dtype=torch.bfloat16)), is_coarse(nn.Flatten())
        (False, True, False)
    """
    tensors = [*encoder.parameters(), *encoder.buffers()]
    is_half = any(tensor.is_floating_point() and tensor.element_size() < 4 for tensor in tensors)  # noqa: PLR2004 - bytes
    return is_half or any(type(part).__module__.startswith(QUANTIZED) for part in encoder.modules())


def largest_difference(first_B_D: Tensor, second_B_D: Tensor) -> float:
    """Return the largest difference of two sets of features, as a share of the largest number in them; NaN is NaN.

    Example:
        >>> largest_difference(torch.tensor([[10.0, 0.0]]), torch.tensor([[10.0, 1.0]]))
        0.1...
    """
    if first_B_D.shape != second_B_D.shape:
        return float("inf")
    scale = float(torch.maximum(first_B_D.abs(), second_B_D.abs()).max())
    difference = float((first_B_D - second_B_D).abs().max())
    return difference if scale == 0 else difference / scale


def refuse_broken(features_B_D: Tensor, indices: Iterable[int], *, name: str) -> None:
    """Refuse features that are no finite numbers, naming the points by their ids.

    Args:
        features_B_D: Features as they are stored.
        indices: Ids of the points.
        name: The dataset that they are of.
    """
    rows = (~features_B_D.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if rows:
        ids = list(indices)
        raise ValueError(
            f"The features of {len(rows)} points of a batch of the {name} data are no finite numbers, first of the "
            f"points {[ids[row] for row in rows][:NUM_NAMED]}. Look at these points and leave out broken ones; with "
            "`dtype='float16'` numbers above 65504 are too large."
        )


def digest_of(encoder: nn.Module) -> str:
    """Return a digest of an encoder: its layers as they are printed, and all that its state holds.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> before = digest_of(layer)
        >>> before == digest_of(layer), before == digest_of(nn.Linear(2, 3))
        (True, False)
    """
    hashed = hashlib.blake2b(repr(encoder).encode(), digest_size=8)
    for key, value in encoder.state_dict().items():
        content = value if isinstance(value, Tensor) else torch.frombuffer(repr(value).encode(), dtype=torch.uint8)
        rows = content.detach().cpu().contiguous()
        hashed.update(f"{key} {rows.dtype} {tuple(rows.shape)}".encode())
        hashed.update(rows.flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


class Pretrained(nn.Module):
    """Encoder with the weights of a checkpoint: one of Lightning's, or a state dict that `torch.save` wrote.

    The layers are built as usual, and their weights are loaded; code in the file does not run. Anything else that gives
    features is an encoder as well, such as a part of a trained model, `Embedded(datamodule, model.backbone)`.

    Args:
        net: Layers of the encoder.
        checkpoint: File with their weights.
        part: Name of the encoder within the module that the checkpoint is of, such as `encoder`, whose weights are
            called `encoder.…` in the file. By default the file holds the encoder's alone.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> trained = nn.ModuleDict({"encoder": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(trained.state_dict(), f"{folder}/trained.pt")
        ...     encoder = Pretrained(nn.Linear(2, 3), f"{folder}/trained.pt", part="encoder")
        >>> torch.equal(encoder(torch.ones(4, 2)), trained["encoder"](torch.ones(4, 2)))
        True
    """

    def __init__(self, net: nn.Module, checkpoint: str, *, part: str = "") -> None:
        super().__init__()
        self.net = net
        found = _weights_in(Path(checkpoint))
        start = f"{part}." if part else ""
        weights = {name[len(start) :]: found[name] for name in found if name.startswith(start)}
        try:
            net.load_state_dict(weights)
        except RuntimeError as error:
            parts = sorted({name.partition(".")[0] for name in found})
            raise ValueError(
                f"`checkpoint` {checkpoint} has other weights than `net` ({type(net).__name__}) under `part` "
                f"{part!r}: {' '.join(str(error).split())} The parts in the file are {parts}."
            ) from error

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the net takes and returns
        """Return what the net returns."""
        return self.net(*args, **kwargs)


def _weights_in(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint` is {path}, and there is no such file. Train the encoder first.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"`checkpoint` {path} holds more than tensors and plain values, or is damaged ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}). Save the weights alone: `torch.save(encoder.state_dict(), path)`."
        ) from error
    weights = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"`checkpoint` {path} holds a {type(found).__name__}, and no weights by name.")
    return weights
