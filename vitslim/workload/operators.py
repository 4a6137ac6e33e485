"""Operators, the kernels they are fused to, and the workload they make up: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OpKind = Literal["gemm", "conv", "attention", "softmax", "norm", "elementwise", "movement", "select", "quantize"]
"""`attention` is every product of two activations: both attention products and the products of token squeezing."""

PRODUCTS: tuple[OpKind, ...] = ("gemm", "conv", "attention")
"""Kinds that are matrix products."""


@dataclass(frozen=True)
class Operator:
    """One node of the ONNX file, for a whole batch."""

    name: str
    """Name of the node."""
    op: OpKind
    type: str
    """ONNX operator type, such as `MatMul`; `Gelu` also for a chain around `Erf`."""
    m: int = 0
    """Rows of one product, batch included; 0 when the operator is not a matrix product."""
    n: int = 0
    k: int = 0
    count: int = 1
    """Products of this size: heads times images, or groups of a convolution."""
    elements: int = 0
    """Elements that come out, or that go in for reductions."""
    weight: bool = False
    """Whether one operand is a weight."""
    weight_bits: int = 0
    """Bits of the weight, or of the second activation of an attention product."""
    input_bits: int = 0
    sparsity: str = ""
    """`2:4` when the weight follows that pattern along the reduction dimension."""
    layer: str = ""
    """Module it belongs to, such as `blocks.3.attn.qkv`; the weight's name when the file does not say."""
    role: str = ""
    """What it does in its block: `attn.qkv`, `QK^T`, `PV`, `head`, ...; the same in every block."""
    read_bytes: int = 0
    """Activations that go in, at the widths of the file: a tensor behind a DequantizeLinear counts as quantized."""
    constant_bytes: int = 0
    """Weights and other constants that go in, at the widths of the file, zeros included."""
    written_bytes: int = 0
    """What comes out."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the whole batch; 2:4 weights count as dense."""
        return self.count * self.m * self.n * self.k

    @property
    def bops(self) -> int:
        """MACs times both bit widths; 2:4 weights count half (specs, section 3.1)."""
        bops = self.macs * self.weight_bits * self.input_bits
        return bops // 2 if self.sparsity else bops

    @property
    def bytes(self) -> int:
        """Everything that goes in and out when nothing is fused."""
        return self.read_bytes + self.constant_bytes + self.written_bytes


@dataclass(frozen=True)
class Kernel:
    """Operators that one launch computes after the usual fusions."""

    operators: tuple[int, ...]
    """Places in `Workload.operators`, the one that the kernel is there for first; empty for an unknown operator."""
    read: Mapping[int, int] = field(default_factory=dict)
    """Bits to elements of what comes from other kernels, and of constants that are no weights of a product."""
    written: Mapping[int, int] = field(default_factory=dict)
    """Bits to elements of what other kernels or the caller read."""
    unknown: str = ""
    """Type of an operator that the reader does not know."""


@dataclass(frozen=True)
class Workload:
    """Everything that one inference of an ONNX file does."""

    batch: int
    operators: tuple[Operator, ...]
    params: int
    """Float and quantized constants in the file without quantizer scales; exporters may store equal ones once."""
    file_bytes: int
    folded: int = 0
    """Nodes that depend on constants only: runtimes compute them once at load, so they are no operators here."""
    unknown: Mapping[str, int] = field(default_factory=dict)
    """Operator types that the reader does not know, with how often each occurs. They have no MACs."""
    unknown_bytes: Mapping[str, int] = field(default_factory=dict)
    """The same types with the bytes that go in and out of them."""
    kernels: tuple[Kernel, ...] = ()
    """In the order of the file. Operators in none of them are views and cost nothing."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the whole batch."""
        return sum(operator.macs for operator in self.operators)

    @property
    def bops(self) -> int:
        """Bit operations for the whole batch."""
        return sum(operator.bops for operator in self.operators)

    @property
    def bytes(self) -> int:
        """What goes in and out of all operators when nothing is fused, unknown ones included."""
        return sum(operator.bytes for operator in self.operators) + sum(self.unknown_bytes.values())

    def unknown_shares(self) -> dict[str, float]:
        """Fraction of all bytes for each operator type that the reader does not know."""
        return {name: count / max(1, self.bytes) for name, count in self.unknown_bytes.items()}
