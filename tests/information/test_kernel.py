import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from al_lightning.information import kernel, mean_mixture_entropy
from al_lightning.information.kernel import full_precision_products, mean_mixture_entropy_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


@pytest.fixture
def user_wants_tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def problem(num_configs, num_points, *, num_samples=3, num_classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weights_M_K = torch.rand(num_configs, num_samples, generator=generator, dtype=dtype) ** 4
    probs_M = torch.rand(num_configs, generator=generator, dtype=dtype)
    probs_B_K_C = torch.rand(num_points, num_samples, num_classes, generator=generator, dtype=dtype)
    probs_B_K_C[:, :, 0] = 0
    return (
        weights_M_K / weights_M_K.sum(dim=1, keepdim=True),
        probs_M / probs_M.sum(),
        probs_B_K_C / probs_B_K_C.sum(dim=2, keepdim=True),
    )


def plain(weights_M_K, probs_M, probs_B_K_C):
    result = []
    for probs_K_C in probs_B_K_C.tolist():
        mean = 0.0
        for weights_K, probability in zip(weights_M_K.tolist(), probs_M.tolist(), strict=True):
            mixture = [sum(w * p for w, p in zip(weights_K, c, strict=True)) for c in zip(*probs_K_C, strict=True)]
            mean -= probability * sum(q * math.log(q) for q in mixture if q > 0)
        result.append(mean)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("function", [mean_mixture_entropy, mean_mixture_entropy_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_loops_in_plain_python(function, dtype):
    inputs = problem(7, 5, dtype=dtype)
    assert_close(function(*inputs), plain(*inputs).to(dtype), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("most", [3, 8])
@pytest.mark.parametrize(("num_configs", "num_points"), [(1, 1), (3, 4), (10, 5), (11, 7)])
def test_every_way_to_cut_blocks_gives_the_same(num_configs, num_points, most, monkeypatch):
    monkeypatch.setattr(kernel, "CONFIGURATIONS_PER_BLOCK", 3)
    monkeypatch.setattr(kernel, "MOST_CONFIGURATIONS", most)
    monkeypatch.setattr(kernel, "ELEMENTS_PER_BLOCK", 15)
    inputs = problem(num_configs, num_points)
    assert_close(mean_mixture_entropy(*inputs), mean_mixture_entropy_reference(*inputs))


@pytest.mark.parametrize("name", ["triton", "torch"])
@pytest.mark.parametrize("num_configs", [1, 5, 11])
def test_squares_are_subtracted_once_whatever_kernel_runs_and_however_blocks_are_cut(num_configs, name, monkeypatch):
    monkeypatch.setattr(kernel, "kernel_name", lambda probs_B_K_C: name)
    monkeypatch.setattr(kernel.kernel_triton, "mean_mixture_entropy", mean_mixture_entropy_reference)
    monkeypatch.setattr(kernel, "CONFIGURATIONS_PER_BLOCK", 3)
    monkeypatch.setattr(kernel, "MOST_CONFIGURATIONS", 3)
    monkeypatch.setattr(kernel, "ELEMENTS_PER_BLOCK", 15)
    inputs = problem(num_configs, 7)
    roots_R_K = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.3, -0.3]], dtype=torch.float64).requires_grad_()
    sums = [
        sum(
            sum(s * p for s, p in zip(root_K, c, strict=True)) ** 2
            for root_K in roots_R_K.tolist()
            for c in zip(*probs_K_C, strict=True)
        )
        for probs_K_C in inputs[2].tolist()
    ]
    found = mean_mixture_entropy(*inputs, less_squares_R_K=roots_R_K)
    assert_close(found, plain(*inputs) - torch.tensor(sums, dtype=torch.float64))
    assert not found.requires_grad


def test_the_layout_of_the_predictions_does_not_matter():
    weights_M_K, probs_M, probs_B_K_C = problem(20, 6)
    transposed_B_K_C = probs_B_K_C.transpose(1, 2).contiguous().transpose(1, 2)
    expected = mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C)
    assert_close(mean_mixture_entropy(weights_M_K, probs_M, transposed_B_K_C), expected)


def test_certain_mixtures_have_exactly_no_entropy():
    certain_B_K_C = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert mean_mixture_entropy(torch.tensor([[0.5, 0.5]]), torch.ones(1), certain_B_K_C).tolist() == [0.0]


@pytest.mark.parametrize("tail", [1e-5, 1e-7, 4e-8, 1e-8, 1e-12, 0.0])
@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_improbable_classes_cost_no_more_than_rounding_in_single_precision(tail, num_classes):
    """The logarithm of a probability p may be taken as log1p(p - 1), which is coarse where p is next to nothing."""
    generator = torch.Generator().manual_seed(0)
    probs_B_K_C = torch.rand(20, 6, num_classes, generator=generator, dtype=torch.float64) * tail
    probs_B_K_C[:, :, :2] += torch.rand(20, 6, 2, generator=generator, dtype=torch.float64)
    probs_B_K_C /= probs_B_K_C.sum(dim=2, keepdim=True)
    weights_M_K = torch.rand(50, 6, generator=generator, dtype=torch.float64)
    weights_M_K /= weights_M_K.sum(dim=1, keepdim=True)
    probs_M = torch.full((50,), 1 / 50, dtype=torch.float64)
    expected_B = torch.special.entr(torch.einsum("mk,bkc->bmc", weights_M_K, probs_B_K_C)).sum(dim=2).mean(dim=1)
    found_B = mean_mixture_entropy(weights_M_K.float(), probs_M.float(), probs_B_K_C.float())
    assert_close(found_B.double(), expected_B, atol=1e-6 + min(num_classes, 100) * 4e-8, rtol=0)


def test_no_candidates_give_no_entropies():
    weights_M_K, probs_M, probs_B_K_C = problem(4, 3, dtype=torch.float32)
    empty = mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C[:0])
    assert empty.shape == (0,)
    assert empty.dtype == torch.float32


def test_a_hundred_thousand_like_configurations_do_not_drift_in_single_precision():
    num_configs = 100_000
    weights_M_K = torch.full((num_configs, 2), 0.5)
    probs_M = torch.full((num_configs,), 1 / num_configs)
    probs_B_K_C = torch.tensor([[[0.7, 0.3], [0.1, 0.9]]])
    expected = torch.tensor([-(0.4 * math.log(0.4) + 0.6 * math.log(0.6))])
    assert_close(mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C), expected, atol=3e-6, rtol=0)


def test_inputs_that_want_gradients_are_accepted_and_get_none():
    weights_M_K, probs_M, probs_B_K_C = problem(4, 3)
    assert not mean_mixture_entropy(weights_M_K.requires_grad_(), probs_M, probs_B_K_C).requires_grad


def test_products_are_in_full_precision_and_the_users_setting_comes_back(user_wants_tf32):
    assert torch.backends.cuda.matmul.allow_tf32
    with full_precision_products():
        matmul = torch.backends.cuda.matmul
        assert matmul.fp32_precision == "ieee" if hasattr(matmul, "fp32_precision") else not matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"


def test_the_users_setting_comes_back_after_an_error(user_wants_tf32):
    with pytest.raises(RuntimeError, match="inside"), full_precision_products():
        raise RuntimeError("inside")
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize(
    ("device", "dtype", "is_available", "name"),
    [
        ("cuda", torch.float32, True, "triton"),
        ("cuda", torch.float16, True, "triton"),
        ("cuda", torch.float32, False, "torch"),
        ("cuda", torch.float64, True, "torch"),
        ("cpu", torch.float32, True, "torch"),
    ],
)
def test_the_fused_kernel_is_for_gpus_with_triton_below_double_precision(
    device, dtype, is_available, name, monkeypatch
):
    monkeypatch.setattr(kernel.kernel_triton, "AVAILABLE", is_available)
    with FakeTensorMode():  # a tensor that says where it is, also where there is no GPU
        assert kernel.kernel_name(torch.empty(5, 3, 2, device=device, dtype=dtype)) == name


@pytest.mark.parametrize("name", ["triton", "torch"])
def test_the_kernel_that_runs_is_the_one_that_is_named(name, monkeypatch):
    monkeypatch.setattr(kernel, "kernel_name", lambda probs_B_K_C: name)
    monkeypatch.setattr(kernel.kernel_triton, "mean_mixture_entropy", lambda *inputs: "triton")
    monkeypatch.setattr(kernel, "mean_mixture_entropy_in_blocks", lambda *inputs, less_squares_R_K: "torch")
    assert kernel.mean_mixture_entropy(*problem(1, 1)) == name
