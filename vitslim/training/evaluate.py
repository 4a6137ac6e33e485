"""Predictions of a model on a dataset, and metrics that compare predictions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import bdtrc

from vitslim.graph.outputs import Outputs, joined
from vitslim.progress import Progress
from vitslim.ranks import rank, rank_count
from vitslim.training.engine.collectives import gathered_batches
from vitslim.training.images import LabeledImages

SIGNIFICANCE = 0.05
"""Level of the one-sided test in `shown_below`."""


def predict(
    model: Callable[[torch.Tensor], Outputs],
    dataset: LabeledImages,
    batch: int,
    progress: Progress,
    label: str,
    *,
    by_ranks: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of all images in order, float32 (n, k), and their labels, int64 (n,) or float (n, classes).

    Outputs are logits, embeddings, or all maps of an image in one row (`joined`). `model` is a module or any function
    of images; a module is left in evaluation mode. by_ranks: all ranks call this function and share the batches, whose
    images and sizes do not depend on the number of ranks; without it each rank computes everything itself.
    """
    if isinstance(model, torch.nn.Module):
        model.eval()
    batches = dataset.batches(batch)
    if by_ranks:
        batches = batches.every(rank(), rank_count())
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for images, targets in progress.track(batches, label, images=batch):
            found.append((joined(model(images)).float(), targets))
    outputs, labels = zip(*(gathered_batches(found) if by_ranks else found), strict=True)
    return torch.cat(outputs), torch.cat(labels)


def run_over(
    model: Callable[[torch.Tensor], object], dataset: LabeledImages, batch: int, progress: Progress, label: str
) -> None:
    """Run a function of images on all images in order, for its side effects; its results are discarded."""
    with torch.no_grad():
        for images, _ in progress.track(dataset.batches(batch), label, images=batch):
            model(images)


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the fraction of images, in [0, 1], whose largest logit is that of the label."""
    return (logits.argmax(dim=1) == labels).float().mean().item()


def agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the fraction of images, in [0, 1], of which two models predict the same class.

    Both are logits (n, classes).
    """
    return (first.argmax(dim=1) == second.argmax(dim=1)).float().mean().item()


def sqnr_db(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in decibels.

    `10 log10(sum reference^2 / sum (reference - other)^2)`, summed in double precision; both have the same shape.
    Infinite if both are equal.
    """
    signal = reference.double().square().sum().item()
    noise = (reference.double() - other.double()).square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def shown_below(agreement: float, floor: float, images: int) -> bool:
    """Return whether the agreement on `images` images is below `floor` beyond chance.

    One-sided binomial test at the level `SIGNIFICANCE`: the number of images of which the predictions differ is larger
    than an agreement of `floor` would explain.
    """
    differing = images - round(agreement * images)
    return bool(bdtrc(differing - 1, images, 1 - floor) < SIGNIFICANCE)
