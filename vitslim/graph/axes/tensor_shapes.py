"""Shapes of all tensors in a graph, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from vitslim.graph.axes.operators import Trait, operator_has
from vitslim.graph.nodes import tensors_of

BATCH = 10007
"""Batch size of the shapes: a large prime, so that no other size and no product of other sizes equals it."""

META = torch.device("meta")
"""Meta tensors have a shape and no values; much faster than fake tensors, which also track devices."""


def tensor_shapes(module: GraphModule, image: tuple[int, int, int]) -> dict[Node, Any]:
    """Return the shape of each node, or a list of shapes for several result tensors; the batch size is `BATCH`."""
    shapes: dict[Node, Any] = {}
    values: dict[Node, Any] = {}
    tensors = tensors_of(module)
    with torch.no_grad():
        for node in module.graph.nodes:
            values[node] = value = _value(node, tensors, image, values)
            if isinstance(value, torch.Tensor):
                shapes[node] = tuple(value.shape)
            elif isinstance(value, (tuple, list)) and node.op == "call_function":
                shapes[node] = [tuple(part.shape) if isinstance(part, torch.Tensor) else () for part in value]
    return shapes


def _value(
    node: Node, tensors: Mapping[str, torch.Tensor], image: tuple[int, int, int], values: Mapping[Node, Any]
) -> Any:
    """The result of a node on the meta device; None for the output."""
    match node.op:
        case "placeholder":
            return torch.empty(BATCH, *image, device=META)
        case "get_attr":
            found = tensors.get(str(node.target))
            return None if found is None else torch.empty(found.shape, dtype=found.dtype, device=META)
        case "call_function":
            args, kwargs = (map_arg(given, values.__getitem__) for given in (node.args, node.kwargs))
            return _called(node.target, args, kwargs)


def _called(target: Any, args: Any, kwargs: Any) -> Any:
    if (found := _known_shape(target, args)) is not None:
        return found
    placed = {name: META if isinstance(value, torch.device) else value for name, value in kwargs.items()}
    if "device" in placed or _makes_a_tensor(target):
        placed["device"] = META
    return target(*(META if isinstance(value, torch.device) else value for value in args), **placed)


def _known_shape(target: Any, args: Any) -> Any:
    if target in SHAPES:
        return SHAPES[target](*args)
    if operator_has(target, Trait.NORM):
        return args[0]
    return _same_as_first(*args) if operator_has(target, Trait.SAME_SHAPE) else None


def _same_as_first(x: torch.Tensor, *others: Any) -> torch.Tensor | None:
    same = all(o.shape == x.shape and o.dtype == x.dtype for o in others if isinstance(o, torch.Tensor))
    return x if same and x.is_floating_point() else None


def _linear(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor | None:
    return q.new_empty((*q.shape[:-1], v.shape[-1])) if q.shape[:-2] == k.shape[:-2] == v.shape[:-2] else None


def _lstm(x: torch.Tensor, hx: Any, params: Any, _biases: bool, *rest: Any) -> tuple[torch.Tensor, ...]:
    directions = 2 if rest[3] else 1
    return x.new_empty((*x.shape[:2], directions * params[1].shape[1])), *hx


def _resized(x: torch.Tensor, size: Any, _corners: bool, factors: Any = None) -> torch.Tensor:
    places = size or [int(length * factor) for length, factor in zip(x.shape[2:], factors, strict=True)]
    return x.new_empty((*x.shape[:2], *places))


aten = torch.ops.aten

SHAPES: dict[Any, Any] = {
    aten.linear.default: _linear,
    aten.scaled_dot_product_attention.default: _attention,
    aten.lstm.input: _lstm,
    aten.upsample_bilinear2d.vec: _resized,
}
"""Operators whose shape torch takes a millisecond to find, for an LSTM seconds. A result of None leaves it to torch."""


@cache
def _makes_a_tensor(target: Any) -> bool:
    """Whether an operator creates a tensor from numbers, on the CPU unless it gets a device."""
    arguments = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()
    takes_tensors = any("Tensor" in str(argument.type) for argument in arguments)
    return not takes_tensors and any(argument.name == "device" for argument in arguments)
