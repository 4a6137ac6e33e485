"""Questions about the operator of a node, answered from the rule files in `vitslim.graph.axes.rules`."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch.fx import Node

from vitslim.graph.axes.rules import TRAITS
from vitslim.graph.axes.traits import Trait

__all__ = ["Trait", "has_trait", "operator_has"]


def has_trait(node: Any, *traits: Trait) -> bool:
    """Whether an argument of a node is a call of an operator with at least one of these traits."""
    return isinstance(node, Node) and node.op == "call_function" and operator_has(node.target, *traits)


@cache
def operator_has(target: Any, *traits: Trait) -> bool:
    """Whether an operator has at least one of these traits."""
    name = str(target)
    return any(name in TRAITS[trait] for trait in traits)
