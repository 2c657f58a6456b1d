"""The posteriors that every contract test is put to, and tensors multiplied only when somebody needs the product."""

import copy

import pytest
import torch

from al_lightning.posterior import AnchoredHeads, DeepEnsemble, LastLayerLaplace, MCDropConnect, MCDropout
from al_lightning.posterior.dropout.lazy.deferred import scaled_channels

POSTERIORS = [
    MCDropout(),
    LastLayerLaplace(),
    LastLayerLaplace(prior_precision=3.0, layer="last", structure="kron"),
    AnchoredHeads(),
    AnchoredHeads(prior_precision=0.5, layer="last", class_weights=(1.0, 2.0, 0.5)),
    MCDropConnect(p=0.3),
    MCDropConnect(p=0.5, layers=("last",)),
    DeepEnsemble(5),
]
"""Add yours; those that name a layer need a model with a layer `last`."""
DRAWN = [posterior for posterior in POSTERIORS if posterior.members is None and "last" not in repr(posterior)]


@pytest.fixture(params=POSTERIORS, ids=repr)
def each_posterior(request):
    return copy.deepcopy(request.param)


@pytest.fixture(params=DRAWN, ids=repr)
def each_drawn_posterior(request):
    """One whose networks are drawn, of any model."""
    return copy.deepcopy(request.param)


@pytest.fixture
def lazy():
    def lazy(*, shape=(2, 4, 6, 6)):
        scale = torch.tensor([0.0, 2.0, 1.0, 0.5]).reshape(4, *(1 for _ in shape[2:]))
        return scaled_channels(torch.randn(shape, generator=torch.Generator().manual_seed(0)), scale)

    return lazy
