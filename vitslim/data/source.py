"""Protocol of image sources: the files of a folder, or the embedded digits."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

Pixels = torch.Tensor
"""Decoded images (C, H, W) or (n, C, H, W) at the model's input size, before normalization; uint8 for files, float32
for digits."""

CACHE_BYTES_MAX = 1_000_000_000
"""Decoded pixels of one dataset that are kept in memory: 6,600 images of 224 px."""


class Normalization(NamedTuple):
    """`(pixel - mean) / std` per channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Source(Protocol):
    """Decodes single images; safe to call from several threads."""

    @property
    def workers(self) -> int:
        """Number of decoding threads; 0 decodes in the calling thread."""
        ...

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Pixels:
        """Return image `index` under the evaluation transform, or augmented with a seed: (C, H, W)."""
        ...

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation that `normalize` uses."""
        ...

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """Convert decoded images (n, C, H, W) on any device to normalized float32."""
        ...
