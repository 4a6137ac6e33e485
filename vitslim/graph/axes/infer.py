"""Axis inference: apply one rule to each node, in the order of the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from vitslim.graph.axes.kinds import find_attention_kinds
from vitslim.graph.axes.rules import RULES
from vitslim.graph.axes.rules.elementwise import elementwise
from vitslim.graph.axes.rules.tokens import IS_TOKENS
from vitslim.graph.axes.scope import Results, Rule, Scope
from vitslim.graph.axes.table import AxisTable, build_table
from vitslim.graph.axes.tensor_shapes import BATCH, tensor_shapes
from vitslim.graph.axes.terms import ConflictError, Dims, Prim, Term, fresh, prims, size


def infer_axes(
    module: GraphModule,
    image: tuple[int, int, int],
    rules: Mapping[Any, Rule] = RULES,
    new_tokens: Node | None = None,
) -> AxisTable:
    """Return the axes of a graph that takes one tensor (batch, *image).

    Never fails: an operator without a rule freezes the axes that it touches and is counted in `unknown_ops`, and axes
    about which rules conflict are frozen with the reason. After `new_tokens`, dimension 1 of its result is an axis of
    its own.
    """
    batch = Prim(BATCH)
    scope = Scope(tensor_shapes(module, image), batch)
    attributes = _attributes(scope, module)
    unknown: Counter[str] = Counter()
    for node in module.graph.nodes:
        match node.op:
            case "placeholder":
                scope.results[node] = _image(scope, batch, image)
            case "get_attr":
                scope.results[node] = attributes.get(str(node.target)) or scope.fresh(scope.shapes.get(node, ()))
                attributes.setdefault(str(node.target), scope.of(node))
            case "call_function" if node in scope.shapes:
                scope.results[node] = _call(scope, node, rules, unknown)
            case "output":
                _output(scope, node)
        if new_tokens is not None and node is new_tokens:
            scope.results[new_tokens] = _with_new_tokens(scope, scope.of(new_tokens))
    find_attention_kinds(
        scope, module.graph, _channels(scope, [attributes[name] for name, _ in module.named_parameters()])
    )
    buffers = frozenset(name for name, _ in module.named_buffers())
    return build_table(scope, attributes, buffers, dict(unknown))


def _attributes(scope: Scope, module: GraphModule) -> dict[str, Dims]:
    """Terms of every parameter and buffer; a tensor with two names has the same terms under both.

    In the order of the graph, which edits keep: an axis is named after the first parameter in which it occurs.
    """
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    order = [str(node.target) for node in module.graph.nodes if node.op == "get_attr" and str(node.target) in tensors]
    by_tensor: dict[int, Dims] = {}
    found = {}
    for name in dict.fromkeys([*order, *tensors]):
        tensor = tensors[name]
        if id(tensor) not in by_tensor:
            by_tensor[id(tensor)] = scope.fresh(tensor.shape)
        found[name] = by_tensor[id(tensor)]
    return found


def _image(scope: Scope, batch: Term, image: tuple[int, int, int]) -> Dims:
    dims = tuple(map(fresh, image))
    scope.freeze((batch,), "is the batch")
    scope.freeze(dims, "is part of the image")
    scope.set_kind(batch, "batch")
    for term in dims:
        scope.set_kind(term, "image")
    return (batch, *dims)


def _output(scope: Scope, node: Node) -> None:
    for result in node.all_input_nodes:
        dims = scope.of(result)
        scope.freeze(dims, "is an output of the model")
        if len(dims) == 2:
            scope.set_kind(dims[-1], "classes")


def _channels(scope: Scope, parameters: Iterable[Dims]) -> set[Prim]:
    """Axes that occur in parameters and are not positions."""
    positions = {prim for term, _ in scope.kinds for prim in prims(scope.terms.find(term))}
    found = {prim for dims in parameters for term in dims for prim in prims(scope.terms.find(term))}
    return found - positions


def _with_new_tokens(scope: Scope, dims: Dims) -> Dims:
    (tokens,) = scope.fresh((size(dims[1]),), IS_TOKENS)
    return (dims[0], tokens, *dims[2:])


def _call(scope: Scope, node: Node, rules: Mapping[Any, Rule], unknown: Counter[str]) -> Results:
    rule = _rule(node.target, rules)
    if rule is None:
        unknown[str(node.target)] += 1
        return _opaque(scope, node, f"enters {node.target}, which has no rule")
    try:
        results = rule(scope, node)
        _check(scope, node, results)
    except ConflictError as conflict:
        return _opaque(scope, node, str(conflict))
    return results


def _rule(target: Any, rules: Mapping[Any, Rule]) -> Rule | None:
    """Find the rule by the operator, its full name or its name without overload; else elementwise if tagged."""
    name = str(target)
    found = rules.get(target) or rules.get(name) or rules.get(name.rpartition(".")[0])
    if found is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        return elementwise
    return found


def _check(scope: Scope, node: Node, results: Results) -> None:
    """Raise ConflictError if the terms that a rule returned do not have the shape of the result."""
    shapes = scope.shapes[node] if isinstance(results, list) else [scope.shapes[node]]
    found = [tuple(size(term) for term in dims) for dims in (results if isinstance(results, list) else [results])]
    if found != list(shapes):
        raise ConflictError(f"enters {node.target}, whose rule does not give its shape")


def _opaque(scope: Scope, node: Node, reason: str) -> Results:
    """Freeze the terms of all operands and results of a node about which nothing is known."""
    for operand in node.all_input_nodes:
        results = scope.results.get(operand, ())
        for dims in results if isinstance(results, list) else [results]:
            scope.freeze(dims, reason)
    shape = scope.shapes[node]
    comes_out = f"is a result of {node.target}"
    return [scope.fresh(s, comes_out) for s in shape] if isinstance(shape, list) else scope.fresh(shape, comes_out)
