"""The model without weights: axis sizes, matmuls, bits, sparsity and token counts; `plan` computes with it.

The sketch of a graph and the estimate of a stage's result have the same type, so measured and estimated costs come
from one formula.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vitslim.graph.anatomy.branches import USED_ELSEWHERE
from vitslim.graph.sketch.matmul import SCORES, VALUES, Matmul
from vitslim.graph.sketch.operators import Operator
from vitslim.graph.sketch.size import Size
from vitslim.graph.sketch.token_matmuls import SqueezeSizes, TokenCut
from vitslim.results import Cost
from vitslim.sparsity import device_bytes, skips_multiplications
from vitslim.units import FLOAT_BITS, container_bits


class LayerBits(NamedTuple):
    """Quantization of the operands of a layer."""

    weight: int
    activation: int
    group_size: int = 0
    """Weights along the reduction that share a scale; 0: all weights of an output channel."""
    integer_scales: bool = False
    """Whether each group scale is an integer multiple of the scale of its output channel."""
    per_tensor: bool = False
    """Whether all weights share one scale."""
    float8: bool = False
    """Whether both operands are 8-bit floats."""


FLOAT_LAYER = LayerBits(FLOAT_BITS, FLOAT_BITS)

AttentionBits = tuple[int, int, int, int]
"""Bits of queries, keys, probabilities and values."""


@dataclass(frozen=True)
class SketchBranch:
    """One residual branch, in names."""

    name: str
    """`blocks.3.attn`."""
    block: str
    parameters: tuple[str, ...]
    """Names of the parameters that are removed with it."""
    obstacle: str = ""
    """Reason that it cannot be removed, as the end of a sentence; empty if it can be."""


@dataclass(frozen=True)
class SketchLinear:
    """One layer with a weight, as numbers."""

    weight: str
    rows: int
    in_features: int
    out_features: int
    role: str
    block: str
    convolution: bool
    reads_image: bool
    reads_pixels: bool
    constant: bool


@dataclass(frozen=True)
class ModelSketch:
    """Numbers and names only; every `with_...` method returns a new sketch."""

    axes: Mapping[str, int]
    """Axis name to length, frozen and prunable ones."""
    kinds: Mapping[str, str]
    frozen: Mapping[str, str]
    """Names of axes that cannot be cut, with the reason."""
    matmuls: tuple[Matmul, ...]
    parameters: Mapping[str, Size]
    """Parameter name to number of elements; quantizer scales are not model parameters."""
    blocks: tuple[str, ...]
    token_axes: Mapping[str, str]
    """Block name to the axis that counts tokens after the block's attention; blocks without a token axis are absent."""
    prefix_tokens: int
    has_class_token: bool = True
    squeeze_obstacle: str = ""
    """Reason that tokens cannot be squeezed in this model; empty if they can be."""
    squeezed: tuple[str, ...] = ()
    merged: Mapping[str, bool] = field(default_factory=dict)
    """Block whose tokens have sizes after it to whether later attentions weigh keys by them."""
    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    """Weight name to the quantization of its layer."""
    attention_bits: Mapping[str, AttentionBits] = field(default_factory=dict)
    """Block name to bits of the operands of its attention matmuls; absent blocks compute them in float."""
    sparsity: Mapping[str, str] = field(default_factory=dict)
    """Weight name to pattern."""
    data_dependent: bool = False
    """Whether lengths are estimates, because they depend on weights and data."""
    factors: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Axis name to the axes that form a dimension of some parameter together with it: cutting both compounds."""
    branches: tuple[SketchBranch, ...] = ()
    """Residual branches in graph order."""
    operators: tuple[Operator, ...] = ()
    """Operators other than matmuls that depend on the image; token squeezing leaves them unchanged."""

    @property
    def tokens(self) -> int:
        """Tokens after the last block's attention, prefix tokens included."""
        return self.axes[list(self.token_axes.values())[-1]] if self.token_axes else 0

    @property
    def linears(self) -> tuple[SketchLinear, ...]:
        """Every layer with a weight."""
        return tuple(
            SketchLinear(
                p.weight,
                p.rows.value(self.axes),
                p.reduce.value(self.axes),
                p.columns.value(self.axes),
                p.role,
                p.block,
                p.convolution,
                p.reads_image,
                p.reads_pixels,
                p.constant,
            )
            for p in self.matmuls
            if p.weight
        )

    def tokens_at(self, block: str) -> int:
        """Number of tokens after the attention of a block, prefix tokens included."""
        return self.axes[self.token_axes[block]]

    def with_sizes(self, sizes: Mapping[str, int]) -> ModelSketch:
        """Return the sketch with new lengths of some axes."""
        return replace(self, axes={**self.axes, **sizes})

    def as_approximate(self) -> ModelSketch:
        """Return the same sketch, marked as dependent on data."""
        return replace(self, data_dependent=True)

    def with_squeeze(self, cuts: Mapping[str, TokenCut]) -> ModelSketch:
        """Return the sketch with fewer tokens from some blocks on, given by block name."""
        sketch = self
        for block in (name for name in self.blocks if name in cuts):
            sketch = sketch._squeeze(block, cuts[block])
        return sketch

    def _squeeze(self, block: str, cut: TokenCut) -> ModelSketch:
        old, new, removed = self.token_axes[block], f"tokens.{block}", f"squeezed.{block}"
        axes = {**self.axes, new: self.prefix_tokens + cut.kept + cut.added,
                removed: self.axes[old] - self.prefix_tokens - cut.kept}  # fmt: skip
        own = [i for i, p in enumerate(self.matmuls) if p.block == block]
        here = own[0] if cut.at_input else max(i for i in own if self.matmuls[i].role in {"attention", "proj"}) + 1
        after = self.blocks[self.blocks.index(block) :]
        later = tuple(replace(p, count=p.count.rename(old, new), rows=p.rows.rename(old, new),
                              reduce=p.reduce.rename(old, new), columns=p.columns.rename(old, new))
                      for p in self.matmuls[here:])  # fmt: skip
        sizes = self._squeeze_sizes(block, Size.axis(old), Size.of(cut.kept), Size.axis(removed))
        extra = tuple(matmul for matmuls in cut.matmuls for matmul in matmuls(sizes))
        token_axes = {b: new if b in after and axis == old else axis for b, axis in self.token_axes.items()}
        return replace(self, axes=axes, matmuls=self.matmuls[:here] + extra + later, token_axes=token_axes,
                       squeezed=(*self.squeezed, block), parameters={**self.parameters, **cut.parameters},
                       merged=self.merged if cut.proportional is None else {**self.merged, block: cut.proportional},
                       branches=self.branches if cut.at_input else self._tied(block))  # fmt: skip

    def _tied(self, block: str) -> tuple[SketchBranch, ...]:
        """Return the branches after a block is squeezed: its attention scores the tokens and cannot be removed."""
        scoring = {name for p in self.matmuls if p.block == block and p.role == "attention" for name in p.branches}
        return tuple(
            replace(b, obstacle=b.obstacle or USED_ELSEWHERE) if b.name in scoring else b for b in self.branches
        )

    def _squeeze_sizes(self, block: str, tokens: Size, kept: Size, removed: Size) -> SqueezeSizes:
        scores = next(p for p in self.matmuls if p.block == block and p.role == "attention")
        width = next(p.columns for p in self.matmuls if p.block == block and p.role == "proj")
        return SqueezeSizes(block, scores.count, scores.reduce, width, tokens, kept, removed)

    def with_removed(self, names: Collection[str]) -> ModelSketch:
        """Return the sketch without some residual branches: without their matmuls, parameters and own axes."""
        gone = [branch for branch in self.branches if branch.name in names]
        stay = tuple(branch for branch in self.branches if branch.name not in names)
        dead = {name for branch in gone for name in branch.parameters}
        parameters = {name: size for name, size in self.parameters.items() if name not in dead}
        lost = {axis for name in dead & self.parameters.keys() for axis in self.parameters[name].axes()}
        lost -= {axis for size in parameters.values() for axis in size.axes()}
        matmuls = tuple(p for p in self.matmuls if not p.branches.intersection(names))
        empty = {branch.block for branch in gone} - {branch.block for branch in stay}
        attended = {matmul.block for matmul in matmuls if matmul.role == "attention"}
        return replace(
            self,
            axes={name: size for name, size in self.axes.items() if name not in lost},
            factors={name: others - lost for name, others in self.factors.items() if name not in lost},
            matmuls=matmuls,
            operators=tuple(o for o in self.operators if not o.branches.intersection(names)),
            parameters=parameters,
            blocks=tuple(name for name in self.blocks if name not in empty),
            token_axes={name: axis for name, axis in self.token_axes.items() if name in attended},
            branches=stay,
        )

    def with_bits(self, weights: Iterable[str], bits: LayerBits) -> ModelSketch:
        """Return the sketch with some layers quantized."""
        return replace(self, bits={**self.bits, **dict.fromkeys(weights, bits)})

    def with_attention_bits(self, bits: Mapping[str, AttentionBits]) -> ModelSketch:
        """Return the sketch with the attention of some blocks quantized, given by name."""
        return replace(self, attention_bits={**self.attention_bits, **bits})

    @property
    def blocks_with_attention(self) -> tuple[str, ...]:
        """Names of the blocks that have attention, in order."""
        attended = {matmul.block for matmul in self.matmuls if matmul.role == "attention"}
        return tuple(block for block in self.blocks if block in attended)

    def with_sparsity(self, weights: Iterable[str], pattern: str) -> ModelSketch:
        """Return the sketch with sparse weights in some layers."""
        return replace(self, sparsity={**self.sparsity, **dict.fromkeys(weights, pattern)})

    def cost(self) -> Cost:
        """Return parameters, MACs and BOPs for one image, stored bytes and bytes on a device."""
        return Cost(
            params=sum(size.value(self.axes) for size in self.parameters.values()),
            macs=sum(p.macs(self.axes) for p in self.matmuls),
            bops=sum(self._bops(p) for p in self.matmuls),
            weight_bytes=round(sum(self._parameter_bytes(name, dense=True) for name in self.parameters)),
            device_bytes=round(sum(self._parameter_bytes(name, dense=False) for name in self.parameters)),
        )

    def _bops(self, matmul: Matmul) -> int:
        bits = self.bits.get(matmul.weight, FLOAT_LAYER)
        if matmul.role == "attention" and matmul.block in self.attention_bits:
            query, key, probability, value = self.attention_bits[matmul.block]
            operands = {SCORES: LayerBits(query, key), VALUES: LayerBits(probability, value)}
            bits = operands.get(matmul.name.removeprefix(matmul.block), bits)
        bops = matmul.macs(self.axes) * bits.weight * bits.activation
        skips = skips_multiplications(self.sparsity.get(matmul.weight, ""), max(bits.weight, bits.activation))
        return bops // 2 if skips else bops

    def _parameter_bytes(self, name: str, dense: bool) -> float:
        count = self.parameters[name].value(self.axes)
        bits = container_bits(self.bits.get(name, FLOAT_LAYER).weight)
        pattern = self.sparsity.get(name)
        if dense or pattern is None:
            return count * bits / 8 + self._scale_bytes(name)
        rows = self._rows(name)
        return device_bytes(pattern, rows, count // rows, bits) + self._scale_bytes(name)

    def _scale_bytes(self, name: str) -> int:
        """Bytes of the scales of a quantized layer.

        One float32 scale for the activation, and one for the weight, for each of its output channels, or for each
        group; integer group scales take one float32 for each channel and four bits for each group.
        """
        if name not in self.bits:
            return 0
        bits = self.bits[name]
        if bits.per_tensor:
            return 8
        groups = self.parameters[name].value(self.axes) // bits.group_size if bits.group_size else 0
        if groups and not bits.integer_scales:
            return 4 * (groups + 1)
        return 4 * (self._rows(name) + 1) + groups // 2

    def _rows(self, name: str) -> int:
        """Output channels of a layer: the rows of its weight."""
        return next(p.columns.value(self.axes) for p in self.matmuls if p.weight == name)
