"""Batches of labeled images, in order or shuffled; the next batch is decoded while one is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from vitslim.data.source import Pixels
from vitslim.ranks import rows_of_rank

Labels = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""For each image a class index, or a tuple of class indices."""


def label_tensor(labels: Sequence[int | tuple[int, ...]], classes: int) -> torch.Tensor:
    """Return class indices as int64 (n,), or tuples of class indices as float32 (n, classes) of zeros and ones."""
    if not any(isinstance(label, tuple) for label in labels):
        return torch.tensor(labels, dtype=torch.int64)
    found = torch.zeros(len(labels), classes)
    for row, label in zip(found, labels, strict=True):
        row[list(label) if isinstance(label, tuple) else [label]] = 1
    return found


@dataclass(frozen=True)
class Batches:
    """Iterates as (images float32 (b, C, H, W), labels); each pass gives the same batches.

    Labels are int64 (b,), or float32 (b, classes) of zeros and ones where images have any number of labels.
    """

    positions: tuple[tuple[int, ...], ...]
    """Positions in the dataset, batch by batch."""
    decode: Callable[[int], Pixels]
    """Return the image at a position."""
    labels: Labels
    """Class indices of the whole dataset."""
    normalize: Callable[[Pixels], torch.Tensor]
    workers: int
    """Number of decoding threads; 0 decodes in the calling thread."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - devices are values
    """Device of the yielded batches."""
    classes: int = 0
    """Number of classes, for images with any number of labels."""

    def __len__(self) -> int:
        return len(self.positions)

    def after(self, count: int) -> Batches:
        """Return the batches without the first `count`, which are not decoded; all of them if `count` is negative."""
        return replace(self, positions=self.positions[max(count, 0) :])

    def part(self, rank: int, ranks: int) -> Batches:
        """Return the rows of each batch that a rank holds, as `rows_of_rank` chooses them; only these are decoded."""
        if ranks == 1:
            return self
        rows = {size: rows_of_rank(size, rank, ranks) for size in set(map(len, self.positions))}
        parts = (tuple(batch[row] for row in rows[len(batch)]) for batch in self.positions)
        return replace(self, positions=tuple(parts))

    def every(self, first: int, step: int) -> Batches:
        """Return the batches first, first + step, ..."""
        return replace(self, positions=self.positions[first::step])

    def on(self, device: torch.device) -> Batches:
        """Return the same batches on a device; pixels are copied as they were decoded and normalized there."""
        return replace(self, device=device)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for positions, pixels in zip(self.positions, self.decoded(), strict=True):
            labels = label_tensor([self.labels[position] for position in positions], self.classes)
            yield self.normalize(pixels), labels.to(self.device, non_blocking=True)

    def decoded(self) -> Iterator[Pixels]:
        """Yield the decoded pixels of each batch before normalization: (b, C, H, W) on the device."""
        return (torch.stack(list(pixels)).to(self.device, non_blocking=True) for pixels in self._decoded())

    def _decoded(self) -> Iterator[Sequence[Pixels]]:
        if self.workers == 0:
            yield from ([self.decode(position) for position in positions] for positions in self.positions)
            return
        # Threads, not processes: decoding and resizing release the interpreter lock, decoded images can be cached for
        # the next pass, and the exception for an unreadable file keeps its type.
        pool = ThreadPoolExecutor(self.workers)
        try:
            ahead: list[Future[Pixels]] = []
            for following in (*self.positions, ()):
                current, ahead = ahead, [pool.submit(self.decode, position) for position in following]
                if current:
                    yield [future.result() for future in current]
        finally:
            pool.shutdown(cancel_futures=True)


def split_positions(count: int, batch: int, shuffle_seed: int | None, drop_last: bool) -> tuple[tuple[int, ...], ...]:
    """Return the positions 0 to `count` - 1 in groups of `batch`, shuffled if a seed is given.

    The last group may be smaller, unless `drop_last` removes it.
    """
    order = np.arange(count)
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(order)
    groups = [tuple(order[start : start + batch].tolist()) for start in range(0, count, batch)]
    if drop_last and groups and len(groups[-1]) < batch:
        groups.pop()
    return tuple(groups)
