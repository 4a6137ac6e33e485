"""Losses of fine-tuning and distillation, as pure functions of logits."""

from __future__ import annotations

import torch
from torch.nn import functional


def hard_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy with the labels, batch mean (GPUSQ, L_hard).

    `logits` is (n, classes), `labels` int64 (n,); `smoothing` in [0, 1) is spread evenly over all classes.
    """
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def soft_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, batch mean (GPUSQ, L_soft).

    Both are (n, classes); zero when they are equal. T^2 keeps the gradient's size independent of the temperature.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
