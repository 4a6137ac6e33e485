"""Random numbers of the images of a batch that do not depend on the number of ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitslim.ranks import rank, rank_count, rows_of_rank


def draw_for_images(draw: Callable[[int], Tensor], images: int) -> Tensor:
    """Return random numbers of the `images` that this rank holds of a batch.

    draw: returns the numbers of n images, (n, ...), from a generator that is in the same state on all ranks. Each rank
    draws the numbers of the whole batch and keeps its rows. If the batch cannot be divided evenly, the numbers depend
    on the number of ranks.
    """
    ranks = rank_count()
    if ranks == 1:
        return draw(images)
    return draw(images * ranks)[rows_of_rank(images * ranks, rank(), ranks)]


def drop_images(x: Tensor, probability: float) -> Tensor:
    """Set x to zero for each image with a probability, and divide it by one minus the probability for the others.

    x: (b, ...) float. Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016.
    """
    if probability == 0:
        return x

    def draw(images: int) -> Tensor:
        return x.new_empty((images,) + (1,) * (x.ndim - 1)).bernoulli_(1 - probability)

    return x * draw_for_images(draw, len(x)).div_(1 - probability)


def gumbel_noise(like: Tensor) -> Tensor:
    """Return standard Gumbel noise of the shape and dtype of a tensor (b, ...)."""

    def draw(images: int) -> Tensor:
        return torch.empty((images, *like.shape[1:]), dtype=like.dtype, device=like.device).exponential_()

    return -draw_for_images(draw, len(like)).log()
