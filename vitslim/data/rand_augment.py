"""RandAugment (Cubuk et al., NeurIPS 2020) with the policy of DeiT, by timm."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_transform

from vitslim.data.source import Normalization, Pixels, Source
from vitslim.random_state import seeded_random

POLICY = "rand-m9-mstd0.5-inc1"
"""Two operations of magnitude 9 with a deviation of 0.5 (Touvron et al., "Training data-efficient image transformers",
ICML 2021)."""
OPERATIONS = 2
MAGNITUDE_MAX = 9.9
"""Just below timm's limit of 10, at which it posterizes to zero bits, which Pillow refuses."""
TRANSLATION = 0.45
"""Largest translation as a fraction of the shorter side, as in timm."""


@dataclass(frozen=True)
class RandAugmented:
    """A source whose augmented images also go through RandAugment."""

    source: Source
    operations: tuple[AugmentOp, ...] = field(repr=False)

    @property
    def workers(self) -> int:
        """Number of decoding threads of the source."""
        return self.source.workers

    @property
    def normalization(self) -> Normalization:
        """The normalization of the source."""
        return self.source.normalization

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """Normalize as the source does."""
        return self.source.normalize(pixels)

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Pixels:
        """Return one image of the source; with a seed, after two random operations: (C, H, W)."""
        pixels = self.source.pixels(index, augment_seed)
        if augment_seed is None:
            return pixels
        generator = np.random.default_rng([*augment_seed, OPERATIONS])
        chosen = generator.choice(len(self.operations), OPERATIONS)
        image = to_image(pixels)
        with seeded_random(int(generator.integers(2**62))):
            for number in chosen:
                image = self.operations[number](image)
        return to_pixels(image, pixels)


def rand_augmented(source: Source) -> RandAugmented:
    """Return a source with RandAugment; erased and empty areas have the mean color of its normalization."""
    height, width = source.pixels(0, None).shape[1:]
    mean = tuple(min(255, round(255 * value)) for value in source.normalization.mean)
    hparams = {"translate_const": int(min(height, width) * TRANSLATION), "img_mean": mean,
               "magnitude_max": MAGNITUDE_MAX}  # fmt: skip
    return RandAugmented(source, tuple(rand_augment_transform(POLICY, hparams).ops))


def to_image(pixels: Pixels) -> Image.Image:
    """Return an image of pixels (C, H, W), uint8, or float in [0, 1]."""
    values = pixels if pixels.dtype == torch.uint8 else (255 * pixels).round().clamp(0, 255).to(torch.uint8)
    array = values.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def to_pixels(image: Image.Image, like: Pixels) -> Pixels:
    """Return the pixels of an image in the shape and the data type of others."""
    values = torch.from_numpy(np.array(image)).reshape(like.shape[1], like.shape[2], like.shape[0]).permute(2, 0, 1)
    return values if like.dtype == torch.uint8 else values.to(like.dtype) / 255
