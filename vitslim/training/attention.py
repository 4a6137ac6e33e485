"""Attention that trains fast in bfloat16 on a CPU.

PyTorch's fused operator multiplies bfloat16 there several times slower than its plain products do, most of all
backwards: 31 ms for a block of DeiT-Tiny and 32 images, forward and back, where plain products take 9 (AVX512-BF16).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FUSED = torch.ops.aten.scaled_dot_product_attention.default
PLAIN = {"attn_mask", "scale"}
"""What attention of vision transformers asks for; none is causal or has dropout."""
MOST_SCORES = 2**25
"""Unlike the fused operator, plain products keep the scores of each layer (two bytes each) until its gradient is there:
64 MiB at most, a batch of 32 through 12 heads of 295 tokens. Beyond that the fused operator saves memory, not time."""


class PlainAttention(TorchFunctionMode):
    """Within it, attention of exported graphs is computed in bfloat16 by plain products where its scores are few."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is FUSED and len(args) in {3, 4} and kwargs.keys() <= PLAIN and _fits(*args, **kwargs):
            return plain_attention(*args, **kwargs)
        return func(*args, **kwargs)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """`softmax(scale * q @ k^T + mask) @ v` in bfloat16.

    Float (b, h, n, d), (b, h, m, d) and (b, h, m, e) to bfloat16 (b, h, n, e). `attn_mask` broadcasts to (b, h, n, m)
    and is added; `scale` is `d ** -0.5` unless given.
    """
    batch, heads, queries, width = query.shape
    q, k, v = (one.to(torch.bfloat16).reshape(batch * heads, one.shape[2], one.shape[3]) for one in (query, key, value))
    scores = torch.bmm(q * (width**-0.5 if scale is None else scale), k.transpose(1, 2))
    if attn_mask is not None:
        masked = scores.view(batch, heads, queries, -1) + attn_mask.to(torch.bfloat16)
        scores = masked.flatten(end_dim=1)
    return torch.bmm(scores.softmax(dim=-1), v).view(batch, heads, queries, -1)


def _fits(query: Tensor, key: Tensor, _value: Tensor, attn_mask: Tensor | None = None, **_: object) -> bool:
    """Whether scores are few enough. Boolean masks stay with PyTorch, which knows what a query without keys gives."""
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    return query.ndim == 4 and not boolean and query.shape[:3].numel() * key.shape[2] <= MOST_SCORES
