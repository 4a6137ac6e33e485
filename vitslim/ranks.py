"""Ranks: the processes that torchrun starts for one run. Each holds the whole model and a part of every batch.

All ranks run the same stages on the same inputs. They share the images of training, calibration and evaluation; only
rank 0 writes files, measures latency and prints.
"""

from __future__ import annotations

import os


def launched_ranks() -> int:
    """Return the number of ranks that torchrun started; 1 without torchrun. Does not import torch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_launched() -> bool:
    """Return whether this process is rank 0 of those that torchrun started. Does not import torch."""
    return launched_ranks() == 1 or int(os.environ.get("RANK", "0")) == 0


def rank_count() -> int:
    """Return the number of ranks that have joined; 1 before `joined_ranks` and without torchrun."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0 to `rank_count() - 1`."""
    from torch import distributed

    return distributed.get_rank() if distributed.is_initialized() else 0


def rows_of_rank(images: int, rank: int, ranks: int) -> list[int]:
    """Return the rows of a batch that a rank holds. Every rank has all rows of a batch smaller than the ranks.

    An even batch is divided so that row i and row `images - 1 - i`, which mixup blends, are on one rank.
    """
    if images < ranks:
        return list(range(images))
    if images % ranks:
        return list(range(images * rank // ranks, images * (rank + 1) // ranks))
    second = images // ranks // 2
    first = images // ranks - second
    return [
        *range(rank * first, (rank + 1) * first),
        *range(images - (rank + 1) * second, images - rank * second),
    ]
