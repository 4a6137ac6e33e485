"""Inputs of layers whose channels share one centered range, without changing what the model computes.

Where a norm or the values of attention come before a linear layer, every channel can be shifted and scaled there and
the inverse folded into the weights behind: SmoothQuant (Xiao et al., ICML 2023) with the shifts of Outlier
Suppression+ (Wei et al., EMNLP 2023). No operator is added. Values may be shifted because the probabilities that
average them sum to one.
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
class Equalizable:
    """A place where channels can be shifted and scaled, and the layers that undo it."""

    weight: str
    """Of the norm, or of the layer that makes the values."""
    bias: str
    """Beside it; empty where there is none."""
    rows: slice
    """The channels among the rows of weight and bias."""
    readers: tuple[str, ...]
    """Weights of the linear layers behind."""
    reader_biases: tuple[str, ...]
    """Empty unless every reader has one: then the channels cannot be shifted."""

    @property
    def shifts(self) -> bool:
        """Whether channels can be shifted and not only scaled."""
        return bool(self.bias and self.reader_biases)


def find_equalizable(graph: ModelGraph) -> tuple[Equalizable, ...]:
    """All such places of a float graph, in its order; each layer is read at one place at most."""
    module, anatomy = graph.module, find_anatomy(graph)
    projections = {block.attention.node: block.attention for block in anatomy.blocks if block.attention is not None}
    found: list[Equalizable] = []
    for node in module.graph.nodes:
        if has_trait(node, Trait.ROW_NORM):
            found += _behind_norm(graph, node)
        elif node in projections:
            found += _behind_values(graph, projections[node])
    return tuple(found)


def equalize(graph: ModelGraph, changes: Mapping[str, tuple[Tensor, Tensor]]) -> ModelGraph:
    """A new graph that computes the same, in which layers read `(x - shift) / factor` in place of x.

    changes: weight name of the first reader of a place to shift and factor, float (in,) each; factors are positive, and
    shifts zero where a place has none. Places without a change stay as they are.
    """
    new = graph.copy()
    with torch.no_grad():
        for place in find_equalizable(new):
            if place.readers[0] in changes:
                _fold(new.module, place, *changes[place.readers[0]])
    return new


def equalizing(low: Tensor, high: Tensor, strength: float, shifts: bool) -> tuple[Tensor, Tensor]:
    """Shift and factor of every channel: `(x - shift) / factor` has the wanted range. All float (channels,).

    Channels that are constant keep a factor of 1, and so do all where more than half are.
    """
    shift = (low + high) / 2 if shifts else torch.zeros_like(low)
    reach = torch.maximum((high - shift).abs(), (low - shift).abs())
    median = reach.median()
    factor = torch.where(reach > 0, (reach / median) ** strength, 1.0) if median > 0 else torch.ones_like(reach)
    return shift, factor


def outlier_factors(low: Tensor, high: Tensor, strength: float) -> Tensor:
    """What channels of large values are multiplied by, at most 1, for inputs that no layer before can scale.

    low, high: the range of each channel, float (channels,). A channel of reach r above the median m gets
    (m / r) ** strength. Others stay: behind GELU the reach of many is that of its small negative values, which larger
    would widen the range of all.
    """
    reach = torch.maximum(high, -low)
    median = reach.median()
    return (median / reach.clamp(min=median)) ** strength if median > 0 else torch.ones_like(reach)


def _fold(module: GraphModule, place: Equalizable, shift: Tensor, factor: Tensor) -> None:
    weight = tensor_of(module, place.weight)[place.rows]
    weight.div_(factor.reshape(-1, *[1] * (weight.dim() - 1)))
    if place.bias:
        tensor_of(module, place.bias)[place.rows].sub_(shift).div_(factor)
    for position, name in enumerate(place.readers):
        reader = tensor_of(module, name)
        if place.shifts:
            tensor_of(module, place.reader_biases[position]).add_(reader @ shift)
        reader.mul_(factor)


def _behind_norm(graph: ModelGraph, norm: Node) -> Iterator[Equalizable]:
    weight, bias = parameter_of(argument(norm, 2)), ""
    if is_op(norm, aten.layer_norm.default):
        bias = parameter_of(argument(norm, 3))
    if weight and len(argument(norm, 1)) == 1:
        channels = graph.axes.terms(norm)[-1]
        readers = tuple(_readers(norm))
        if all(_reads(graph, reader, channels) for reader in readers):
            yield from _place(graph.module, weight, bias, slice(None), readers)


def _readers(node: Node) -> Iterator[Node]:
    """What uses the values of a node, however they are moved before."""
    for user in node.users:
        if has_trait(user, Trait.MOVES):
            yield from _readers(user)
        else:
            yield user


def _behind_values(graph: ModelGraph, attention: Attention) -> Iterator[Equalizable]:
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
        yield from _place(graph.module, weight, bias, rows, (reader,))


def _rows(graph: ModelGraph, weight: str, projection: str, channels: Term) -> slice | None:
    """The rows of one weight that list the same channels in the same order as the columns of the other.

    None too where the channels are not what attention leaves in its last dimension, but what it averages over.
    """
    table = graph.axes
    wanted = table.parameter_terms(projection)[1]
    if (wanted.factors[-1] if isinstance(wanted, Prod) else wanted) != channels:
        return None
    out = table.parameter_terms(weight)[0]
    start = 0
    for part in out.parts if isinstance(out, Sum) else (out,):
        if part == wanted:
            return slice(start, start + table.size(part))
        start += table.size(part)
    return None


def _reads(graph: ModelGraph, reader: Node, channels: Term) -> bool:
    """Whether a node is a linear layer whose inputs list these channels."""
    weight = parameter_of(argument(reader, 1)) if is_op(reader, aten.linear.default) else ""
    return bool(weight) and graph.axes.parameter_terms(weight)[1] == graph.axes.key(channels)


def _place(
    module: GraphModule, weight: str, bias: str, rows: slice, readers: tuple[Node, ...]
) -> Iterator[Equalizable]:
    """The place, unless one of its parameters is used elsewhere too."""
    names = tuple(parameter_of(argument(reader, 1)) for reader in readers)
    biases = tuple(parameter_of(argument(reader, 2)) for reader in readers)
    biases = biases if all(biases) else ()
    touched = [name for name in (weight, bias, *names, *biases) if name]
    if readers and len(set(touched)) == len(touched) and all(used_once(module, name) for name in touched):
        yield Equalizable(weight, bias, rows, names, biases)


def used_once(module: GraphModule, name: str) -> bool:
    nodes = [node for node in module.graph.nodes if node.op == "get_attr" and node.target == name]
    return len(nodes) == 1 and len(nodes[0].users) == 1
