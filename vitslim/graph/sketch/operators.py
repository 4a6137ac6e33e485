"""Operators other than matmuls, with the number of values that they compute, for latency models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import Node

from vitslim.graph.axes import AxisTable, Term
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.nodes import argument
from vitslim.graph.sketch.size import Size

OperatorKind = Literal["norm", "softmax", "activation", "combine", "layout", "input"]
OPERATOR_KINDS: tuple[OperatorKind, ...] = ("norm", "softmax", "activation", "combine", "layout", "input")
"""norm: normalizations; softmax: attention probabilities; activation: other operators of one tensor; combine: operators
of two tensors, such as residual additions; layout: transpositions and copies; input: input activations of layers, which
an INT8 model quantizes."""

aten = torch.ops.aten
LAYOUT = (aten.permute.default, aten.transpose.int, aten.cat.default, aten.clone.default, aten.contiguous.default)

Sizes = Callable[[tuple[Term, ...]], Size]
"""Product of the sizes of several dimensions, where the batch counts as one."""


@dataclass(frozen=True)
class Operator:
    """Values that one operator computes, for one image."""

    kind: OperatorKind
    elements: Size
    branches: frozenset[str] = frozenset()
    """Names of the residual branches around it."""


def operators_of(node: Node, table: AxisTable, sizes: Sizes) -> Iterator[tuple[OperatorKind, Size]]:
    """Yield kind and number of values of a node that depends on the image; nothing for views and sizes."""
    if has_trait(node, Trait.LAYER):
        yield "input", sizes(table.terms(argument(node, 0)))
    elif has_trait(node, Trait.ATTENTION):
        q, k, v = (table.terms(argument(node, i)) for i in range(3))
        yield "softmax", sizes(q[:-1]) * sizes(k[-2:-1])
        for operand in (q, k, v):
            yield "layout", sizes(operand)
    elif (kind := _kind(node)) is not None:
        yield kind, sizes(table.terms(node))


def _kind(node: Node) -> OperatorKind | None:
    if node.op != "call_function":
        return None
    if has_trait(node, Trait.NORM, Trait.ROW_NORM):
        return "norm"
    if has_trait(node, Trait.SOFTMAX):
        return "softmax"
    if node.target in LAYOUT:
        return "layout"
    if not _is_pointwise(node.target):
        return None
    return "combine" if len(node.all_input_nodes) > 1 else "activation"


def _is_pointwise(target: Any) -> bool:
    return torch.Tag.pointwise in getattr(target, "tags", ())
