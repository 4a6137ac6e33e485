"""Fake quantizers on the operands of both attention matmuls: queries, keys, probabilities and values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.decompose import decompose_attention
from vitslim.graph.edits.edit import Edit
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.ops.fake_quant import FAKE_QUANT, QUANTIZER_PREFIX, activation_range

OPERANDS = ("query", "key", "probability", "value")
"""Operands of the attention matmuls: of QK^T, then of PV."""


@dataclass(frozen=True)
class AttentionSite:
    """Quantization of the operands of both attention matmuls of one block."""

    block: str
    bits: tuple[int, int, int, int]
    """Of each of `OPERANDS`."""
    narrow: bool = False
    """Whether the integers of signed operands are symmetric about zero."""

    @classmethod
    def uniform(cls, block: str, bits: int) -> AttentionSite:
        """Return a site with the same bits for all operands."""
        return cls(block, (bits, bits, bits, bits))

    def bits_of(self, operand: str) -> int:
        """Return the bits of one of `OPERANDS`."""
        return self.bits[OPERANDS.index(operand)]


@dataclass(frozen=True)
class QuantizeAttention(Edit):
    """Fake quantizers on the operands of both attention matmuls of some blocks."""

    sites: tuple[AttentionSite, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks."""
        return tuple(site.block for site in self.sites)

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert quantizers with scales of one; their values are loaded with the weights."""
        return quantize_attention(graph, self.sites)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> QuantizeAttention:
        """Rebuild the edit."""
        sites = (AttentionSite(one["block"], tuple(one["bits"]), bool(one["narrow"])) for one in fields["sites"])
        return cls(tuple(sites))


def attention_sites(graph: ModelGraph) -> dict[str, AttentionSite]:
    """Return the quantization of each block whose attention is quantized, by name."""
    return {site.block: site for e in graph.edits if isinstance(e, QuantizeAttention) for site in e.sites}


class Operand(NamedTuple):
    """One quantized operand of an attention matmul."""

    block: str
    name: str
    """One of `OPERANDS`."""
    matmul: Node
    place: int
    """Position of the operand among the arguments of the matmul."""
    zero_point: int | None
    """None for signed integers; 0 for probabilities, which are unsigned."""

    @property
    def value(self) -> Node:
        """The tensor; queries are scaled already, and keys are transposed."""
        found: Node = argument(self.matmul, self.place)
        return found


def attention_blocks(graph: ModelGraph) -> tuple[str, ...]:
    """Names of the blocks whose attention can be quantized, in graph order."""
    return tuple(block.name for block in find_anatomy(graph).blocks if block.attention is not None)


def attention_scale_name(block: str, operand: str) -> str:
    """Name of the parameter of shape () that scales an operand: `vitslim.q.blocks.0.attention.query_scale`."""
    return f"{QUANTIZER_PREFIX}{block}.attention.{operand}_scale"


def decomposed(graph: ModelGraph, blocks: Collection[str]) -> ModelGraph:
    """Return a new graph in which the attention of these blocks is two matmuls with a softmax between them."""
    new = graph.copy()
    attentions = [block.attention for block in find_anatomy(new).blocks if block.attention and block.name in blocks]
    decompose_attention(new, {one.node for one in attentions if has_trait(one.node, Trait.ATTENTION)})
    new.module.graph.eliminate_dead_code()
    new.module.recompile()
    return new


def operands(graph: ModelGraph, blocks: Collection[str]) -> dict[str, Operand]:
    """Return the operands of the attention matmuls of a decomposed graph, by the names of their scales."""
    found: dict[str, Operand] = {}
    for block in find_anatomy(graph).blocks:
        if block.attention is not None and block.name in blocks:
            matmuls = (block.attention.scores, block.attention.node)
            for index, operand in enumerate(OPERANDS):
                zero_point = 0 if operand == "probability" else None
                one = Operand(block.name, operand, matmuls[index // 2], index % 2, zero_point)
                found[attention_scale_name(block.name, operand)] = one
    return found


def quantize_attention(
    graph: ModelGraph, sites: Sequence[AttentionSite], scales: Mapping[str, Tensor] | None = None
) -> ModelGraph:
    """Return a new graph in which the operands of the attention matmuls of some blocks are quantized.

    Queries, keys and values are signed, probabilities unsigned; all zero points are 0. scales: by
    `attention_scale_name`, shape () each; missing scales are one, to be loaded later.
    """
    by_block = {site.block: site for site in sites}
    new = decomposed(graph, by_block)
    for name, operand in operands(new, by_block).items():
        owner, _, leaf = name.rpartition(".")
        if owner not in dict(new.module.named_modules()):
            new.module.add_submodule(owner, nn.Module())
        value = (scales or {}).get(name, torch.ones(())).detach().clone()
        new.module.get_submodule(owner).register_parameter(leaf, nn.Parameter(value))
        site = by_block[operand.block]
        limits = activation_range(site.bits_of(operand.name), operand.zero_point, site.narrow)
        with new.module.graph.inserting_before(operand.matmul):
            scale = new.module.graph.get_attr(name)
            quantized = new.module.graph.call_function(FAKE_QUANT, (operand.value, scale, 0, None, *limits, 0))
        operand.matmul.update_arg(operand.place, quantized)
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, QuantizeAttention(tuple(sites)))
    return new
