"""Matmuls of activations, einsum and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from vitslim.graph.axes.scope import Rule, Scope
from vitslim.graph.axes.terms import ConflictError, Dims, Term, size
from vitslim.graph.axes.traits import Trait, Traits


def _matmul(scope: Scope, a: Dims, b: Dims) -> Dims:
    """(..., n, k) times (..., k, m); leading dimensions are paired."""
    if min(len(a), len(b)) < 2:
        raise ConflictError("enters a matmul with a vector, which has no rule")
    scope.tie(a[-1], b[-2])
    return (*scope.pair(a[:-2], b[:-2]), a[-2], b[-1])


def matmul(scope: Scope, node: Node) -> Dims:
    return _matmul(scope, *scope.operands(node, "self", "other"))


def bmm(scope: Scope, node: Node) -> Dims:
    return _matmul(scope, *scope.operands(node, "self", "mat2"))


def addmm(scope: Scope, node: Node) -> Dims:
    bias, a, b = scope.operands(node, "self", "mat1", "mat2")
    return scope.pair(_matmul(scope, a, b), bias)


def baddbmm(scope: Scope, node: Node) -> Dims:
    bias, a, b = scope.operands(node, "self", "batch1", "batch2")
    return scope.pair(_matmul(scope, a, b), bias)


def attention(scope: Scope, node: Node) -> Dims:
    """softmax(q k^T * scale + mask) v with q (..., n, d), k (..., m, d), v (..., m, e); the scale does not change."""
    q, k, v, mask = scope.operands(node, "query", "key", "value", "attn_mask")
    heads = scope.pair(q[:-2], k[:-2], v[:-2])
    scope.tie(q[-1], k[-1])
    scope.tie(k[-2], v[-2])
    scope.pair((*heads, q[-2], k[-2]), mask)
    if scope.value(node, "is_causal"):
        scope.freeze((q[-2], k[-2]), "is ordered by causal attention")
    if scope.value(node, "scale") is None:
        scope.pin(node, "scale", float(size(q[-1])) ** -0.5)
    return (*heads, q[-2], v[-1])


def einsum(scope: Scope, node: Node) -> Dims:
    """Equal letters are equal axes; letters that the result lacks are summed over."""
    equation = str(scope.value(node, "equation")).replace(" ", "")
    operands = [scope.of(tensor) for tensor in scope.value(node, "tensors")]
    inputs, arrow, output = equation.partition("->")
    if not arrow:
        output = "".join(sorted(letter for letter in set(inputs) - {",", "."} if inputs.count(letter) == 1))
    names = [_letters(part, len(dims)) for part, dims in zip(inputs.split(","), operands, strict=True)]
    found: dict[str, Term] = {}
    for letters, dims in zip(names, operands, strict=True):
        if len(set(letters)) != len(letters):
            raise ConflictError("occurs twice in an operand of einsum")
        for letter, term in zip(letters, dims, strict=True):
            scope.tie(found.setdefault(letter, term), term)
    return tuple(found[letter] for letter in _letters(output, len(scope.shape(node))))


def _letters(part: str, rank: int) -> Sequence[str]:
    """Return one name per dimension; those of an ellipsis are counted from its right end."""
    before, dots, after = part.partition("...")
    hidden = range(rank - len(before) - len(after), 0, -1) if dots else ()
    return [*before, *(f"...{place}" for place in hidden), *after]


RULES: dict[Any, Rule] = {
    "aten.matmul": matmul,
    "aten.bmm": bmm,
    "aten.mm": bmm,
    "aten.addmm": addmm,
    "aten.baddbmm": baddbmm,
    "aten.einsum": einsum,
    "aten.scaled_dot_product_attention": attention,
}

TRAITS: Traits = {
    Trait.MATMUL: ("aten.matmul.default", "aten.bmm.default"),
    Trait.CONTRACTION: (
        "aten.matmul.default",
        "aten.bmm.default",
        "aten.einsum.default",
        "aten.baddbmm.default",
    ),
    Trait.ATTENTION: ("aten.scaled_dot_product_attention.default",),
}
