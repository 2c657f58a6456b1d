import weakref

import pytest
import torch

from al_lightning.posterior.sampling import check_draws, until_the_end


@pytest.mark.parametrize("num_samples", [1, 0, -3])
def test_fewer_than_two_samples_are_refused(num_samples):
    with pytest.raises(ValueError, match=rf"`num_samples` is {num_samples}, but one network cannot disagree"):
        check_draws(num_samples, seed=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_samples": 2.0, "seed": 0}, "`num_samples` is 2.0, but must be an int"),
        ({"num_samples": True, "seed": 0}, "`num_samples` is True, but must be an int"),
        ({"num_samples": 2, "seed": None}, "`seed` is None, but must be an int"),
    ],
)
def test_what_is_no_int_is_refused(arguments, words):
    with pytest.raises(TypeError, match=words):
        check_draws(**arguments)


def test_two_samples_of_any_seed_can_be_drawn():
    check_draws(2, seed=-1)


def test_after_the_block_a_call_is_refused_and_the_samples_are_gone():
    class Samples:
        def __call__(self, batch):
            return batch + 1

    samples = Samples()
    alive = weakref.ref(samples)
    with until_the_end(samples) as predict:
        del samples
        assert torch.equal(predict(torch.zeros(2)), torch.ones(2))
    assert alive() is None
    with pytest.raises(RuntimeError, match=r"ended with their `with posterior.sample\(...\) as predict:` block"):
        predict(torch.zeros(2))


def fail():
    raise ZeroDivisionError


def test_an_error_in_the_block_ends_the_samples_too():
    with pytest.raises(ZeroDivisionError), until_the_end(torch.neg) as predict:
        fail()
    with pytest.raises(RuntimeError, match="Call `predict` inside it"):
        predict(torch.zeros(2))
