"""Workloads of plain vision transformers from their sizes, without a model."""

from __future__ import annotations

from vitslim.workload import Operator, Workload

SIZES = {"DeiT-B": (768, 12, 12), "ViT-L": (1024, 24, 16)}
"""Model to width, depth and heads."""
TOKENS = {197: 224, 577: 384}
"""Tokens to side of the image, for patches of 16 x 16."""


def vit_workload(width: int, depth: int, heads: int, tokens: int, batch: int = 1) -> Workload:
    """Return patch embedding, blocks and head (1000 classes) of a ViT with patches of 16 x 16."""
    operators = [_gemm("patch_embed.proj", batch * (tokens - 1), width, 768)]
    for place in range(depth):
        block, dim = f"blocks.{place}", width // heads
        operators += [
            _gemm(f"{block}.attn.qkv", batch * tokens, 3 * width, width),
            _attention(block, "QK^T", (tokens, tokens, dim), heads * batch),
            _attention(block, "PV", (tokens, dim, tokens), heads * batch),
            _gemm(f"{block}.attn.proj", batch * tokens, width, width),
            _gemm(f"{block}.mlp.fc1", batch * tokens, 4 * width, width),
            _gemm(f"{block}.mlp.fc2", batch * tokens, width, 4 * width),
        ]
    return Workload(batch, (*operators, _gemm("head", batch, 1000, width)), params=0, file_bytes=0)


def _gemm(layer: str, m: int, n: int, k: int) -> Operator:
    role = layer.split(".", 2)[-1] if layer.startswith("blocks.") else layer
    return Operator(layer, "gemm", "MatMul", m=m, n=n, k=k, weight=True, layer=layer, role=role)


def _attention(block: str, role: str, sizes: tuple[int, int, int], count: int) -> Operator:
    m, n, k = sizes
    return Operator(f"{block}.{role}", "attention", "MatMul", m=m, n=n, k=k, count=count, role=role)
