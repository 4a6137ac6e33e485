"""Operations over all ranks of a run. With one rank each returns its input.

All ranks must call an operation of this file in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

from vitslim.ranks import rank, rank_count, rows_of_rank

T = TypeVar("T")


def on_first_rank(function: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result on every rank; the others wait. The result must be picklable."""
    if rank_count() == 1:
        return function()
    found = [function() if rank() == 0 else None]
    distributed.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def wait_for_ranks() -> None:
    """Wait until every rank is here."""
    sum_over_ranks(torch.zeros(1))


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let rank 0 run the body first, and all other ranks after it."""
    if rank() > 0:
        wait_for_ranks()
    yield
    if rank() == 0:
        wait_for_ranks()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of tensors of the same shape."""
    return _reduced(values, distributed.ReduceOp.SUM)


def of_first_rank(values: Tensor) -> Tensor:
    """Return the tensor of rank 0; those of the others have the same shape and data type."""
    if rank_count() == 1:
        return values
    result = values.clone().contiguous()
    distributed.broadcast(result, 0)
    return result


def max_over_ranks(values: Tensor) -> Tensor:
    """Return the largest value of each element."""
    return _reduced(values, distributed.ReduceOp.MAX)


def _reduced(values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
    if rank_count() == 1:
        return values
    result = values.detach().clone().contiguous()
    distributed.all_reduce(result, operation)
    return result


def share_of_total(total: Tensor, images: int, least: float) -> Tensor:
    """Return the sum of a scalar over the ranks, at least `least`, divided among them in proportion to their images.

    total: a float scalar over the `images` of this rank. A sum over these images that is divided by the result, and
    averaged over the images of all ranks, is the sum over all images divided by the total of all ranks.
    """
    if rank_count() == 1:
        return total.clamp(min=least)
    sums = sum_over_ranks(torch.stack([total.detach().double(), total.new_tensor(images).double()]))
    return (sums[0].clamp(min=least) * images / sums[1]).to(total.dtype)


def gathered_batches(own: Sequence[T]) -> list[T]:
    """Return the items of all batches in order. own: those of the batches `rank()`, `rank() + rank_count()`, ..."""
    ranks = rank_count()
    if ranks == 1:
        return list(own)
    found: list[Sequence[T] | None] = [None] * ranks
    distributed.all_gather_object(found, own)
    lists = [one or () for one in found]
    return [lists[number % ranks][number // ranks] for number in range(sum(map(len, lists)))]


def all_items(own: Sequence[T]) -> list[T]:
    """Return the items of all ranks, those of rank 0 first."""
    if rank_count() == 1:
        return list(own)
    found: list[Sequence[T] | None] = [None] * rank_count()
    distributed.all_gather_object(found, own)
    return [item for items in found for item in items or ()]


def whole_batch(own: Tensor, images: int) -> Tensor:
    """Return the rows of a whole batch of `images`, of which this rank has those of `rows_of_rank`.

    own: (rows, ...). Gradients flow to the rows of this rank only.
    """
    ranks = rank_count()
    if ranks == 1 or images < ranks:
        return own
    parts: list[Tensor | None] = [None] * ranks
    distributed.all_gather_object(parts, own.detach().cpu())
    whole = own.new_empty((images, *own.shape[1:]))
    for number, part in enumerate(parts):
        if part is not None:
            whole[rows_of_rank(images, number, ranks)] = part.to(own)
    return whole.index_copy(0, torch.tensor(rows_of_rank(images, rank(), ranks), device=own.device), own)
