"""Kinds of axes around attention: heads, query/key and value axes, for fused and for decomposed attention."""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Graph, Node

from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.axes.scope import Scope
from vitslim.graph.axes.terms import Prim, prims

REACH = 10
"""Largest number of nodes between an attention matmul and its softmax: scale, mask, position bias, talking heads."""

Axes = set[Prim]


def find_attention_kinds(scope: Scope, graph: Graph, channels: Axes) -> None:
    """Set the kinds `heads`, `qk` and `v` among `channels`: axes of parameters that are not positions.

    Around a softmax, the reduction axis of the matmul of queries and keys is `qk`, the output axis of the matmul with
    the values is `v`, and the batch axes of both matmuls are `heads`. In cross-covariance attention, where channels
    attend to channels, tokens are the reduction axis, and `qk` and `v` change places.
    """
    for node in graph.nodes:
        if has_trait(node, Trait.ATTENTION):
            q, v = scope.of(node.args[0]), scope.of(node.args[2])
            for terms, kind in ((q[1:-2], "heads"), (q[-1:], "qk"), (v[-1:], "v"), (q[-2:-1], "tokens")):
                for term in terms:
                    scope.set_kind(term, kind)
        elif has_trait(node, Trait.SOFTMAX):
            for logits in _matmuls_before(node):
                for values, probabilities in _matmuls_after(node):
                    _name_matmul_axes(scope, logits, values, probabilities, channels)


def _name_matmul_axes(scope: Scope, logits: Node, values: Node, probabilities: Node, channels: Axes) -> None:
    q, k = (_axes(scope, operand) for operand in _operands(logits))
    p = _axes(scope, probabilities)
    v = set().union(*(_axes(scope, operand) for operand in _operands(values) if operand is not probabilities))
    result, scores = _axes(scope, values), _axes(scope, logits)
    heads = (q & k & scores | p & v & result) & channels
    along_logits, along_values = (q & k) - scores & channels, (p & v) - result & channels
    left = (v & result) - heads & channels or (p & result) - heads & channels
    for axes, kind in ((heads, "heads"), (along_logits or along_values, "qk"), (left - heads, "v")):
        for prim in axes:
            scope.set_kind(prim, kind)


def _axes(scope: Scope, node: Node) -> Axes:
    return {prim for term in scope.of(node) for prim in prims(term)}


def _operands(product: Node) -> list[Node]:
    return product.all_input_nodes[-2:] if len(product.all_input_nodes) > 1 else product.all_input_nodes * 2


def _matmuls_before(softmax: Node) -> Iterator[Node]:
    near: list[tuple[Node, int]] = [(softmax, 0)]
    seen = {softmax}
    for node, distance in near:
        for source in node.all_input_nodes:
            if has_trait(source, Trait.CONTRACTION):
                yield source
            elif source not in seen and distance < REACH and _passes(source):
                seen.add(source)
                near.append((source, distance + 1))


def _matmuls_after(softmax: Node) -> Iterator[tuple[Node, Node]]:
    """Yield each matmul after a softmax, with the operand that depends on the softmax."""
    near: list[tuple[Node, int]] = [(softmax, 0)]
    seen = {softmax}
    for node, distance in near:
        for user in node.users:
            if has_trait(user, Trait.CONTRACTION):
                yield user, node
            elif user not in seen and distance < REACH and _passes(user):
                seen.add(user)
                near.append((user, distance + 1))


def _passes(node: Node) -> bool:
    return node.op == "call_function" and not has_trait(node, Trait.NORM, Trait.SOFTMAX, Trait.ATTENTION)
