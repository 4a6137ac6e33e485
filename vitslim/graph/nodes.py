"""Helpers for nodes and tensors of an FX graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node


def is_op(node: Any, *ops: Any) -> bool:
    """Whether an argument is a call of one of these operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in ops


def argument(node: Node, index: int, name: str = "", default: Any = None) -> Any:
    """Return a positional argument, else the keyword argument of that name, else the default."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def parameter_of(operand: Any) -> str:
    """Name of the parameter that an operand reads, directly or through a quantizer; empty for any other operand."""
    node = operand
    while isinstance(node, Node) and node.op == "call_function" and "vitslim" in str(node.target):
        node = node.args[0]
    return str(node.target) if isinstance(node, Node) and node.op == "get_attr" else ""


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its dotted name."""
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), leaf)
    return found


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by dotted name; a tensor with two names is listed twice. Much faster than many
    calls of `tensor_of`."""
    found: dict[str, Tensor] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                found[prefix + leaf] = tensor
    return found


def graph_module(tensors: Mapping[str, Tensor], graph: Graph) -> GraphModule:
    """Return a module of a graph and the parameters and buffers that it reads, by dotted name.

    The same as `GraphModule(tensors, graph)`, but much faster.
    """
    root = GraphModule({}, Graph())
    owners: dict[str, nn.Module] = {"": root}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        if isinstance(tensor, nn.Parameter):
            _owner(owners, path)._parameters[leaf] = tensor
        else:
            _owner(owners, path)._buffers[leaf] = tensor
    root.graph = graph
    return root


def shared_copy(module: GraphModule) -> GraphModule:
    """Return a module with a graph of its own and the same tensors."""
    copied = graph_module(tensors_of(module), copy.deepcopy(module.graph))
    copied.train(module.training)
    return copied


def _owner(owners: dict[str, nn.Module], path: str) -> nn.Module:
    """Return the module at a path; missing modules are created."""
    if path not in owners:
        above, _, leaf = path.rpartition(".")
        owners[path] = _owner(owners, above)._modules[leaf] = nn.Module()
    return owners[path]
