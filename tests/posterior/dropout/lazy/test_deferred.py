import pytest
import torch
from torch.nn import functional

from al_lightning.posterior.dropout.lazy.channels import applied
from al_lightning.posterior.dropout.lazy.deferred import (
    SharedConvolution,
    Unwritten,
    computed,
    deferred_among,
    depends_on_sample,
    scaled_channels,
)
from al_lightning.posterior.dropout.lazy.responses import Convolution


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_product_is_formed_once(lazy):
    x = lazy()
    assert not x.is_computed
    assert torch.equal(x.value(), x.unscaled * x.scale)
    assert x.value() is x.value()
    assert x.is_computed


def test_shape_and_type_are_known_without_the_product(lazy):
    x = lazy()
    assert (x.shape, x.dtype, x.device) == (torch.Size([2, 4, 6, 6]), torch.float32, torch.device("cpu"))
    assert applied(torch.Tensor.size, (x, 1), {}) == 4
    assert not x.is_computed


def test_factors_of_two_dropouts_are_multiplied_with_each_other(lazy):
    x = lazy()
    twice = scaled_channels(x, torch.tensor([3.0]))
    assert twice.unscaled is x.unscaled
    assert torch.equal(twice.value(), x.unscaled * x.scale * 3)
    x.value().zero_()
    assert torch.equal(scaled_channels(x, torch.tensor([3.0])).value(), torch.zeros(2, 4, 6, 6))


def test_code_that_no_function_mode_sees_gets_an_error_and_no_wrong_number(lazy):
    with pytest.raises(NotImplementedError, match="got a tensor that is not computed yet"):
        torch.sigmoid(lazy())


def test_factors_that_no_sample_has_of_its_own_are_multiplied_as_ever():
    x, weight, scale_K = normal(2, 4, 6, 6), normal(6, 4, 3, 3, seed=5), normal(5, 4, 1, 1, seed=1).relu()
    same = normal(6, 1, 1, seed=2).relu()

    def one(scale):
        return computed(scaled_channels(applied(torch.conv2d, (scaled_channels(x, scale), weight), {}), same))

    expected = torch.stack([torch.conv2d(x * scale, weight) * same for scale in scale_K])
    torch.testing.assert_close(torch.vmap(one)(scale_K), expected)


def test_deferred_tensors_are_found_in_lists_and_tuples(lazy):
    x = lazy()
    assert list(deferred_among(([x, None], 1, (x.unscaled, (x,))))) == [x, x]
    assert depends_on_sample(x)
    assert not depends_on_sample(x.unscaled)


def test_a_tensor_that_was_written_on_is_not_read():
    x = normal(3)
    unwritten = Unwritten(x)
    assert unwritten.read() is x
    x.add_(1)
    with pytest.raises(RuntimeError, match="was written on in place"):
        unwritten.read()


def test_one_of_each_sample_that_was_written_on_is_not_read():
    def one(x):
        unwritten = Unwritten(x)
        assert unwritten.read() is x
        x.mul_(2)
        with pytest.raises(RuntimeError, match="was written on in place"):
            unwritten.read()
        return x

    torch.vmap(one)(normal(3, 2))


def test_inference_tensors_do_not_tell_whether_they_were_written_on():
    with torch.inference_mode():
        x = normal(3)
    with pytest.raises(RuntimeError, match="do not track version"):
        Unwritten(x)


INPUTS, WEIGHT = normal(2, 4, 6, 6), normal(5, 4, 3, 3, seed=1)


def shared_convolution(scale, *, bias=None):
    return SharedConvolution.of(INPUTS, scale, Convolution(WEIGHT, bias))


def test_what_follows_keeps_the_shape_known_and_nothing_computed():
    def one(scale):
        y = shared_convolution(scale)
        pooled = y.followed_by(lambda z: functional.max_pool2d(z, 2))
        assert (y.shape, pooled.shape) == ((2, 5, 4, 4), (2, 5, 2, 2))
        assert y.followed_by(lambda z: (z, z)) is None
        assert y.followed_by(lambda z: z.flatten(1)) is None
        assert not y.mixture.is_computed
        return pooled.value(), y.value()

    pooled_K, whole_K = torch.vmap(one)(normal(3, 4, 1, 1, seed=2).relu())
    assert torch.equal(pooled_K, functional.max_pool2d(whole_K.flatten(0, 1), 2).unflatten(0, (3, 2)))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_nothing_is_skipped_where_zero_times_it_is_not_zero(broken):
    kept = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])[:, None, None]

    def one(scale, kept):
        bias = torch.zeros(5)
        bias[0] = broken
        return shared_convolution(scale, bias=bias).scaled(kept)

    result = torch.vmap(one)(normal(3, 4, 1, 1, seed=2).relu(), kept.expand(3, -1, -1, -1))
    assert result[:, :, 0].isnan().all()
    assert result[:, :, 1:].isfinite().all()
