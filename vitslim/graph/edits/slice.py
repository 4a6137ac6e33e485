"""Slicing of axes: cut every tensor in which an axis occurs, then update the sizes in the graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from vitslim.errors import StageError
from vitslim.graph.axes import AxisTable, Prim, Sum, infer_axes
from vitslim.graph.axes.indices import Indices, kept_positions
from vitslim.graph.axes.rules.tokens import IS_TOKENS
from vitslim.graph.axes.scope import SizeArgument
from vitslim.graph.axes.table import IN_NO_PARAMETER
from vitslim.graph.axes.terms import Term, prims, size
from vitslim.graph.edits.edit import Edit
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import graph_module, tensors_of


@dataclass(frozen=True)
class Slice(Edit):
    """Each named axis keeps these indices, in this order; a permutation is a slice that keeps all."""

    kept: dict[str, tuple[int, ...]]

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Cut the axes again."""
        return slice_axes(graph, self.kept)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Slice:
        """Rebuild the edit."""
        return cls({axis: tuple(indices) for axis, indices in fields["kept"].items()})


def slice_axes(graph: ModelGraph, kept: Mapping[str, Sequence[int]]) -> ModelGraph:
    """Return a new graph in which each named axis keeps only these indices, in this order.

    Parameters, buffers, masks and quantizer scales are cut, and sizes in the graph are updated. An axis may keep all
    its indices in another order, which changes no output. Raises StageError for an axis that does not exist or is
    frozen, and for indices that are empty, repeated or out of range.
    """
    table = graph.axes
    indices = {table.prim(name): _checked(table, name, kept[name]) for name in kept}
    nodes = copy.deepcopy(graph.module.graph)
    twins = dict(zip(graph.module.graph.nodes, nodes.nodes, strict=True))
    for pin in table.pins:
        twins[pin.node].update_kwarg(pin.keyword, pin.value)
    lengths = {prim: len(found) for prim, found in indices.items()}
    for argument in table.size_arguments:
        _resize(twins[argument.node], argument, table.find(argument.term), lengths)
    module = graph_module(_tensors(graph.module, table, indices), nodes)
    module.train(graph.module.training)
    masks = {
        name: _sliced(mask, [kept_positions(t, indices) for t in table.parameter_terms(name)])
        for name, mask in graph.masks.items()
    }
    edit = Slice({name: tuple(int(i) for i in kept[name]) for name in kept})
    return replace(graph, module=module, masks=masks, edits=(*graph.edits, edit))


def _tensors(module: GraphModule, table: AxisTable, kept: Mapping[Prim, Indices]) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers, cut along the axes; a tensor with two names stays one tensor."""
    cut = _cut_tensors(module, table, kept)
    done: dict[int, torch.Tensor] = {}
    found = tensors_of(module)
    for name, old in found.items():
        if id(old) not in done:
            done[id(old)] = cut[name] if name in cut else _like(old, old.detach().clone())
    return {name: done[id(old)] for name, old in found.items()}


def slice_tensors(module: GraphModule, table: AxisTable, kept: Mapping[Prim, Indices]) -> None:
    """In place: cut every parameter and buffer of a module along the axes of a table to the kept indices."""
    for name, new in _cut_tensors(module, table, kept).items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, new)


def _cut_tensors(module: GraphModule, table: AxisTable, kept: Mapping[Prim, Indices]) -> dict[str, torch.Tensor]:
    """Return the cut parameters and buffers by name, without the unchanged ones."""
    done: dict[int, torch.Tensor] = {}
    found, tensors = {}, tensors_of(module)
    for name, dims in table.attributes.items():
        if not any(prim in kept for term in dims for prim in prims(term)):
            continue
        old = tensors[name]
        if id(old) not in done:
            done[id(old)] = _like(old, _sliced(old.detach(), [kept_positions(term, kept) for term in dims]))
        found[name] = done[id(old)]
    return found


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def resize_tokens(graph: ModelGraph, source: Node, length: int) -> None:
    """In place: all operators after `source` take `length` tokens, which are dimension 1 of its result.

    Call it before the operator that removes tokens is inserted after `source`. The last part of the token dimension
    takes the difference, so tokens that are read by index, such as a class token, keep their places. Raises
    StageError, before any change, when tokens after `source` are tied to a parameter or to the tokens before it, or do
    not form a dimension of their own.
    """
    table = infer_axes(graph.module, graph.source.image, new_tokens=source)
    tokens = table.terms(source)[1]
    free = _free_tokens(table, tokens)
    lengths = {free: free.size + length - size(tokens)}
    if lengths[free] < 1:
        raise StageError(f"tokens cannot be squeezed to {length}: {size(tokens) - free.size} have fixed positions")
    for argument in table.size_arguments:
        _resize(argument.node, argument, table.find(argument.term), lengths)
    graph.module.recompile()
    graph.forget_axes()


def _free_tokens(table: AxisTable, tokens: Term) -> Prim:
    """Return the axis of tokens whose length may change."""
    for prim in prims(tokens):
        sites = table[table.name_of(prim)].sites
        if sites:
            raise StageError(
                f"tokens cannot be squeezed: '{sites[0].parameter}' has an entry for each token",
                "squeeze tokens of models without position biases between tokens only",
            )
    last = tokens.parts[-1] if isinstance(tokens, Sum) else tokens
    if not isinstance(last, Prim):
        raise StageError("tokens cannot be squeezed: later blocks arrange them in windows or maps")
    others = [reason for reason in table.reasons(last) if reason not in {IS_TOKENS, IN_NO_PARAMETER}]
    if others:
        raise StageError(f"tokens cannot be squeezed: after that, their axis {others[0]}")
    return last


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


def _sliced(tensor: torch.Tensor, positions: Sequence[Indices]) -> torch.Tensor:
    """Return a copy of a tensor with these positions of each dimension."""
    for dim, found in enumerate(positions):
        if len(found) != tensor.shape[dim] or (np.diff(found) != 1).any():
            tensor = tensor.index_select(dim, torch.from_numpy(found).to(tensor.device))
    return tensor.clone(memory_format=torch.contiguous_format)


def _resize(node: Node, argument: SizeArgument, term: Term, lengths: Mapping[Prim, int]) -> None:
    """Write the size of a term for new lengths of some axes; an unchanged size is not written."""
    new = size(term, lengths)
    if new == size(term):
        return
    if argument.computed:
        raise StageError(f"'{node.name}' computes a size that the cut would change", "do not prune this axis")
    where, *items = argument.place
    value: Any = argument.sign * new
    if items:
        old: Any = node.kwargs[where] if isinstance(where, str) else node.args[where]
        value = [value if item == items[0] else x for item, x in enumerate(old)]
    if isinstance(where, str):
        node.update_kwarg(where, value)
    else:
        node.update_arg(where, value)
