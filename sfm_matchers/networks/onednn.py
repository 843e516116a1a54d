"""Matrix products by oneDNN where torch's own are slow.

On a CPU torch multiplies single-precision matrices by MKL, and attention does so in every
precision. On AMD's processors MKL leaves half of AVX-512 unused; oneDNN, which torch brings for
convolutions, does not: on a Zen 5 it multiplies at 180 instead of 80 GFLOP/s per core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sfm_matchers.networks.processor import cpu_capabilities, is_amd

EXPLICIT_SCORES = 1 << 20  # per head; more would fill the memory until the backward pass
WORTHWHILE = 1 << 20  # multiplications; fewer take less time than oneDNN's preparations
MAX_MATRICES = 8  # of a batch; more are multiplied one by one, which is slow if they are small
ATTENTION_ROWS = 512  # scores of so many queries stay in the cache


def is_faster() -> bool:
    """Are oneDNN's products faster on this machine: AMD's processors with AVX-512."""
    available = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return bool(is_amd() and cpu_capabilities().get("avx512_f") and available)


class _Exchange(TorchFunctionMode):
    """Inside, functions of torch are exchanged for others, where those do not answer None."""

    def __init__(self, others: Mapping[Callable[..., Any], Callable[..., Tensor | None]]) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: tuple[type, ...],
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides`."""
        options = options or {}
        other = self.others.get(function)
        result = None if other is None else other(*arguments, **options)
        return function(*arguments, **options) if result is None else result


def products() -> TorchFunctionMode:
    """A context in which large products on the CPU are oneDNN's; they have no gradient."""
    return _Exchange(_PRODUCTS)


def explicit_attention() -> TorchFunctionMode:
    """A context in which attention in bfloat16 on the CPU is two products and a softmax.

    For training: with 512 keypoints, forward and backward pass take a third of the time.
    """
    return _Exchange({F.scaled_dot_product_attention: _explicit_attention})


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N,)."""
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # else oneDNN takes a thousand times as long
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _is_suitable(multiplications: int, *operands: Tensor | None) -> bool:
    """Is the product large, of single precision, and stays so: autocast would round it."""
    return (
        multiplications >= WORTHWHILE
        and not torch.is_autocast_enabled("cpu")
        and all(
            one is None or (one.dtype == torch.float32 and one.device.type == "cpu")
            for one in operands
        )
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not _is_suitable(x.numel() * weight.shape[0], x, weight, bias):
        return None
    return _multiply(x, weight, bias)


def _addmm(bias: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    if bias.ndim != 1 or not _is_suitable(x.numel() * y.shape[1], bias, x, y):
        return None
    return _multiply(x, y.T, bias)


def _matmul(x: Tensor, y: Tensor, *, out: Tensor | None = None) -> Tensor | None:
    """Of matrices, or of few pairs of matrices."""
    if x.ndim != y.ndim or x.ndim not in (2, 3) or x.shape[:-2] != y.shape[:-2]:
        return None
    pairs = x.shape[0] if x.ndim == 3 else 1
    if pairs > MAX_MATRICES or not _is_suitable(x.numel() * y.shape[-1] // max(1, pairs), x, y):
        return None
    if x.ndim == 2:
        product = _multiply(x, y.T)
        return product if out is None else out.copy_(product)
    products = [_multiply(one, other.T) for one, other in zip(x, y, strict=True)]
    return torch.stack(products, out=out)


def _baddbmm(bias: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    products = _matmul(x, y)
    return None if products is None else products.add_(bias)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor | None:
    """Attention of (B, heads, M, head_dim) without a mask; the scores are of single precision."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if (
        attn_mask is not None
        or query.device.type != "cpu"
        or dtype not in (torch.float32, torch.bfloat16)
        or query.shape[-2] * key.shape[-2] * query.shape[-1] < WORTHWHILE
    ):
        return None
    queries, keys, values = (x.flatten(0, 1) for x in (query, key, value))
    heads = [
        _attention_of_a_head(queries[head], keys[head], values[head], dtype)
        for head in range(len(queries))
    ]
    return torch.stack(heads).view(*query.shape[:-1], value.shape[-1])


def _attention_of_a_head(query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    query, key = query.float() / math.sqrt(query.shape[-1]), key.float().contiguous()
    value = value.to(dtype).contiguous()
    messages = []
    for rows in query.split(ATTENTION_ROWS):
        # Autocast does not know oneDNN's operator, so it does not round the scores.
        weights = _multiply(rows, key).softmax(-1)
        messages.append(_multiply(weights.to(dtype), value.T))
    return torch.cat(messages)


def _explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor | None:
    """Attention of (B, heads, M, head_dim) on the keys that the mask lets through."""
    if (
        query.device.type != "cpu"
        or not torch.is_autocast_enabled("cpu")
        or query.shape[-2] * key.shape[-2] > EXPLICIT_SCORES
    ):
        return None
    scores = (query / math.sqrt(query.shape[-1])) @ key.mT
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ value


_PRODUCTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.addmm: _addmm,
    torch.baddbmm: _baddbmm,
    F.scaled_dot_product_attention: _attention,
}
