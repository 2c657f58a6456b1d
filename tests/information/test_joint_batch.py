import math

import torch
from torch.testing import assert_close

from al_lightning.information import batch_information, conditional_entropy, joint_entropy, mutual_information


def test_batch_information_adds_up_to_the_joint_information():
    logits = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 2
    log_probs_B_K_C = logits.log_softmax(dim=2)
    gains_B = batch_information(log_probs_B_K_C, num_configs=243, generator=torch.Generator())
    assert_close(gains_B[:1], mutual_information(log_probs_B_K_C[:1]))
    for number in (3, 5):
        some = log_probs_B_K_C[:number]
        assert_close(gains_B[:number].sum(), joint_entropy(some) - conditional_entropy(some).sum())


def test_batch_information_of_many_certain_points_is_the_log_of_the_number_of_samples():
    bits = torch.tensor([[(k >> n) & 1 for k in range(8)] for n in range(3)])
    certain_B_K_C = torch.nn.functional.one_hot(bits.repeat(10, 1), 2).double().log()
    gains_B = batch_information(certain_B_K_C, num_configs=4, generator=torch.Generator().manual_seed(0))
    assert_close(gains_B[:3], torch.full((3,), math.log(2)).double())
    assert_close(gains_B.sum().item(), math.log(8))
