"""Predictions of a model on a dataset, and figures that compare predictions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import binom

from vitslim.progress import Progress
from vitslim.training.images import LabeledImages

TOO_RARE = 0.05
"""Predictions are too far from others where chance alone would make so few that are."""


def predict(
    model: Callable[[torch.Tensor], torch.Tensor], dataset: LabeledImages, batch: int, progress: Progress, label: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 (n, classes) and labels int64 (n,) of all images in order.

    `model` is a module or any function of images; a module is put into evaluation mode and stays in it.
    """
    if isinstance(model, torch.nn.Module):
        model.eval()
    logits, labels = [], []
    with torch.no_grad():
        for images, targets in progress.track(dataset.batches(batch), label):
            logits.append(model(images).float())
            labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction of images, in [0, 1], whose largest logit is at the label."""
    return (logits.argmax(dim=1) == labels).float().mean().item()


def agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    """Fraction of images, in [0, 1], on which two models predict the same class; both are logits (n, classes)."""
    return (first.argmax(dim=1) == second.argmax(dim=1)).float().mean().item()


def sqnr_db(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to quantization noise, `10 log10(sum reference^2 / sum (reference - other)^2)`, in decibels.

    Infinite when both are equal. Any shape, the same for both; summed in double precision.
    """
    signal = reference.double().square().sum().item()
    noise = (reference.double() - other.double()).square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def shown_below(share: float, floor: float, images: int) -> bool:
    """Whether a share of equal predictions on so many images is too small for one of `floor` in the long run.

    One-sided binomial test: a model that has the floor would do as badly on fewer than TOO_RARE of such samples. Of 256
    images 98.5 % leaves four others on average, and seven are no proof of a lower share.
    """
    others = images - round(share * images)
    return bool(binom.sf(others - 1, images, 1 - floor) < TOO_RARE)
