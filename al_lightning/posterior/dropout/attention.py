"""Attention written out, so that dropout of its weights can use given masks."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)
_HALF = (torch.float16, torch.bfloat16)


class Drop(Protocol):
    """Dropout of attention's weights (..., L, S), of which the last `num_added` keys are no positions of the input."""

    def __call__(self, weights: Tensor, *, num_added: int = 0) -> Tensor:
        """Return the weights after dropout."""


def dot_product_attention(  # noqa: PLR0913 - torch's signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - `drop` knows it
    is_causal: bool = False,  # noqa: FBT001, FBT002
    *,
    drop: Drop,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return drop(softmax(q k^T scale + mask)) v, as `torch.nn.functional.scaled_dot_product_attention` documents it.

    Like torch's it computes half precision in single precision, and gives a query that may see no key the value 0.

    Args:
        query: (..., heads, L, E).
        key: (..., heads, S, E).
        value: (..., heads, S, D).
        attn_mask: True where a query sees a key, or a number that is added; broadcast to (..., heads, L, S).
        dropout_p: Not used.
        is_causal: Query l sees the keys up to l.
        drop: Dropout of the weights.
        scale: 1 / sqrt(E) by default.
        enable_gqa: A head of `key` and `value` serves several neighbouring ones of `query`.

    Example:
        >>> q, k, v = torch.rand(3, 1, 2, 5, 4).unbind()
        >>> ours = dot_product_attention(q, k, v, is_causal=True, drop=lambda weights, num_added=0: weights)
        >>> torch.allclose(ours, functional.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-6)
        True
    """
    dtype = query.dtype
    if dtype in _HALF:
        query, key, value = query.float(), key.float(), value.float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    scores = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        sees = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~sees, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    sees_nothing = (scores == -math.inf).all(dim=-1, keepdim=True)
    weights = scores.softmax(dim=-1).masked_fill(sees_nothing, 0.0)
    return (drop(weights) @ value).to(dtype)


def multi_head_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of `torch.nn.functional.multi_head_attention_forward` by name."""
    bound = _MULTI_HEAD.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def multi_head_attention(given: Mapping[str, Any], drop: Drop) -> tuple[Tensor, Tensor | None]:
    """Return output and weights of `torch.nn.functional.multi_head_attention_forward`, time first, with `drop`.

    The keys that `add_bias_kv` and `add_zero_attn` put behind the others are named to `drop`: their number in the row
    depends on the length of the batch.

    Args:
        given: The arguments by name: see `multi_head_arguments`.
        drop: Dropout of the weights (B, heads, L, S).
    """
    query, key, value = (given[name] if given[name].dim() == _TIME_FIRST else given[name].unsqueeze(1) for name in _QKV)
    num_heads, (_, num_rows, width) = given["num_heads"], query.shape
    q, k, v = _projected(given, query, key, value)
    num_added = 0
    if given["bias_k"] is not None:
        k = torch.cat([k, given["bias_k"].expand(1, num_rows, width)])
        v = torch.cat([v, given["bias_v"].expand(1, num_rows, width)])
        num_added += 1
    q, k, v = (x.reshape(len(x), num_rows, num_heads, -1).permute(1, 2, 0, 3) for x in (q, k, v))
    k, v = (
        x if given[name] is None else given[name].reshape(num_rows, num_heads, *given[name].shape[1:])
        for name, x in (("static_k", k), ("static_v", v))
    )
    if given["add_zero_attn"]:
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        num_added += 1
    scores = q * math.sqrt(num_heads / width) @ k.transpose(-2, -1)
    for mask in _added_masks(given, num_rows, num_heads, q.dtype):
        scores = scores + functional.pad(mask, (0, num_added))
    weights = scores.softmax(dim=-1)
    if not given["need_weights"]:  # torch then takes `scaled_dot_product_attention`
        weights = weights.masked_fill((scores == -math.inf).all(dim=-1, keepdim=True), 0.0)
    weights = drop(weights, num_added=num_added)
    output = (weights @ v).permute(2, 0, 1, 3).flatten(-2)
    output = functional.linear(output, given["out_proj_weight"], given["out_proj_bias"])
    if given["average_attn_weights"]:
        weights = weights.mean(dim=1)
    if given["query"].dim() != _TIME_FIRST:
        output, weights = output.squeeze(1), weights.squeeze(0)
    return output, weights if given["need_weights"] else None


_TIME_FIRST = 3  # axes of (L, B, E)
_QKV = ("query", "key", "value")


def _projected(given: Mapping[str, Any], query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bias = given["in_proj_bias"]
    if not given["use_separate_proj_weight"] and given["query"] is given["key"] is given["value"]:
        q, k, v = functional.linear(query, given["in_proj_weight"], bias).chunk(3, dim=-1)
        return q, k, v
    weights = (
        tuple(given[f"{name}_proj_weight"] for name in "qkv")
        if given["use_separate_proj_weight"]
        else given["in_proj_weight"].chunk(3)
    )
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (functional.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    return q, k, v


def _added_masks(given: Mapping[str, Any], num_rows: int, num_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Return the masks as numbers to add to scores (B, heads, L, S)."""
    found = []
    if given["attn_mask"] is not None:
        mask = _as_numbers(given["attn_mask"], dtype)
        is_of_heads = mask.dim() == _TIME_FIRST and len(mask) > 1
        found.append(mask.reshape(num_rows, num_heads, *mask.shape[1:]) if is_of_heads else mask)
    if given["key_padding_mask"] is not None:
        padding_B_S = _as_numbers(given["key_padding_mask"], dtype).reshape(num_rows, -1)
        found.append(padding_B_S[:, None, None])
    return found


def _as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask in torch's older meaning, True where a key is not seen, as numbers to add."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


def begins_padded(sees_B_S: Tensor) -> bool:
    """Tell whether a row of a padding mask begins with padding and has points of text behind it.

    Example:
        >>> begins_padded(torch.tensor([[1, 1, 0], [1, 1, 1]])), begins_padded(torch.tensor([[0, 1, 1], [1, 1, 1]]))
        (False, True)
    """
    sees_B_S = sees_B_S.bool()
    return bool((~sees_B_S[:, 0] & sees_B_S.any(dim=1)).any())
