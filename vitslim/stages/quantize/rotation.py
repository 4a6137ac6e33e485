"""Rotate residual streams: multiply the weights that write into a stream or read it by an orthogonal matrix.

A residual stream has few channels of large values. In a random orthogonal basis these spread over all channels, so
activations and weights have no outlier channels: QuaRot (Ashkboos et al., NeurIPS 2024), SpinQuant (Liu et al., ICLR
2025). LayerNorm is supported too: a rotation that keeps the vector of ones keeps means and variances, so it commutes
with every norm whose affine part is folded into the layers that read it. No operator is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from vitslim.graph.axes import AxisTable, Prim
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.axes.terms import prims
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of, tensors_of
from vitslim.stages.quantize.smoothing.channels import Smoothable, find_smoothable, is_used_once

aten = torch.ops.aten


class FixedAxisError(Exception):
    """The reason that an axis cannot be rotated."""


@dataclass(frozen=True)
class LayerScale:
    """Channel factors after a linear layer, which are folded into it."""

    factors: str
    weight: str
    bias: str
    """Empty if there is none."""


@dataclass(frozen=True)
class Stream:
    """An axis along which every operator is linear or a norm."""

    name: str
    places: tuple[tuple[str, int], ...]
    """Parameters and buffers, each with its dimension along the axis."""
    norms: tuple[Smoothable, ...]
    """Norms with an affine part, which is folded into the layers that read them."""
    scales: tuple[LayerScale, ...]


def find_streams(graph: ModelGraph) -> tuple[tuple[Stream, ...], dict[str, str]]:
    """Return the residual streams that can be rotated, and the reason for each other axis of a norm, by name."""
    norms = [node for node in graph.module.graph.nodes if has_trait(node, Trait.ROW_NORM)]
    axes = dict.fromkeys(term for node in norms if isinstance(term := graph.axes.terms(node)[-1], Prim))
    foldable = {place.weight: place for place in find_smoothable(graph)}
    streams, fixed = list[Stream](), dict[str, str]()
    for axis in axes:
        try:
            streams.append(_stream(graph, axis, foldable))
        except FixedAxisError as reason:
            fixed[graph.axes.name_of(axis)] = str(reason)
    return tuple(streams), fixed


def rotate(graph: ModelGraph, streams: tuple[Stream, ...], seed: int) -> ModelGraph:
    """Return a new graph that computes the same, with these streams in random orthogonal bases."""
    new, generator = graph.copy(), torch.Generator().manual_seed(seed)
    tensors = tensors_of(new.module)
    with torch.no_grad():
        for stream in streams:
            for norm in stream.norms:
                _fold_norm(tensors, norm)
            for scale in stream.scales:
                _fold_scale(tensors, scale)
            rotated = rotation(tensors[stream.places[0][0]].shape[stream.places[0][1]], generator)
            for name, dim in stream.places:
                tensors[name].copy_(torch.tensordot(tensors[name].double(), rotated, ([dim], [1])).movedim(-1, dim))
    return new


def rotation(width: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix that keeps the vector of ones: float64 (width, width)."""
    first = torch.randn(width, width, generator=generator, dtype=torch.float64)
    first[:, 0] = 1
    basis = torch.linalg.qr(first).Q  # its first vector is the one of ones, of length one
    inner = torch.eye(width, dtype=torch.float64)
    inner[1:, 1:] = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=generator, dtype=torch.float64)).Q
    rotated: Tensor = basis @ inner @ basis.T
    return rotated


def _stream(graph: ModelGraph, axis: Prim, foldable: Mapping[str, Smoothable]) -> Stream:
    """Return the stream of an axis. Raises FixedAxisError if an operator is not linear along it."""
    table = graph.axes
    for reason in table.reasons(axis):
        raise FixedAxisError(reason)
    norms, scales = list[Smoothable](), list[LayerScale]()
    calls = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    for node in (call for call in calls if _has_axis(table, call, axis)):
        if has_trait(node, Trait.ROW_NORM):
            norms += _norm(node, foldable)
        elif is_op(node, aten.mul.Tensor):
            scales.append(_layer_scale(graph, node, axis))
        elif not _is_linear(table, node, axis):
            raise FixedAxisError(f"passes through {node.target}")
    places = _places(graph, axis)
    if masked := [name for name, _ in places if name in graph.masks]:
        raise FixedAxisError(f"'{masked[0]}' has a mask of zeros")
    return Stream(table.name_of(axis), places, tuple(norms), tuple(scales))


def _has_axis(table: AxisTable, node: Node, axis: Prim) -> bool:
    """Return whether an input or the output of a node has the axis. Raises FixedAxisError if the axis shares a
    dimension there."""
    terms = [term for one in _tensors(table, node) for dims in table.all_terms(one) for term in dims]
    if any(term is not axis and axis in prims(term) for term in terms):
        raise FixedAxisError("is part of a larger dimension")
    return axis in terms


def _tensors(table: AxisTable, node: Node) -> list[Node]:
    """Return a node and its inputs, without sizes."""
    return [one for one in (node, *node.all_input_nodes) if one in table.shapes]


def _is_linear(table: AxisTable, node: Node, axis: Prim) -> bool:
    """Return whether rotating the inputs and the weight of a node rotates or keeps its output."""
    if is_op(node, aten.linear.default):
        return True
    if is_op(node, aten.conv2d.default):
        return int(argument(node, 6, "groups", 1)) == 1
    if has_trait(node, Trait.SQUEEZE, Trait.ANY_BASIS):  # tokens are as similar in any basis
        return axis in table.terms(argument(node, 0))
    kept = all(axis in table.terms(one) for one in _tensors(table, node))
    if is_op(node, aten.add.Tensor, aten.sub.Tensor):
        return kept and len(node.all_input_nodes) == len(node.args)
    return kept and (is_op(node, aten.cat.default) or has_trait(node, Trait.MOVES, Trait.COPIES))


def _norm(norm: Node, foldable: Mapping[str, Smoothable]) -> list[Smoothable]:
    """Return the affine part of a norm over the whole axis, if it has one."""
    if len(argument(norm, 1)) != 1:
        raise FixedAxisError("is one of several axes of a norm")
    weight = parameter_of(argument(norm, 2))
    bias = argument(norm, 3) if is_op(norm, aten.layer_norm.default) else None
    if not weight and bias is None:
        return []
    place = foldable.get(weight)
    if place is None or (bias is not None and not place.shifts):
        raise FixedAxisError(f"'{weight}' cannot be folded into the layers that read it")
    return [place]


def _layer_scale(graph: ModelGraph, product: Node, axis: Prim) -> LayerScale:
    """Return the channel factors of a multiplication that is the only reader of a linear layer."""
    first, second = argument(product, 0), argument(product, 1)
    layer, factors = (first, parameter_of(second)) if parameter_of(second) else (second, parameter_of(first))
    if is_op(layer, aten.linear.default) and len(layer.users) == 1 and graph.axes.attributes.get(factors) == (axis,):
        weight, bias = parameter_of(argument(layer, 1)), parameter_of(argument(layer, 2))
        names = [factors, weight, *([bias] if argument(layer, 2) is not None else [])]
        if all(name and is_used_once(graph.module, name) for name in names):
            return LayerScale(factors, weight, bias)
    raise FixedAxisError(f"passes through {product.target}")


def _places(graph: ModelGraph, axis: Prim) -> tuple[tuple[str, int], ...]:
    """Return every dimension along the axis; a tensor with two names is listed once."""
    tensors, seen, found = tensors_of(graph.module), set[int](), list[tuple[str, int]]()
    for name, dims in graph.axes.attributes.items():
        if axis in dims and id(tensors[name]) not in seen:
            seen.add(id(tensors[name]))
            found += [(name, dim) for dim, term in enumerate(dims) if term is axis]
    return tuple(found)


def _fold_norm(tensors: Mapping[str, Tensor], norm: Smoothable) -> None:
    """Fold the affine part of a norm into the layers that read it; unlike those of `smooth`, factors may be zero."""
    for position, name in enumerate(norm.readers):
        if norm.bias:
            tensors[norm.reader_biases[position]].add_(tensors[name] @ tensors[norm.bias])
        tensors[name].mul_(tensors[norm.weight])
    tensors[norm.weight].fill_(1)
    if norm.bias:
        tensors[norm.bias].zero_()


def _fold_scale(tensors: Mapping[str, Tensor], scale: LayerScale) -> None:
    factors = tensors[scale.factors]
    tensors[scale.weight].mul_(factors[:, None])
    if scale.bias:
        tensors[scale.bias].mul_(factors)
    factors.fill_(1)
