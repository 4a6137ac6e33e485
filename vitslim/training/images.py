"""Protocols of the datasets that training and evaluation read; `vitslim.data.Dataset` implements them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from vitslim.progress import Progress


class LabeledBatches(Protocol):
    """Iterates as (images float32 (b, C, H, W), labels int64 (b,))."""

    @property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """Positions in the dataset, batch by batch."""
        ...

    def __len__(self) -> int: ...

    def after(self, count: int) -> LabeledBatches:
        """Return these batches without the first `count`; all of them if `count` is negative."""
        ...

    def part(self, rank: int, ranks: int) -> LabeledBatches:
        """Return the rows of each batch that a rank holds, as `rows_of_rank` chooses them."""
        ...

    def every(self, first: int, step: int) -> LabeledBatches:
        """Return the batches first, first + step, ..."""
        ...

    def on(self, device: torch.device) -> LabeledBatches:
        """Return the same batches, yielded on a device."""
        ...

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


class LabeledImages(Protocol):
    """Images with labels in a fixed order."""

    def __len__(self) -> int: ...

    def batches(self, batch: int, shuffle_seed: int | None = None) -> LabeledBatches:
        """Return batches of `batch` images, in order, or shuffled by a seed."""
        ...

    def balanced(self, count: int | None, seed: int = 0) -> LabeledImages:
        """Return `count` images, balanced over the classes; all of them if `count` is None."""
        ...

    def preloaded(self, device: torch.device, progress: Progress) -> LabeledImages:
        """Return the same images, decoded and stored on a device if they fit."""
        ...

    def rand_augmented(self) -> LabeledImages:
        """Return the same images, to which `augmented` also applies RandAugment."""
        ...

    def augmented(self, seed: int) -> LabeledImages:
        """Return the same images under a small random augmentation."""
        ...
