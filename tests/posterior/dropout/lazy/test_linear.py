import pytest
import torch
from torch.nn import functional

from al_lightning.posterior.dropout.lazy.linear import linear

NUM_OUT = 2


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laid_out(layout):
    """The same numbers (K, B, F), their axes in another order in memory."""
    order = ["KBF".index(axis) for axis in layout]
    return normal(4, 3, 5).permute(order).contiguous().permute([order.index(axis) for axis in range(3)])


@pytest.mark.parametrize("layout", ["KBF", "KFB", "BKF", "FKB", "BFK", "FBK"])
@pytest.mark.parametrize("bias", [None, normal(NUM_OUT, seed=2)])
def test_any_layout_gives_the_layer_of_each_sample(layout, bias):
    x_K, weight = laid_out(layout), normal(NUM_OUT, 5, seed=1)
    expected = torch.stack([functional.linear(x, weight, bias) for x in x_K])
    torch.testing.assert_close(torch.vmap(lambda x: linear(x, weight, bias))(x_K), expected)
    moved = x_K.movedim(0, 1)
    torch.testing.assert_close(torch.vmap(lambda x: linear(x, weight, bias), in_dims=1)(moved), expected)


def test_weights_of_each_sample_and_inputs_of_all_are_served():
    x_K, weight_K = normal(4, 3, 5), normal(4, NUM_OUT, 5, seed=1)
    expected = torch.stack([functional.linear(x, weight) for x, weight in zip(x_K, weight_K, strict=True)])
    torch.testing.assert_close(torch.vmap(linear)(x_K.mT.contiguous().mT, weight_K), expected)
    assert torch.equal(linear(x_K[0], weight_K[0]), functional.linear(x_K[0], weight_K[0]))
