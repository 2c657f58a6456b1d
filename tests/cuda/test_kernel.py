"""Entropies of mixtures on the device, against plain torch in double precision on the CPU."""

import os

import pytest
import torch
from torch.testing import assert_close

from al_lightning.information import Configurations, kernel_name, kernel_triton, mean_mixture_entropy
from tests.information.mixtures import expected, problem

pytestmark = pytest.mark.cuda

WORST = 2e-5  # nats


def on(device, inputs, dtype=torch.float32):
    return [some.to(device=device, dtype=dtype) for some in inputs]


@pytest.mark.parametrize("num_samples", [1, 3, 17, 100, 130])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize(("num_configs", "num_points"), [(1, 1), (5, 7), (65, 2), (130, 33)])
def test_equals_double_precision_on_the_cpu(device, num_configs, num_points, num_samples, num_classes):
    if num_classes == 1000:
        num_points = min(num_points, 5)
    inputs = on(device, problem(num_configs, num_points, num_samples, num_classes))
    found_B = mean_mixture_entropy(*inputs)
    assert found_B.device == device
    assert_close(found_B.cpu().double(), expected(*inputs), atol=WORST, rtol=0)


def test_single_precision_takes_the_fused_kernel_where_there_is_one(on_gpu):
    assert kernel_triton.AVAILABLE
    probs_B_K_C = torch.rand(2, 3, 4, device=on_gpu)
    assert kernel_name(probs_B_K_C) == kernel_name(probs_B_K_C.half()) == "triton"
    assert kernel_name(probs_B_K_C.double()) == "torch"


def test_double_precision_is_computed_as_such(device):
    inputs = on(device, problem(40, 9, 17, 10), torch.float64)
    assert_close(mean_mixture_entropy(*inputs).cpu(), expected(*inputs), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu_is_computed_in_single_precision(on_gpu, dtype):
    inputs = on(on_gpu, problem(70, 9, 17, 10), dtype)
    assert_close(mean_mixture_entropy(*inputs).cpu().double(), expected(*inputs), atol=WORST, rtol=0)


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_any_strides_give_the_same(device, order):
    weights_M_K, probs_M, probs_B_K_C = on(device, problem(70, 9, 17, 10))
    back = sorted(range(3), key=order.__getitem__)
    strided_B_K_C = probs_B_K_C.permute(order).contiguous().permute(back)
    strided_M_K, strided_M = weights_M_K.t().contiguous().t(), probs_M.repeat_interleave(2)[::2]
    found_B = mean_mixture_entropy(strided_M_K, strided_M, strided_B_K_C)
    assert_close(found_B, mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_squares", [1, 16])
def test_squares_are_subtracted(device, num_squares):
    weights_M_K, probs_M, probs_B_K_C = on(device, problem(70, 9, 17, 10))
    squares_R_K = torch.randn(num_squares, 17, generator=torch.Generator().manual_seed(0)).to(device) / 30
    found_B = mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C, less_squares_R_K=squares_R_K)
    less_B = (squares_R_K.cpu().double() @ probs_B_K_C.cpu().double()).square().sum(dim=(1, 2))
    assert_close(found_B.cpu().double(), expected(weights_M_K, probs_M, probs_B_K_C) - less_B, atol=WORST, rtol=0)


def test_tf32_that_the_user_asks_for_is_not_used_and_is_given_back(device):
    before = torch.get_float32_matmul_precision()
    inputs = on(device, problem(300, 33, 100, 10))
    squares_R_K = inputs[0][1:17]
    try:
        torch.set_float32_matmul_precision("high")
        found_B = mean_mixture_entropy(*inputs, less_squares_R_K=squares_R_K)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    less_B = (squares_R_K.cpu().double() @ inputs[2].cpu().double()).square().sum(dim=(1, 2))
    assert_close(found_B.cpu().double(), expected(*inputs) - less_B, atol=WORST, rtol=0)


def test_split_products_on_tensor_cores_are_accurate_too(device):
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU or Triton's interpreter, TRITON_INTERPRET=1")
    inputs = on(device, problem(130, 9, 100, 10))
    found_B = kernel_triton.mean_mixture_entropy(*inputs, input_precision="tf32x3")
    assert_close(found_B.cpu().double(), expected(*inputs), atol=WORST, rtol=0)


def drawn_configurations(probs_N_K_C, num_configs=200):
    """Configurations of a few points, drawn as BatchBALD does."""
    configurations = Configurations.start(probs_N_K_C.shape[1])
    generator = torch.Generator().manual_seed(1)
    for probs_K_C in probs_N_K_C:
        configurations = configurations.extended(probs_K_C.log(), num_configs=num_configs, generator=generator)
    assert not configurations.is_exact
    return configurations


def test_drawn_configurations_move_to_the_device_whole_and_can_be_cut_there(device):
    _, _, probs_N_K_C = problem(1, 9, 17, 10)
    configurations = drawn_configurations(probs_N_K_C)
    like = torch.zeros((), device=device)
    moved = configurations.to(like)
    assert {moved.probs_M.device, moved.weights_M_K.device, moved.counts_M.device} == {device}
    order_M = moved.weights_M_K.amax(dim=1).argsort()
    few = moved.uncertain(negligible=1e-2)
    assert len(few.probs_M) < len(moved.probs_M)
    assert len(few.counts_M) == len(few.probs_M)
    assert few.weights_M_K.amax(dim=1).mean() < moved.weights_M_K[order_M].amax(dim=1).mean()


def test_gains_under_drawn_configurations_are_those_of_the_cpu(device):
    _, _, probs_N_K_C = problem(1, 9, 17, 10)
    configurations, log_probs_N_K_C = drawn_configurations(probs_N_K_C[:6]), probs_N_K_C.log()
    found_B = configurations.gains(log_probs_N_K_C.float().to(device))
    assert found_B.device == device
    assert_close(found_B.cpu().double(), configurations.gains(log_probs_N_K_C), atol=WORST, rtol=0)
