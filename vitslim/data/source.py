"""What decodes images: files of a folder, or the embedded digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""One decoded image (C, H, W) at the model's size, before normalisation; uint8 for files, float32 for digits."""


class Source(Protocol):
    """Decodes single images; safe to call from several threads."""

    @property
    def workers(self) -> int:
        """Threads that decoding is worth; 0 decodes in the calling thread."""
        ...

    def pixels(self, index: int, variation: tuple[int, ...] | None) -> Pixels:
        """Image `index`: exactly the evaluation transform, or its random variation seeded by `variation`."""
        ...

    def normalise(self, pixels: Sequence[Pixels], device: torch.device) -> torch.Tensor:
        """Stack decoded images to float32 (n, C, H, W) on a device and normalise them."""
        ...
