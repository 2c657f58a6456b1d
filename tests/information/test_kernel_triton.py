"""The fused kernel on a GPU; and in Triton's interpreter, where `.ci/run` sets TRITON_INTERPRET=1."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from al_lightning.information import kernel_triton
from al_lightning.information.kernel_triton import mean_mixture_entropy
from tests.information.mixtures import expected, problem

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # must be set before triton is imported
HAS_GPU = torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
WORST = 2e-5  # nats

needs_triton = pytest.mark.skipif(not kernel_triton.AVAILABLE, reason="triton is not installed")
without_kernel = pytest.mark.skipif(not (INTERPRETED or HAS_GPU), reason="needs a GPU or Triton's interpreter")
without_gpu = pytest.mark.skipif(INTERPRETED or not HAS_GPU, reason="needs a GPU")


def runs_the_kernel(test):
    return pytest.mark.cuda(without_kernel(test))


def needs_gpu(test):
    return pytest.mark.cuda(without_gpu(test))


def on_device(*inputs, dtype=torch.float32):
    return [some.to(device=DEVICE, dtype=dtype) for some in inputs]


@runs_the_kernel
@pytest.mark.parametrize("num_samples", [1, 2, 3, 16, 17, 100])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 11, 100])
@pytest.mark.parametrize(("num_configs", "num_points"), [(1, 1), (5, 7), (64, 1), (130, 7), (5, 33)])
def test_equals_the_reference_in_double_precision(num_configs, num_points, num_samples, num_classes):
    inputs = on_device(*problem(num_configs, num_points, num_samples=num_samples, num_classes=num_classes))
    result = mean_mixture_entropy(*inputs)
    assert result.dtype == torch.float32
    assert_close(result.double().cpu(), expected(*inputs), atol=WORST / 20, rtol=0)


@runs_the_kernel
def test_split_products_on_tensor_cores_are_accurate_too():
    inputs = on_device(*problem(1000, 33, num_samples=100, num_classes=10))
    result = mean_mixture_entropy(*inputs, input_precision="tf32x3")
    assert_close(result.double().cpu(), expected(*inputs), atol=WORST, rtol=0)


@runs_the_kernel
@pytest.mark.parametrize("programs", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("num_configs", [63, 64, 65, 400])
def test_every_way_to_share_configurations_among_programs_gives_the_same(programs, num_configs, monkeypatch):
    monkeypatch.setattr(kernel_triton, "PROGRAMS", programs)
    inputs = on_device(*problem(num_configs, 17))
    assert_close(mean_mixture_entropy(*inputs).double().cpu(), expected(*inputs), atol=WORST / 20, rtol=0)


@runs_the_kernel
@pytest.mark.parametrize("logarithm", ["log2", *(["approximate"] if not INTERPRETED else [])])
def test_other_logarithms_are_accurate_too(logarithm, monkeypatch):
    monkeypatch.setattr(kernel_triton, "LOGARITHM", logarithm)
    inputs = on_device(*problem(1000, 33, num_samples=100, num_classes=10))
    assert_close(mean_mixture_entropy(*inputs).double().cpu(), expected(*inputs), atol=WORST, rtol=0)


@runs_the_kernel
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_any_strides_give_the_same_bits(order):
    weights_M_K, probs_M, probs_B_K_C = on_device(*problem(70, 9))
    back = sorted(range(3), key=order.__getitem__)
    strided_B_K_C = probs_B_K_C.permute(order).contiguous().permute(back)
    strided_M_K = weights_M_K.t().contiguous().t()
    strided_M = probs_M.repeat_interleave(2)[::2]
    result = mean_mixture_entropy(strided_M_K, strided_M, strided_B_K_C)
    assert torch.equal(result, mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C))


@runs_the_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_precision(dtype):
    inputs = on_device(*problem(70, 9), dtype=dtype)
    result = mean_mixture_entropy(*inputs)
    assert result.dtype == torch.float32
    assert_close(result.double().cpu(), expected(*inputs), atol=WORST, rtol=0)


@runs_the_kernel
def test_certain_mixtures_have_exactly_no_entropy():
    certain_B_K_C = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    inputs = on_device(torch.tensor([[0.5, 0.5]]), torch.ones(1), certain_B_K_C)
    assert mean_mixture_entropy(*inputs).tolist() == [0.0]


@runs_the_kernel
def test_what_is_not_a_number_stays_so_and_spoils_no_other_candidate():
    weights_M_K, probs_M, probs_B_K_C = on_device(*problem(70, 9))
    probs_B_K_C[4, 1, 1] = torch.nan
    result = mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C)
    assert result.isnan().nonzero().flatten().tolist() == [4]


@runs_the_kernel
def test_no_candidates_give_no_entropies():
    weights_M_K, probs_M, probs_B_K_C = on_device(*problem(4, 3))
    empty = mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C[:0])
    assert empty.shape == (0,)
    assert empty.dtype == torch.float32


@runs_the_kernel
def test_many_like_configurations_do_not_drift_in_one_program(monkeypatch):
    monkeypatch.setattr(kernel_triton, "PROGRAMS", 1)
    num_configs = 20_000 if INTERPRETED else 1_000_000
    weights_M_K, probs_M = torch.full((num_configs, 2), 0.5), torch.full((num_configs,), 1 / num_configs)
    inputs = on_device(weights_M_K, probs_M, torch.tensor([[[0.7, 0.3], [0.1, 0.9]]]))
    one_for_all = expected(torch.full((1, 2), 0.5), inputs[1].double().sum()[None], inputs[2])
    assert_close(mean_mixture_entropy(*inputs).double().cpu(), one_for_all, atol=2e-7, rtol=0)


@runs_the_kernel
def test_same_input_gives_the_same_bits():
    inputs = on_device(*problem(1000, 33, num_samples=17))
    assert torch.equal(mean_mixture_entropy(*inputs), mean_mixture_entropy(*inputs))


@runs_the_kernel
def test_inputs_that_want_gradients_are_accepted_and_get_none():
    weights_M_K, probs_M, probs_B_K_C = on_device(*problem(4, 3))
    assert not mean_mixture_entropy(weights_M_K.requires_grad_(), probs_M, probs_B_K_C.requires_grad_()).requires_grad


@runs_the_kernel
def test_double_precision_is_refused():
    with pytest.raises(ValueError, match=r"`probs_B_K_C` is torch.float64, .* Pass `probs_B_K_C.float\(\)`"):
        mean_mixture_entropy(*problem(4, 3))


@runs_the_kernel
@pytest.mark.parametrize(
    ("configs", "samples", "shape"), [(3, 3, r"\(3, 3\), .* ask for \(4, 3\)"), (4, 2, r"\(4, 2\), .* for \(4, 3\)")]
)
def test_weights_of_another_shape_are_refused(configs, samples, shape):
    weights_M_K, probs_M, probs_B_K_C = on_device(*problem(4, 3))
    with pytest.raises(ValueError, match=r"`weights_M_K` has shape " + shape):
        mean_mixture_entropy(weights_M_K[:configs, :samples], probs_M, probs_B_K_C)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="does not run the kernel")
def test_without_triton_the_package_works_and_the_kernel_says_what_it_needs():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from al_lightning.information import kernel, kernel_triton\n"
        "inputs = torch.ones(1, 1), torch.ones(1), torch.full((1, 1, 2), 0.5)\n"
        "print(kernel_triton.AVAILABLE, kernel.mean_mixture_entropy(*inputs).tolist())\n"
        "kernel_triton.mean_mixture_entropy(*inputs)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "False [0.6931471824645996]\n"
    assert "ImportError: The fused kernel needs `triton`, which cannot be imported. Install it" in run.stderr


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="what is interpreted is not compiled")
@pytest.mark.parametrize("logarithm", ["log", "log2", "approximate"])
@pytest.mark.parametrize(("input_precision", "on_tensor_cores"), [("ieee", False), ("tf32x3", True)])
def test_compiled_for_hopper_it_stores_nothing_but_one_sum_for_each_row(
    input_precision, on_tensor_cores, logarithm, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = pytest.importorskip("triton.compiler")
    if "constexprs" not in inspect.signature(compiler.ASTSource).parameters:
        pytest.skip("Triton before 3.3 takes a kernel to compile without a GPU in another form")
    names = list(inspect.signature(kernel_triton._add_up_entropies).parameters)
    types = ["*fp64", "*fp32", "*fp32", "*fp32", "i32", "i32", "i32", "i32", *["constexpr"] * 5]
    blocks = (kernel_triton.BLOCK_ROWS, kernel_triton.BLOCK_CONFIGS, kernel_triton.BLOCK_SAMPLES)
    constants = (*blocks, input_precision, logarithm)
    source = compiler.ASTSource(
        fn=kernel_triton._kernel,
        signature=dict(zip(names, types, strict=True)),
        constexprs=dict(zip(names[8:], constants, strict=True)),
        attrs={(position,): [["tt.divisibility", 16]] for position in range(4)},
    )
    hopper = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    options = {"num_warps": kernel_triton.WARPS, "num_stages": kernel_triton.STAGES, "enable_fp_fusion": True}
    compiled = compiler.compile(source, target=hopper, options=options)
    assert ("wgmma" in compiled.asm["ptx"]) == on_tensor_cores
    assert ("lg2.approx" in compiled.asm["ptx"]) == (logarithm == "approximate")
    assert compiled.asm["ptx"].count("st.global") == 1
    assert compiled.metadata.shared <= 48 * 1024


@needs_gpu
def test_the_table_of_mixtures_is_never_in_device_memory():
    inputs = on_device(*problem(10_000, 1000, num_samples=20, num_classes=10))
    inputs[2] = inputs[2].transpose(1, 2).contiguous().transpose(1, 2)
    mean_mixture_entropy(*inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    mean_mixture_entropy(*inputs)
    assert torch.cuda.max_memory_allocated() - before < 4e6  # the table has 4e8 bytes


@needs_gpu
def test_more_than_two_to_the_31_predictions_are_found():
    num_points, num_samples = 22_000_000, 100
    if torch.cuda.mem_get_info()[0] < 8e9:
        pytest.skip("needs 8 GB of device memory")
    probs_B_K_C = torch.zeros(num_points, num_samples, 1, dtype=torch.float16, device=DEVICE)
    probs_B_K_C[-1] = 0.5
    weights_M_K = torch.full((1, num_samples), 1 / num_samples, device=DEVICE)
    result = mean_mixture_entropy(weights_M_K, torch.ones(1, device=DEVICE), probs_B_K_C)
    assert result.count_nonzero() == 1
    assert result[-1].item() == pytest.approx(0.5 * 0.6931472, abs=1e-6)
