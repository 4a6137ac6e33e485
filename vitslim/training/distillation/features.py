"""Block outputs of a model, and the distance between those of a student and its teacher.

Source: GPUSQ-ViT (Yu et al., "Boost Vision Transformer with GPU-Friendly Sparsity and Quantization", CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import find_anatomy, find_branches
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages.training import Features
from vitslim.training.engine.collectives import share_of_total

FEATURE_LOSS = "feature_loss."
"""Prefix of the metric that records the feature loss of a block."""


def block_outputs(graph: ModelGraph) -> dict[str, Node]:
    """Map the name of each residual block to its last addition, in the order of the model."""
    branches = find_branches(graph.module, find_anatomy(graph).shapes)
    return {branch.block: branch.add for branch in branches}


def select_blocks(config: Features, graph: ModelGraph) -> tuple[str, ...]:
    """Return the names of the blocks that the feature loss compares; the last third is at least one block.

    Raises StageError for a model without residual blocks, and for a name that no block has.
    """
    known = list(block_outputs(graph))
    if not known:
        raise StageError("the feature loss needs residual blocks, and the model has none", "set loss.feature to 0")
    if config.blocks == "last_third":
        return tuple(known[-max(1, len(known) // 3) :])
    if config.blocks == "all":
        return tuple(known)
    for name in config.blocks:
        if name not in known:
            raise StageError(f"the model has no block '{name}'", closest(name, known))
    return config.blocks


def feature_losses(student: Sequence[Tensor], teacher: Sequence[Tensor], counted: Tensor) -> Tensor:
    """Return the mean squared distance of the features of each block over the counted images: float32 (blocks,).

    `student` and `teacher` hold one float tensor (b, ...) per block, of equal shapes; `counted` is bool (b,). The
    result is zero, with finite gradients, if no image is counted. With several ranks, these hold parts of one batch,
    and the mean over its images is that of the counted images of all ranks.
    """
    image_weights = counted.float() / share_of_total(counted.float().sum(), len(counted), least=1)
    squares = [
        functional.mse_loss(ours.float(), theirs.float(), reduction="none").flatten(start_dim=1)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    distances = [square.mean(dim=1) for square in squares]
    # A sum, not a matmul: autocast would round a matmul to bfloat16.
    return (torch.stack(distances) * image_weights).sum(dim=1)


def block_weights(losses: Tensor, sign: int, tau: float) -> Tensor:
    """Return `n * softmax(sign * L / tau)` of the feature losses L of n blocks: float (n,), with mean 1."""
    return len(losses) * torch.softmax(sign * losses / tau, dim=0)
