"""The quantization of a model as plain data, which every quantization method makes and shared code reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import layer_of
from vitslim.graph.edits.quantize_attention import OPERANDS, AttentionSite
from vitslim.recipe.stages import OwnBits, Quantize
from vitslim.units import PAIR_LIMIT

FULL_RANGE_SUM = 254
"""Largest sum of two 8-bit weights."""


@dataclass(frozen=True)
class QuantScheme:
    """Quantization of weights and activations. Fields without a counterpart in a config keep the values below."""

    format: str = "integer"
    """`integer`, or `fp8`: 8-bit floats (E4M3)."""
    bits: int = 8
    """Bits of weights."""
    activation_bits: int = 8
    first_last_bits: int | None = None
    """Bits of the weights of the patch embedding and the head; None: `bits`."""
    group_size: int = 0
    """Weights along the reduction that share a scale; 0: all weights of an output channel."""
    zero_points: bool = False
    """Whether each weight group also has a zero point."""
    average_bits: float | None = None
    """Upper limit of the average bits of all weights; None: no weight gets more than `bits`."""
    skip: tuple[str, ...] = ()
    """Layers that stay in float."""
    activations: str = "static"
    """`static`, `dynamic` or `float`."""
    symmetric: bool = False
    """Whether activations have no zero point."""
    attention: bool = False
    """Whether both attention matmuls are quantized."""
    reduce_range: bool = True
    """Whether sums of two adjacent products stay within 16 bits."""
    calibrate: str = "minmax"
    """`minmax` or `mse`."""
    smooth: bool = False
    rotate: bool = False
    activation_scaling: str = "none"
    """`per-channel`, `per-token` or `none`."""
    rounding: str = "nearest"
    """`nearest` or `gptq`."""
    bias_correction: bool = False
    layer_bits: Mapping[str, OwnBits] = field(default_factory=dict)
    """Bits of single layers and operands of attention, by name."""
    sites: tuple[FakeQuantSite, ...] = ()
    """Quantization of each layer; empty until the quantizers are placed."""

    @classmethod
    def of(cls, config: Quantize) -> QuantScheme:
        """Return the scheme of a config; `reduce_range: auto`, which a run resolves, is on here."""
        keys = type(config).model_fields
        values: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(cls) if f.name in keys}
        return cls(**values | {"reduce_range": config.reduce_range is not False})

    def own_weight_bits(self, weight: str) -> int | None:
        """Bits of a weight that has its own; None for all others."""
        found = self.layer_bits.get(layer_of(weight))
        return found.weight if found else None

    def bits_of_activation(self, layer: str) -> int:
        """Bits of the input activation of a layer (a name or its weight), or of an operand of attention."""
        found = self.layer_bits.get(layer_of(layer))
        return self.activation_bits if found is None or found.activation is None else found.activation

    def attention_site(self, block: str) -> AttentionSite:
        """Return the quantization of the attention of a block."""
        query, key, probability, value = (self.bits_of_activation(f"{block}.attention.{name}") for name in OPERANDS)
        return AttentionSite(block, (query, key, probability, value))

    @property
    def float8(self) -> bool:
        """Whether weights and activations are 8-bit floats."""
        return self.format == "fp8"

    @property
    def integer_matmuls(self) -> bool:
        """Whether layers multiply quantized activations."""
        return self.activations != "float"

    @property
    def limits_sums(self) -> bool:
        """Whether weights keep sums of two adjacent products within 16 bits."""
        return self.reduce_range and self.integer_matmuls and not self.float8

    @property
    def adjacent_sum_max(self) -> int:
        """Largest allowed sum of two adjacent 8-bit weights of one sign."""
        return PAIR_LIMIT if self.limits_sums else FULL_RANGE_SUM
