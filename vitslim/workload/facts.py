"""What an ONNX file holds, and what it says that it holds: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitslim.graph.sparse import PAIRS, TWO_FOUR, UNSTRUCTURED, csr_bytes
from vitslim.units import PAIR_LIMIT

"""INT4: of each eight weights, seen as four adjacent pairs, two pairs are zero (specs, section 3.2)."""
INTEGER_BITS_MAX = 8
"""Wider weights are floating-point numbers."""


@dataclass(frozen=True)
class Annotation:
    """What a file says about one layer."""

    layer: str
    """Name of the weight."""
    weight_bits: int | None = None
    activation_bits: int | None = None
    sparsity: str = ""
    granularity: str = ""


@dataclass(frozen=True)
class Layer:
    """One product with a weight, judged by the numbers that are stored."""

    name: str
    """Module that it belongs to, such as `blocks.3.attn.qkv`, as far as the file says."""
    node: str
    type: str
    """ONNX operator type, such as `MatMul`."""
    weight: str
    """Name of the initializer."""
    outputs: int
    reduction: int
    """Weights that one output sums up over."""
    container: str
    """ONNX type of the initializer: `INT8`, `INT4`, `FLOAT16`, ..."""
    weight_bits: int
    """Annotated bits where the integers keep within them, else those of the container."""
    activation_bits: int
    """Bits of the quantized input activation, fewer where a Clip narrows it; 32 or 16 for a float activation."""
    granularity: str
    """Of the weight's scales: `tensor`, `channel`, `group 32`; empty without scales in the file."""
    code_min: int | None
    """Least code, less the zero point for signed types; None for a float weight."""
    code_max: int | None
    pair_max: int
    """Largest sum of two codes of one sign that are neighbors along the reduction; 0 for a float weight."""
    zeros: int
    """Weights that are zero: codes at the zero point."""
    patterns: tuple[str, ...]
    """`2:4` and `2:4-pairs` where the stored numbers follow them along the reduction."""
    annotation: Annotation | None
    quantized_by: str
    """`Q/DQ` when it is a float operator with integers behind DequantizeLinear, `integer` for an integer operator, `at
    load` when integers are multiplied by their scales before the model runs; empty for floats."""
    stored_bytes: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * self.reduction

    @property
    def quantized(self) -> bool:
        """Whether its weights are integers."""
        return self.weight_bits <= INTEGER_BITS_MAX

    @property
    def exceeds_16_bits(self) -> bool:
        """Whether processors that add pairs of products in 16 bits can cut some of its sums off."""
        of_codes = self.quantized_by in {"Q/DQ", "integer"} and self.activation_bits <= INTEGER_BITS_MAX
        return of_codes and not self.container.startswith("U") and self.pair_max > PAIR_LIMIT

    @property
    def pattern(self) -> str:
        """The pattern that hardware for these bits reads, if the weights follow it."""
        readable = PAIRS if self.weight_bits <= 4 else TWO_FOUR
        return readable if readable in self.patterns else ""

    @property
    def true_bytes(self) -> float:
        """Bytes on a device that stores the weights at their real bits and knows their pattern (specs, section 3.2).

        Weights that are annotated as unstructured count as compressed sparse rows, where those are smaller.
        """
        kept_bits = self.weight_bits / 2
        if self.pattern:  # two bits of index for each kept weight, or for each kept pair
            return self.weights * (kept_bits + (0.5 if self.pattern == PAIRS else 1)) / 8
        dense = self.weights * self.weight_bits / 8
        if self.annotation is None or not self.annotation.sparsity.startswith(UNSTRUCTURED):
            return dense
        return min(dense, csr_bytes(self.outputs, self.reduction, self.weights - self.zeros, self.weight_bits))


@dataclass(frozen=True)
class BrokenPromise:
    """Something that a file says and does not keep."""

    layer: str
    promise: str
    found: str


@dataclass(frozen=True)
class FileFacts:
    """One ONNX file."""

    ir_version: int
    opsets: Mapping[str, int]
    """Domain to version; the standard operators are `ai.onnx`."""
    producer: str
    inputs: Mapping[str, str]
    """Name to type and shape: `float32 batch x 3 x 224 x 224`."""
    outputs: Mapping[str, str]
    metadata: Mapping[str, Any]
    """Model-level metadata without the annotations of layers; JSON values decoded."""
    operators: Mapping[str, int]
    """Operator type to count, the commonest first."""
    layers: tuple[Layer, ...]
    activation_products: tuple[str, ...]
    """Nodes that multiply two activations, both behind DequantizeLinear."""
    scale_bytes: int
    """Scales and zero points."""
    other_bytes: int
    """All other constants: biases, norms, embeddings, tables."""
    annotations: tuple[Annotation, ...]
    """All layers that the model-level metadata lists."""
    broken: tuple[BrokenPromise, ...]
    """What can be told from the file alone."""
