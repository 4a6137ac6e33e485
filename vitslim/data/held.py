"""Decoded images on the device that trains, so that no batch waits for them to be copied."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vitslim.data.source import Normalization, Pixels, Source


@dataclass(frozen=True)
class HeldImages:
    """Some images of a source, decoded; variations are still the source's."""

    source: Source
    held: Pixels = field(repr=False)
    """(n, C, H, W) on any device."""
    place: dict[int, int] = field(repr=False)
    """Index in the source to index in `held`."""
    workers: int = 0

    def pixels(self, index: int, variation: tuple[int, ...] | None) -> Pixels:
        """As it was decoded, on the device where it is held; varied, as the source gives it."""
        return self.held[self.place[index]] if variation is None else self.source.pixels(index, variation)

    @property
    def normalization(self) -> Normalization:
        """That of the source."""
        return self.source.normalization

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """As the source does."""
        return self.source.normalize(pixels)
