"""Encoders that need the whole pool: the graph of its points, and several encoders side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from al_lightning.features.encoder import PoolEncoder, read_by
from al_lightning.features.graph import Graph, fitted_graph, of_neighbours


class GraphFeatures(nn.Module):
    """Features from the graph of nearest neighbours of the pool, for those who have no encoder; it needs no training.

    Points that short paths join get features that are alike: see `graph_features`. Points that are not in the pool, as
    those of the test data, get the mean of their nearest points of the pool.

    Args:
        encoder: Encoder between whose features neighbours are sought; by default they are sought between the inputs
            themselves, flattened.
        num_components: Principal components in which neighbours are sought.
        num_neighbours: Nearest neighbours to which each point is joined.
        num_eigenvectors: Number of features.
        power: Power of its eigenvalue by which each feature is weighted.

    Example:
        >>> images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> graph = GraphFeatures(num_eigenvectors=5)
        >>> fitted = graph.fit(graph.read(images))
        >>> fitted["features"].shape, graph.transform(graph.read(images[:2] + 0.01), fitted).shape
        (torch.Size([60, 5]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        *,
        num_components: int = 50,
        num_neighbours: int = 10,
        num_eigenvectors: int = 40,
        power: int = 8,
    ) -> None:
        super().__init__()
        self.encoder = nn.Flatten() if encoder is None else encoder
        refuse_nested("encoder", self.encoder)
        self.settings = Graph(num_components, num_neighbours, num_eigenvectors, power)

    def extra_repr(self) -> str:
        """Return the settings, by which features of other ones are told apart."""
        return repr(self.settings)

    def read(self, batch: Any) -> Tensor:  # noqa: ANN401 - whatever the loader yields
        """Return the numbers of each point of a batch between which neighbours are sought (B, D)."""
        return read_by(self.encoder, batch)

    def fit(self, read_N_D: Tensor) -> dict[str, Tensor]:
        """Return the features of the pool (N, E) as "features", and what `transform` needs."""
        return fitted_graph(read_N_D, self.settings)

    def transform(self, read_B_D: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        """Return the features of further points (B, E)."""
        return of_neighbours(read_B_D, fitted, self.settings)


class Combined(nn.Module):
    """Features of several encoders side by side, each centred and divided by one number, so that they weigh alike.

    Over the pool the mean of each feature is 0, and the mean squared norm of each encoder's features is 1 / P for P
    encoders, so that of all is 1. With learnt features at hand, the graph of the pixels, the graph of the features and
    the features themselves are `Combined([GraphFeatures(), GraphFeatures(encoder), encoder])`.

    Args:
        encoders: The encoders.

    Example:
        >>> images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> both = Combined([GraphFeatures(num_eigenvectors=5), nn.Flatten()])
        >>> features = both.fit(both.read(images))["features"]
        >>> features.shape, round(features.square().sum(dim=1).mean().item(), 4)
        (torch.Size([60, 21]), 1.0)
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("`encoders` is empty. Name at least one.")
        self.encoders = nn.ModuleList(encoders)

    def read(self, batch: Any) -> Tensor:  # noqa: ANN401 - whatever the loader yields
        """Return what all encoders read of a batch, side by side, behind the number of columns of each."""
        parts = [read_by(encoder, batch) for encoder in self.encoders]
        widths_P = torch.tensor([float(part.shape[1]) for part in parts], device=parts[0].device)
        return torch.cat([widths_P.expand(len(parts[0]), -1), *parts], dim=1)

    def fit(self, read_N_D: Tensor) -> dict[str, Tensor]:
        """Return the features of the pool (N, E) as "features", and what `transform` needs."""
        kept: dict[str, Tensor] = {}
        features = []
        for number, (encoder, part_N_d) in enumerate(zip(self.encoders, self.parts(read_N_D), strict=True)):
            fitted = encoder.fit(part_N_d) if isinstance(encoder, PoolEncoder) else {"features": part_N_d}
            own_N_E = fitted["features"].double()
            mean_E = own_N_E.mean(dim=0)
            scale = (own_N_E - mean_E).square().sum(dim=1).mean().mul(len(self.encoders)).sqrt()
            if not float(scale) > 0:
                raise ValueError(f"All points have the same features by encoder {number} ({type(encoder).__name__}).")
            inner = fitted if isinstance(encoder, PoolEncoder) else {}
            kept |= {f"{number}.mean": mean_E, f"{number}.scale": scale}
            kept |= {f"{number}.of.{name}": tensor for name, tensor in inner.items()}
            features.append(((own_N_E - mean_E) / scale).float())
        return {"features": torch.cat(features, dim=1), **kept}

    def transform(self, read_B_D: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        """Return the features of further points (B, E)."""
        features = []
        for number, (encoder, own_B_E) in enumerate(zip(self.encoders, self.parts(read_B_D), strict=True)):
            if isinstance(encoder, PoolEncoder):
                start = f"{number}.of."
                inner = {name.removeprefix(start): one for name, one in fitted.items() if name.startswith(start)}
                own_B_E = encoder.transform(own_B_E, inner)  # noqa: PLW2901
            features.append(((own_B_E.double() - fitted[f"{number}.mean"]) / fitted[f"{number}.scale"]).float())
        return torch.cat(features, dim=1)

    def parts(self, read_B_D: Tensor) -> Sequence[Tensor]:
        """Return what each encoder has read."""
        num = len(self.encoders)
        widths = [int(width) for width in read_B_D[0, :num].tolist()] if len(read_B_D) else [0] * num
        return torch.split(read_B_D[:, num:], widths, dim=1)


def parts_of(encoder: nn.Module, read_B_D: Tensor) -> list[Tensor]:
    """Return what each encoder has read of a batch: their numbers may be of other sizes, so each is compared by itself.

    Example:
        >>> both = Combined([nn.Flatten(), GraphFeatures()])
        >>> [part.shape for part in parts_of(both, both.read(torch.zeros(2, 1, 3, 3)))]
        [torch.Size([2, 9]), torch.Size([2, 9])]
    """
    if not isinstance(encoder, Combined):
        return [read_B_D]
    pairs = zip(encoder.encoders, encoder.parts(read_B_D), strict=True)
    return [part for each, own_B_D in pairs for part in parts_of(each, own_B_D)]


def refuse_nested(name: str, encoder: nn.Module) -> None:
    """Refuse an encoder of the whole pool where one of single points is needed."""
    if isinstance(encoder, PoolEncoder):
        raise TypeError(
            f"`{name}` is a {type(encoder).__name__}, whose features of a point depend on the whole pool. Give an "
            "encoder that reads points one by one; several stand side by side in `Combined([...])`."
        )
