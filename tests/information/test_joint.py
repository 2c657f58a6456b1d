import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.information import joint_entropy

OPPOSITE = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64).log()  # two certain models that disagree


def random_log_probs(seed, num_points, num_samples=4, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (logits * 2).log_softmax(dim=2)


def plain_joint_entropy(log_probs_N_K_C):
    probs = log_probs_N_K_C.exp().tolist()
    num_samples, num_classes = log_probs_N_K_C.shape[1:]
    entropy = 0.0
    for labels in itertools.product(range(num_classes), repeat=len(probs)):
        likelihoods = [
            math.prod(point[k][label] for point, label in zip(probs, labels, strict=True)) for k in range(num_samples)
        ]
        p = sum(likelihoods) / num_samples
        entropy -= p * math.log(p) if p > 0 else 0.0
    return entropy


@given(seed=st.integers(0, 2**31), num_points=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_joint_entropy_equals_enumeration_in_plain_python(seed, num_points):
    log_probs_N_K_C = random_log_probs(seed, num_points)
    expected = plain_joint_entropy(log_probs_N_K_C)
    assert_close(joint_entropy(log_probs_N_K_C).item(), expected)
    assert joint_entropy(log_probs_N_K_C.float()).dtype == torch.float32
    assert_close(joint_entropy(log_probs_N_K_C.float()).item(), expected, atol=1e-5, rtol=0)


def test_joint_entropy_of_independent_labels_is_the_sum():
    one_sample_N_1_C = random_log_probs(0, 10, num_samples=1)
    each = torch.stack([joint_entropy(point[None]) for point in one_sample_N_1_C])
    assert_close(joint_entropy(one_sample_N_1_C), each.sum())


def test_a_copy_tells_nothing_new_when_every_model_is_certain():
    assert_close(joint_entropy(OPPOSITE.repeat(20, 1, 1)).item(), math.log(2))


def test_too_many_labellings_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"has 24 points of 2 classes: .* use `batch_information`"):
        joint_entropy(OPPOSITE.repeat(24, 1, 1))
