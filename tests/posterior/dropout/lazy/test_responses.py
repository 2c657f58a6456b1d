import pytest
import torch
from torch.nn import functional

from al_lightning.posterior.dropout.lazy import responses
from al_lightning.posterior.dropout.lazy.pooling import FASTER
from al_lightning.posterior.dropout.lazy.responses import Convolution, kept_responses, mixed_responses, skipping_pays

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
GEOMETRIES = [
    (1, {}),
    (1, {"stride": 2, "padding": 3, "dilation": 2}),
    (2, {}),
    (2, {"stride": 2}),
    (2, {"padding": (1, 2)}),
    (2, {"padding": "same", "dilation": 2}),
    (2, {"padding": "valid", "dilation": (2, 1)}),
    (2, {"stride": (1, 3), "padding": 1, "dilation": 2}),
    (3, {"padding": 1, "stride": 2}),
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_axes", "geometry"), GEOMETRIES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_mixed_responses_are_the_convolutions_of_the_scaled_inputs(num_axes, geometry, has_bias):
    x = normal(3, 4, *(9, 8, 7)[:num_axes])
    weight, bias = normal(5, 4, *(3, 2, 3)[:num_axes], seed=1), normal(5, seed=2) if has_bias else None
    scale_K_C = normal(6, 4, seed=3).relu()
    expected = [
        CONVOLUTIONS[num_axes](x * scale_C.reshape(4, *[1] * num_axes), weight, bias, **geometry)
        for scale_C in scale_K_C
    ]
    mixed = mixed_responses(x, scale_K_C, Convolution(weight, bias, **geometry))
    torch.testing.assert_close(mixed, torch.stack(expected, dim=1))


def test_responses_of_many_channels_are_made_in_parts(monkeypatch):
    monkeypatch.setattr("al_lightning.posterior.dropout.lazy.responses._RESPONSES_AT_ONCE", 1)
    x, weight, bias, scale_K_C = normal(2, 9, 5, 5), normal(7, 9, 3, 3), normal(7), normal(3, 9).relu()
    expected = [functional.conv2d(x * scale_C[:, None, None], weight, bias) for scale_C in scale_K_C]
    mixed = mixed_responses(x, scale_K_C, Convolution(weight, bias))
    torch.testing.assert_close(mixed, torch.stack(expected, dim=1))


def kept_or_not(num_samples, num_out, *, seed=4):
    """Of the first channel all samples, of the second none; some factors are not one."""
    kept_K_O = normal(num_samples, num_out, seed=seed).relu() * 3
    kept_K_O[:, 0], kept_K_O[:, 1] = 2.0, 0.0
    return kept_K_O


@pytest.mark.parametrize(("num_axes", "geometry"), GEOMETRIES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("windows", "responses", "mixed"),
    [(2**21, 2**21, 2**20), (1, 1, 1), (2**21, 2**21, 400), (1500, 2**21, 2**20)],  # mostly two rows of three at a time
)
def test_kept_responses_are_the_scaled_convolutions_of_the_scaled_inputs(
    num_axes, geometry, has_bias, windows, responses, mixed, monkeypatch
):
    monkeypatch.setattr("al_lightning.posterior.dropout.lazy.responses._WINDOWS_AT_ONCE", windows)
    monkeypatch.setattr("al_lightning.posterior.dropout.lazy.responses._RESPONSES_AT_ONCE", responses)
    monkeypatch.setattr("al_lightning.posterior.dropout.lazy.responses._MIXED_AT_ONCE", mixed)
    x = normal(3, 4, *(9, 8, 7)[:num_axes])
    weight, bias = normal(5, 4, *(3, 2, 3)[:num_axes], seed=1), normal(5, seed=2) if has_bias else None
    scale_K_C, kept_K_O = normal(6, 4, seed=3).relu(), kept_or_not(6, 5)
    shape = *(-1,), *[1] * num_axes
    expected = [
        CONVOLUTIONS[num_axes](x * scale_C.reshape(shape), weight, bias, **geometry) * kept_O.reshape(shape)
        for scale_C, kept_O in zip(scale_K_C, kept_K_O, strict=True)
    ]
    kept = kept_responses(x, scale_K_C, Convolution(weight, bias, **geometry), kept_K_O)
    torch.testing.assert_close(kept, torch.stack(expected, dim=1))


def test_what_comes_next_is_done_to_each_channel():
    x, weight, scale_K_C, kept_K_O = (
        normal(3, 4, 9, 8),
        normal(5, 4, 3, 2),
        normal(6, 4, seed=3).relu(),
        kept_or_not(6, 5),
    )
    mixed = mixed_responses(x, scale_K_C, Convolution(weight, None)) * kept_K_O[:, :, None, None]
    kept = kept_responses(
        x, scale_K_C, Convolution(weight, None), kept_K_O, lambda y: FASTER[functional.max_pool2d](y, 2).relu()
    )
    torch.testing.assert_close(kept, functional.max_pool2d(mixed.flatten(0, 1), 2).relu().unflatten(0, (3, 6)))


def test_positions_are_those_of_the_convolution():
    for geometry in ({}, {"stride": (2, 1), "padding": (0, 3), "dilation": 2}, {"padding": "same"}):
        weight = normal(5, 4, 3, 3)
        result = functional.conv2d(normal(3, 4, 9, 8), weight, **geometry)
        assert Convolution(weight, None, **geometry).positions((3, 4, 9, 8)) == [*result.shape[2:]]


@pytest.mark.parametrize(
    ("num_dropped", "num_positions", "pays"), [(2, 64, True), (1, 64, False), (4, 15, False), (4, 16, True)]
)
def test_channels_are_skipped_where_many_are_dropped_from_results_that_are_not_small(num_dropped, num_positions, pays):
    kept_K_O = torch.full((2, 4), 2.0)
    kept_K_O.view(-1)[:num_dropped] = 0.0
    assert skipping_pays(kept_K_O, num_positions) == pays


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_axes", [1, 2])
def test_responses_are_the_same_to_the_bit_by_several_threads(num_axes, three_threads, monkeypatch):
    for name, size in (("_MIXED_AT_ONCE", 2000), ("_RESPONSES_AT_ONCE", 1000), ("_PRODUCTS_AT_ONCE", 500)):
        monkeypatch.setattr(responses, name, size)
    x, scale_K_C = normal(3, 4, *(9, 8)[:num_axes]), normal(6, 4, seed=3).relu()
    kept_K_O = (normal(6, 7, seed=4) > 0).float()
    convolution = Convolution(normal(7, 4, *(3, 2)[:num_axes], seed=1), normal(7, seed=2), padding=1)

    def found():
        return mixed_responses(x, scale_K_C, convolution), kept_responses(x, scale_K_C, convolution, kept_K_O)

    by_three = found()
    torch.set_num_threads(1)
    assert all(torch.equal(some, same) for some, same in zip(by_three, found(), strict=True))
    torch.testing.assert_close(by_three[1], by_three[0] * kept_K_O.reshape(1, 6, 7, *[1] * num_axes))
