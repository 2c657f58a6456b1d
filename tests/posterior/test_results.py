import torch

from al_lightning.posterior.deferred import scaled_channels
from al_lightning.posterior.results import Results


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
    assert counted(lambda results, x: results.add(scaled_channels(torch.ones(2, 3), x))) == Results(shared=24)


def test_responses_are_one_result_for_each_input_channel():
    inputs = torch.ones(2, 5, 1)
    assert counted(lambda results, x: results.add_responses(inputs, x)) == Results(shared=5 * 24)
    assert counted(lambda results, x: results.add_responses(inputs, (x, x))) == Results()
