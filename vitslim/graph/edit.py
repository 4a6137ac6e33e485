"""Editing a graph through its axes: slice every tensor in which an axis occurs, then write the sizes anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from vitslim.errors import StageError
from vitslim.graph.axes.scope import SizeArgument
from vitslim.graph.axes.table import AxisTable
from vitslim.graph.axes.terms import Indices, Term, kept_positions, key, leaves, new_size, size
from vitslim.graph.edits import Slice
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument


def slice_axes(graph: ModelGraph, kept: Mapping[str, Sequence[int]]) -> ModelGraph:
    """A new graph in which each named axis keeps only these indices, in this order.

    Parameters, buffers, masks and quantiser scales are cut; sizes in the graph follow. An axis may keep all its indices
    in another order, which changes no output. Raises StageError for an axis that does not exist or is frozen, and for
    indices that are empty, repeated or out of range.
    """
    indices = {graph.axes.prim(name): _checked(graph.axes, name, kept[name]) for name in kept}
    module = copy.deepcopy(graph.module)
    masks = {name: mask.clone() for name, mask in graph.masks.items()}
    for name in graph.axes.parameters:
        for dim, term in enumerate(graph.axes.parameter_terms(name)):
            if any(prim in indices for prim in leaves(term)):
                positions = torch.from_numpy(kept_positions(term, indices))
                _cut(module, name, dim, positions)
                if name in masks:
                    masks[name] = masks[name].index_select(dim, positions)
    lengths = {prim: len(found) for prim, found in indices.items()}
    _write_sizes(module, graph.axes.size_arguments, lambda term: new_size(term, lengths))
    module.recompile()
    edit = Slice({name: tuple(int(i) for i in kept[name]) for name in kept})
    return replace(graph, module=module, masks=masks, edits=(*graph.edits, edit))


def resize_tokens(graph: ModelGraph, source: Node, length: int) -> None:
    """In place: write every size behind `source` that counts its tokens (dimension 1) as `length`.

    Call it before anything is inserted behind `source`. Raises StageError, before it changes anything, when tokens
    behind `source` are tied to a parameter or are not simply a dimension of their own.
    """
    table = graph.axes
    tokens = table.terms(source)[1]
    nodes = _behind(source)
    _check_free(table, tokens, nodes)
    for size_argument in table.size_arguments:
        if size_argument.node in nodes and key(size_argument.term) == key(tokens):
            _write(size_argument.node, size_argument, length)


def _behind(source: Node) -> set[Node]:
    queue, seen = [source], set[Node]()
    while queue:
        for user in queue.pop().users:
            if user not in seen:
                seen.add(user)
                queue.append(user)
    return seen


def _check_free(table: AxisTable, tokens: Term, nodes: set[Node]) -> None:
    own = set(leaves(tokens))
    for node in nodes:
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and own & {
                p for term in table.terms(operand) for p in leaves(term) if p.size > 1
            }:
                raise StageError(
                    f"tokens cannot be squeezed: '{operand.target}' has an entry for each token",
                    "squeeze tokens of models without position biases between tokens only",
                )
    for argument_ in table.size_arguments:
        if argument_.node in nodes and own & set(leaves(argument_.term)) and key(argument_.term) != key(tokens):
            raise StageError("tokens cannot be squeezed: later blocks arrange them in windows or maps")


def _checked(table: AxisTable, name: str, indices: Sequence[int]) -> Indices:
    axis = table[name]
    if axis.frozen:
        raise StageError(f"axis '{name}' cannot be cut: it {axis.frozen}", "`vitslim axes` lists the axes")
    found = np.asarray(indices, dtype=np.int64)
    if found.ndim != 1 or not len(found) or len(np.unique(found)) != len(found):
        raise StageError(f"axis '{name}' needs a list of different indices, at least one")
    if found.min() < 0 or found.max() >= axis.size:
        raise StageError(f"axis '{name}' has the indices 0 to {axis.size - 1}, not {found.min()} to {found.max()}")
    return found


def _cut(module: GraphModule, name: str, dim: int, positions: torch.Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = getattr(owner, leaf)
    new = old.detach().index_select(dim, positions).contiguous()
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        owner.register_buffer(leaf, new)


def _write_sizes(module: GraphModule, size_arguments: Sequence[SizeArgument], length: Callable[[Term], int]) -> None:
    """Write sizes into a copy of the graph that the size arguments were declared in."""
    if not size_arguments:
        return
    twins = dict(zip(size_arguments[0].node.graph.nodes, module.graph.nodes, strict=True))
    for size_argument in size_arguments:
        value = length(size_argument.term)
        if value != size(size_argument.term):
            _write(twins[size_argument.node], size_argument, value)


def _write(node: Node, where: SizeArgument, value: int) -> None:
    new: object = value
    if where.item is not None:
        values = node.kwargs[where.index] if isinstance(where.index, str) else argument(node, where.index)
        items = list(values)  # type: ignore[arg-type]
        items[where.item] = value
        new = items
    if isinstance(where.index, str):
        node.update_kwarg(where.index, new)  # type: ignore[arg-type]
    else:
        node.update_arg(where.index, new)  # type: ignore[arg-type]
