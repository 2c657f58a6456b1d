import pytest
import torch
from torch.nn import functional

from al_lightning.posterior.dropout.lazy import linear as linear_module
from al_lightning.posterior.dropout.lazy.deferred import ScaledChannels
from al_lightning.posterior.dropout.lazy.linear import linear, linear_of_scaled

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


def of_scaled(x, scale_K_D, weight, bias=None):
    return torch.vmap(lambda scale: linear_of_scaled(ScaledChannels(x, scale), weight, bias))(scale_K_D)


@pytest.mark.parametrize("bias", [None, normal(NUM_OUT, seed=2)])
@pytest.mark.parametrize("at_once", [2**21, 2 * NUM_OUT * 5, 1])  # numbers of weights: of all samples, two, one
def test_factors_in_the_weights_give_the_layer_of_each_sample(bias, at_once, monkeypatch):
    monkeypatch.setattr(linear_module, "_SCALED_AT_ONCE", at_once)
    x, scale_K_D, weight = normal(3, 5), normal(7, 5, seed=1).relu(), normal(NUM_OUT, 5, seed=3)
    expected = torch.stack([functional.linear(x * scale, weight, bias) for scale in scale_K_D])
    torch.testing.assert_close(of_scaled(x, scale_K_D, weight, bias), expected)


def test_a_layer_of_the_products_is_taken_where_the_weights_cannot_be_scaled():
    scale_K_D, weight = normal(4, 5, seed=1).relu(), normal(NUM_OUT, 5, seed=3)
    x_K, x_B_T_D, weight_K = normal(4, 3, 5), normal(3, 2, 5), normal(4, NUM_OUT, 5)
    pairs = zip(x_K, scale_K_D, strict=True)
    torch.testing.assert_close(
        torch.vmap(lambda x, scale: linear_of_scaled(ScaledChannels(x, scale), weight))(x_K, scale_K_D),
        torch.stack([functional.linear(x * scale, weight) for x, scale in pairs]),
    )
    torch.testing.assert_close(
        of_scaled(x_B_T_D, scale_K_D, weight),
        torch.stack([functional.linear(x_B_T_D * scale, weight) for scale in scale_K_D]),
    )
    x, pairs = x_K[0], zip(scale_K_D, weight_K, strict=True)
    torch.testing.assert_close(
        torch.vmap(lambda scale, weight: linear_of_scaled(ScaledChannels(x, scale), weight))(scale_K_D, weight_K),
        torch.stack([functional.linear(x * scale, weight) for scale, weight in pairs]),
    )
    for bias in (normal(3, NUM_OUT, seed=4), normal(seed=4), normal(1, seed=4)):
        expected = torch.stack([functional.linear(x * scale, weight, bias) for scale in scale_K_D])
        torch.testing.assert_close(of_scaled(x, scale_K_D, weight, bias), expected)
    for few in (weight[0], weight[:0]):
        expected = torch.stack([functional.linear(x * scale, few) for scale in scale_K_D])
        torch.testing.assert_close(of_scaled(x, scale_K_D, few), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.stack([functional.linear(x * scale, weight) for scale in scale_K_D])
        assert torch.equal(of_scaled(x, scale_K_D, weight), expected)


def test_nan_and_infinity_are_those_of_the_products():
    x = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0], [1.0, 1.0]])
    scale_K_D, weight = torch.tensor([[0.0, 2.0], [2.0, 2.0]]), torch.ones(1, 2)
    expected = torch.stack([functional.linear(x * scale, weight) for scale in scale_K_D])
    torch.testing.assert_close(of_scaled(x, scale_K_D, weight), expected, equal_nan=True)
