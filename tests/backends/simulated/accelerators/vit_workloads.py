"""Workloads of plain vision transformers as `read_workload` gives them."""

from __future__ import annotations

from vitslim.workload import Operator, Workload


def vit_workload(width: int = 192, depth: int = 12, heads: int = 3, tokens: int = 197, batch: int = 1) -> Workload:
    """Patch embedding, blocks and head of a ViT with patches of 16 x 16 and 1000 classes."""
    found = [_gemm("patch_embed.proj", batch * (tokens - 1), width, 768)]
    for place in range(depth):
        block, dim = f"blocks.{place}", width // heads
        found += [
            _gemm(f"{block}.attn.qkv", batch * tokens, 3 * width, width),
            _attention(block, "QK^T", tokens, tokens, dim, heads * batch),
            _attention(block, "PV", tokens, dim, tokens, heads * batch),
            _gemm(f"{block}.attn.proj", batch * tokens, width, width),
            _gemm(f"{block}.mlp.fc1", batch * tokens, 4 * width, width),
            _gemm(f"{block}.mlp.fc2", batch * tokens, width, 4 * width),
        ]
    return Workload(batch, (*found, _gemm("head", batch, 1000, width)), params=0, file_bytes=0)


def _gemm(layer: str, m: int, n: int, k: int) -> Operator:
    role = layer.split(".", 2)[-1] if layer.startswith("blocks") else layer
    return Operator(layer, "gemm", "MatMul", m=m, n=n, k=k, weight=True, layer=layer, role=role)


def _attention(block: str, role: str, m: int, n: int, k: int, count: int) -> Operator:
    return Operator(f"{block}.{role}", "attention", "MatMul", m=m, n=n, k=k, count=count, role=role)
