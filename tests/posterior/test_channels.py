import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior.channels import (
    Convolution,
    ScaledChannels,
    applied,
    depends_on_sample,
    has_scaled_channels,
    mixed_responses,
    multiplied,
    scaled_channels,
)
from al_lightning.posterior.pooling import FASTER

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lazy(*, shape=(2, 4, 6, 6)):
    scale = torch.tensor([0.0, 2.0, 1.0, 0.5]).reshape(4, *(1 for _ in shape[2:]))
    return scaled_channels(normal(*shape), scale)


def of_all_samples(function, x, scale_K):
    """`function(x * scale)` by vmap, where `function` gets the channels unmultiplied."""
    return torch.vmap(lambda scale: multiplied(function(scaled_channels(x, scale))))(scale_K)


def test_the_product_is_formed_once():
    x = lazy()
    assert not x.is_multiplied
    assert torch.equal(x.product(), x.unscaled * x.scale)
    assert x.product() is x.product()
    assert x.is_multiplied


def test_shape_and_type_are_known_without_the_product():
    x = lazy()
    assert (x.shape, x.dtype, x.device) == (torch.Size([2, 4, 6, 6]), torch.float32, torch.device("cpu"))
    assert applied(torch.Tensor.size, (x, 1), {}) == 4
    assert not x.is_multiplied


def test_factors_of_two_dropouts_are_multiplied_with_each_other():
    x = lazy()
    twice = scaled_channels(x, torch.tensor([3.0]))
    assert twice.unscaled is x.unscaled
    assert torch.equal(twice.product(), x.unscaled * x.scale * 3)
    x.product().zero_()
    assert torch.equal(scaled_channels(x, torch.tensor([3.0])).product(), torch.zeros(2, 4, 6, 6))


@pytest.mark.parametrize(
    ("func", "arguments", "options"),
    [
        (functional.relu, (), {}),
        (torch.relu, (), {}),
        (torch.Tensor.relu, (), {}),
        (functional.leaky_relu, (0.2,), {}),
        (FASTER[functional.max_pool2d], (2,), {}),
        (FASTER[functional.max_pool2d], (3, 2, 1), {}),
        (functional.avg_pool2d, (2,), {}),
        (functional.adaptive_avg_pool2d, (1,), {}),
        (functional.adaptive_max_pool2d, (2,), {}),
    ],
)
def test_homogeneous_operations_leave_the_factors_outside(func, arguments, options):
    x = lazy()
    result = applied(func, (x, *arguments), options)
    assert isinstance(result, ScaledChannels)
    assert not x.is_multiplied
    torch.testing.assert_close(result.product(), func(x.unscaled * x.scale, *arguments, **options))


@pytest.mark.parametrize(
    ("func", "arguments", "options"),
    [
        (torch.sigmoid, (), {}),
        (torch.add, (1.0,), {}),
        (functional.adaptive_max_pool2d, (2,), {"return_indices": True}),
        (functional.batch_norm, (torch.ones(4), torch.ones(4)), {}),
        (torch.flatten, (1,), {}),
    ],
)
def test_any_other_operation_gets_the_product(func, arguments, options):
    x = lazy()
    torch.testing.assert_close(
        applied(func, (x, *arguments), options), func(x.unscaled * x.scale, *arguments, **options)
    )
    assert x.is_multiplied


def test_products_are_formed_inside_lists_and_keyword_arguments():
    x = lazy()
    assert has_scaled_channels(([x],))
    assert not has_scaled_channels(([x.unscaled], 1, None))
    assert torch.equal(applied(torch.cat, ([x, x.unscaled],), {}), torch.cat([x.product(), x.unscaled]))
    assert torch.equal(applied(torch.mul, (x.unscaled,), {"other": x}), x.unscaled * x.product())
    assert torch.equal(applied(functional.relu, (), {"input": x}), x.product().relu())


@pytest.mark.parametrize(
    ("func", "arguments", "options"),
    [
        (functional.relu, (True,), {}),
        (functional.relu, (), {"inplace": True}),
        (functional.leaky_relu, (0.01, True), {}),
        (functional.leaky_relu, (), {"negative_slope": 0.01, "inplace": True}),
    ],
)
def test_an_activation_in_place_is_seen_through_other_names_but_not_by_what_was_dropped(func, arguments, options):
    x = lazy()
    before, other_name = x.unscaled, x
    kept = before.clone()
    assert applied(func, (x, *arguments), options) is other_name
    torch.testing.assert_close(
        other_name.product(), functional.leaky_relu(kept * x.scale, 0.01 * (func is not functional.relu))
    )
    assert torch.equal(before, kept)


def test_what_was_written_on_the_product_is_not_lost():
    x = lazy()
    applied(torch.Tensor.add_, (x, 1.0), {})
    torch.testing.assert_close(applied(functional.relu, (x,), {}), (x.unscaled * x.scale + 1).relu())


def test_code_that_no_function_mode_sees_gets_an_error_and_no_wrong_number():
    with pytest.raises(NotImplementedError, match="got channels that are not multiplied yet"):
        torch.sigmoid(lazy())


@pytest.mark.parametrize(
    ("num_axes", "geometry"),
    [
        (1, {}),
        (1, {"stride": 2, "padding": 3, "dilation": 2}),
        (2, {}),
        (2, {"stride": 2}),
        (2, {"padding": (1, 2)}),
        (2, {"padding": "same", "dilation": 2}),
        (2, {"padding": "valid", "dilation": (2, 1)}),
        (2, {"stride": (1, 3), "padding": 1, "dilation": 2}),
        (3, {"padding": 1, "stride": 2}),
    ],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_mixed_responses_are_the_convolutions_of_the_scaled_inputs(num_axes, geometry, has_bias):
    x = normal(3, 4, *(9, 8, 7)[:num_axes])
    weight, bias = normal(5, 4, *(3, 2, 3)[:num_axes], seed=1), normal(5, seed=2) if has_bias else None
    scale_K_C = normal(6, 4, seed=3).relu()
    expected = [
        CONVOLUTIONS[num_axes](x * scale_C.reshape(4, *[1] * num_axes), weight, bias, **geometry)
        for scale_C in scale_K_C
    ]
    mixed = mixed_responses(x, scale_K_C, Convolution(weight, bias, **geometry))
    torch.testing.assert_close(mixed, torch.stack(expected, dim=1))


def test_responses_of_many_channels_are_made_in_parts(monkeypatch):
    monkeypatch.setattr("al_lightning.posterior.channels._RESPONSES_AT_ONCE", 1)
    x, weight, bias, scale_K_C = normal(2, 9, 5, 5), normal(7, 9, 3, 3), normal(7), normal(3, 9).relu()
    expected = [functional.conv2d(x * scale_C[:, None, None], weight, bias) for scale_C in scale_K_C]
    mixed = mixed_responses(x, scale_K_C, Convolution(weight, bias))
    torch.testing.assert_close(mixed, torch.stack(expected, dim=1))


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2),
    ],
)
def test_every_convolution_of_all_samples_is_that_of_each(convolution):
    x, scale_K = normal(2, 4, 6, 6), normal(5, 4, 1, 1, seed=1).relu()
    arguments = (convolution.weight, convolution.bias, *convolution_geometry(convolution))
    with torch.no_grad():
        once = of_all_samples(lambda lazy: applied(torch.conv2d, (lazy, *arguments), {}), x, scale_K)
        expected = torch.stack([convolution(x * scale) for scale in scale_K])
    torch.testing.assert_close(once, expected)


def convolution_geometry(convolution):
    return convolution.stride, convolution.padding, convolution.dilation, convolution.groups


def test_responses_are_shared_only_where_the_input_is():
    weight, scale_K = normal(6, 4, 3, 3), normal(5, 4, 1, 1, seed=1).relu()
    x_K = normal(5, 2, 4, 6, 6)

    def convolved(x, scale):
        lazy = scaled_channels(x, scale)
        result = applied(torch.conv2d, (lazy, weight), {})
        shared.append(not lazy.is_multiplied)
        assert depends_on_sample(result)
        return result

    for x, in_dims in ((x_K, 0), (x_K[0], None)):
        shared = []
        once = torch.vmap(convolved, in_dims=(in_dims, 0))(x, scale_K)
        expected = [
            torch.conv2d(x[k] * scale if in_dims == 0 else x * scale, weight) for k, scale in enumerate(scale_K)
        ]
        torch.testing.assert_close(once, torch.stack(expected))
        assert shared == [in_dims is None]
