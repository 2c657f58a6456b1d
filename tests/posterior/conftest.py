"""Tensors whose channels are multiplied only when somebody needs the product."""

import pytest
import torch

from al_lightning.posterior.dropout.lazy.deferred import scaled_channels


@pytest.fixture
def lazy():
    def lazy(*, shape=(2, 4, 6, 6)):
        scale = torch.tensor([0.0, 2.0, 1.0, 0.5]).reshape(4, *(1 for _ in shape[2:]))
        return scaled_channels(torch.randn(shape, generator=torch.Generator().manual_seed(0)), scale)

    return lazy
