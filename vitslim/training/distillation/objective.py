"""The distillation loss: a weighted sum over labels, the teacher's outputs, and the decisions of token predictors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vitslim.graph.outputs import joined
from vitslim.recipe.stages.training import TrainedWithTeacher
from vitslim.training.batch import Batch, Objective
from vitslim.training.distillation.features import FEATURE_LOSS, feature_losses
from vitslim.training.distillation.kept_tokens import ratio_loss, token_loss
from vitslim.training.forms.taps import LogitsAndFeatures
from vitslim.training.hook import TrainingHook
from vitslim.training.record import LOSS
from vitslim.training.tasks import TaskFunctions
from vitslim.training.tasks.classification import Classification

KEPT_FRACTION = "kept_fraction."
"""Prefix of the metric that records the fraction of tokens that a predictor keeps in training."""

TeacherFunction = Callable[[Batch], LogitsAndFeatures]
"""Returns the teacher's logits and features for a batch; features are empty without a feature loss."""


def with_penalty(objective: Objective, penalty: Callable[[], Tensor]) -> Objective:
    """Return an objective whose loss also has a penalty, which is recorded as `penalty`."""

    def compute(output: Any, batch: Batch) -> Mapping[str, Tensor]:
        losses, added = objective(output, batch), penalty()
        return {**losses, LOSS: losses[LOSS] + added, "penalty": added}

    return compute


class DistillationLoss:
    """`hard * hard loss + soft * soft loss + feature * mean_l(w_l * distance_l)`.

    For classification these are the cross-entropy and `T^2 * KL(teacher || student)`; see `training/tasks`.

    With token predictors, `ratio * ratio_loss + token * token_loss` is added to it. A term of weight zero is not
    computed; without a teacher only the hard and the ratio term remain. Source: GPUSQ-ViT (Yu et al., CVPR 2023).
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each argument is one independent part of the loss
        self,
        config: TrainedWithTeacher,
        teacher: TeacherFunction | None,
        blocks: Sequence[str] = (),
        weights: Tensor | None = None,
        kept_fractions: Mapping[str, float] = MappingProxyType({}),
        label_teacher: TeacherFunction | None = None,
        hook: TrainingHook | None = None,
        task: TaskFunctions | None = None,
    ) -> None:
        """`blocks` names the compared blocks. `weights`, float (blocks,), weights their distances; None: all are 1.

        `kept_fractions`: block of each token predictor to the fraction of tokens that it keeps when deployed.
        `label_teacher`: teacher whose predicted classes are half of the hard target (hard distillation, Touvron et al.,
        ICML 2021). `hook`: decides whether the soft loss counts. `task`: default classification.
        """
        self.config, self.teacher, self.blocks = config, teacher, blocks
        self.weights, self.kept_fractions = weights, kept_fractions
        self.label_teacher, self.hook = label_teacher, hook or TrainingHook()
        self.task = task or Classification()

    def __call__(self, output: Tensor | tuple[Any, ...], batch: Batch) -> Mapping[str, Tensor]:
        """Return `loss` and, for each compared block, the unweighted `feature_loss.BLOCK`; all are scalars.

        `output` is the student's output (b, k), or the fields of LogitsAndFeatures. With token predictors the
        unweighted `kept_fraction.BLOCK` of each is returned too.
        """
        loss = self.config.loss
        logits, features, decisions = LogitsAndFeatures(*((output, ()) if isinstance(output, Tensor) else output))
        logits = joined(logits)
        target = self.teacher(batch) if self.teacher is not None else None
        total, recorded = logits.new_zeros(()), {}
        if loss.hard > 0:
            total = total + loss.hard * self._hard(logits, batch, target)
        if target is not None and loss.soft > 0 and self.hook.uses_soft_loss:
            total = total + loss.soft * self.task.soft_loss(logits, joined(target.logits), self.config.temperature)
        if target is not None and loss.feature > 0:
            distances = self._distances(logits, features, target)
            total = total + loss.feature * (distances if self.weights is None else self.weights * distances).mean()
            recorded = {FEATURE_LOSS + block: one for block, one in zip(self.blocks, distances, strict=True)}
        if loss.ratio > 0:
            total = total + loss.ratio * ratio_loss(decisions, tuple(self.kept_fractions.values()))
        if target is not None and loss.token > 0:
            total = total + loss.token * token_loss(features[-1], target.features[-1], decisions[-1])
        for block, decision in zip(self.kept_fractions, decisions, strict=True):
            recorded[KEPT_FRACTION + block] = decision.detach().mean()
        return {LOSS: total, **recorded}

    def _hard(self, logits: Tensor, batch: Batch, target: LogitsAndFeatures | None) -> Tensor:
        use_teacher = target is not None and self.config.labels == "teacher"
        labels = self.task.teacher_labels(joined(target.logits)) if target is not None and use_teacher else batch.labels
        found = self.task.hard_loss(logits, labels, self.config.train.label_smoothing)
        if self.label_teacher is None:
            return found
        others = self.task.teacher_labels(joined(self.label_teacher(batch).logits))
        return (found + self.task.hard_loss(logits, others)) / 2

    def _distances(self, logits: Tensor, features: Sequence[Tensor], target: LogitsAndFeatures) -> Tensor:
        """Return the distance of each block over the images that the recipe counts: float32 (blocks,)."""
        if self.config.features.only_agreeing:
            counted = self.task.agrees(logits, joined(target.logits))
        else:
            counted = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return feature_losses(features, target.features, counted)
