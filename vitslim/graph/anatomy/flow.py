"""The flow of data through a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch.fx import GraphModule, Node

from vitslim.graph.axes.operators import Trait, has_trait


def descendants(start: Node, stop: tuple[Trait, ...] = ()) -> Iterator[Node]:
    """Yield the nodes that depend on a node, nearest first, without going past operators with a trait in `stop`."""
    return _reached(start, stop, lambda node: node.users)


def ancestors(start: Node, stop: tuple[Trait, ...] = ()) -> Iterator[Node]:
    """Yield the nodes that a node depends on, nearest first, without going past operators with a trait in `stop`."""
    return _reached(start, stop, lambda node: node.all_input_nodes)


def image_dependent_nodes(module: GraphModule) -> frozenset[Node]:
    """Return the nodes whose value depends on the image; all others are constant."""
    images = module.graph.find_nodes(op="placeholder")
    return frozenset(node for image in images for node in (image, *descendants(image)))


def _reached(start: Node, stop: tuple[Trait, ...], neighbors: Callable[[Node], Iterable[Node]]) -> Iterator[Node]:
    queue, seen = [start], {start}
    while queue:
        for node in neighbors(queue.pop(0)):
            if node not in seen:
                seen.add(node)
                yield node
                if not has_trait(node, *stop):
                    queue.append(node)
