"""Move the ranges of activation channels into the adjacent weights, without changing the outputs of the model.

A norm, or the layer that produces the values of attention, can shift and scale every channel; the linear layers that
read the activation undo it: SmoothQuant (Xiao et al., ICML 2023) with the shifts of Outlier Suppression+ (Wei et al.,
EMNLP 2023). No operator is added. Values of attention may be shifted because the probabilities sum to one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.graph.anatomy import Attention, find_anatomy
from vitslim.graph.axes import Prod, Sum, Term
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of, tensor_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Smoothable:
    """An activation whose channels the operator before it can shift and scale, and the layers that undo it."""

    weight: str
    """Weight of the norm, or of the layer that produces the values."""
    bias: str
    """Bias of the same operator; empty if there is none."""
    rows: slice
    """Rows of weight and bias that produce the channels."""
    readers: tuple[str, ...]
    """Weights of the linear layers that read the activation."""
    reader_biases: tuple[str, ...]
    """Biases of these layers; empty unless each layer has one."""

    @property
    def shifts(self) -> bool:
        """Whether channels can be shifted as well as scaled."""
        return bool(self.bias and self.reader_biases)


def find_smoothable(graph: ModelGraph) -> tuple[Smoothable, ...]:
    """Return all such activations of a float graph, in graph order; each layer reads at most one of them."""
    module, anatomy = graph.module, find_anatomy(graph)
    projections = {block.attention.node: block.attention for block in anatomy.blocks if block.attention is not None}
    found: list[Smoothable] = []
    for node in module.graph.nodes:
        if has_trait(node, Trait.ROW_NORM):
            found += _after_norm(graph, node)
        elif node in projections:
            found += _after_attention(graph, projections[node])
    return tuple(found)


def smooth(graph: ModelGraph, changes: Mapping[str, tuple[Tensor, Tensor]]) -> ModelGraph:
    """Return a new graph that computes the same, in which layers read `(x - shift) / factor` instead of x.

    changes: shift and factor, float (in,) each, by the weight of the first reader of an activation. Factors are
    positive; shifts are zero if the activation cannot be shifted. Other activations stay the same.
    """
    new = graph.copy()
    with torch.no_grad():
        for place in find_smoothable(new):
            if place.readers[0] in changes:
                _fold(new.module, place, *changes[place.readers[0]])
    return new


def smoothing_factors(low: Tensor, high: Tensor, strength: float, shifts: bool) -> tuple[Tensor, Tensor]:
    """Return shift and factor of every channel, float (channels,).

    With strength 1, all channels of `(x - shift) / factor` have the same range.

    low, high: range of each channel, float (channels,). Constant channels have a factor of 1; so have all channels if
    more than half are constant.
    """
    shift = (low + high) / 2 if shifts else torch.zeros_like(low)
    reach = torch.maximum((high - shift).abs(), (low - shift).abs())
    median = reach.median()
    factor = torch.where(reach > 0, (reach / median) ** strength, 1.0) if median > 0 else torch.ones_like(reach)
    return shift, factor


def outlier_factors(low: Tensor, high: Tensor, strength: float) -> Tensor:
    """Return factors of at most 1, float (channels,), for an activation that no earlier operator can scale.

    low, high: range of each channel, float (channels,). A channel of largest magnitude r above the median m has the
    factor (m / r) ** strength. Others have 1: raising channels that hold only the small negative values of GELU would
    widen the range of the activation.
    """
    reach = torch.maximum(high, -low)
    median = reach.median()
    return (median / reach.clamp(min=median)) ** strength if median > 0 else torch.ones_like(reach)


def _fold(module: GraphModule, place: Smoothable, shift: Tensor, factor: Tensor) -> None:
    weight = tensor_of(module, place.weight)[place.rows]
    weight.div_(factor.reshape(-1, *[1] * (weight.dim() - 1)))
    if place.bias:
        tensor_of(module, place.bias)[place.rows].sub_(shift).div_(factor)
    for position, name in enumerate(place.readers):
        reader = tensor_of(module, name)
        if place.shifts:
            tensor_of(module, place.reader_biases[position]).add_(reader @ shift)
        reader.mul_(factor)


def _after_norm(graph: ModelGraph, norm: Node) -> Iterator[Smoothable]:
    weight, bias = parameter_of(argument(norm, 2)), ""
    if is_op(norm, aten.layer_norm.default):
        bias = parameter_of(argument(norm, 3))
    if weight and len(argument(norm, 1)) == 1:
        channels = graph.axes.terms(norm)[-1]
        readers = tuple(_readers(norm))
        if all(_reads(graph, reader, channels) for reader in readers):
            yield from _smoothable(graph.module, weight, bias, slice(None), readers)


def _readers(node: Node) -> Iterator[Node]:
    """Yield the nodes that use the values of a node, possibly moved in between."""
    for user in node.users:
        if has_trait(user, Trait.MOVES):
            yield from _readers(user)
        else:
            yield user


def _after_attention(graph: ModelGraph, attention: Attention) -> Iterator[Smoothable]:
    node = attention.node
    if not has_trait(node, Trait.ATTENTION) and not has_trait(argument(node, 0), Trait.SOFTMAX):
        return
    reader = node
    while len(reader.users) == 1 and (reader is node or has_trait(reader, Trait.MOVES)):
        reader = next(iter(reader.users))
    source = attention.v
    while has_trait(source, Trait.MOVES) and len(source.users) == 1:
        source = argument(source, 0)
    if is_op(source, operator.getitem) and len(source.users) == 1:
        source = argument(source, 0)
        source = argument(source, 0) if is_op(source, aten.split_with_sizes.default) else source
    if not is_op(source, aten.linear.default) or not is_op(reader, aten.linear.default):
        return
    weight, bias, projection = (
        parameter_of(argument(source, 1)), parameter_of(argument(source, 2)), parameter_of(argument(reader, 1)),
    )  # fmt: skip
    if not weight or not projection or (argument(source, 2) is not None and not bias):
        return
    rows = _rows(graph, weight, projection, graph.axes.terms(node)[-1])
    if rows is not None:
        yield from _smoothable(graph.module, weight, bias, rows, (reader,))


def _rows(graph: ModelGraph, weight: str, projection: str, channels: Term) -> slice | None:
    """Return the rows of one weight that list the same channels in the same order as the columns of the other.

    None if there are no such rows, or if the channels are a dimension that attention averages over.
    """
    table = graph.axes
    columns = table.parameter_terms(projection)[1]
    if (columns.factors[-1] if isinstance(columns, Prod) else columns) != channels:
        return None
    out = table.parameter_terms(weight)[0]
    start = 0
    for part in out.parts if isinstance(out, Sum) else (out,):
        if part == columns:
            return slice(start, start + table.size(part))
        start += table.size(part)
    return None


def _reads(graph: ModelGraph, reader: Node, channels: Term) -> bool:
    """Return whether a node is a linear layer whose input has these channels."""
    weight = parameter_of(argument(reader, 1)) if is_op(reader, aten.linear.default) else ""
    return bool(weight) and graph.axes.parameter_terms(weight)[1] == graph.axes.key(channels)


def _smoothable(
    module: GraphModule, weight: str, bias: str, rows: slice, readers: tuple[Node, ...]
) -> Iterator[Smoothable]:
    """Yield the activation, unless one of its parameters has other uses."""
    names = tuple(parameter_of(argument(reader, 1)) for reader in readers)
    biases = tuple(parameter_of(argument(reader, 2)) for reader in readers)
    biases = biases if all(biases) else ()
    touched = [name for name in (weight, bias, *names, *biases) if name]
    if readers and len(set(touched)) == len(touched) and all(is_used_once(module, name) for name in touched):
        yield Smoothable(weight, bias, rows, names, biases)


def is_used_once(module: GraphModule, name: str) -> bool:
    """Return whether a parameter has exactly one use."""
    nodes = [node for node in module.graph.nodes if node.op == "get_attr" and node.target == name]
    return len(nodes) == 1 and len(nodes[0].users) == 1
