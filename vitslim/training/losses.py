"""Losses of fine-tuning and distillation, as pure functions of logits."""

from __future__ import annotations

import torch
from torch.nn import functional


def hard_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Return the cross-entropy with the labels, averaged over the batch.

    `logits` is (n, classes), `labels` int64 (n,), or probabilities float (n, classes); `smoothing` in [0, 1) is spread
    evenly over all classes.
    """
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def soft_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, averaged over the batch.

    Both are (n, classes). T^2 keeps the size of the gradient independent of the temperature. Source: Hinton et al.,
    "Distilling the knowledge in a neural network", 2015.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
