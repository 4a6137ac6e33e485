"""The tensors that NIPQ quantizes, and the costs of their bits, from the sketch of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from vitslim.graph.edits.fake_quant import activation_scale_name, layer_of, weight_scale_name
from vitslim.graph.edits.quantize_attention import OPERANDS, attention_scale_name
from vitslim.graph.edits.read_pixels import PIXEL_BITS
from vitslim.graph.sketch import LayerBits, ModelSketch
from vitslim.graph.sketch.matmul import SCORES, VALUES, Matmul
from vitslim.graph.sketch.model_sketch import AttentionBits
from vitslim.recipe.stages import Nipq
from vitslim.sparsity import PAIR_BITS, TWO_FOUR, skips_multiplications
from vitslim.stages.contract import GemmLatency, SizedGemm
from vitslim.stages.quantize.layers import FIRST_LAST_ROLES, sketched_layers
from vitslim.stages.quantize.nipq.costs import AverageBits, BitOperations, Cost, Gemms, Latency, StoredSize
from vitslim.units import FLOAT_BITS, INTEGER_BITS_MAX


@dataclass(frozen=True)
class QuantizedTensor:
    """One weight, or one activation that a matmul reads."""

    layer: str
    """`blocks.0.attn.qkv`, or `blocks.0.attention.query` for an operand of attention."""
    is_weight: bool
    elements: int
    """Of an activation for one image."""
    allowed: tuple[int, ...]
    """Widths to choose from, ascending."""
    low: float
    high: float
    """Range of the learned bits; equal for fixed bits."""


Tensors = Mapping[str, QuantizedTensor]
"""Quantized tensors by the names of their scales."""


def find_tensors(config: Nipq, sketch: ModelSketch) -> dict[str, QuantizedTensor]:
    """Return the tensors to quantize.

    The elements of the input of a convolution are those of its windows, which may overlap; `with_elements` corrects
    them. The image itself has no quantizer.
    """
    found: dict[str, QuantizedTensor] = {}
    for linear in sketched_layers(sketch, config.skip):
        fixed = config.first_last_bits if linear.role in FIRST_LAST_ROLES else None
        size, layer = linear.in_features * linear.out_features, layer_of(linear.weight)
        name = weight_scale_name(linear.weight)
        found[name] = _tensor(config, layer, True, size, config.bits if fixed is None else fixed)
        if not linear.reads_image:
            name, size = activation_scale_name(linear.weight), linear.rows * linear.in_features
            found[name] = _tensor(config, layer, False, size, config.activation_bits)
    for block in attention_blocks(config, sketch):
        for operand, size in _operand_elements(sketch, block).items():
            layer = f"{block}.attention.{operand}"
            tensor = _tensor(config, layer, False, size, config.activation_bits)
            found[attention_scale_name(block, operand)] = tensor
    return found


def attention_blocks(config: Nipq, sketch: ModelSketch) -> tuple[str, ...]:
    """Return the blocks whose attention matmuls are quantized."""
    names = {matmul.name for matmul in sketch.matmuls} if config.attention else set()
    return tuple(block for block in sketch.blocks if {block + SCORES, block + VALUES} <= names)


def with_elements(tensors: Tensors, elements: Mapping[str, int]) -> dict[str, QuantizedTensor]:
    """Return the tensors with other numbers of elements, given by name."""
    return {n: replace(one, elements=elements[n]) if n in elements else one for n, one in tensors.items()}


def _tensor(
    config: Nipq, layer: str, is_weight: bool, elements: int, bits: int | tuple[int, ...] | None
) -> QuantizedTensor:
    allowed = config.allowed(bits)
    return QuantizedTensor(layer, is_weight, elements, allowed, float(allowed[0]), float(allowed[-1]))


def _operand_elements(sketch: ModelSketch, block: str) -> dict[str, int]:
    """Return the elements of each operand of the attention of a block."""
    shapes = {p.name.removeprefix(block): p.shape(sketch.axes) for p in sketch.matmuls if p.block == block}
    elements: list[int] = []
    for suffix in (SCORES, VALUES):
        count, rows, reduce, columns = shapes[suffix]
        elements += [count * rows * reduce, count * reduce * columns]
    return dict(zip(OPERANDS, elements, strict=True))


def find_costs(
    config: Nipq, sketch: ModelSketch, tensors: Tensors, latency: GemmLatency | None = None
) -> tuple[Cost, ...]:
    """Return the costs that the target limits; empty without a target. latency: of the target's backend."""
    if config.target is None:
        return ()
    key, limit = config.target.limit
    match key:
        case "average_bits":
            learned = {True: config.learns_weights, False: config.learns_activations}
            return tuple(AverageBits(_elements(tensors, kind), limit) for kind, on in learned.items() if on)
        case "bops":
            return (BitOperations(_gemms(sketch, tensors), _macs(sketch), limit),)
        case "size_mb":
            return (StoredSize(_elements(tensors, True), _other_mb(config, sketch, tensors), limit),)
    if latency is None:
        raise ValueError("a latency target needs the latency of matmuls")
    return (Latency(_gemms(sketch, tensors), _latencies(sketch, latency), limit),)


def pairs(costs: Sequence[Cost]) -> list[tuple[int, ...]]:
    """Return the positions of tensors whose widths affect a cost only together: the operands of each matmul."""
    found = [cost.gemms for cost in costs if isinstance(cost, Latency)]
    return [
        (left, right)
        for gemms in found
        for left, right in zip(gemms.left.tolist(), gemms.right.tolist(), strict=True)
        if max(left, right) < gemms.tensors
    ]


def _elements(tensors: Tensors, weights: bool) -> torch.Tensor:
    sizes = [one.elements if one.is_weight == weights else 0 for one in tensors.values()]
    return torch.tensor(sizes, dtype=torch.float64)


def _gemms(sketch: ModelSketch, tensors: Tensors) -> Gemms:
    places = {name: place for place, name in enumerate(tensors)}
    floats, pixels = len(places), len(places) + 1
    operands = []
    for matmul in sketch.matmuls:
        left, right = _operands(matmul)
        reads_pixels = matmul.reads_pixels and right in places
        operands.append((places.get(left, pixels if reads_pixels else floats), places.get(right, floats)))
    left_places, right_places = zip(*operands, strict=True)
    return Gemms(torch.tensor(left_places), torch.tensor(right_places), len(places))


def _operands(matmul: Matmul) -> tuple[str, str]:
    """Return the names of the scales of both operands of a matmul; empty for one that is never quantized."""
    if matmul.weight:
        return activation_scale_name(matmul.weight), weight_scale_name(matmul.weight)
    suffix = matmul.name.removeprefix(matmul.block)
    if suffix not in {SCORES, VALUES}:
        return "", ""
    first, second = OPERANDS[:2] if suffix == SCORES else OPERANDS[2:]
    return attention_scale_name(matmul.block, first), attention_scale_name(matmul.block, second)


def _macs(sketch: ModelSketch) -> torch.Tensor:
    """Return the MACs of each matmul with narrow and with wide operands: float64 (2, m)."""
    rows = []
    for bits in (PAIR_BITS, FLOAT_BITS):
        skips = [skips_multiplications(sketch.sparsity.get(p.weight, ""), bits) for p in sketch.matmuls]
        rows.append([p.macs(sketch.axes) / (1 + skip) for p, skip in zip(sketch.matmuls, skips, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def _other_mb(config: Nipq, sketch: ModelSketch, tensors: Tensors) -> float:
    """Return the 10^6 bytes of all but the integers of weights."""
    whole = with_widths(config, sketch, dict.fromkeys(tensors, INTEGER_BITS_MAX))
    integers = sum(one.elements for one in tensors.values() if one.is_weight)
    return (whole.cost().weight_bytes - integers) / 1e6


def _latencies(sketch: ModelSketch, latency: GemmLatency) -> torch.Tensor:
    """Return the microseconds of each matmul with operands of 4, 8 and 16 bits: float64 (3, m)."""
    shapes = [(p.shape(sketch.axes), sketch.sparsity.get(p.weight, "") == TWO_FOUR) for p in sketch.matmuls]
    return torch.tensor(
        [latency([SizedGemm(shape, bits, sparse) for shape, sparse in shapes]) for bits in (4, 8, 16)],
        dtype=torch.float64,
    )


def with_widths(config: Nipq, sketch: ModelSketch, widths: Mapping[str, int]) -> ModelSketch:
    """Return the sketch with the bits that tensors have, given by the names of their scales."""
    for linear in sketched_layers(sketch, config.skip):
        pixels = PIXEL_BITS if linear.reads_pixels else FLOAT_BITS
        activation = pixels if linear.reads_image else widths[activation_scale_name(linear.weight)]
        bits = LayerBits(
            widths[weight_scale_name(linear.weight)], activation, per_tensor=config.granularity == "per-tensor"
        )
        sketch = sketch.with_bits({linear.weight}, bits)
    of_blocks = {block: operand_widths(block, widths) for block in attention_blocks(config, sketch)}
    return sketch.with_attention_bits(of_blocks)


def operand_widths(block: str, widths: Mapping[str, int]) -> AttentionBits:
    """Return the bits of the operands of the attention of a block; widths by the names of scales."""
    query, key, probability, value = (widths[attention_scale_name(block, operand)] for operand in OPERANDS)
    return query, key, probability, value
