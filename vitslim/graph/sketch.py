"""The model without weights: axis sizes, matrix products, bits, sparsity and token counts. What `plan` computes with.

A sketch of a graph and the sketch of what a stage will make of it are the same type, so the cost of a model that
exists and the estimate of one that does not come from one formula (specs, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from vitslim.graph.size import ONE, Size
from vitslim.results import Cost
from vitslim.units import FLOAT_BITS

SPARSE_BITS = {("2:4", 8): 5.0, ("2:4", 16): 9.0, ("2:4", 32): 17.0}
"""Bits an original weight takes on a device that stores 2:4 weights with 2-bit indices (specs, section 3.2)."""


@dataclass(frozen=True)
class Product:
    """One matrix product: `count` times (rows x reduce) by (reduce x columns), for one image."""

    name: str
    count: Size
    rows: Size
    reduce: Size
    columns: Size
    weight: str = ""
    """Name of the weight; empty for a product of two activations."""
    block: str = ""
    role: str = "other"
    """qkv, proj, fc1, fc2, head, patch_embed, attention, squeeze or other."""

    def macs(self, sizes: Mapping[str, int]) -> int:
        """Multiply-accumulates for one image."""
        return (self.count * self.rows * self.reduce * self.columns).value(sizes)


@dataclass(frozen=True)
class SketchLinear:
    """One layer with a weight, as numbers."""

    weight: str
    rows: int
    in_features: int
    out_features: int
    role: str
    block: str


@dataclass(frozen=True)
class ModelSketch:
    """Numbers and names only; every `with_...` gives a new sketch."""

    axes: Mapping[str, int]
    """Axis name to length, frozen and prunable ones."""
    kinds: Mapping[str, str]
    frozen: Mapping[str, str]
    """Names of axes that cannot be cut, with the reason."""
    products: tuple[Product, ...]
    parameters: Mapping[str, Size]
    """Parameter name to number of elements; quantiser scales are not model parameters."""
    blocks: tuple[str, ...]
    token_axes: Mapping[str, str]
    """Block name to the axis that counts tokens after the block's attention; empty where there is no token axis."""
    prefix_tokens: int
    squeeze_obstacle: str = ""
    """Why tokens cannot be squeezed in this model; empty when they can."""
    squeezed: tuple[str, ...] = ()
    bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Weight name to (weight bits, input bits)."""
    sparsity: Mapping[str, str] = field(default_factory=dict)
    """Weight name to pattern."""

    @property
    def tokens(self) -> int:
        """Tokens after the last block's attention, prefix tokens included."""
        return self.axes[self.token_axes[self.blocks[-1]]] if self.token_axes else 0

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
            )
            for p in self.products
            if p.weight
        )

    def tokens_at(self, block: str) -> int:
        """Tokens, prefix included, that come out of the attention of a block."""
        return self.axes[self.token_axes[block]]

    def with_sizes(self, sizes: Mapping[str, int]) -> ModelSketch:
        """Some axes have other lengths."""
        return replace(self, axes={**self.axes, **sizes})

    def with_squeeze(self, keep: Mapping[str, int]) -> ModelSketch:
        """Tokens are squeezed after the attention of some blocks, `keep` patch tokens staying in each."""
        sketch = self
        for block in (name for name in self.blocks if name in keep):
            sketch = sketch._squeeze(block, keep[block])
        return sketch

    def _squeeze(self, block: str, keep: int) -> ModelSketch:
        old, new, gone = self.token_axes[block], f"tokens.{block}", f"squeezed.{block}"
        axes = {**self.axes, new: keep + self.prefix_tokens, gone: self.axes[old] - self.prefix_tokens - keep}
        here = max(i for i, p in enumerate(self.products) if p.block == block and p.role in {"attention", "proj"}) + 1
        after = self.blocks[self.blocks.index(block) :]
        later = tuple(replace(p, count=p.count.rename(old, new), rows=p.rows.rename(old, new),
                              reduce=p.reduce.rename(old, new), columns=p.columns.rename(old, new))
                      for p in self.products[here:])  # fmt: skip
        extra = self._squeeze_products(block, old, gone, keep)
        token_axes = {b: new if b in after and axis == old else axis for b, axis in self.token_axes.items()}
        return replace(self, axes=axes, products=self.products[:here] + extra + later, token_axes=token_axes,
                       squeezed=(*self.squeezed, block))  # fmt: skip

    def _squeeze_products(self, block: str, old: str, gone: str, keep: int) -> tuple[Product, ...]:
        """Class attention, similarity of squeezed to kept tokens, and the fusion that adds them (TPS, section 2.4)."""
        scores = next(p for p in self.products if p.block == block and p.role == "attention")
        width = next(p.columns for p in self.products if p.block == block and p.role == "proj")
        kept = Size.of(keep)
        make = {"block": block, "role": "squeeze"}
        return (
            Product(f"{block}.class_attention", scores.count, ONE, scores.reduce, Size.axis(old), **make),
            Product(f"{block}.similarity", ONE, Size.axis(gone), width, kept, **make),
            Product(f"{block}.fusion", ONE, kept, Size.axis(gone), width, **make),
        )

    def with_bits(self, weights: Iterable[str], weight_bits: int, input_bits: int) -> ModelSketch:
        """Some layers are quantised."""
        return replace(self, bits={**self.bits, **dict.fromkeys(weights, (weight_bits, input_bits))})

    def with_sparsity(self, weights: Iterable[str], pattern: str) -> ModelSketch:
        """Some layers have semi-structured sparse weights."""
        return replace(self, sparsity={**self.sparsity, **dict.fromkeys(weights, pattern)})

    def cost(self) -> Cost:
        """Parameters, MACs and BOPs for one image, bytes stored and bytes on a device."""
        return Cost(
            params=sum(size.value(self.axes) for size in self.parameters.values()),
            macs=sum(p.macs(self.axes) for p in self.products),
            bops=sum(self._bops(p) for p in self.products),
            weight_bytes=round(sum(self._parameter_bytes(name, dense=True) for name in self.parameters)),
            device_bytes=round(sum(self._parameter_bytes(name, dense=False) for name in self.parameters)),
        )

    def _bops(self, product: Product) -> int:
        weight_bits, input_bits = self.bits.get(product.weight, (FLOAT_BITS, FLOAT_BITS))
        bops = product.macs(self.axes) * weight_bits * input_bits
        return bops // 2 if product.weight in self.sparsity else bops

    def _parameter_bytes(self, name: str, dense: bool) -> float:
        count = self.parameters[name].value(self.axes)
        bits, _ = self.bits.get(name, (FLOAT_BITS, FLOAT_BITS))
        pattern = self.sparsity.get(name)
        per_weight = float(bits) if dense or pattern is None else SPARSE_BITS[pattern, bits]
        return count * per_weight / 8 + self._scale_bytes(name)

    def _scale_bytes(self, name: str) -> int:
        """One float scale an output channel and one for the input of a quantised layer."""
        if name not in self.bits:
            return 0
        columns = next(p.columns.value(self.axes) for p in self.products if p.weight == name)
        return 4 * (columns + 1)
