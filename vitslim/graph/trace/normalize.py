"""Normalization of an exported graph to the form that axis inference and the stages expect.

Each rewrite keeps the outputs bit for bit:

- fused `qkv` becomes split, reshape, transpose: this separates query/key indices from value indices, and ONNX gets one
  Split instead of dozens of Slice and Squeeze nodes;
- the scale of attention becomes explicit, so that it does not change when the head width is pruned;
- each buffer or constant has one user: a table shared by all blocks would tie the axes of all blocks together;
- in-place operators become functional, and splits into equal parts become splits with explicit sizes;
- operators without effect (dropout in evaluation, full slices, asserts, contiguous) are removed.
"""

from __future__ import annotations

import operator
from math import prod, sqrt
from typing import Any

import torch
from torch._higher_order_ops.wrap import wrap_with_set_grad_enabled
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from vitslim.graph.nodes import argument, is_op

aten = torch.ops.aten

FULL_SLICE_END = 2**31
"""A slice that ends here or later reaches the end of every dimension."""

ASSERTS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")


def normalize(exported: GraphModule) -> GraphModule:
    """Return a graph module with one input tensor, and one output tensor or a tuple of them.

    exported: from `torch.export.export(...).module()`, whose tensors are taken over. Parameter names are kept; a buffer
    with several users is copied for each.
    """
    graph = exported.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
    _plain_signature(graph)
    _inline_regions(exported)
    _drop_asserts(graph)
    _out_of_place(graph)
    _drop_no_ops(graph)
    _named_sizes(graph)
    _views_to_reshapes(graph)
    _split_fused(graph)
    _explicit_scale(graph)
    graph.eliminate_dead_code()
    module = GraphModule(exported, graph)
    _one_use_each(module)
    for node in module.graph.nodes:
        node.meta.clear()  # symbolic shapes of the export go stale with the first edit
    module.graph.lint()
    module.recompile()
    return module


def shape_of(node: Node) -> tuple[Any, ...]:
    """Return the shape that the export recorded; sizes that depend on the batch are symbolic."""
    return tuple(node.meta["val"].shape)


def _plain_signature(graph: Graph) -> None:
    """Replace the pytree signature of an export by one input tensor and one output: a tensor, or a tuple of them."""
    graph.set_codegen(CodeGen())
    output = graph.output_node()
    result = output.args[0]
    if isinstance(result, (tuple, list)):
        output.args = (result[0] if len(result) == 1 else tuple(result),)


def _inline_regions(module: GraphModule) -> None:
    """Inline the bodies of regions without autocast or gradients, in which position tables are computed."""
    graph = module.graph
    for call in list(graph.nodes):
        if is_op(call, torch.ops.higher_order.wrap_with_autocast) and not call.args[2]:
            body, inputs = call.args[4], call.args[5:]
        elif is_op(call, wrap_with_set_grad_enabled):
            body, inputs = call.args[1], call.args[2:]
        else:
            continue
        inner: Any = module.get_submodule(str(body.target)).graph
        values = dict(zip((n for n in inner.nodes if n.op == "placeholder"), inputs, strict=True))
        with graph.inserting_before(call):
            result: Any = graph.graph_copy(inner, values)
        if isinstance(result, (tuple, list)):
            for item in list(call.users):
                item.replace_all_uses_with(result[item.args[1]])
                graph.erase_node(item)
        else:
            call.replace_all_uses_with(result)
        graph.erase_node(call)
        if not body.users:
            graph.erase_node(body)


def _drop_asserts(graph: Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and any(name in str(node.target) for name in ASSERTS):
            graph.erase_node(node)


def _out_of_place(graph: Graph) -> None:
    """Replace in-place operators such as `relu_` by `relu` if the overwritten tensor has no later user."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or not target._schema.name.endswith("_"):
            continue
        packet = getattr(aten, target._schema.name.removeprefix("aten::")[:-1], None)
        functional = getattr(packet, target._overloadname, None)
        if functional is not None and _last_use(node.args[0], order) <= order[node]:
            node.target = functional


def _last_use(node: Any, order: dict[Node, int]) -> int:
    """Position of the last node that uses a tensor or another view of the same memory."""
    place = max(order[user] for user in node.users)
    schema = getattr(node.target, "_schema", None)
    is_view = schema is not None and any(result.alias_info is not None for result in schema.returns)
    return max(place, _last_use(node.args[0], order)) if is_view or node.target is operator.getitem else place


def _named_sizes(graph: Graph) -> None:
    """Replace `chunk` and `split` by one size, which tie the lengths of their parts, by a split with explicit sizes."""
    for node in graph.nodes:
        if not is_op(node, aten.chunk.default, aten.split.Tensor):
            continue
        dim = argument(node, 2, "dim", 0)
        sizes = [part.shape[dim] for part in node.meta["val"]]
        if all(isinstance(size, int) for size in sizes):
            node.target, node.args, node.kwargs = aten.split_with_sizes.default, (node.args[0], sizes, dim), {}


def _drop_no_ops(graph: Graph) -> None:
    for node in list(graph.nodes):
        if _is_no_op(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_no_op(node: Node) -> bool:
    if is_op(node, aten.dropout.default):
        return not argument(node, 2) or argument(node, 1) == 0
    if is_op(node, aten.slice.Tensor):
        end = argument(node, 3)
        full_end = end is None or (isinstance(end, int) and end >= FULL_SLICE_END)
        return argument(node, 2) in (None, 0) and full_end and argument(node, 4, default=1) == 1
    if is_op(node, aten.pad.default, aten.constant_pad_nd.default):
        return not any(argument(node, 1))
    if is_op(node, aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default):
        before, after = argument(node, 0).meta["val"], node.meta["val"]
        return bool(before.dtype == after.dtype and before.device == after.device)
    if is_op(node, aten.contiguous.default):
        return not any(is_op(user, aten.conv2d.default) for user in node.users)  # the layout decides on its kernel
    return is_op(node, aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default)


def _views_to_reshapes(graph: Graph) -> None:
    """Replace `view` by `reshape`: once its input is cut or `contiguous` is removed, it may need a copy."""
    for node in graph.nodes:
        if is_op(node, aten.view.default):
            node.target = aten.reshape.default


def _split_fused(graph: Graph) -> None:
    """Replace `reshape(x, (..., 3, H, D))`, permuted and unbound along the 3, by a split of the last dimension of x."""
    for reshape in list(graph.nodes):
        if not is_op(reshape, aten.reshape.default) or len(reshape.users) != 1:
            continue
        permute = next(iter(reshape.users))
        order = list(range(len(shape_of(reshape))))
        opened = reshape
        if is_op(permute, aten.permute.default):
            order = [int(d) % len(order) for d in argument(permute, 1)]
            opened = permute
        parts = _parts(opened)
        source = reshape.args[0]
        if parts is None or not isinstance(source, Node):
            continue
        opened_dim, users = parts
        lead = order[opened_dim]
        if _opens_last_dimension(source, reshape, lead):
            order.pop(opened_dim)
            _emit_split(graph, reshape, lead, [d if d < lead else d - 1 for d in order], users)


def _opens_last_dimension(source: Node, reshape: Node, lead: int) -> bool:
    """Whether dimension `lead` and those after it are constant factors of the last dimension of the input."""
    tail = shape_of(reshape)[lead:]
    return len(tail) >= 2 and all(isinstance(s, int) for s in tail) and prod(tail) == shape_of(source)[-1]


def _parts(node: Node) -> tuple[int, list[tuple[int, Node]]] | None:
    """Return the dimension along which all users unbind a tensor, and (index, node) of each part; else None."""
    found: list[tuple[int, int, Node]] = []
    for user in node.users:
        if is_op(user, aten.unbind.int):
            dim = argument(user, 1, default=0)
            items = list(user.users)
            if not all(is_op(item, operator.getitem) for item in items):
                return None
            found += [(dim, argument(item, 1), item) for item in items]
        elif is_op(user, aten.select.int):
            found.append((argument(user, 1), argument(user, 2), user))
        else:
            return None
    rank = len(shape_of(node))
    dims = {dim % rank for dim, _, _ in found}
    if len(dims) != 1:
        return None
    return dims.pop(), [(index, part) for _, index, part in found]


def _emit_split(graph: Graph, reshape: Node, lead: int, order: list[int], users: list[tuple[int, Node]]) -> None:
    count, *rest = shape_of(reshape)[lead:]
    sizes = [*argument(reshape, 1)[:lead], *rest]
    source = reshape.args[0]
    with graph.inserting_before(reshape):
        split = graph.call_function(aten.split_with_sizes.default, (source, [prod(rest)] * count, -1))
        for index, old in users:
            part = graph.call_function(operator.getitem, (split, index % count))
            new = graph.call_function(aten.reshape.default, (part, list(sizes)))
            new = _emit_order(graph, new, order)
            new.meta["val"] = old.meta["val"]
            old.replace_all_uses_with(new)


def _emit_order(graph: Graph, node: Node, order: list[int]) -> Node:
    moved = [i for i, d in enumerate(order) if i != d]
    if not moved:
        return node
    if len(moved) == 2:
        return graph.call_function(aten.transpose.int, (node, moved[0], moved[1]))
    return graph.call_function(aten.permute.default, (node, order))


def _explicit_scale(graph: Graph) -> None:
    """Write the default scale 1/sqrt(head width) as an argument, so that pruning the width does not change it."""
    for node in graph.nodes:
        if is_op(node, aten.scaled_dot_product_attention.default) and node.kwargs.get("scale") is None:
            width = shape_of(argument(node, 0))[-1]
            node.kwargs = {**node.kwargs, "scale": 1.0 / sqrt(width)}


def _one_use_each(module: GraphModule) -> None:
    buffers = dict(module.named_buffers())
    for node in list(module.graph.nodes):
        if node.op != "get_attr" or node.target not in buffers:
            continue
        for number, user in enumerate(list(node.users)[1:], start=1):
            owner, _, name = str(node.target).rpartition(".")
            copy_name = _free_name(module.get_submodule(owner), name, number)
            module.get_submodule(owner).register_buffer(copy_name, buffers[str(node.target)].clone())
            with module.graph.inserting_after(node):
                copy = module.graph.get_attr(f"{owner}.{copy_name}".lstrip("."))
            user.replace_input_with(node, copy)


def _free_name(owner: torch.nn.Module, name: str, number: int) -> str:
    while hasattr(owner, f"{name}_use{number}"):
        number += 1
    return f"{name}_use{number}"
