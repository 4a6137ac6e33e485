"""Scores of patch tokens, read from the attention of a block, as operators that are one node each in a graph.

Both are composites of ordinary operators, so autograd, torch.export and the ONNX exporter need nothing else.
Multiply-accumulates for one image, with H heads of width d and N tokens: class attention H*N*d, received attention
H*N*N*d.
"""

from __future__ import annotations

import torch
from torch.library import Library


def class_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, prefix: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the attention of the class token to each patch token, averaged over heads.

    q, k: (B, H, N, d) float, the class token first. `prefix` counts the tokens that are not patches (class token,
    distillation token, registers): they take part in the softmax and are then left out. bias: (B, 1, 1, N), added to
    the logits of each key. Returns (B, N - prefix), each entry in [0, 1].
    """
    logits = _logits(q[:, :, :1], k, scale, bias)
    return torch.softmax(logits, dim=-1)[:, :, 0, prefix:].mean(dim=1)


def received_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, prefix: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the attention that each patch token receives, averaged over heads and queries.

    It replaces class attention in models without a class token. q, k: (B, H, N, d) float; `prefix` and `bias` as in
    `class_attention`. Returns (B, N - prefix), each entry in [0, 1].
    """
    logits = _logits(q, k, scale, bias)
    return torch.softmax(logits, dim=-1).mean(dim=(1, 2))[:, prefix:]


def _logits(q: torch.Tensor, k: torch.Tensor, scale: float, bias: torch.Tensor | None) -> torch.Tensor:
    logits = torch.matmul(q, k.transpose(-2, -1)) * scale
    return logits if bias is None else logits + bias


def _register() -> Library:
    library = Library("vitslim", "FRAGMENT")  # type: ignore[no-untyped-call]
    for function in (class_attention, received_attention):
        name = function.__name__
        signature = "(Tensor q, Tensor k, float scale, int prefix, Tensor? bias=None) -> Tensor"
        library.define(name + signature)  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


_LIBRARY = _register()
"""The operators stay registered as long as this object exists."""

CLASS_ATTENTION = torch.ops.vitslim.class_attention.default
RECEIVED_ATTENTION = torch.ops.vitslim.received_attention.default
