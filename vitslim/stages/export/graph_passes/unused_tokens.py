"""Remove computation of unused tokens. After the last attention block of most models only the class token is used.

The logits stay the same, except that a dynamic quantizer takes its range from the tokens that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.axes.tensor_shapes import BATCH, tensor_shapes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op

aten = torch.ops.aten
Shape = tuple[int, ...]


class Part(NamedTuple):
    """A range of indices of one dimension, from `start` up to `stop`."""

    dim: int
    start: int
    stop: int


Parts = dict[int, Part | None]
"""Position of an operand to the part of it that an operator reads; None: all. Other operands are parameters or no
tensors."""


def remove_unused_tokens(graph: ModelGraph) -> None:
    """In place: operators before a `select` or `slice` compute only the part that it reads.

    Walks back from each `select` and `slice` through operators that treat every index of the dimension separately, as
    long as all users of a tensor read the same part. A token squeeze of which only prefix tokens are
    read is removed.
    """
    module = graph.module
    shapes = tensor_shapes(module, graph.source.image)
    squeezes = [node for node in module.graph.nodes if has_trait(node, Trait.SQUEEZE)]
    prefix = find_anatomy(graph).prefix_tokens if squeezes else 0
    read: dict[Node, Part] = {}
    needs: dict[Node, Parts] = {}
    for node in reversed(module.graph.nodes):
        part = _common([_read_by(user, node, needs, shapes) for user in node.users])
        found = None if part is None else _needed(node, part, shapes, prefix)
        if part is not None and found is not None:
            read[node], needs[node] = part, found
    for node in list(module.graph.nodes):
        if node in read:
            _narrow(module.graph, node, read[node], needs[node], read)
            if has_trait(node, Trait.SQUEEZE):  # prefix tokens pass unchanged
                read[argument(node, 0)] = read[node]
                node.replace_all_uses_with(argument(node, 0))
        elif _part_taken(node, shapes) is not None and argument(node, 0) in read:
            _start_at_zero(node, read[argument(node, 0)])
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    graph.forget_axes()


def _common(parts: list[Part | None]) -> Part | None:
    return parts[0] if parts and all(part == parts[0] for part in parts) else None


def _read_by(user: Node, operand: Node, needs: Mapping[Node, Parts], shapes: Mapping[Node, Any]) -> Part | None:
    """The part of an operand that one of its users reads; None: all of it, or different parts."""
    if user in needs:
        return _common([needs[user].get(place) for place, given in enumerate(user.args) if given is operand])
    return _part_taken(user, shapes) if argument(user, 0) is operand else None


def _part_taken(node: Node, shapes: Mapping[Node, Any]) -> Part | None:
    """The part of its operand that a `select` or a `slice` takes.

    None for other operators, for the batch dimension, and for more than half of a dimension, where the copy would cost
    more than it saves.
    """
    if not is_op(node, aten.select.int, aten.slice.Tensor):
        return None
    shape = shapes[argument(node, 0)]
    dim = argument(node, 1, "dim", 0) % len(shape)
    length, start = shape[dim], argument(node, 2, "start", 0) or 0
    if length % BATCH == 0 or not isinstance(start, int) or argument(node, 4, "step", 1) != 1:
        return None
    start %= length
    stop = start + 1 if is_op(node, aten.select.int) else argument(node, 3, "end")
    if not isinstance(stop, int):
        return None
    stop = min(stop, length)
    return Part(dim, start, stop) if 0 < 2 * (stop - start) <= length else None


def _needed(node: Node, part: Part, shapes: Mapping[Node, Any], prefix: int) -> Parts | None:
    """The parts of its operands that a node needs to compute a part of its result; None where it needs all of them."""
    if has_trait(node, Trait.SQUEEZE):
        return {0: part} if part.dim == 1 and part.stop <= prefix else None
    if node.op != "call_function" or not isinstance(shapes.get(node), tuple):
        return None
    if has_trait(node, Trait.INDEXWISE):
        operands = ((place, given) for place, given in enumerate(node.args) if isinstance(given, Node))
        return {place: _aligned(part, shapes[node], shapes[given]) for place, given in operands}
    rule = RULES.get(node.target)
    return None if rule is None else rule(node, part, shapes)


def _aligned(part: Part, result: Shape, operand: Shape) -> Part | None:
    """The part of an operand that is broadcast to the result; None where it has one index for all."""
    dim = part.dim - (len(result) - len(operand))
    return part._replace(dim=dim) if dim >= 0 and operand[dim] == result[part.dim] else None


def _norm(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    return {0: part} if part.dim < len(shapes[node]) - len(argument(node, 1)) else None


def _linear(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    return {0: part} if part.dim < len(shapes[node]) - 1 else None


def _softmax(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    return {0: part} if argument(node, 1) % len(shapes[node]) != part.dim else None


def _matmul(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    rows = len(shapes[argument(node, 0)]) == len(shapes[node]) and part.dim == len(shapes[node]) - 2
    return {0: part, 1: None} if rows else None


def _attention(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    """A part of the queries: each query has its own probabilities."""
    if part.dim != len(shapes[node]) - 2 or argument(node, 5, "is_causal", False):
        return None
    mask = argument(node, 3, "attn_mask")
    if mask is not None and len(node.args) < 4:
        return None
    of_mask = {} if mask is None else {3: _aligned(part, shapes[node], shapes[mask])}
    return {0: part, 1: None, 2: None, **of_mask}


def _amax(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    """A maximum over other dimensions, kept as dimensions of size one."""
    dims, kept = argument(node, 1, "dim", ()), argument(node, 2, "keepdim", False)
    length = len(shapes[node])
    return {0: part} if kept and dims and part.dim not in {dim % length for dim in dims} else None


def _transpose(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    first, second = (argument(node, place) % len(shapes[node]) for place in (1, 2))
    return {0: part._replace(dim={first: second, second: first}.get(part.dim, part.dim))}


def _permute(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    return {0: part._replace(dim=argument(node, 1)[part.dim] % len(shapes[node]))}


def _reshape(node: Node, part: Part, shapes: Mapping[Node, Any]) -> Parts | None:
    upto = slice(0, part.dim + 1)
    return {0: part} if shapes[node][upto] == shapes[argument(node, 0)][upto] else None


RULES: dict[Any, Callable[[Node, Part, Mapping[Node, Any]], Parts | None]] = {
    aten.layer_norm.default: _norm, aten.rms_norm.default: _norm, aten.linear.default: _linear,
    aten.softmax.int: _softmax, aten.matmul.default: _matmul, aten.scaled_dot_product_attention.default: _attention,
    aten.transpose.int: _transpose, aten.permute.default: _permute, aten.reshape.default: _reshape,
    aten.amax.default: _amax,
}  # fmt: skip


def _narrow(graph: Graph, node: Node, part: Part, needs: Parts, read: Mapping[Node, Part]) -> None:
    """Make a node compute its part. Operands that do not compute a part themselves are sliced."""
    for place, needed in needs.items():
        operand: Any = node.args[place]
        if needed is not None and operand not in read:
            with graph.inserting_before(node):
                sliced = graph.call_function(aten.slice.Tensor, (operand, needed.dim, needed.start, needed.stop))
            node.update_arg(place, sliced)
    if is_op(node, aten.reshape.default):
        sizes = list(argument(node, 1))
        sizes[part.dim] = part.stop - part.start
        node.update_arg(1, sizes)


def _start_at_zero(user: Node, part: Part) -> None:
    """Make a `select` or `slice` read its operand, which is only the part by now, from the first index."""
    user.update_arg(2, 0)
    if is_op(user, aten.slice.Tensor):
        user.update_arg(3, part.stop - part.start)
