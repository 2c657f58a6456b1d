import hashlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.posterior.dropout.masks import DropoutKind, attention_mask, dropout_mask, masked, named


def masks(shape, p, num_samples, *, layer="layer", call=0, seed=0):
    return torch.stack([dropout_mask(shape, p, seed=seed, layer=layer, call=call, k=k) for k in range(num_samples)])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_units_are_kept_with_probability_one_minus_p(p):
    keep = masks((200,), p, 200).double()
    assert abs(keep.mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / keep.numel())


def test_masks_of_different_samples_layers_calls_and_seeds_are_independent():
    first = dropout_mask((4000,), 0.5, seed=0, layer="a", call=0, k=0)
    for other in [{"seed": 1}, {"layer": "b"}, {"call": 1}, {"k": 1}]:
        second = dropout_mask((4000,), 0.5, **({"seed": 0, "layer": "a", "call": 0, "k": 0} | other))
        assert abs((first == second).double().mean() - 0.5) < 4 * math.sqrt(0.25 / 4000)


@pytest.mark.slow
@given(seed=st.integers(-(2**70), 2**70), layer=st.text(max_size=8), call=st.integers(0, 99), k=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_mask_is_a_function_of_its_name(seed, layer, call, k):
    once = dropout_mask((20,), 0.5, seed=seed, layer=layer, call=call, k=k)
    torch.rand(1)
    assert torch.equal(dropout_mask((20,), 0.5, seed=seed, layer=layer, call=call, k=k), once)


def split_mix(shape, p, *, seed, layer, call, k):
    """Return the mask of attention by Python's integers, an element at a time."""
    key = int.from_bytes(hashlib.blake2b(repr((seed, layer, call, k)).encode(), digest_size=8).digest(), "big")
    keep = torch.empty(shape, dtype=torch.bool)
    for index in itertools.product(*map(range, shape)):
        bits = key
        for position in index:
            bits = (bits + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
            bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
            bits ^= bits >> 31
        keep[index] = (bits >> 40) / 2**24 >= p
    return keep


@given(
    seed=st.integers(-(2**70), 2**70),
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    p=st.floats(0, 1),
    k=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_masks_of_attention_are_the_hash_written_out_in_whole_numbers(seed, shape, p, k):
    name = {"seed": seed, "layer": "attention", "call": 0, "k": k}
    assert torch.equal(attention_mask(shape, p, **name), split_mix(shape, p, **name))


def test_an_element_of_attentions_mask_never_changes():
    keep = attention_mask((2, 3, 4), 0.5, seed=0, layer="encoder.layers.0.self_attn", call=0, k=1)
    assert keep.flatten().int().tolist() == [1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1]


@given(short=st.tuples(*[st.integers(1, 6)] * 3), more=st.tuples(*[st.integers(0, 40)] * 3))
@settings(max_examples=25, deadline=None)
def test_a_mask_of_attention_is_the_beginning_of_every_longer_one(short, more):
    name = {"seed": 3, "layer": "a", "call": 0, "k": 2}
    longer = attention_mask([length + added for length, added in zip(short, more, strict=True)], 0.5, **name)
    assert torch.equal(longer[tuple(map(slice, short))], attention_mask(short, 0.5, **name))


@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 20)),
    more=st.integers(0, 100),
    p=st.floats(0, 1),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=50, deadline=None)
def test_a_mask_is_the_beginning_of_one_with_a_longer_first_axis(shape, more, p, seed):
    name = {"seed": seed, "layer": "a", "call": 0, "k": 2}
    longer = dropout_mask((shape[0] + more, shape[1]), p, **name)
    assert torch.equal(longer[: shape[0]], dropout_mask(shape, p, **name))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_attentions_weights_are_kept_with_probability_one_minus_p_and_independently(p):
    name = {"seed": 0, "layer": "a", "call": 0}
    keep = torch.stack([attention_mask((4, 64, 64), p, **name, k=k) for k in range(4)]).double()
    error = 4 * math.sqrt(p * (1 - p) / keep.numel())
    assert abs(keep.mean() - (1 - p)) < error
    centred = (keep - (1 - p)) / math.sqrt(p * (1 - p))
    for axis in range(4):  # neighbouring samples, heads, queries and keys
        products = centred * centred.roll(1, dims=axis)
        assert abs(products.mean()) < 4 / math.sqrt(keep.numel()), axis
    assert abs((centred * centred.transpose(2, 3)).mean() - 1 / 64) < 6 / math.sqrt(keep.numel())
    per_row = keep.mean(dim=3).flatten()
    assert abs(per_row.var() / (p * (1 - p) / 64) - 1) < 4 * math.sqrt(2 / len(per_row))


def test_positions_are_the_axes_of_which_a_batch_may_have_more():
    assert list(DropoutKind().positions(2)) == [0]
    assert list(DropoutKind().positions(1)) == []
    assert list(DropoutKind(channelwise=True).positions(3)) == []
    assert list(DropoutKind(of_weights=True).positions(3)) == [1, 2]


def test_no_unit_is_dropped_with_p_0_and_all_with_p_1():
    assert masks((50,), 0.0, 20).all()
    assert not masks((50,), 1.0, 20).any()


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("in_place", [False, True])
def test_masked_equals_torch_given_the_mask_that_torch_drew(alpha, p, in_place):
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) + 10  # no zeros by themselves
    dropout = torch.alpha_dropout if alpha else torch.dropout
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = dropout(x, p, True)
    keep = expected != expected.min() if p < 1 else torch.zeros(50, 20, dtype=torch.bool)
    result = masked(x, keep, p, alpha=alpha, in_place=in_place)
    torch.testing.assert_close(result, expected)
    assert (result is x) == in_place


def test_alpha_dropout_keeps_mean_and_variance():
    x = torch.randn(1000, 200, generator=torch.Generator().manual_seed(0))
    outputs = torch.stack([masked(x, keep, 0.3, alpha=True) for keep in masks((1000, 200), 0.3, 5)])
    assert abs(outputs.mean()) < 0.01
    assert abs(outputs.var() - 1) < 0.02


def test_mean_over_samples_of_a_linear_layer_after_dropout_is_the_layer_without():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 10, generator=generator), torch.randn(2, 10, generator=generator)
    outputs = torch.stack([masked(x, keep, 0.4) @ weight.T for keep in masks((10,), 0.4, 2000)])
    standard_error = outputs.std(dim=0) / math.sqrt(2000)
    assert ((outputs.mean(dim=0) - x @ weight.T).abs() < 4 * standard_error).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_number_format_is_kept(dtype):
    keep = torch.tensor([True, False])
    assert masked(torch.ones(1, 2, dtype=dtype), keep, 0.5).dtype == dtype
    assert masked(torch.ones(1, 2, dtype=dtype), keep, 0.5, alpha=True).dtype == dtype


@pytest.mark.parametrize(
    ("kind", "input_shape", "expected"),
    [
        (DropoutKind(), (8, 5), (5,)),
        (DropoutKind(), (8,), ()),
        (DropoutKind(), (8, 3, 4, 5), (3, 4, 5)),
        (DropoutKind(channelwise=True), (8, 3, 4, 5), (3, 1, 1)),
        (DropoutKind(channelwise=True), (8, 3), (3,)),
        (DropoutKind(channelwise=True, batched_dims=(3,)), (8, 3, 4), (3, 1)),
    ],
)
def test_a_mask_has_no_batch_axis(kind, input_shape, expected):
    assert kind.mask_shape(input_shape, layer="drop") == expected


@pytest.mark.parametrize(
    ("kind", "input_shape"),
    [
        (DropoutKind(), ()),
        (DropoutKind(channelwise=True), (8,)),
        (DropoutKind(channelwise=True, batched_dims=(3,)), (3, 4)),
        (DropoutKind(channelwise=True, batched_dims=(5,)), (3, 4, 4, 4)),
    ],
)
def test_an_input_without_batch_axis_is_refused(kind, input_shape):
    with pytest.raises(ValueError, match=r"The dropout of `drop` got an input of shape \(.*\), without a batch axis"):
        kind.mask_shape(input_shape, layer="drop")


def test_the_outermost_module_has_a_name():
    assert named("head.1") == "`head.1`"
    assert named("") == "the model itself"
