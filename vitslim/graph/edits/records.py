"""The closed union of edits. Each is plain data: replaying them on the source model gives the same graph again.

An edit names axes and parameters (`blocks.3.mlp`, `blocks.3.mlp.fc2.weight`), never nodes of the graph, so a newer
torch that names its nodes otherwise replays it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slice:
    """Keep these indices of each named axis, in this order (a permutation is a slice that keeps all)."""

    kept: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class InsertSqueeze:
    """Squeeze tokens inside these blocks, after the attention residual (eTPS)."""

    keep: dict[str, int]
    """Block name (`blocks.3`) to patch tokens kept there, class token excluded."""


@dataclass(frozen=True)
class RemoveBlock:
    """Remove whole blocks, or single residual branches; what stays keeps its name."""

    names: tuple[str, ...]
    """Blocks (`blocks.3`) or branches (`blocks.3.attn`)."""


@dataclass(frozen=True)
class Mask:
    """A fixed sparsity mask on these weights; the mask itself travels with the weights."""

    pattern: str
    """`2:4` or `unstructured:0.5`."""
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class ScaleInputs:
    """Inputs of these layers are multiplied channel by channel; the factors, and the weights that undo them, travel
    with the weights."""

    weights: tuple[str, ...]


@dataclass(frozen=True)
class DivideTokens:
    """Inputs of these layers are divided token by token by their largest magnitude, and outputs multiplied by it."""

    floors: dict[str, float]
    """Weight name to the least divisor."""


@dataclass(frozen=True)
class ReadPixels:
    """These layers read pixels in place of the normalized image; the constants that undo it travel with the weights."""

    weights: tuple[str, ...]


@dataclass(frozen=True)
class FakeQuantSite:
    """How the input activation and the weight of one linear or convolution are quantized.

    Scales and zero points are parameters and buffers of the graph and are saved with the weights.
    """

    weight: str
    """Parameter name of the weight, such as `blocks.0.mlp.fc1.weight`."""
    weight_bits: int
    activation_bits: int
    """`vitslim.units.FLOAT_BITS` for a float activation."""
    zero_point: int | None = None
    """Zero point of an unsigned activation; None for a signed one, whose zero point is 0."""
    dynamic: bool = False
    """Whether scale and zero point of the activation are computed from each batch; its integers are unsigned."""
    group_size: int = 0
    """Weights along the reduction that share a scale; 0: all weights of an output channel."""
    weight_zero_points: bool = False
    """Whether each weight group also has a zero point."""
    integer_scales: bool = False
    """Whether each group scale is an integer multiple of the scale of its output channel."""

    @property
    def matmul_form(self) -> tuple[int, int]:
        """Bits and group size of the weight in the matmul: integer group scales make it 8-bit and per-channel."""
        return (8, 0) if self.integer_scales else (self.weight_bits, self.group_size)


@dataclass(frozen=True)
class InsertFakeQuant:
    """Fake quantizers on the input and the weight of each site."""

    sites: tuple[FakeQuantSite, ...]


@dataclass(frozen=True)
class QuantizeAttention:
    """Fake quantizers on the operands of both attention products of these blocks. Scales travel with the weights."""

    blocks: tuple[str, ...]
    bits: int


Edit = (
    Slice | InsertSqueeze | RemoveBlock | Mask | ScaleInputs | DivideTokens | ReadPixels | InsertFakeQuant
    | QuantizeAttention
)  # fmt: skip
