"""Gradients of the loss on calibration images, for Taylor importance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vitslim.data import Dataset, batches
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress


def calibration_gradients(
    graph: ModelGraph, images: Dataset, count: int, batch: int, seed: int, progress: Progress
) -> tuple[dict[str, Tensor], int]:
    """Sum over batches of the gradient of the mean cross-entropy with the labels: by parameter name, and images seen.

    `count` batches of `batch` images, drawn from `images` in an order that depends on the seed alone; all of them when
    there are fewer. float32. Parameters that the loss does not depend on are left out. The graph stays as it is.
    Raises StageError when there are no images or a gradient is no finite number.
    """
    loader = batches(images, batch, shuffle_seed=seed)
    loader = replace(loader, positions=loader.positions[:count])
    if not loader.positions:
        raise StageError("importance 'taylor' needs calibration images, and there are none", "set data.calibration")
    module = graph.copy().module
    seen = 0
    with torch.enable_grad():
        for pixels, labels in progress.track(loader, "gradients for importance"):
            cross_entropy(module(pixels), labels).backward()  # type: ignore[no-untyped-call]
            seen += len(labels)
    gradients = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise StageError(f"the gradient of {name} is not finite", "the weights of the model are broken")
    return gradients, seen
