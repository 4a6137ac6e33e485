"""Training before the cut that pushes weak groups towards zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import GroupSparsity
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.depgraph.group_sparsity import pusher
from vitslim.stages.prune.depgraph.groups import Member
from vitslim.training import LOSS, SECONDS, Batch, hard_loss, train
from vitslim.training.device import find_device


def train_sparse(
    graph: ModelGraph, members: Sequence[Member], config: GroupSparsity, context: StageContext
) -> tuple[ModelGraph, dict[str, float]]:
    """A trained copy of the graph, and the figures of the training, each with `sparsity_` in front, but
    for `seconds`, which a stage has of its training whatever it is for.

    The loss is the cross-entropy with the labels. Raises StageError when it is no finite number.
    """
    student = graph.copy()
    dataset = context.data.train.balanced(config.train.images, context.seed)
    device = find_device(config.train)
    here = [replace(member, index=member.index.to(device)) for member in members]

    def objective(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {LOSS: hard_loss(logits, batch.labels, config.train.label_smoothing)}

    metrics = train(
        student.module,
        dataset,
        objective,
        config.train,
        context.seed,
        student.masks,
        context.progress,
        label="prune: sparsity training",
        after_backward=pusher(here, student.parameters(), config.gamma, config.alpha),
        keep=context.keep,
    )
    seconds = metrics.pop(SECONDS)
    return student, {SECONDS: seconds} | {f"sparsity_{name}": value for name, value in metrics.items()}
