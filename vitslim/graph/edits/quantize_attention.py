"""Fake quantizers on the operands of both products of attention: queries, keys, probabilities and values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.attention import SDPA
from vitslim.graph.decompose import decompose_attention
from vitslim.graph.edits.records import QuantizeAttention
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op
from vitslim.graph.ops.fake_quant import FAKE_QUANT, QUANTIZER_PREFIX, activation_range


class Operand(NamedTuple):
    """What is quantized: one operand of a product."""

    product: Node
    place: int
    zero_point: int | None
    """None for signed codes; probabilities are not negative."""

    @property
    def value(self) -> Node:
        """The tensor itself; queries are scaled already, keys are transposed."""
        found: Node = argument(self.product, self.place)
        return found


def attention_blocks(graph: ModelGraph) -> tuple[str, ...]:
    """Names of the blocks whose attention can be quantized, in graph order."""
    return tuple(block.name for block in find_anatomy(graph).blocks if block.attention is not None)


def attention_scale_name(block: str, operand: str) -> str:
    """Name of the parameter of shape () that scales an operand: `vitslim.q.blocks.0.attention.query_scale`."""
    return f"{QUANTIZER_PREFIX}{block}.attention.{operand}_scale"


def decomposed(graph: ModelGraph, blocks: Collection[str]) -> ModelGraph:
    """A new graph in which the attention of these blocks is two products with a softmax between them."""
    new = graph.copy()
    attentions = [block.attention for block in find_anatomy(new).blocks if block.attention and block.name in blocks]
    decompose_attention(new, {one.node for one in attentions if is_op(one.node, SDPA)})
    new.module.graph.eliminate_dead_code()
    new.module.recompile()
    return new


def operands(graph: ModelGraph, blocks: Collection[str]) -> dict[str, Operand]:
    """The operands of a decomposed graph, by the names of their scales."""
    found: dict[str, Operand] = {}
    for block in find_anatomy(graph).blocks:
        if block.attention is not None and block.name in blocks:
            scores, product = block.attention.scores, block.attention.node
            found |= {
                attention_scale_name(block.name, "query"): Operand(scores, 0, None),
                attention_scale_name(block.name, "key"): Operand(scores, 1, None),
                attention_scale_name(block.name, "probability"): Operand(product, 0, 0),
                attention_scale_name(block.name, "value"): Operand(product, 1, None),
            }
    return found


def quantize_attention(
    graph: ModelGraph, blocks: Collection[str], bits: int, scales: Mapping[str, Tensor] | None = None
) -> ModelGraph:
    """A new graph whose attention products, in these blocks, are of codes.

    Queries, keys and values have signed codes about zero, probabilities unsigned ones from zero on: none has a zero
    point. scales: by `attention_scale_name`, each (); missing ones start at one, to be loaded later.
    """
    new = decomposed(graph, blocks)
    for name, operand in operands(new, blocks).items():
        owner, _, leaf = name.rpartition(".")
        if owner not in dict(new.module.named_modules()):
            new.module.add_submodule(owner, nn.Module())
        scale = (scales or {}).get(name, torch.ones(())).detach().clone()
        new.module.get_submodule(owner).register_parameter(leaf, nn.Parameter(scale))
        limits = activation_range(bits, operand.zero_point)
        with new.module.graph.inserting_before(operand.product):
            step = new.module.graph.get_attr(name)
            codes = new.module.graph.call_function(FAKE_QUANT, (operand.value, step, 0, None, *limits, 0))
        operand.product.update_arg(operand.place, codes)
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, QuantizeAttention(tuple(blocks), bits))
    return new
