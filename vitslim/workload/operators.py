"""The workload of a model as plain values: its operators, and the kernels into which runtimes fuse them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OpKind = Literal["gemm", "conv", "attention", "softmax", "norm", "elementwise", "movement", "select", "quantize"]
"""`attention` is every matmul of two activations: QK^T, PV, and the matmuls of token squeezing."""

MATMUL_KINDS: tuple[OpKind, ...] = ("gemm", "conv", "attention")
"""Kinds of operators that are GEMMs."""


@dataclass(frozen=True)
class Operator:
    """One node of the ONNX file, for a whole batch."""

    name: str
    """Name of the node."""
    op: OpKind
    type: str
    """ONNX operator type, such as `MatMul`; `Gelu` also for a chain around `Erf`."""
    m: int = 0
    """Rows of one GEMM, batch included; 0 when the operator is not a GEMM."""
    n: int = 0
    """Columns."""
    k: int = 0
    """Reduction."""
    count: int = 1
    """GEMMs of this size: heads times images, or groups of a convolution."""
    elements: int = 0
    """Elements of the outputs; for reductions those of the input."""
    weight: bool = False
    """Whether one operand is a weight."""
    weight_bits: int = 0
    """Bits of the weight, or of the second activation of an attention matmul."""
    activation_bits: int = 0
    float8: bool = False
    """Whether the weight is stored as 8-bit floats."""
    sparsity: str = ""
    """`2:4` when the weight follows that pattern along the reduction dimension."""
    layer: str = ""
    """Module that it belongs to, such as `blocks.3.attn.qkv`; the name of the weight when the file has no module."""
    role: str = ""
    """Role in its block, the same in every block: `attn.qkv`, `QK^T`, `PV`, `head`, ..."""
    read_bytes: int = 0
    """Bytes of its input activations at the widths of the file: the output of DequantizeLinear counts as quantized."""
    constant_bytes: int = 0
    """Bytes of its weights and other constants at the widths of the file, zeros included."""
    written_bytes: int = 0
    """Bytes of its outputs."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the whole batch; 2:4 weights count as dense."""
        return self.count * self.m * self.n * self.k

    @property
    def bops(self) -> int:
        """Bit operations: MACs times both bit widths; 2:4 weights count half."""
        bops = self.macs * self.weight_bits * self.activation_bits
        return bops // 2 if self.sparsity else bops

    @property
    def bytes(self) -> int:
        """Bytes of all inputs and outputs, without fusion."""
        return self.read_bytes + self.constant_bytes + self.written_bytes


@dataclass(frozen=True)
class Kernel:
    """Operators that one launch computes after the usual fusions."""

    operators: tuple[int, ...]
    """Indices into `Workload.operators`, the main operator first; empty for an unknown operator."""
    read: Mapping[int, int] = field(default_factory=dict)
    """Bit width to number of elements: outputs of other kernels, and constants other than the weights of GEMMs."""
    written: Mapping[int, int] = field(default_factory=dict)
    """Bit width to number of elements that other kernels or the caller read."""
    unknown: str = ""
    """Type of an operator that vitslim does not know; else empty."""


@dataclass(frozen=True)
class Workload:
    """All operators of one inference of an ONNX file."""

    batch: int
    operators: tuple[Operator, ...]
    params: int
    """Elements of the float and quantized constants, scales excluded; exporters may store equal constants once."""
    file_bytes: int
    folded: int = 0
    """Nodes that depend on constants only, which runtimes compute once when they load the model; not in `operators`."""
    unknown: Mapping[str, int] = field(default_factory=dict)
    """Operator types that vitslim does not know, to their number. They have no MACs."""
    unknown_bytes: Mapping[str, int] = field(default_factory=dict)
    """The same types to the bytes of their inputs and outputs."""
    kernels: tuple[Kernel, ...] = ()
    """In the order of the file. Operators that are in no kernel are views, without cost."""

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
        """Bytes of the inputs and outputs of all operators without fusion, unknown operators included."""
        return sum(operator.bytes for operator in self.operators) + sum(self.unknown_bytes.values())

    def unknown_shares(self) -> dict[str, float]:
        """Return the fraction of all bytes of each operator type that vitslim does not know."""
        return {name: count / max(1, self.bytes) for name, count in self.unknown_bytes.items()}
