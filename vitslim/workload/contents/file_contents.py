"""Contents of an ONNX file as plain values: layers, annotations, sizes, and violations of its own claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitslim.sparsity import PAIR_BITS, PAIRS, TWO_FOUR, UNSTRUCTURED, csr_bytes, two_four_bits
from vitslim.units import INTEGER_BITS_MAX, PAIR_LIMIT

FLOAT8 = "FLOAT8"
"""Beginning of the names of ONNX types of 8-bit floats."""


@dataclass(frozen=True)
class Annotation:
    """Metadata of one layer, as the file states it; None and empty where it does not."""

    layer: str
    """Name of the weight."""
    weight_bits: int | None = None
    activation_bits: int | None = None
    sparsity: str = ""
    granularity: str = ""
    format: str = ""


@dataclass(frozen=True)
class Layer:
    """One matmul or convolution with a weight, described by the values that the file stores."""

    name: str
    """Module that it belongs to, such as `blocks.3.attn.qkv`; else the name of the weight or of the node."""
    node: str
    type: str
    """ONNX operator type, such as `MatMul`."""
    weight: str
    """Name of the initializer."""
    outputs: int
    reduction: int
    """Number of weights that are reduced into one output."""
    container: str
    """ONNX type of the initializer: `INT8`, `INT4`, `FLOAT16`, ..."""
    weight_bits: int
    """Annotated bits where the stored integers fit into them, else those of the container."""
    activation_bits: int
    """Bits of the input activation, fewer than its type where a Clip narrows it; 32 or 16 for a float input."""
    granularity: str
    """Of the weight scales: `tensor`, `channel`, `group 32`; empty when the file has no scales for the weight."""
    int_min: int | None
    """Smallest stored integer, less the zero point for signed types; None for a float weight."""
    int_max: int | None
    pair_sum_max: int
    """Largest sum of two integers of one sign that are adjacent along the reduction; 0 for a float weight."""
    zeros: int
    """Number of weights that are zero: integers equal to the zero point."""
    patterns: tuple[str, ...]
    """`2:4` and `2:4-pairs` where the stored values follow them along the reduction."""
    annotation: Annotation | None
    quantized_by: str
    """`Q/DQ` for a float operator that reads integers through DequantizeLinear, `integer` for an integer operator, `at
    load` for integers that are dequantized once when the model is loaded; empty for float weights."""
    stored_bytes: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * self.reduction

    @property
    def float8(self) -> bool:
        """Whether its weights are 8-bit floats."""
        return self.container.startswith(FLOAT8)

    @property
    def quantized(self) -> bool:
        """Whether its weights are integers or 8-bit floats."""
        return self.weight_bits <= INTEGER_BITS_MAX

    @property
    def may_saturate_int16(self) -> bool:
        """Whether its sums can saturate on processors that add pairs of INT8 multiplications in 16 bits."""
        is_integer = self.quantized_by in {"Q/DQ", "integer"} and self.activation_bits <= INTEGER_BITS_MAX
        return is_integer and not self.container.startswith(("U", FLOAT8)) and self.pair_sum_max > PAIR_LIMIT

    @property
    def pattern(self) -> str:
        """The pattern in which a device stores the weights: `2:4-pairs` up to four bits, or `2:4`; else empty."""
        if self.weight_bits <= PAIR_BITS and PAIRS in self.patterns:
            return PAIRS
        return TWO_FOUR if TWO_FOUR in self.patterns else ""

    @property
    def device_bytes(self) -> float:
        """Bytes on a device that stores weights at their effective bits and compresses 2:4 patterns.

        Weights annotated as unstructured count as compressed sparse rows, where those are smaller.
        """
        if self.pattern:
            return self.weights * two_four_bits(self.pattern, self.weight_bits) / 8
        dense = self.weights * self.weight_bits / 8
        if self.annotation is None or not self.annotation.sparsity.startswith(UNSTRUCTURED):
            return dense
        return min(dense, csr_bytes(self.outputs, self.reduction, self.weights - self.zeros, self.weight_bits))


@dataclass(frozen=True)
class Violation:
    """A claim of a file that its contents, or ONNX Runtime, contradict."""

    layer: str
    """Empty for a claim about the whole file."""
    claim: str
    """The expected property, such as `2:4 weights`."""
    found: str
    """The property found instead."""


@dataclass(frozen=True)
class FileContents:
    """Contents of one ONNX file."""

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
    """Operator type to count, most frequent first."""
    layers: tuple[Layer, ...]
    activation_matmuls: tuple[str, ...]
    """Names of the nodes that multiply two quantized activations, such as QK^T and PV."""
    scale_bytes: int
    """Scales and zero points."""
    other_bytes: int
    """All other constants: biases, norms, embeddings, tables."""
    annotations: tuple[Annotation, ...]
    """All layers that the model-level metadata lists."""
    violations: tuple[Violation, ...]
    """Those that the file alone shows, without running it."""
