"""Gradient statistics on calibration images, for Taylor and Hessian importance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vitslim.data import Batches, Dataset
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import joined
from vitslim.progress import Progress
from vitslim.ranks import rank, rank_count
from vitslim.training.engine.collectives import sum_over_ranks, whole_batch
from vitslim.training.tasks import task_for

Gradients = dict[str, Tensor]
"""Parameter name to its gradient statistic: float32, the parameter's shape. Parameters that the loss does not depend on
are left out."""


def calibration_batches(images: Dataset, count: int, batch: int, seed: int) -> Batches:
    """Return the first `count` batches of at most `batch` images, in an order that depends on the seed alone.

    Raises StageError when `count` is above zero and there are no images.
    """
    drawn = images.batches(batch, shuffle_seed=seed)
    if count and not drawn.positions:
        raise StageError("importance by gradients needs calibration images, got none", "set data.calibration")
    return replace(drawn, positions=drawn.positions[:count])


def summed_gradients(
    graph: ModelGraph, images: Batches, progress: Progress, generator: torch.Generator | None = None
) -> Gradients:
    """Return the sum over batches of the gradient of the mean loss of the task, such as the cross-entropy.

    generator: source of the random combinations of outputs that replace a loss without labels. The graph is not
    changed. The ranks share each batch. Raises StageError for a gradient that is not finite.
    """
    module, task = graph.copy().module, task_for(graph.source)
    own = images.part(rank(), rank_count())
    with torch.enable_grad():
        batches = progress.track(own, "gradients for importance")
        for count, (pixels, labels) in zip(map(len, images.positions), batches, strict=True):
            outputs = whole_batch(joined(module(pixels)), count)
            loss = task.importance_loss(outputs, whole_batch(labels, count), generator)
            # Every rank has all images of a batch that is smaller than the ranks.
            torch.autograd.backward(loss / rank_count() if count < rank_count() else loss)
    found = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    return _finite({name: sum_over_ranks(gradient) for name, gradient in found.items()})


def squared_gradients(
    graph: ModelGraph, images: Batches, progress: Progress, generator: torch.Generator | None = None
) -> Gradients:
    """Return the mean over images of the squared gradient of each image's loss, as in `summed_gradients`.

    Runs image by image: separate gradients for a whole batch would need the memory of as many models. The graph is not
    changed. The ranks share the batches, except those of a feature extractor. Raises StageError for a gradient that is
    not finite.
    """
    module, task = graph.copy().module, task_for(graph.source)
    weights = dict(module.named_parameters())
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = sum(len(positions) for positions in images.positions)
    # Random combinations of outputs follow one another, so that ranks cannot divide them.
    is_shared = graph.source.classes > 0
    own = images.every(rank(), rank_count()) if is_shared else images
    each = ((image, label) for pixels, labels in own for image, label in zip(pixels, labels, strict=True))
    number = sum(len(positions) for positions in own.positions)
    with torch.enable_grad():
        for image, label in progress.track(each, "gradients of single images", total=number):
            module.zero_grad()
            torch.autograd.backward(task.importance_loss(joined(module(image[None])), label[None], generator))
            for name, weight in weights.items():
                if weight.grad is not None:
                    total[name].addcmul_(weight.grad, weight.grad)
    sums = {name: sum_over_ranks(squares) if is_shared else squares for name, squares in total.items()}
    return _finite({name: squares / count for name, squares in sums.items()})


def _finite(gradients: Gradients) -> Gradients:
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise StageError(f"the gradient of '{name}' is not finite", "check the weights in model.checkpoint")
    return gradients
