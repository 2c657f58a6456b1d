import pytest
import torch
from torch.nn import functional

from al_lightning.posterior.dropout.lazy.pooling import FASTER

IMAGES = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((2,), {}),
        (((2, 3),), {}),
        ((3, 3, 0, 1), {}),
        ((2,), {"stride": (2, 2)}),
        ((2, None), {"padding": (0, 0), "dilation": 1}),
        ((1,), {}),
        # not side by side, or cut off, or too large
        ((3, 2), {}),
        ((2, 3), {}),
        ((2,), {"padding": 1}),
        ((2,), {"dilation": 2}),
        ((2,), {"ceil_mode": True}),
        ((5,), {}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maxima_of_slices_are_torchs_pooling(arguments, options, memory_format):
    images = IMAGES.contiguous(memory_format=memory_format)
    expected = functional.max_pool2d(images, *arguments, **options)
    for pool in (functional.max_pool2d, torch.max_pool2d):
        assert torch.equal(FASTER[pool](images, *arguments, **options), expected)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_any_number_of_axes_is_pooled_with_and_without_a_batch_axis(num_axes):
    x = torch.randn(2, 3, *(7, 6, 5)[:num_axes], generator=torch.Generator().manual_seed(0))
    for inputs in (x, x[0]):
        assert torch.equal(FASTER[POOLS[num_axes]](inputs, 2), POOLS[num_axes](inputs, 2))


def test_positions_are_torchs():
    values, positions = FASTER[functional.max_pool2d](IMAGES, 2, return_indices=True)
    expected_values, expected_positions = functional.max_pool2d(IMAGES, 2, return_indices=True)
    assert torch.equal(values, expected_values)
    assert torch.equal(positions, expected_positions)


def test_nan_wins_as_with_torch():
    images = IMAGES.clone()
    images[0, 0, 0, 0] = torch.nan
    assert torch.equal(FASTER[torch.max_pool2d](images, 2).isnan(), torch.max_pool2d(images, 2).isnan())


def test_a_window_larger_than_the_image_is_torchs_error():
    with pytest.raises(RuntimeError, match="Output size is too small"):
        FASTER[functional.max_pool2d](torch.ones(1, 1, 1, 4), 2)
