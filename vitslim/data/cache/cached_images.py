"""An image source that decodes each image once, for all stages and for later runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import torch

from vitslim.data.cache.pixel_file import SUFFIX, PixelFile
from vitslim.data.dataset import Dataset
from vitslim.data.source import CACHE_BYTES_MAX, Normalization, Pixels, Source
from vitslim.files import user_cache
from vitslim.graph.model_graph import ModelSource
from vitslim.progress import Progress
from vitslim.version import __version__

DECODERS = ("pillow", "timm", "torchvision")
"""Packages whose versions may change decoded pixels."""


@dataclass(frozen=True)
class CachedImages:
    """A source whose images are kept as they were decoded; augmented images come from the original source."""

    source: Source
    shape: tuple[int, int, int]
    """(C, H, W) of the images, which are uint8."""
    file: PixelFile | None = field(repr=False)
    """None keeps images in memory only."""
    memory: dict[int, Pixels] = field(default_factory=dict, repr=False)
    """Images by index that the file does not hold, of at most `CACHE_BYTES_MAX` bytes."""

    @property
    def workers(self) -> int:
        """Number of decoding threads of the source."""
        return self.source.workers

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Pixels:
        """Return one image, uint8 (C, H, W), equal to that of the source bit for bit."""
        if augment_seed is not None:
            return self.source.pixels(index, augment_seed)
        if index in self.memory:
            return self.memory[index]
        found = self.file.read(index) if self.file else None
        if found is not None:
            return torch.frombuffer(found, dtype=torch.uint8).view(self.shape)
        pixels = self.source.pixels(index, None)
        is_kept = self.file is not None and self.file.append(index, pixels.contiguous().numpy().data.cast("B"))
        if not is_kept and len(self.memory) < CACHE_BYTES_MAX // pixels.nbytes:
            self.memory[index] = pixels
        return pixels

    @property
    def normalization(self) -> Normalization:
        """The normalization of the source."""
        return self.source.normalization

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """Normalize as the source does."""
        return self.source.normalize(pixels)


def cached(dataset: Dataset, model: ModelSource, limit_gb: float, progress: Progress) -> Dataset:
    """Return the same images, kept after decoding in the user's cache folder, of at most `limit_gb` 10^9 bytes.

    Files are named by the digest of the images and by the preprocessing. A limit of 0 keeps images in memory only.
    """
    file = None
    if limit_gb > 0:
        folder, image_bytes = user_cache("pixels"), model.image[0] * model.image[1] * model.image[2]
        path = folder / f"{_key(dataset, model)}{SUFFIX}"
        file = PixelFile(path, image_bytes, round(limit_gb * 1e9), progress.say)
    return replace(dataset, source=CachedImages(dataset.source, model.image, file))


def _key(dataset: Dataset, model: ModelSource) -> str:
    parts = (dataset.source_digest, model.image, model.preprocessing, __version__, *map(version, DECODERS))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
