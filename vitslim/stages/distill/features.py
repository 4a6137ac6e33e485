"""What blocks give out, and how far two models differ in it (GPUSQ, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.branches import find_branches
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages.training import Features


def block_outputs(graph: ModelGraph) -> dict[str, Node]:
    """Name of each residual block to the addition that it ends with, in the order of the model."""
    branches = find_branches(graph.module, find_anatomy(graph).shapes)
    return {branch.block: branch.add for branch in branches}


def critical_blocks(config: Features, graph: ModelGraph) -> tuple[str, ...]:
    """The blocks that a recipe means: those it names, all, or the last third, at least one.

    Raises StageError for a model without blocks, and for a name that no block has.
    """
    known = list(block_outputs(graph))
    if not known:
        raise StageError("the model has no residual blocks to compare", "set loss.feature to 0")
    if config.blocks == "last_third":
        return tuple(known[-max(1, len(known) // 3) :])
    if config.blocks == "all":
        return tuple(known)
    for name in config.blocks:
        if name not in known:
            raise StageError(f"the model has no block '{name}'", closest(name, known))
    return config.blocks


def feature_losses(student: Sequence[Tensor], teacher: Sequence[Tensor], counted: Tensor) -> Tensor:
    """Mean squared distance of each block's features  over the images that count:
    float (blocks,).

    Features are float (b, ...) of one shape a block; counted is bool (b,). Zero, with finite
    gradients, where no image counts.
    """
    share = counted.float() / counted.sum().clamp(min=1)
    squares = [
        (ours.float() - theirs.float()).square().flatten(start_dim=1)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    distances = [one.mean(dim=1) for one in squares]
    # No product of matrices, which would be rounded to bfloat16 where training is.
    return (torch.stack(distances) * share).sum(dim=1)


def block_weights(losses: Tensor, sign: int, tau: float) -> Tensor:
    """`n * softmax(sign * L / tau)` of the feature losses L of n blocks: float (n,), of mean 1 (GPUSQ, section 5)."""
    return len(losses) * torch.softmax(sign * losses / tau, dim=0)
