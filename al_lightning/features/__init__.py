"""Features of points, made once: encoders, the graph of the pool, and what is kept of them on disk."""

from al_lightning.features.embedded import Embedded
from al_lightning.features.encoder import PoolEncoder, Pretrained
from al_lightning.features.graph import graph_features
from al_lightning.features.pool_encoders import Combined, GraphFeatures
from al_lightning.features.simclr import ConvEncoder, SimCLR

__all__ = [
    "Embedded",
    "Combined",
    "GraphFeatures",
    "PoolEncoder",
    "Pretrained",
    "ConvEncoder",
    "SimCLR",
    "graph_features",
]
