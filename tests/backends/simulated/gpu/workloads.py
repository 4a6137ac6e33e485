"""Workloads written down by their dimensions."""

from __future__ import annotations

from vitslim.workload import Kernel, Operator, Workload

ROLES = {"attn.qkv": (576, 192), "attn.proj": (192, 192), "mlp.fc1": (768, 192), "mlp.fc2": (192, 768)}


def block(batch: int = 1, bits: int = 16, sparsity: str = "", tokens: int = 197) -> Workload:
    """One block of DeiT-Tiny: a norm, attention and four layers, each a kernel."""
    operators = [Operator("norm", "norm", "LayerNormalization", elements=tokens * 192 * batch)]
    kernels = [Kernel((0,), {16: tokens * 192 * batch}, {16: tokens * 192 * batch})]
    for role, columns, reduce in (("QK^T", tokens, 64), ("PV", 64, tokens)):
        operators.append(Operator(role, "attention", "MatMul", m=tokens, n=columns, k=reduce, count=3 * batch,
                                  weight_bits=16, activation_bits=16, role=role))  # fmt: skip
    kernels.append(Kernel((1, 2), {16: tokens * 576 * batch}, {16: tokens * 192 * batch}))
    for role, (n, k) in ROLES.items():
        kernels.append(Kernel((len(operators),), {bits: tokens * k * batch}, {bits: tokens * n * batch}))
        operators.append(Operator(role, "gemm", "MatMul", m=tokens * batch, n=n, k=k, weight=True, weight_bits=bits,
                                  activation_bits=bits, role=role, sparsity=sparsity))  # fmt: skip
    return Workload(batch, tuple(operators), 0, 0, kernels=tuple(kernels))
