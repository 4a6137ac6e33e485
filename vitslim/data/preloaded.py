"""Decoded images on the training device, which avoids a copy for each batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vitslim.data.source import Normalization, Pixels, Source


@dataclass(frozen=True)
class PreloadedImages:
    """A source whose images are decoded already; augmented images come from the original source."""

    source: Source
    decoded: Pixels = field(repr=False)
    """(n, C, H, W) on any device."""
    position: dict[int, int] = field(repr=False)
    """Index in the source to index in `decoded`."""
    workers: int = 0

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Pixels:
        """Return the decoded image on its device; with a seed, the augmented image of the source."""
        return self.decoded[self.position[index]] if augment_seed is None else self.source.pixels(index, augment_seed)

    @property
    def normalization(self) -> Normalization:
        """The normalization of the source."""
        return self.source.normalization

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """Normalize as the source does."""
        return self.source.normalize(pixels)
