import math

import torch
from torch.testing import assert_close

from al_lightning.information import batch_information, joint_entropy, mutual_information


def random_log_probs(seed, num_points, num_samples=4, num_classes=3, *, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (logits * sharpness).log_softmax(dim=2)


def enumerated_information(log_probs_N_K_C):
    noise = sum(joint_entropy(row[None, None]) for point in log_probs_N_K_C for row in point)
    return (joint_entropy(log_probs_N_K_C) - noise / log_probs_N_K_C.shape[1]).item()


def test_batch_information_adds_up_to_the_joint_information():
    log_probs_B_K_C = random_log_probs(8, 5)
    gains_B = batch_information(log_probs_B_K_C, num_configs=243, generator=torch.Generator())
    assert_close(gains_B.sum().item(), enumerated_information(log_probs_B_K_C))
    assert_close(gains_B[:1], mutual_information(log_probs_B_K_C[:1]))
    assert_close(gains_B[:3].sum().item(), enumerated_information(log_probs_B_K_C[:3]))


def test_batch_information_of_many_certain_points_is_the_log_of_the_number_of_samples():
    bits = torch.tensor([[(k >> n) & 1 for k in range(8)] for n in range(3)])
    certain_B_K_C = torch.nn.functional.one_hot(bits.repeat(10, 1), 2).double().log()
    gains_B = batch_information(certain_B_K_C, num_configs=4, generator=torch.Generator().manual_seed(0))
    assert_close(gains_B[:3], torch.full((3,), math.log(2)).double())
    assert_close(gains_B.sum().item(), math.log(8))
