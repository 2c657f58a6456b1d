import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior.dropout.attention import (
    begins_padded,
    dot_product_attention,
    multi_head_arguments,
    multi_head_attention,
)

ROWS, HEADS, QUERIES, KEYS, WIDTH = 3, 4, 5, 6, 8


def unchanged(weights, *, num_added=0):
    return weights


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sees():
    mask = drawn(QUERIES, KEYS, seed=4) > -0.5
    mask[2] = False  # a query that sees no key
    return mask


MASKS = {
    "none": {},
    "bool": {"attn_mask": sees()},
    "bool for each row": {"attn_mask": sees().expand(ROWS, 1, QUERIES, KEYS)},
    "float": {"attn_mask": drawn(ROWS, HEADS, QUERIES, KEYS, seed=5)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
}


@pytest.mark.parametrize("leading", [(), (ROWS,), (ROWS, HEADS), (2, ROWS, HEADS)])
@pytest.mark.parametrize("given", MASKS.values(), ids=MASKS.keys())
def test_attention_without_dropout_is_torchs(given, leading):
    if given.get("attn_mask", torch.empty(0)).dim() > 2 and len(leading) < 2:
        given = {"attn_mask": given["attn_mask"][0, 0]}
    q, k, v = drawn(*leading, QUERIES, WIDTH), drawn(*leading, KEYS, WIDTH, seed=1), drawn(*leading, KEYS, 3, seed=2)
    expected = functional.scaled_dot_product_attention(q, k, v, **given)
    torch.testing.assert_close(dot_product_attention(q, k, v, **given, drop=unchanged), expected)


def test_heads_of_keys_serve_several_heads_of_queries():
    q, (k, v) = drawn(ROWS, HEADS, QUERIES, WIDTH), drawn(2, ROWS, 2, KEYS, WIDTH, seed=1)
    expected = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(dot_product_attention(q, k, v, enable_gqa=True, drop=unchanged), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_computed_in_single_and_the_number_format_is_kept(dtype):
    q, k, v = (drawn(ROWS, HEADS, KEYS, WIDTH, seed=seed, dtype=dtype) for seed in range(3))
    exact = functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    dtypes = []

    def drop(weights, *, num_added=0):
        assert num_added == 0
        dtypes.append(weights.dtype)
        return weights

    result = dot_product_attention(q, k, v, drop=drop)
    assert dtypes == [torch.float64 if dtype == torch.float64 else torch.float32]
    torch.testing.assert_close(result, exact.to(dtype))


def test_weights_are_dropped_after_the_softmax_and_not_normalised_again():
    q, k, v = (drawn(ROWS, HEADS, KEYS, WIDTH, seed=seed) for seed in range(3))
    factors = 2.0 * (drawn(HEADS, KEYS, KEYS, seed=3) > 0)
    expected = torch.empty(ROWS, HEADS, KEYS, WIDTH)
    for b, h, query in itertools.product(range(ROWS), range(HEADS), range(KEYS)):
        exps = torch.stack([(q[b, h, query] @ k[b, h, s] / math.sqrt(WIDTH)).exp() for s in range(KEYS)])
        weights = exps / exps.sum() * factors[h, query]
        expected[b, h, query] = sum(weights[s] * v[b, h, s] for s in range(KEYS))
    result = dot_product_attention(q, k, v, drop=lambda weights, num_added=0: weights * factors)
    torch.testing.assert_close(result, expected)


MODULES = {
    "plain": {},
    "no bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 5, "vdim": 7},
}
CALLS = {
    "weights": {},
    "weights of heads": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
}
OF_BATCH = {
    "none": {},
    "padding": {"key_padding_mask": torch.arange(KEYS) >= torch.tensor([6, 4, 5]).unsqueeze(1)},
    "bool": {"attn_mask": drawn(QUERIES, KEYS, seed=4) > 0.7},
    "for heads": {"attn_mask": drawn(ROWS * HEADS, QUERIES, KEYS, seed=4)},
    "both": {
        "attn_mask": drawn(QUERIES, KEYS, seed=4),
        "key_padding_mask": torch.zeros(ROWS, KEYS).masked_fill(torch.arange(KEYS) > 3, -math.inf),
    },
}


class Passed(torch.overrides.TorchFunctionMode):
    """Keeps the arguments with which a module calls multi-head attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.multi_head_attention_forward:
            self.given = multi_head_arguments(args, kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("of_batch", OF_BATCH.values(), ids=OF_BATCH.keys())
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("settings", MODULES.values(), ids=MODULES.keys())
def test_multi_head_attention_without_dropout_is_the_modules(settings, call, of_batch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings)
        for bias in (module.in_proj_bias, module.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)
    q = drawn(ROWS, QUERIES, WIDTH)
    k, v = drawn(ROWS, KEYS, module.kdim, seed=1), drawn(ROWS, KEYS, module.vdim, seed=2)
    with torch.no_grad(), Passed() as passed:
        expected, weights = module(q, k, v, **call, **of_batch)
        output, our_weights = multi_head_attention(passed.given, unchanged)
    torch.testing.assert_close(output.transpose(0, 1), expected)
    torch.testing.assert_close(our_weights, weights)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("is_batched", [False, True])
def test_self_attention_of_one_or_several_sequences_is_the_modules(is_batched, need_weights):
    module = nn.MultiheadAttention(WIDTH, HEADS)
    x = drawn(KEYS, ROWS, WIDTH) if is_batched else drawn(KEYS, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(KEYS)
    with torch.no_grad(), Passed() as passed:
        expected, weights = module(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)
        output, our_weights = multi_head_attention(passed.given, unchanged)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(our_weights, weights)


@pytest.mark.parametrize("settings", [MODULES["bias_kv"], MODULES["both"]])
def test_keys_that_are_added_are_counted_for_the_dropout(settings):
    module, x, counts = nn.MultiheadAttention(WIDTH, HEADS, **settings), drawn(KEYS, ROWS, WIDTH), []
    with torch.no_grad(), Passed() as passed:
        module(x, x, x)

    def drop(weights, *, num_added=0):
        counts.append((num_added, weights.shape[-1]))
        return weights

    multi_head_attention(passed.given, drop)
    assert counts == [(len(settings), KEYS + len(settings))]


@pytest.mark.parametrize(
    ("sees", "expected"),
    [([[1, 1, 0]], False), ([[0, 1, 1]], True), ([[1, 1, 1], [0, 0, 1]], True), ([[0, 0, 0], [1, 0, 0]], False)],
)
def test_padding_before_a_text_is_told_from_padding_behind_it(sees, expected):
    assert begins_padded(torch.tensor(sees)) == expected
