"""Residual streams in another basis: every weight that writes into a stream, and every one that reads it, is turned.

A stream has few channels of large values, and channels that norms make large. In a random basis these are spread over
all: no channel of an input is far from the others, and no weight. As in QuaRot (Ashkboos et al., NeurIPS 2024) and
SpinQuant (Liu et al., ICLR 2025), for LayerNorm as well: a rotation that keeps the vector of ones keeps means and
variances, and so commutes with every norm whose affine part went into its readers. No operator is added.
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
from vitslim.graph.ops.squeeze import SQUEEZE_TOKENS
from vitslim.stages.quantize.smoothing.channels import Equalizable, find_equalizable, used_once

aten = torch.ops.aten


class FixedAxisError(Exception):
    """Why an axis cannot be turned."""


@dataclass(frozen=True)
class LayerScale:
    """Factors of channels behind a layer, which go into it."""

    factors: str
    weight: str
    bias: str
    """Empty where there is none."""


@dataclass(frozen=True)
class Stream:
    """An axis along which every operator is linear but norms, which a rotation that keeps the ones does not touch."""

    name: str
    places: tuple[tuple[str, int], ...]
    """Parameters and buffers, and their dimension along the axis."""
    norms: tuple[Equalizable, ...]
    """Those with an affine part, which goes into the layers behind."""
    scales: tuple[LayerScale, ...]


def find_streams(graph: ModelGraph) -> tuple[tuple[Stream, ...], dict[str, str]]:
    """The residual streams that can be turned, and of all other axes that norms go over what stands in the way, by
    name."""
    norms = [node for node in graph.module.graph.nodes if has_trait(node, Trait.ROW_NORM)]
    axes = dict.fromkeys(term for node in norms if isinstance(term := graph.axes.terms(node)[-1], Prim))
    foldable = {place.weight: place for place in find_equalizable(graph)}
    streams, fixed = list[Stream](), dict[str, str]()
    for axis in axes:
        try:
            streams.append(_stream(graph, axis, foldable))
        except FixedAxisError as reason:
            fixed[graph.axes.name_of(axis)] = str(reason)
    return tuple(streams), fixed


def rotate(graph: ModelGraph, streams: tuple[Stream, ...], seed: int) -> ModelGraph:
    """A new graph that computes the same, with these streams in random bases."""
    new, generator = graph.copy(), torch.Generator().manual_seed(seed)
    tensors = tensors_of(new.module)
    with torch.no_grad():
        for stream in streams:
            for norm in stream.norms:
                _fold_norm(tensors, norm)
            for scale in stream.scales:
                _fold_scale(tensors, scale)
            turned = rotation(tensors[stream.places[0][0]].shape[stream.places[0][1]], generator)
            for name, dim in stream.places:
                tensors[name].copy_(torch.tensordot(tensors[name].double(), turned, ([dim], [1])).movedim(-1, dim))
    return new


def rotation(width: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix that maps the vector of ones to itself: float64 (width, width)."""
    first = torch.randn(width, width, generator=generator, dtype=torch.float64)
    first[:, 0] = 1
    basis = torch.linalg.qr(first).Q  # its first vector is the one of ones, of length one
    inner = torch.eye(width, dtype=torch.float64)
    inner[1:, 1:] = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=generator, dtype=torch.float64)).Q
    turned: Tensor = basis @ inner @ basis.T
    return turned


def _stream(graph: ModelGraph, axis: Prim, foldable: Mapping[str, Equalizable]) -> Stream:
    """Raises FixedAxisError where something is not linear along the axis."""
    table = graph.axes
    for reason in table.reasons(axis):
        raise FixedAxisError(reason)
    norms, scales = list[Equalizable](), list[LayerScale]()
    calls = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    for node in (call for call in calls if _touches(table, call, axis)):
        if has_trait(node, Trait.ROW_NORM):
            norms += _norm(node, foldable)
        elif is_op(node, aten.mul.Tensor):
            scales.append(_layer_scale(graph, node, axis))
        elif not _is_linear(table, node, axis):
            raise FixedAxisError(f"passes {node.target}")
    places = _places(graph, axis)
    if masked := [name for name, _ in places if name in graph.masks]:
        raise FixedAxisError(f"'{masked[0]}' has a mask of zeros")
    return Stream(table.name_of(axis), places, tuple(norms), tuple(scales))


def _touches(table: AxisTable, node: Node, axis: Prim) -> bool:
    """Whether an axis is in what goes into a node or in what comes out. Raises FixedAxisError where it shares a
    dimension there."""
    terms = [term for one in _tensors(table, node) for dims in table.all_terms(one) for term in dims]
    if any(term is not axis and axis in prims(term) for term in terms):
        raise FixedAxisError("is part of a larger dimension")
    return axis in terms


def _tensors(table: AxisTable, node: Node) -> list[Node]:
    """What a node makes, and of what: without the sizes among its arguments."""
    return [one for one in (node, *node.all_input_nodes) if one in table.shapes]


def _is_linear(table: AxisTable, node: Node, axis: Prim) -> bool:
    """Whether turning what goes in, and the weight, turns what comes out or leaves it."""
    if is_op(node, aten.linear.default):
        return True
    if is_op(node, aten.conv2d.default):
        return int(argument(node, 6, "groups", 1)) == 1
    if is_op(node, SQUEEZE_TOKENS):  # tokens are as similar in any basis
        return axis in table.terms(argument(node, 0))
    kept = all(axis in table.terms(one) for one in _tensors(table, node))
    if is_op(node, aten.add.Tensor, aten.sub.Tensor):
        return kept and len(node.all_input_nodes) == len(node.args)
    return kept and (is_op(node, aten.cat.default) or has_trait(node, Trait.MOVES, Trait.COPIES))


def _norm(norm: Node, foldable: Mapping[str, Equalizable]) -> list[Equalizable]:
    """The affine part of a norm over the whole axis, if it has one."""
    if len(argument(norm, 1)) != 1:
        raise FixedAxisError("is one of several that a norm goes over")
    weight = parameter_of(argument(norm, 2))
    bias = argument(norm, 3) if is_op(norm, aten.layer_norm.default) else None
    if not weight and bias is None:
        return []
    place = foldable.get(weight)
    if place is None or (bias is not None and not place.shifts):
        raise FixedAxisError(f"'{weight}' does not fit into the layers behind it")
    return [place]


def _layer_scale(graph: ModelGraph, product: Node, axis: Prim) -> LayerScale:
    """Factors of channels that nothing else has, on what a layer gives to nothing else."""
    first, second = argument(product, 0), argument(product, 1)
    layer, factors = (first, parameter_of(second)) if parameter_of(second) else (second, parameter_of(first))
    if is_op(layer, aten.linear.default) and len(layer.users) == 1 and graph.axes.attributes.get(factors) == (axis,):
        weight, bias = parameter_of(argument(layer, 1)), parameter_of(argument(layer, 2))
        names = [factors, weight, *([bias] if argument(layer, 2) is not None else [])]
        if all(name and used_once(graph.module, name) for name in names):
            return LayerScale(factors, weight, bias)
    raise FixedAxisError(f"passes {product.target}")


def _places(graph: ModelGraph, axis: Prim) -> tuple[tuple[str, int], ...]:
    """Every dimension along the axis, of one tensor under two names once."""
    tensors, seen, found = tensors_of(graph.module), set[int](), list[tuple[str, int]]()
    for name, dims in graph.axes.attributes.items():
        if axis in dims and id(tensors[name]) not in seen:
            seen.add(id(tensors[name]))
            found += [(name, dim) for dim, term in enumerate(dims) if term is axis]
    return tuple(found)


def _fold_norm(tensors: Mapping[str, Tensor], norm: Equalizable) -> None:
    """As `equalize`, whose factors must be positive: those of a norm may be zero."""
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
