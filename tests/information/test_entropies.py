import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.information import check_log_probs, conditional_entropy, entropy, mutual_information
from al_lightning.information.entropies import fano_bound


def plain_entropy(probs):
    return -sum(p * math.log(p) for p in probs if p > 0)


def random_probs(seed, *, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    probs_N_K_C = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64).mul(sharpness).softmax(dim=2)
    probs_N_K_C[0, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    return probs_N_K_C


@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.1, 2.0, 20.0]))
@settings(max_examples=30, deadline=None)
def test_entropies_equal_sums_in_plain_python(seed, sharpness):
    probs_N_K_C = random_probs(seed, sharpness=sharpness)
    total, noise = [], []
    for point in probs_N_K_C.tolist():
        total.append(plain_entropy([sum(column) / len(column) for column in zip(*point, strict=True)]))
        noise.append(sum(map(plain_entropy, point)) / len(point))
    expected_total, expected_noise = torch.tensor(total).double(), torch.tensor(noise).double()
    assert_close(entropy(probs_N_K_C.log()), expected_total, atol=1e-6, rtol=0)
    assert_close(conditional_entropy(probs_N_K_C.log()), expected_noise, atol=1e-6, rtol=0)
    assert_close(mutual_information(probs_N_K_C.log()), expected_total - expected_noise, atol=1e-6, rtol=0)


def test_information_lies_between_nothing_and_the_log_of_the_number_of_samples():
    information_N = mutual_information(random_probs(0, sharpness=50.0).log())
    assert (information_N >= -1e-12).all()
    assert (information_N <= math.log(3) + 1e-12).all()


def test_a_class_that_no_sample_believes_in_is_no_nan():
    log_probs_N_K_C = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]]).log()
    assert_close(entropy(log_probs_N_K_C), torch.tensor([math.log(2)]))
    assert_close(mutual_information(log_probs_N_K_C), torch.tensor([0.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    uniform_N_K_C = torch.full((2, 3, 1000), -math.log(1000)).to(dtype)
    assert_close(entropy(uniform_N_K_C), torch.full((2,), math.log(1000)))
    log_probs_N_K_C = random_probs(1).log()
    single = mutual_information(log_probs_N_K_C.float())
    assert_close(mutual_information(log_probs_N_K_C.to(dtype)), single, atol=0.02, rtol=0)


def test_gradients_pass():
    logits_N_K_C = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mutual_information(logits_N_K_C.log_softmax(dim=2)).sum().backward()
    assert logits_N_K_C.grad is not None
    assert logits_N_K_C.grad.isfinite().all()


@pytest.mark.parametrize("function", [entropy, conditional_entropy, mutual_information])
def test_each_entropy_refuses_what_is_not_normalised(function):
    with pytest.raises(ValueError, match="not normalised"):
        function(torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[[0.0, 1.0]]], "`scores` is list, but must be a floating-point tensor"),
        (torch.zeros(2, 3, 4, dtype=torch.long), r"`scores` is torch.int64, but must be a floating-point tensor"),
    ],
)
def test_what_is_no_floating_tensor_is_refused_by_its_type(value, words):
    with pytest.raises(TypeError, match=words):
        check_log_probs(value, name="scores")


@pytest.mark.parametrize("shape", [(3, 4), (0, 3, 4), (2, 0, 4), (2, 3, 1), (1, 2, 3, 4)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"has shape \(.*\), but must be \(points, posterior samples, classes\)"):
        check_log_probs(torch.zeros(shape))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([math.nan, -1.0, -1.0], r"`log_probs_N_K_C`\[1, 2\] holds NaN. Look for overflow"),
        ([math.inf, -1.0, -1.0], r"`log_probs_N_K_C`\[1, 2\] is not normalised: its probabilities sum to inf"),
        ([-math.inf] * 3, r"`log_probs_N_K_C`\[1, 2\] is not normalised: its probabilities sum to 0"),
        ([2.0, 0.0, -1.0], r"`log_probs_N_K_C`\[1, 2\] is not normalised.* pass `logits_N_K_C.log_softmax"),
        ([0.2, 0.3, 0.5], r"`log_probs_N_K_C`\[1, 2\] looks like probabilities. Pass their logarithms"),
    ],
)
def test_the_first_wrong_row_is_named_with_its_remedy(row, words):
    log_probs_N_K_C = torch.zeros(3, 4, 3).log_softmax(dim=2)
    log_probs_N_K_C[1, 2] = torch.tensor(row)
    log_probs_N_K_C[2, 0] = 7.0
    with pytest.raises(ValueError, match=words):
        check_log_probs(log_probs_N_K_C)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_to_any_precision_passes_and_one_tenth_too_much_does_not(dtype):
    log_probs_N_K_C = torch.randn(50, 4, 100, generator=torch.Generator().manual_seed(0)).log_softmax(dim=2)
    check_log_probs(log_probs_N_K_C.to(dtype))
    with pytest.raises(ValueError, match="not normalised"):
        check_log_probs((log_probs_N_K_C + math.log(1.1)).to(dtype))


@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.1, 3.0, 30.0]), num_outcomes=st.integers(1, 6))
def test_fanos_bound_is_reached_where_the_others_are_alike_and_never_exceeded(seed, sharpness, num_outcomes):
    generator = torch.Generator().manual_seed(seed)
    probs_K = (torch.randn(num_outcomes, dtype=torch.float64, generator=generator) * sharpness).softmax(dim=0)
    uncertainty = 1 - probs_K.max()
    bound = fano_bound(uncertainty, num_outcomes)
    assert bound >= plain_entropy(probs_K.tolist()) - 1e-12
    rest_K = torch.full((max(1, num_outcomes - 1),), uncertainty.item() / max(1, num_outcomes - 1), dtype=torch.float64)
    assert_close(bound.item(), plain_entropy([1 - uncertainty.item(), *rest_K.tolist()]))
