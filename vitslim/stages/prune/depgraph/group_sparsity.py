"""Group-sparsity training: a regularization drives weak groups toward zero before the cut (DepGraph, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import GroupSparsity
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.depgraph.groups import Member, axis_scores
from vitslim.stages.prune.depgraph.importance import magnitude_l2
from vitslim.training import LOSS, SECONDS, STALL_SHARE, Batch, hard_loss, train
from vitslim.training.device import find_device
from vitslim.training.distillation.features import block_outputs
from vitslim.training.forms.drop_path import with_drop_path
from vitslim.training.hook import TrainingHook


def group_strengths(scores: Tensor, alpha: float) -> Tensor | None:
    """Return the strength of each index, `2^(alpha * (I_max - I_k) / (I_max - I_min))` with `I = sqrt(scores)`.

    scores: (size,), not negative. The strongest index gets 1, the weakest 2^alpha. None when all scores are equal or
    one is not finite, because then no index is the weakest.
    """
    importance = scores.sqrt()
    spread = importance.max() - importance.min()
    if not torch.isfinite(importance).all() or spread <= 0:
        return None
    return torch.exp2(alpha * (importance.max() - importance) / spread)


def regularization_gradient(weight: Tensor, strengths: Sequence[tuple[int, Tensor]], gamma: float) -> Tensor:
    """Return the term that is added to the gradient of a weight: `gamma * gamma_k * w`, summed over its groups.

    strengths: for each group that the weight is a member of, the dimension and the strength at each of its positions,
    (weight.shape[dim],). Shape and dtype of the weight.
    """
    total = torch.zeros((), dtype=weight.dtype)
    for dim, strength in strengths:
        shape = [-1 if d == dim else 1 for d in range(weight.ndim)]
        total = total + strength.to(weight.dtype).view(shape)
    return gamma * total * weight


class GroupRegularizer(TrainingHook):
    """Adds the regularization to the gradients of all members after each backward pass.

    It scores the groups by the current magnitude of their weights at each step.
    """

    def __init__(
        self, members: Sequence[Member], parameters: Mapping[str, nn.Parameter], gamma: float, alpha: float
    ) -> None:
        self._members, self._parameters, self._gamma, self._alpha = members, parameters, gamma, alpha

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add the regularization to the gradients."""
        scores = axis_scores(self._members, self._parameters, lambda _, weight: magnitude_l2(weight))
        strengths = {axis: group_strengths(values, self._alpha) for axis, values in scores.items()}
        for name, here in _by_parameter(self._members).items():
            weight = self._parameters[name]
            found = [(m.dim, _at_positions(s, m.index)) for m in here if (s := strengths[m.axis]) is not None]
            if found and weight.grad is not None:
                weight.grad.add_(regularization_gradient(weight.detach(), found, self._gamma))


def _at_positions(strength: Tensor, index: Tensor) -> Tensor:
    """Return the strength of the index at each position; zero where the axis does not occur."""
    return torch.where(index >= 0, strength[index.clamp(min=0)], 0.0)


def _by_parameter(members: Iterable[Member]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(member.parameter, []).append(member)
    return found


def train_sparse(
    graph: ModelGraph, members: Sequence[Member], config: GroupSparsity, context: StageContext
) -> tuple[ModelGraph, dict[str, float]]:
    """Return a trained copy of the graph, and the metrics of the training, each with the prefix `sparsity_`.

    `seconds` has no prefix: it is the training time of the stage. The loss is the cross-entropy with the labels. Raises
    StageError for a loss that is not finite.
    """
    student = graph.copy()
    dataset = context.data.train.balanced(config.train.images, context.seed)
    device = find_device(config.train)
    on_device = [replace(member, index=member.index.to(device)) for member in members]

    def objective(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {LOSS: hard_loss(logits, batch.labels, config.train.label_smoothing)}

    metrics = train(
        with_drop_path(student.module, student, config.train.drop_path),
        dataset,
        objective,
        config.train,
        context.seed,
        student.masks,
        context.progress,
        label="prune: group-sparsity training",
        hook=GroupRegularizer(on_device, student.parameters(), config.gamma, config.alpha),
        keep=context.keep,
        classes=student.source.classes,
        blocks=tuple(block_outputs(student)) if config.train.layer_decay < 1 else (),
    )
    student.module.eval()
    times = {name: metrics.pop(name) for name in (SECONDS, STALL_SHARE)}
    return student, times | {f"sparsity_{name}": value for name, value in metrics.items()}
