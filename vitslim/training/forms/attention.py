"""Attention for bfloat16 training on CPUs.

On a CPU, PyTorch's fused attention in bfloat16 is several times slower than separate matmuls, above all in the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FUSED = torch.ops.aten.scaled_dot_product_attention.default
SUPPORTED_KEYWORDS = {"attn_mask", "scale"}
"""Keyword arguments that the unfused form implements. Causal attention and dropout stay fused."""
SCORES_MAX = 2**25
"""Largest number of attention scores of a layer in the unfused form, which keeps them, two bytes each, until the
backward pass: 64 MiB, or a batch of 32 with 12 heads and 295 tokens. Larger layers stay fused to save memory."""


class UnfusedAttention(TorchFunctionMode):
    """Compute the attention of exported graphs by separate bfloat16 matmuls if its scores fit into memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        has_support = func is FUSED and len(args) in {3, 4} and kwargs.keys() <= SUPPORTED_KEYWORDS
        if has_support and _fits(*args, **kwargs):
            return unfused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def unfused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Return `softmax(scale * q @ k^T + mask) @ v`, computed in bfloat16.

    Float (b, h, n, d), (b, h, m, d) and (b, h, m, e) to bfloat16 (b, h, n, e). `attn_mask` is float, broadcasts to
    (b, h, n, m) and is added; `scale` defaults to `d ** -0.5`.
    """
    batch, heads, queries, width = query.shape
    q, k, v = (one.to(torch.bfloat16).reshape(batch * heads, one.shape[2], one.shape[3]) for one in (query, key, value))
    scores = torch.bmm(q * (width**-0.5 if scale is None else scale), k.transpose(1, 2))
    if attn_mask is not None:
        masked = scores.view(batch, heads, queries, -1) + attn_mask.to(torch.bfloat16)
        scores = masked.flatten(end_dim=1)
    return torch.bmm(scores.softmax(dim=-1), v).view(batch, heads, queries, -1)


def _fits(query: Tensor, key: Tensor, _value: Tensor, attn_mask: Tensor | None = None, **_: object) -> bool:
    """Return whether the scores fit into memory and the mask, if any, is additive.

    Boolean masks stay fused: PyTorch defines the output of a query without keys.
    """
    is_boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    return query.ndim == 4 and not is_boolean and query.shape[:3].numel() * key.shape[2] <= SCORES_MAX
