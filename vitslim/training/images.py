"""What training and evaluation need of a dataset; `vitslim.data.Dataset` has it."""

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
        """Without the first `count` batches; all of them when it is negative."""
        ...

    def on(self, device: torch.device) -> LabeledBatches:
        """The same batches, given on a device."""
        ...

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


class LabeledImages(Protocol):
    """Images with labels in a fixed order."""

    def __len__(self) -> int: ...

    def batches(self, batch: int, shuffle_seed: int | None = None) -> LabeledBatches:
        """Batches of `batch` images, in order, or shuffled by a seed."""
        ...

    def held(self, device: torch.device, progress: Progress) -> LabeledImages:
        """The same images, decoded and held on a device where they fit."""
        ...

    def varied(self, seed: int) -> LabeledImages:
        """The same images under a small random variation."""
        ...
