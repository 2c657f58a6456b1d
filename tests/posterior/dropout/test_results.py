import torch

from al_lightning.posterior.dropout.lazy.deferred import SharedConvolution, scaled_channels
from al_lightning.posterior.dropout.lazy.responses import Convolution
from al_lightning.posterior.dropout.results import Results


def counted(function):
    """What `function(results, x)` counts, `x` being the numbers (2, 3) of one of four samples."""
    results = Results()

    def counting(x):
        function(results, x)
        return x

    torch.vmap(counting)(torch.ones(4, 2, 3))
    return results


def test_what_does_not_depend_on_the_sample_is_shared_and_the_rest_is_of_one_sample():
    def function(results, x):
        results.add(torch.ones(10))
        results.add(x)
        results.add(x[:1])

    assert counted(function) == Results(shared=40, own=24 + 12, largest=24)


def test_channels_that_are_not_multiplied_count_once():
    assert counted(lambda results, x: results.add(scaled_channels(torch.ones(2, 3, 1), x[0, :, None]))) == Results(
        shared=24
    )


def test_a_product_of_features_is_of_each_sample_once_it_is_computed():
    def awaiting(results, x):
        results.add_product(scaled_channels(torch.ones(2, 3), x[0]))

    def multiplied(results, x):
        product = scaled_channels(torch.ones(2, 3), x[0])
        product.value()
        results.add_product(product)

    assert counted(awaiting) == Results()
    assert counted(multiplied) == Results(own=24)


def convolution_of(scale):
    """Of two rows and five channels to three channels of 4 x 4."""
    return SharedConvolution.of(torch.ones(2, 5, 6, 6), scale, Convolution(torch.ones(3, 5, 3, 3), None))


def counted_of_convolution(function, scale_K=None):
    results = Results()

    def counting(scale):
        function(results, convolution_of(scale))
        return scale

    torch.vmap(counting)(torch.ones(4, 5, 1, 1) if scale_K is None else scale_K)
    return results


WHOLE = 2 * 3 * 16 * 4  # bytes


def test_responses_are_one_result_for_each_input_channel():
    found = counted_of_convolution(lambda results, y: results.add_responses(torch.ones(2, 5, 6, 6), y))
    assert found == Results(shared=5 * WHOLE, responses=5 * WHOLE)


def test_a_convolution_is_of_each_sample_and_as_large_as_what_is_computed_of_it():
    def awaiting(results, y):
        results.add(y)
        results.add_computed(y)

    def pooled(results, y):
        y = y.followed_by(lambda z: torch.max_pool2d(z, 4))
        y.value()
        results.add_computed(y)

    def kept(results, y):
        dropped = scaled_channels(y.followed_by(lambda z: torch.max_pool2d(z, 4)), torch.zeros(4, 3, 1, 1)[0])
        assert dropped.value().shape == (2, 3, 1, 1)
        results.add_computed(dropped)

    assert counted_of_convolution(awaiting) == Results(own=WHOLE)
    assert counted_of_convolution(pooled) == Results(largest=WHOLE)
    assert counted_of_convolution(kept) == Results(largest=WHOLE)  # the same factors for all samples skip nothing


def test_of_a_convolution_whose_channels_are_skipped_only_what_is_left_counts():
    results = Results()

    def counting(scale, kept):
        pooled = convolution_of(scale).followed_by(lambda z: torch.max_pool2d(z, 2))
        dropped = scaled_channels(pooled, kept)
        dropped.value()
        results.add_computed(dropped)
        return scale

    torch.vmap(counting)(torch.ones(4, 5, 1, 1), torch.zeros(4, 3, 1, 1))
    assert results == Results(largest=WHOLE // 4)


def test_a_pass_is_mostly_responses_unless_as_much_else_is_shared_or_a_convolution_is_of_each_sample():
    assert Results(shared=15, responses=10).are_mostly_responses
    assert not Results(shared=20, responses=10).are_mostly_responses
    assert not Results().are_mostly_responses
    assert not Results(shared=15, responses=10, has_own_convolution=True).are_mostly_responses
