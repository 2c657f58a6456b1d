import pytest
import torch

from al_lightning.information import matmul
from al_lightning.information.matmul import product_of_rows, recurring_size

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("is_at_home", [False, True])
@pytest.mark.parametrize("has_onednn", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (0, 5, 3), (3, 5, 0), (256, 100, 2048), (2, 1000, 3)])
def test_the_product_is_that_of_double_precision(shape, has_onednn, is_at_home, monkeypatch):
    monkeypatch.setattr(matmul, "MKL_IS_AT_HOME", is_at_home)
    monkeypatch.setattr(matmul, "HAS_ONEDNN", has_onednn and matmul.HAS_ONEDNN)
    num_left, num_samples, num_right = shape
    left, right = normal(num_left, num_samples), normal(num_right, num_samples, seed=1)
    found = product_of_rows(left, right, out_M_R=torch.empty(num_left, num_right))
    torch.testing.assert_close(found.double(), left.double() @ right.double().t(), rtol=1e-5, atol=1e-4)


def test_views_and_double_precision_are_multiplied_too():
    left, right = normal(6, 4).t(), normal(10, 12)[:, ::2]
    torch.testing.assert_close(product_of_rows(left, right, out_M_R=torch.empty(4, 10)), left @ right.t())
    left, right = left.double(), right.double()
    out = torch.empty(4, 10, dtype=torch.float64)
    assert product_of_rows(left, right, out_M_R=out) is out
    assert torch.equal(out, left @ right.t())


@needs_onednn
def test_torch_has_the_operation_as_it_was_when_this_was_written():
    arguments = "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
    assert str(torch.ops.mkldnn._linear_pointwise.default._schema) == f"mkldnn::_linear_pointwise{arguments}"
    assert matmul.HAS_ONEDNN


@needs_onednn
def test_few_sizes_recur_and_none_is_much_larger_than_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(matmul, "MKL_IS_AT_HOME", False)
    sizes = [recurring_size(size, like=torch.empty(0)) for size in range(20_000)]
    assert all(size <= found <= size + size // 16 + 1 for size, found in enumerate(sizes))
    assert [recurring_size(size, like=torch.empty(0)) for size in sizes] == sizes
    assert len(set(sizes)) < 200
    assert [sizes[size] for size in (0, 1, 16, 17, 99, 100, 9_990)] == [0, 1, 16, 17, 100, 100, 10_240]


def test_where_no_kernel_is_compiled_a_size_stays(monkeypatch):
    monkeypatch.setattr(matmul, "MKL_IS_AT_HOME", False)
    assert recurring_size(99, like=torch.empty(0).double()) == 99
    monkeypatch.setattr(matmul, "HAS_ONEDNN", False)
    assert recurring_size(99, like=torch.empty(0)) == 99


@needs_onednn
def test_mkl_is_at_home_on_processors_of_intel_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for name, expected in (("Intel Xeon 2.80GHz", True), ("AMD EPYC 9R14", False), ("", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {"cpu_name": name}, raising=False)
        assert matmul._is_mkl_at_home() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not matmul._is_mkl_at_home()
