"""The sketch of a graph: every matmul with its sizes in terms of axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch.fx import Node

from vitslim.graph.anatomy import (
    Anatomy,
    Block,
    Branch,
    Linear,
    find_anatomy,
    find_branches,
    image_dependent_nodes,
    squeeze_obstacle,
)
from vitslim.graph.anatomy.token_sizes import weighed_blocks
from vitslim.graph.axes import AxisTable, Prim, Prod, Sum, Term
from vitslim.graph.axes.operators import Trait, operator_has
from vitslim.graph.edits import InsertFakeQuant, Mask
from vitslim.graph.edits.quantize_attention import attention_sites
from vitslim.graph.edits.read_pixels import reads_pixels
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, parameter_of, tensor_of
from vitslim.graph.ops.fake_quant import QUANTIZER_PREFIX
from vitslim.graph.ops.merge import MATCH_ALTERNATE, MATCH_RANKED, MERGE_ALTERNATE, MERGE_RANKED
from vitslim.graph.ops.token_scores import CLASS_ATTENTION, RECEIVED_ATTENTION
from vitslim.graph.sketch import merge_matmuls, token_matmuls
from vitslim.graph.sketch.matmul import SCORES, VALUES, Matmul
from vitslim.graph.sketch.model_sketch import LayerBits, ModelSketch, SketchBranch
from vitslim.graph.sketch.operators import Operator, operators_of
from vitslim.graph.sketch.size import ONE, Size
from vitslim.results import Cost

aten = torch.ops.aten


def sketch(graph: ModelGraph) -> ModelSketch:
    """Return axis sizes, matmuls, bits and sparsity of a graph. The cost of the sketch is the cost of the graph."""
    anatomy = find_anatomy(graph)
    sizes = _Sizes(graph.axes, anatomy)
    branches = find_branches(graph.module, anatomy.shapes)
    quantized = [site for edit in graph.edits if isinstance(edit, InsertFakeQuant) for site in edit.sites]
    masked = [(name, edit.pattern) for edit in graph.edits if isinstance(edit, Mask) for name in edit.parameters]
    return ModelSketch(
        axes=sizes.lengths,
        kinds={axis.name: axis.kind for axis in graph.axes.axes},
        frozen={axis.name: axis.frozen for axis in graph.axes.axes if axis.frozen},
        factors=_factors(graph.axes),
        matmuls=tuple(_matmuls(graph, anatomy, sizes, branches)),
        parameters={
            name: sizes.product(graph.axes.parameter_terms(name))
            for name, _ in graph.module.named_parameters()
            if not name.startswith(QUANTIZER_PREFIX)
        },
        blocks=tuple(block.name for block in anatomy.blocks),
        token_axes=sizes.token_axes,
        prefix_tokens=anatomy.prefix_tokens,
        has_class_token=anatomy.has_class_token,
        squeeze_obstacle=squeeze_obstacle(anatomy),
        squeezed=tuple(block.name for block in anatomy.blocks if block.squeeze is not None),
        merged=weighed_blocks(anatomy),
        bits={
            s.weight: LayerBits(
                s.weight_bits, s.activation_bits, s.group_size, s.integer_scales, s.per_tensor, s.float8
            )
            for s in quantized
        },
        attention_bits={block: site.bits for block, site in attention_sites(graph).items()},
        sparsity=dict(masked),
        operators=tuple(_operators(graph, sizes, branches)),
        branches=tuple(SketchBranch(b.name, b.block, b.parameters, b.obstacle) for b in branches),
    )


def cost(graph: ModelGraph) -> Cost:
    """Return the cost of a graph for one image.

    MACs include both attention matmuls, convolutions and the matmuls of token squeezing.
    """
    return sketch(graph).cost()


def _factors(table: AxisTable) -> dict[str, frozenset[str]]:
    """Return for each axis those that form a dimension of a parameter or buffer together with it."""
    found: dict[str, set[str]] = {axis.name: set() for axis in table.axes}
    for term in {term for dims in table.attributes.values() for term in dims}:
        for group in _multiplied(term):
            names = {table.name_of(prim) for prim in group}
            for name in names:
                found[name] |= names - {name}
    return {name: frozenset(names) for name, names in found.items()}


def _multiplied(term: Term) -> Iterator[set[Prim]]:
    """Yield sets of axes that form a product within `term`, which is in normal form."""
    match term:
        case Prim():
            yield {term}
        case Sum(parts):
            for part in parts:
                yield from _multiplied(part)
        case Prod(factors):
            for combination in product(*(list(_multiplied(factor)) for factor in factors)):
                yield set().union(*combination)


class _Sizes:
    """Converts axis terms to sizes; the token axis, a sum of class token and patches, gets its own name."""

    def __init__(self, table: AxisTable, anatomy: Anatomy) -> None:
        self.table = table
        self.lengths = {axis.name: axis.size for axis in table.axes}
        self.token_axes: dict[str, str] = {}
        self._token_names: dict[object, str] = {}
        for block in anatomy.blocks:
            self._name_tokens(block)

    def _name_tokens(self, block: Block) -> None:
        stream = block.squeeze or block.attention_residual
        if stream is None or len(self.table.terms(stream)) != 3:
            return
        if block.squeeze is not None:
            self._token_name(self.table.terms(argument(block.squeeze, 0))[1], "tokens")
        name = f"tokens.{block.name}" if self._token_names else "tokens"
        self.token_axes[block.name] = self._token_name(self.table.terms(stream)[1], name)

    def _token_name(self, term: Term, name: str) -> str:
        key = self.table.key(term)
        if key not in self._token_names:
            while name in self.lengths:
                name = f"{name}.all"  # an axis that counts other tokens has the name already
            self._token_names[key], self.lengths[name] = name, self.table.size(term)
        return self._token_names[key]

    def of(self, term: Term) -> Size:
        """Return the size of one dimension; the batch counts as one."""
        name = self._token_names.get(self.table.key(term))
        if name is not None:
            return Size.axis(name)
        match self.table.find(term):
            case Prod(factors):
                return self.product(factors)
            case Sum(parts):
                total = self.of(parts[0])
                for part in parts[1:]:
                    total = total + self.of(part)
                return total
            case Prim() as prim:
                name = self.table.name_of(prim)
                return ONE if self.table.is_batch(prim) else Size.axis(name)

    def product(self, terms: tuple[Term, ...]) -> Size:
        """Return the product of the sizes of several dimensions."""
        total = ONE
        for term in terms:
            total = total * self.of(term)
        return total


def _matmuls(graph: ModelGraph, anatomy: Anatomy, sizes: _Sizes, branches: tuple[Branch, ...]) -> Iterator[Matmul]:
    layers = {layer.node: layer for layer in anatomy.linears}
    attention_blocks = {block.attention.node: block.name for block in anatomy.blocks if block.attention}
    suffixes = {block.attention.node: VALUES for block in anatomy.blocks if block.attention}
    suffixes |= {block.attention.scores: SCORES for block in anatomy.blocks if block.attention}
    block, moving = "", image_dependent_nodes(graph.module)
    for node in graph.module.graph.nodes:
        if node in layers:
            layer = layers[node]
            block = layer.block
            found: tuple[Matmul, ...] = (_layer(graph, node, sizes, layer, node not in moving),)
        elif (reader := _reader(node.target)) is not None:
            block = attention_blocks.get(node, block)
            found = reader(node, sizes, block)
            if len(found) == 1 and node in suffixes:
                found = (replace(found[0], name=block + suffixes[node]),)
        else:
            continue
        around = frozenset(branch.name for branch in branches if node in branch.nodes)
        yield from (replace(matmul, branches=around) for matmul in found)


def _operators(graph: ModelGraph, sizes: _Sizes, branches: tuple[Branch, ...]) -> Iterator[Operator]:
    moving = image_dependent_nodes(graph.module)
    for node in graph.module.graph.nodes:
        if node in moving:
            around = frozenset(branch.name for branch in branches if node in branch.nodes or node is branch.add)
            for kind, elements in operators_of(node, graph.axes, sizes.product):
                yield Operator(kind, elements, around)


Reader = Callable[[Node, _Sizes, str], tuple[Matmul, ...]]
"""Takes a node, the sizes of its graph and the name of its block; returns the matmuls of the node."""


def _reader(target: Any) -> Reader | None:
    """Return the function that reads the matmuls of an operator; None for an operator without matmuls."""
    if operator_has(target, Trait.ATTENTION):
        return _attention
    if operator_has(target, Trait.MATMUL):
        return _matmul
    return TOKEN_READERS.get(target)


def _layer(graph: ModelGraph, node: Node, sizes: _Sizes, layer: Linear, constant: bool) -> Matmul:
    """Matmul of a layer; rows of a convolution are output positions, and its reduction is channels times kernel."""
    weight = parameter_of(argument(node, 1))
    out, *reduce = sizes.table.parameter_terms(weight)
    result = sizes.table.terms(node)
    is_linear = node.target is aten.linear.default
    rows = sizes.product(result[:-1] if is_linear else (result[0], *result[2:]))
    return Matmul(weight, ONE, rows, sizes.product(tuple(reduce)), sizes.of(out), weight, layer.block, layer.role,
                   convolution=not is_linear, reads_image=argument(node, 0).op == "placeholder",
                   reads_pixels=reads_pixels(node, tensor_of(graph.module, weight)), constant=constant)  # fmt: skip


def _attention(node: Node, sizes: _Sizes, block: str) -> tuple[Matmul, ...]:
    """Both matmuls of one fused attention: q k^T, and the probabilities times v."""
    q, k, v = (sizes.table.terms(argument(node, i)) for i in range(3))
    heads, queries, keys = sizes.product(q[:-2]), sizes.of(q[-2]), sizes.of(k[-2])
    return (
        Matmul(block + SCORES, heads, queries, sizes.of(q[-1]), keys, "", block, "attention"),
        Matmul(block + VALUES, heads, queries, keys, sizes.of(v[-1]), "", block, "attention"),
    )


def _matmul(node: Node, sizes: _Sizes, block: str) -> tuple[Matmul, ...]:
    left, right = (sizes.table.terms(argument(node, i)) for i in range(2))
    rows, reduce, columns = sizes.of(left[-2]), sizes.of(left[-1]), sizes.of(right[-1])
    return (Matmul(f"{block}.matmul", sizes.product(left[:-2]), rows, reduce, columns, "", block, "attention"),)


def _score(matmuls: Callable[[str, Size, Size, Size], tuple[Matmul, ...]]) -> Reader:
    """Return the reader of an operator that scores tokens by attention."""

    def read(node: Node, sizes: _Sizes, block: str) -> tuple[Matmul, ...]:
        _, heads, keys, width = (sizes.of(term) for term in sizes.table.terms(argument(node, 1)))
        return matmuls(block, heads, width, keys)

    return read


def _best_tokens(matmuls: token_matmuls.SqueezeMatmuls) -> Reader:
    """Return the reader of an operator that takes tokens, scores and the number of kept tokens."""

    def read(node: Node, sizes: _Sizes, block: str) -> tuple[Matmul, ...]:
        tokens, _, keep = (argument(node, i) for i in range(3))
        patches = sizes.table.size(sizes.table.terms(argument(node, 1))[-1])
        width = sizes.of(sizes.table.terms(node)[-1])
        kept, removed = Size.of(int(keep)), Size.of(patches - int(keep))
        before = sizes.of(sizes.table.terms(tokens)[1])
        return matmuls(token_matmuls.SqueezeSizes(block, ONE, ONE, width, before, kept, removed))

    return read


def _alternate_pairs(node: Node, sizes: _Sizes, block: str) -> tuple[Matmul, ...]:
    _, heads, tokens, width = sizes.table.terms(argument(node, 0))
    prefix = int(argument(node, 1))
    mean = merge_matmuls.mean_keys(block, sizes.of(heads), sizes.of(width), sizes.of(tokens))
    return (*mean, *merge_matmuls.match_alternate(block, sizes.of(width), sizes.table.size(tokens), prefix))


def _ranked_pairs(node: Node, sizes: _Sizes, block: str) -> tuple[Matmul, ...]:
    survivors, keep = int(argument(node, 2)), int(argument(node, 3))
    width = sizes.of(sizes.table.terms(argument(node, 0))[-1])
    return merge_matmuls.match_ranked(block, width, survivors - keep, keep)


def _merged_tokens(node: Node, sizes: _Sizes, block: str) -> tuple[Matmul, ...]:
    """The sum of both operators that merge."""
    operands = (argument(node, 0), argument(node, 1), node)
    before, match, after = (sizes.table.size(sizes.table.terms(operand)[1]) for operand in operands)
    prefix, width = int(argument(node, 4)), sizes.of(sizes.table.terms(node)[-1])
    if node.target is MERGE_RANKED:
        keep = after - prefix
        return merge_matmuls.merge(block, width, (match - keep) // 2, keep)
    return merge_matmuls.merge(block, width, before - after, merge_matmuls.alternate_positions(before, prefix)[1])


TOKEN_READERS: dict[Any, Reader] = {
    CLASS_ATTENTION: _score(token_matmuls.class_attention),
    RECEIVED_ATTENTION: _score(token_matmuls.received_attention),
    **{operator: _best_tokens(matmuls) for operator, matmuls in token_matmuls.BY_OPERATOR.items()},
    MATCH_ALTERNATE: _alternate_pairs,
    MATCH_RANKED: _ranked_pairs,
    MERGE_ALTERNATE: _merged_tokens,
    MERGE_RANKED: _merged_tokens,
}
"""Operator of token squeezing to the function that reads its matmuls."""
