import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior.dropout.lazy.channels import applied
from al_lightning.posterior.dropout.lazy.deferred import (
    ScaledChannels,
    computed,
    deferred_among,
    depends_on_sample,
    scaled_channels,
)
from al_lightning.posterior.dropout.lazy.pooling import FASTER


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_all_samples(function, x, scale_K):
    """`function(x * scale)` by vmap, where `function` gets the channels unmultiplied."""
    return torch.vmap(lambda scale: computed(function(scaled_channels(x, scale))))(scale_K)


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
def test_homogeneous_operations_leave_the_factors_outside(func, arguments, options, lazy):
    x = lazy()
    result = applied(func, (x, *arguments), options)
    assert isinstance(result, ScaledChannels)
    assert not x.is_computed
    torch.testing.assert_close(result.value(), func(x.unscaled * x.scale, *arguments, **options))


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
def test_any_other_operation_gets_the_product(func, arguments, options, lazy):
    x = lazy()
    torch.testing.assert_close(
        applied(func, (x, *arguments), options), func(x.unscaled * x.scale, *arguments, **options)
    )
    assert x.is_computed


def test_products_are_formed_inside_lists_and_keyword_arguments(lazy):
    x = lazy()
    assert list(deferred_among(([x],))) == [x]
    assert not list(deferred_among(([x.unscaled], 1, None)))
    assert torch.equal(applied(torch.cat, ([x, x.unscaled],), {}), torch.cat([x.value(), x.unscaled]))
    assert torch.equal(applied(torch.mul, (x.unscaled,), {"other": x}), x.unscaled * x.value())
    assert torch.equal(applied(functional.relu, (), {"input": x}), x.value().relu())


@pytest.mark.parametrize(
    ("func", "arguments", "options"),
    [
        (functional.relu, (True,), {}),
        (functional.relu, (), {"inplace": True}),
        (functional.leaky_relu, (0.01, True), {}),
        (functional.leaky_relu, (), {"negative_slope": 0.01, "inplace": True}),
    ],
)
def test_an_activation_in_place_is_seen_through_other_names_but_not_by_what_was_dropped(func, arguments, options, lazy):
    x = lazy()
    before, other_name = x.unscaled, x
    kept = before.clone()
    assert applied(func, (x, *arguments), options) is other_name
    torch.testing.assert_close(
        other_name.value(), functional.leaky_relu(kept * x.scale, 0.01 * (func is not functional.relu))
    )
    assert torch.equal(before, kept)


def test_what_was_written_on_the_product_is_not_lost(lazy):
    x = lazy()
    applied(torch.Tensor.add_, (x, 1.0), {})
    torch.testing.assert_close(applied(functional.relu, (x,), {}), (x.unscaled * x.scale + 1).relu())


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
        shared.append(not lazy.is_computed)
        assert depends_on_sample(result)
        return computed(result)

    for x, in_dims in ((x_K, 0), (x_K[0], None)):
        shared = []
        once = torch.vmap(convolved, in_dims=(in_dims, 0))(x, scale_K)
        expected = [
            torch.conv2d(x[k] * scale if in_dims == 0 else x * scale, weight) for k, scale in enumerate(scale_K)
        ]
        torch.testing.assert_close(once, torch.stack(expected))
        assert shared == [in_dims is None]


def convolution_then(function, x, weight, scale_K, scale_after_K, *, skipped=None, monkeypatch=None):
    """`function` of the convolution of all samples and the factors of its result, by vmap."""
    if skipped is not None:
        monkeypatch.setattr("al_lightning.posterior.dropout.lazy.deferred.skipping_pays", lambda *_: skipped)

    def one(scale, scale_after):
        return computed(function(applied(torch.conv2d, (scaled_channels(x, scale), weight), {}), scale_after))

    return torch.vmap(one)(scale_K, scale_after_K)


def pooled(y, scale):
    return applied(FASTER[functional.max_pool2d], (scaled_channels(y, scale), 2), {})


def rectified_before_and_after(y, scale):
    return applied(functional.relu, (scaled_channels(applied(functional.leaky_relu, (y, 0.1), {}), scale),), {})


def rectified_in_place(y, scale):
    assert applied(functional.relu, (y, True), {}) is y
    return scaled_channels(y, scale)


def dropped_and_rectified_in_place(y, scale):
    dropped = scaled_channels(y, scale)
    assert applied(functional.relu, (dropped,), {"inplace": True}) is dropped
    return applied(torch.add, (dropped, y), {})  # the convolution is as it was


def rectified_in_place_after_it_was_dropped(y, scale):
    dropped = scaled_channels(y, scale)
    applied(functional.relu, (y, True), {})
    return applied(torch.sub, (dropped, y), {})


def dropped_twice(y, scale):
    return scaled_channels(scaled_channels(y, scale), scale)


def needed_first(y, scale):
    total = applied(torch.sum, (y,), {})
    return applied(torch.add, (scaled_channels(y, scale), total), {})


def pooled_with_positions(y, scale):
    return applied(FASTER[functional.max_pool2d], (scaled_channels(y, scale), 2, None, 0, 1, False, True), {})[0]


def plainly(function):
    """The same function of ordinary tensors."""
    expected = {
        pooled: lambda y, s: functional.max_pool2d(y * s, 2),
        rectified_before_and_after: lambda y, s: (functional.leaky_relu(y, 0.1) * s).relu(),
        rectified_in_place: lambda y, s: y.relu() * s,
        dropped_and_rectified_in_place: lambda y, s: (y * s).relu() + y,
        rectified_in_place_after_it_was_dropped: lambda y, s: y * s - y.relu(),
        dropped_twice: lambda y, s: y * s * s,
        needed_first: lambda y, s: y * s + y.sum(),
        pooled_with_positions: lambda y, s: functional.max_pool2d(y * s, 2),
    }
    return expected[function]


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        pooled,
        rectified_before_and_after,
        rectified_in_place,
        dropped_and_rectified_in_place,
        rectified_in_place_after_it_was_dropped,
        dropped_twice,
        needed_first,
        pooled_with_positions,
    ],
)
def test_what_follows_a_convolution_may_be_done_before_it(function, skipped, monkeypatch):
    x, weight = normal(2, 4, 6, 6), normal(6, 4, 3, 3, seed=5)
    scale_K, after_K = normal(5, 4, 1, 1, seed=1).relu(), normal(5, 6, 1, 1, seed=2).relu()
    once = convolution_then(function, x, weight, scale_K, after_K, skipped=skipped, monkeypatch=monkeypatch)
    expected = [
        plainly(function)(torch.conv2d(x * s, weight), after) for s, after in zip(scale_K, after_K, strict=True)
    ]
    torch.testing.assert_close(once, torch.stack(expected))
