import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.posterior.model import checked_output, log_probs_of, refuse_probabilities, refuse_sigmoid

logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6)


@given(logits)
@settings(max_examples=50, deadline=None)
def test_log_probs_are_those_of_plain_python(row):
    total = sum(math.exp(z) for z in row)
    expected = [z - math.log(total) for z in row]
    assert log_probs_of(torch.tensor([[row]]))[0, 0].tolist() == pytest.approx(expected, abs=1e-4)


@given(logits)
@settings(max_examples=50, deadline=None)
def test_log_probs_are_left_as_they_are(row):
    once = log_probs_of(torch.tensor([[row]]))
    torch.testing.assert_close(log_probs_of(once), once)


@given(st.floats(-30, 30, width=32))
@settings(max_examples=50, deadline=None)
def test_a_single_logit_is_a_sigmoid_over_two_classes(z):
    one = 1 / (1 + math.exp(-z))
    other = 1 / (1 + math.exp(z))
    log_probs = log_probs_of(torch.tensor([[[z]]]))[0, 0].tolist()
    assert log_probs == pytest.approx([math.log(other), math.log(one)], rel=1e-4, abs=1e-6)


def test_half_precision_is_normalised_in_float32():
    log_probs = log_probs_of(torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.bfloat16))
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0), atol=1e-6, rtol=0)


def test_a_logit_of_minus_infinity_is_probability_zero():
    assert log_probs_of(torch.tensor([[[0.0, -math.inf]]])).exp().tolist() == [[[1.0, 0.0]]]


@pytest.mark.parametrize("row", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf], [math.inf], [math.nan]])
def test_what_has_no_probabilities_is_nan_and_never_a_number(row):
    logits_B_K_C = torch.zeros(12, 2, len(row))
    logits_B_K_C[[3, 9], 1] = torch.tensor(row)
    log_probs_B_K_C = log_probs_of(logits_B_K_C)
    assert log_probs_B_K_C[[3, 9], 1].isnan().all()
    assert log_probs_B_K_C.isnan().any(dim=2).sum() == 2


def test_one_number_for_each_point_is_one_column():
    assert checked_output(torch.zeros(3), num_rows=3).shape == (3, 1)


def test_named_logits_are_checked_as_a_tensor_is():
    assert checked_output({"logits": torch.zeros(3)}, num_rows=3).shape == (3, 1)
    with pytest.raises(ValueError, match=r"returned shape \(6, 2\) for a batch of 3 rows"):
        checked_output({"logits": torch.zeros(6, 2)}, num_rows=3)


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(3, 2, 4),
        torch.tensor(0.0),
        torch.zeros(3, 0),
        torch.zeros(0, 3),
        torch.zeros(3, 2, dtype=torch.long),
    ],
)
def test_an_output_of_another_shape_or_type_is_refused(output):
    with pytest.raises(ValueError, match=r"and floating-point logits of shape \(B, C\)"):
        checked_output(output, num_rows=3)


def test_an_output_of_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"returned shape \(6, 2\) for a batch of 3 rows"):
        checked_output(torch.zeros(6, 2), num_rows=3)
    assert checked_output(torch.zeros(6, 2), num_rows=None).shape == (6, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_probabilities_are_refused_in_every_precision(dtype, num_classes):
    probs_B_K_C = torch.randn(4, 3, num_classes, generator=torch.Generator().manual_seed(0)).softmax(dim=-1).to(dtype)
    with pytest.raises(ValueError, match="The model returns probabilities"):
        refuse_probabilities(probs_B_K_C)


@pytest.mark.parametrize(
    "outputs_K_C",
    [
        [[0.5, 0.5], [0.5, 0.6]],  # one row does not sum to 1
        [[0.5, 0.5], [1.5, -0.5]],  # one value is negative
        [[-0.7, -0.7], [-0.1, -2.4]],  # log-probabilities
        [[0.3], [0.9]],  # single logits that happen to lie in [0, 1]
        [[1.0], [1.0]],
    ],
)
def test_logits_are_not_taken_for_probabilities(outputs_K_C):
    refuse_probabilities(torch.tensor([outputs_K_C]))


def test_the_result_of_a_sigmoid_is_refused_and_so_is_its_view():
    sigmoid = torch.zeros(3, 1).sigmoid()
    for output in (sigmoid, sigmoid.squeeze(1)):
        with pytest.raises(ValueError, match="returns sigmoid probabilities"):
            refuse_sigmoid(output, sigmoid)


def test_what_is_computed_from_a_sigmoid_is_not_refused():
    sigmoid = torch.zeros(3, 1).sigmoid()
    refuse_sigmoid(sigmoid * 3, sigmoid)
    refuse_sigmoid(sigmoid, None)
