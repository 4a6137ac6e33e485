"""Batches of a dataset, in order or shuffled, decoded one batch ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from vitslim.data.dataset import Dataset, Pixels


@dataclass(frozen=True)
class Batches:
    """Iterates as (images float32 (b, C, H, W), labels int64 (b,)); each pass gives the same batches."""

    dataset: Dataset
    positions: tuple[tuple[int, ...], ...]
    """Positions in the dataset, batch by batch."""

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for positions, pixels in zip(self.positions, self._decoded(), strict=True):
            labels = torch.tensor([self.dataset.labels[position] for position in positions])
            yield self.dataset.source.normalise(pixels), labels

    def _decoded(self) -> Iterator[Sequence[Pixels]]:
        decode, workers = self.dataset.pixels, self.dataset.source.workers
        if workers == 0:
            yield from ([decode(position) for position in positions] for positions in self.positions)
            return
        # Threads, not processes: image decoding and resizing release the interpreter lock, decoded images can be kept
        # for the next pass, and an unreadable file surfaces as the error it is.
        pool = ThreadPoolExecutor(workers)
        try:
            ahead: list[Future[Pixels]] = []
            for following in (*self.positions, ()):
                current, ahead = ahead, [pool.submit(decode, position) for position in following]
                if current:
                    yield [future.result() for future in current]
        finally:
            pool.shutdown(cancel_futures=True)


def batches(dataset: Dataset, batch: int, shuffle_seed: int | None = None, drop_last: bool = False) -> Batches:
    """Split a dataset into batches of `batch` images, in order, or shuffled by a seed; the last may be smaller."""
    order = np.arange(len(dataset))
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(order)
    split = [tuple(int(position) for position in order[start : start + batch]) for start in range(0, len(order), batch)]
    if drop_last and split and len(split[-1]) < batch:
        split.pop()
    return Batches(dataset, tuple(split))
