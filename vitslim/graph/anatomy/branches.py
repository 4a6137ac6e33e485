"""Residual branches `x + f(x)` of a graph: the nodes and parameters of `f`, and the reason that it cannot be removed.

Independent of model families. A branch ends in an addition whose other operand, the stem, is an input of the branch. It
is named by the module that holds its layers (`blocks.3.attn`), and its block by the numbered module around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from torch.fx import Graph, GraphModule, Node

from vitslim.graph.axes.names import NUMBERED
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.nodes import argument, parameter_of
from vitslim.graph.ops.fake_quant import QUANTIZER_PREFIX

USED_ELSEWHERE = "its result is used elsewhere"
"""Obstacle of a residual branch."""


@dataclass(frozen=True)
class Branch:
    """A residual branch of one graph."""

    name: str
    """`blocks.3.attn`; the name of the block where the block has no other."""
    block: str
    """`blocks.3`; in Swin `layers.1.blocks.0`."""
    add: Node
    stem: int
    """Position of the addition's argument that remains when the branch is removed."""
    nodes: frozenset[Node]
    """Nodes that are removed with it: those between stem and addition, and those that only they use."""
    parameters: tuple[str, ...]
    """Names of the parameters that are removed with it, in graph order."""
    obstacle: str = ""
    """Reason that it cannot be removed, as the end of a sentence; empty if it can be."""


def find_branches(module: GraphModule, shapes: Mapping[Node, tuple[int, ...]]) -> tuple[Branch, ...]:
    """Return every residual branch with a parameter inside a numbered module, in graph order.

    shapes: of every node, as `Anatomy.shapes`. Branches that cannot be removed are included, with their obstacle.
    """
    flow = _Flow(module.graph, frozenset(name for name, _ in module.named_parameters(remove_duplicate=False)))
    found = [
        branch for node in flow.nodes if has_trait(node, Trait.ADDITION) and (branch := _branch(flow, node, shapes))
    ]
    return tuple(_with_blocks(found))


class _Flow:
    """Data flow as bit sets over the nodes of a graph."""

    def __init__(self, graph: Graph, parameters: frozenset[str]) -> None:
        self.nodes = list(graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.before = [0] * len(self.nodes)
        """For each node the set of nodes that it depends on, itself included."""
        for i, node in enumerate(self.nodes):
            self.before[i] = 1 << i
            for source in node.all_input_nodes:
                self.before[i] |= self.before[self.index[source]]
        image = sum(1 << self.index[node] for node in graph.find_nodes(op="placeholder"))
        self.computed = sum(1 << i for i in range(len(self.nodes)) if self.before[i] & image)
        self.layers = sum(1 << i for i, node in enumerate(self.nodes) if _weight(node))
        self.parameters = sum(1 << i for i, node in enumerate(self.nodes) if str(node.target) in parameters)

    def into(self, node: Node) -> int:
        """The nodes that a node depends on, itself included."""
        return self.before[self.index[node]]

    def into_all(self, bits: int) -> int:
        """The nodes that a set of nodes depends on, themselves included."""
        found = 0
        for i in self.positions(bits):
            found |= self.before[i]
        return found

    def between(self, stem: Node, end: Node) -> int:
        """The nodes on all paths from `stem`, excluded, to `end`, included."""
        bit, reached = 1 << self.index[stem], 0
        for i in self.positions(self.into(end) & ~bit):
            if self.before[i] & bit:
                reached |= 1 << i
        return reached

    def dead_without(self, add: Node, stem: Node) -> int:
        """The nodes that are unused once `stem` replaces `add`."""
        dead, queue = {add}, [add]
        while queue:
            for source in queue.pop().all_input_nodes:
                if source is not stem and source not in dead and dead.issuperset(source.users):
                    dead.add(source)
                    queue.append(source)
        return sum(1 << self.index[node] for node in dead)

    def has(self, bits: int, node: Node) -> bool:
        """Whether a node is in a set."""
        return bool(bits >> self.index[node] & 1)

    def positions(self, bits: int) -> Iterable[int]:
        """Positions of the nodes in a set, in graph order."""
        while bits:
            lowest = bits & -bits
            yield lowest.bit_length() - 1
            bits ^= lowest

    def members(self, bits: int) -> list[Node]:
        """The nodes in a set, in graph order."""
        return [self.nodes[i] for i in self.positions(bits)]


def _branch(flow: _Flow, add: Node, shapes: Mapping[Node, tuple[int, ...]]) -> Branch | None:
    """Return the branch that ends in an addition; None if neither operand depends on the other, or no numbered module
    holds it."""
    sides = [side for side in add.args[:2] if isinstance(side, Node)]
    if len(sides) != 2 or sides[0] is sides[1] or any(not flow.has(flow.computed, side) for side in sides):
        return None
    stem = next((i for i in (0, 1) if flow.has(flow.into(sides[1 - i]), sides[i])), None)
    if stem is None:
        return _projected(flow, add, sides)
    inside = flow.between(sides[stem], sides[1 - stem])
    gone = flow.dead_without(add, sides[stem]) & ~(1 << flow.index[add])
    others = flow.into_all(gone & flow.computed & ~inside)
    own = [str(node.target) for node in flow.members(gone & flow.parameters & ~others)]
    name, block = _names(flow.members(inside & flow.layers), own)
    if not block:
        return None
    obstacle = _shape_obstacle([shapes.get(node, ()) for node in (sides[stem], sides[1 - stem], add)])
    if not obstacle and inside & ~gone & flow.layers:
        obstacle = USED_ELSEWHERE
    if not obstacle and gone & ~inside & flow.layers:
        obstacle = "other layers serve only this branch"
    nodes = frozenset(flow.members(gone))
    obstacle = obstacle or _in_place_obstacle(nodes, add, sides[stem])
    parameters = tuple(str(node.target) for node in flow.members(gone & flow.parameters))
    return Branch(name, block, add, stem, nodes, parameters, obstacle)


def _projected(flow: _Flow, add: Node, sides: list[Node]) -> Branch | None:
    """Return the branch of an addition whose operands both pass own layers; it cannot be removed."""
    left, right = (flow.into(side) for side in sides)
    own = [(left & ~right) & flow.layers, (right & ~left) & flow.layers]
    name, block = _names(flow.members(own[0] | own[1]))
    if not all(own) or not block:
        return None
    stem = min((0, 1), key=lambda i: own[i].bit_count())
    projection, _ = _names(flow.members(own[stem]))
    reason = f"its input goes through a layer of its own ({projection})"
    return Branch(name, block, add, stem, frozenset(), (), reason)


def _shape_obstacle(shapes: list[tuple[int, ...]]) -> str:
    stem, *others = (shape[1:] for shape in shapes)
    different = next((shape for shape in others if shape != stem), None)
    if different is None:
        return ""
    sizes = " and ".join("x".join(map(str, shape)) for shape in (stem, different))
    return f"its input and output differ in shape ({sizes})"


def _in_place_obstacle(gone: frozenset[Node], add: Node, stem: Node) -> str:
    """The obstacle of branches whose removal would change which tensors are overwritten in place."""
    if any(written not in gone for node in gone for written in _written(node)):
        return "it changes its input in place"
    if any(add in _written(user) for user in add.users) and not gone.union({add}).issuperset(stem.users):
        return "its output is changed in place, and its input is used elsewhere"
    return ""


def _written(node: Node) -> list[Any]:
    """Return the operands that an operator changes in place."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    return [argument(node, i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info and a.alias_info.is_write]


def _weight(node: Node) -> str:
    """Name of the weight of a layer; empty for other nodes."""
    return parameter_of(argument(node, 1)) if has_trait(node, Trait.LAYER) else ""


def _names(layers: list[Node], parameters: Sequence[str] = ()) -> tuple[str, str]:
    """Return the module that holds all layers of a branch, and the numbered module that also holds its parameters."""
    holders = [_module(_weight(node)) for node in layers] or [_module(name) for name in parameters[:1]]
    name, everything = _common(holders), _common([*holders, *map(_module, parameters)])
    match = NUMBERED.match(everything)
    return name, match.group(1) if match else ""


def _module(parameter: str) -> str:
    """The module of a parameter; a quantizer scale belongs to the module of its layer."""
    return parameter.removeprefix(QUANTIZER_PREFIX).rpartition(".")[0]


def _common(paths: list[str]) -> str:
    """The common prefix of dotted paths."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _with_blocks(branches: list[Branch]) -> Iterable[Branch]:
    """Drop additions inside a branch that are not branches themselves, and set the block of each branch.

    A numbered module that holds other blocks is not a block: a branch directly in it is its own block.
    """
    inside = {node for branch in branches for node in branch.nodes}
    found = [branch for branch in branches if branch.nodes or branch.add not in inside]
    blocks = {branch.block for branch in found}
    for branch in found:
        holds_others = any(other.startswith(f"{branch.block}.") for other in blocks)
        yield replace(branch, block=branch.name) if holds_others else branch
