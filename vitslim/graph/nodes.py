"""Reading nodes of an FX graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Node


def is_op(node: Any, *ops: Any) -> bool:
    """Whether an argument is a call of one of these operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in ops


def argument(node: Node, index: int, name: str = "", default: Any = None) -> Any:
    """A positional argument, or the keyword of that name, or the default."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), leaf)
    return found
