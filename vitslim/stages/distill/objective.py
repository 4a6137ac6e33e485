"""The loss of distillation: labels and a teacher, weighted."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vitslim.recipe.stages import Distill
from vitslim.training import Batch, Objective, hard_loss, soft_loss

TeacherLogits = Callable[[Batch], torch.Tensor]
"""Logits (b, classes) of the teacher for a batch."""


def distillation_objective(config: Distill, teacher: TeacherLogits | None) -> Objective:
    """`hard * cross-entropy + soft * T^2 * KL(teacher || student)`; a term of weight zero is not computed.

    Without a teacher only the hard term remains. GPUSQ, section 4: L = a L_hard + b L_soft.
    """

    def objective(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = logits.new_zeros(())
        if config.loss.hard > 0:
            loss = loss + config.loss.hard * hard_loss(logits, batch.labels, config.train.smoothing)
        if teacher is not None and config.loss.soft > 0:
            loss = loss + config.loss.soft * soft_loss(logits, teacher(batch), config.temperature)
        return loss

    return objective
