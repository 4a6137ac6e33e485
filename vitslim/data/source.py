"""What decodes images: files of a folder, or the embedded digits."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

Pixels = torch.Tensor
"""Decoded images (C, H, W) or (n, C, H, W) at the model's size, before normalization; uint8 for files, float32 for
digits."""

KEPT_BYTES_MAX = 1_000_000_000
"""Decoded pixels of one set that are kept in memory: 6,600 images of 224 px. Every stage evaluates the same images."""


class Normalization(NamedTuple):
    """What is done to pixels between 0 and 1: `(pixel - mean) / std`, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Source(Protocol):
    """Decodes single images; safe to call from several threads."""

    @property
    def workers(self) -> int:
        """Threads that decoding is worth; 0 decodes in the calling thread."""
        ...

    def pixels(self, index: int, variation: tuple[int, ...] | None) -> Pixels:
        """Image `index`: exactly the evaluation transform, or its random variation seeded by `variation`."""
        ...

    @property
    def normalization(self) -> Normalization:
        """What `normalize` does."""
        ...

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """Decoded images (n, C, H, W) on any device to float32, normalized."""
        ...
