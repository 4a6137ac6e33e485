"""Axis inference: one rule for each node, in graph order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from vitslim.graph.attention import find_attentions
from vitslim.graph.axes import rules_layers, rules_shapes
from vitslim.graph.axes.scope import Rule, Scope, batch_axis, broadcast, opaque
from vitslim.graph.axes.table import AxisTable, build_table
from vitslim.graph.axes.terms import Prim, Term, freeze, mark
from vitslim.graph.shapes import tensor_shapes

RULES: Mapping[Any, Rule] = {**rules_layers.RULES, **rules_shapes.RULES}


def infer_axes(module: GraphModule, image: tuple[int, int, int], rules: Mapping[Any, Rule] = RULES) -> AxisTable:
    """The axes of a graph that takes one tensor (batch, *image).

    Never fails: operators without a rule freeze the axes they touch and are counted in `unknown_ops`.
    """
    scope = Scope(tensor_shapes(module, image))
    parameters: dict[str, tuple[Term, ...]] = {}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    unknown: Counter[str] = Counter()
    for node in module.graph.nodes:
        match node.op:
            case "placeholder":
                scope.terms[node] = (batch_axis(), *(Prim(n, "image", "is part of the image") for n in image))
            case "get_attr":
                name = str(node.target)
                if name not in parameters:
                    shape = tensors[name].shape if name in tensors else scope.shape(node)
                    parameters[name] = tuple(Prim(n) if n != 1 else Prim(1, frozen="has one index") for n in shape)
                scope.terms[node] = parameters[name]
            case "call_function":
                scope.terms[node] = _call(scope, node, rules, unknown)
            case "output":
                for term in scope.of(node.args[0]):
                    freeze(term, "is an output of the model")
    for attention in find_attentions(module.graph, scope.shapes):
        q, v = scope.of(attention.q), scope.of(attention.v)
        for term, kind in ((q[1], "heads"), (q[2], "tokens"), (q[3], "qk"), (v[3], "v")):
            mark(term, kind)
    return build_table(scope, parameters, dict(unknown))


def _call(scope: Scope, node: Node, rules: Mapping[Any, Rule], unknown: Counter[str]) -> Any:
    if node not in scope.shapes:
        return ()
    name = str(node.target)
    rule = rules.get(node.target) or rules.get(name)
    if rule is not None:
        return rule(scope, node)
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return broadcast(scope, node, [terms for terms in map(scope.of, node.all_input_nodes) if terms])
    if not any(scope.of(operand) for operand in node.all_input_nodes):
        return scope.fresh(scope.shape(node), "is made from numbers")
    unknown[name] += 1
    return opaque(scope, node)
