"""The patches whose tokens a graph keeps, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vitslim.graph.anatomy import find_anatomy, is_patch_convolution
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.token_decisions import DECISIONS, NONE, TokenDecision


@dataclass(frozen=True)
class TokenStep:
    """The patches after one operator that reduces tokens, of one image. A patch is its position in the grid."""

    block: str
    """Name of the block, such as `blocks.3`; of the operator if it is in no block."""
    kept: tuple[int, ...]
    """Patches whose tokens are left, in ascending order."""
    squeezed: dict[int, int | None]
    """Patch whose token was fused into another to the patch of that token; None if that token is of no patch."""


@dataclass(frozen=True)
class TokenTrace:
    """The patches of all images through a graph."""

    rows: int
    columns: int
    images: tuple[tuple[TokenStep, ...], ...]
    """For each image, a step per operator in order of execution."""


def squeeze_nodes(graph: ModelGraph) -> tuple[Node, ...]:
    """Return the operators that reduce tokens, in order of execution."""
    return tuple(node for node in graph.module.graph.nodes if has_trait(node, Trait.SQUEEZE))


def patch_grid(graph: ModelGraph) -> tuple[int, int] | None:
    """Return rows and columns of the patches; None unless one convolution embeds patches of the image."""
    anatomy = find_anatomy(graph)
    layers = [layer for layer in anatomy.linears if layer.role == "patch_embed"]
    if len(layers) != 1 or not is_patch_convolution(layers[0].node, tensor_of(graph.module, layers[0].weight)):
        return None
    rows, columns = anatomy.shapes[layers[0].node][-2:]
    return rows, columns


def trace_tokens(graph: ModelGraph, images: Tensor) -> TokenTrace | None:
    """Return which patches the tokens of each image belong to, after each operator that reduces tokens.

    images: float32 (B, C, H, W), normalized, on the device of the graph. Runs the module in evaluation mode. Returns
    None for a graph that reduces no tokens, and for one whose tokens are not the patches of one square grid.
    """
    nodes, grid = squeeze_nodes(graph), patch_grid(graph)
    if not nodes or grid is None or grid[0] != grid[1]:
        return None
    recorder = _Recorder(graph.module.eval())
    with torch.no_grad():
        recorder.run(images)
    decisions = recorder.decisions
    patches = grid[0] * grid[1]
    if decisions[nodes[0]].destination.shape[1] != patches:
        return None
    blocks = {block.squeeze: block.name for block in find_anatomy(graph).blocks if block.squeeze is not None}
    steps = follow_patches([decisions[node] for node in nodes], [blocks.get(node, node.name) for node in nodes])
    return TokenTrace(*grid, steps)


def follow_patches(decisions: list[TokenDecision], blocks: list[str]) -> tuple[tuple[TokenStep, ...], ...]:
    """Return the steps of each image from the decisions of consecutive operators, which `blocks` names.

    Before the first operator the token of each patch stands at the position of the patch.
    """
    batch, patches = decisions[0].destination.shape
    patch = torch.arange(patches).expand(batch, -1)
    steps: list[list[TokenStep]] = [[] for _ in range(batch)]
    for block, decision in zip(blocks, decisions, strict=True):
        origin, destination = decision.origin.cpu(), decision.destination.cpu()
        after = torch.where(origin == NONE, NONE, patch.gather(1, origin.clamp(min=0)))
        for image, found in enumerate(steps):
            found.append(_step(block, patch[image].tolist(), after[image].tolist(), destination[image].tolist()))
        patch = after
    return tuple(tuple(found) for found in steps)


def _step(block: str, before: list[int], after: list[int], destination: list[int]) -> TokenStep:
    """Return the step of one image. before, after: patch of each token, or `NONE`."""
    kept = sorted(patch for patch in after if patch != NONE)
    squeezed: dict[int, int | None] = {}
    for patch, place in zip(before, destination, strict=True):
        if NONE not in (patch, place) and after[place] != patch:
            squeezed[patch] = None if after[place] == NONE else after[place]
    return TokenStep(block, tuple(kept), squeezed)


class _Recorder(Interpreter):
    """Runs a module and keeps the decision of each operator that reduces tokens."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.decisions: dict[Node, TokenDecision] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node; record its decision if it reduces tokens."""
        if has_trait(n, Trait.SQUEEZE):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.decisions[n] = DECISIONS[n.target](*args, **kwargs)
        return super().run_node(n)
