"""The embedded dataset: 1,797 handwritten digits of 8x8 pixels from scikit-learn, which need no download."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vitslim.data.dataset import Dataset
from vitslim.data.source import Normalization, Pixels

MEAN, STD = 0.305, 0.376
"""Mean and standard deviation of all pixels in [0, 1], before resizing."""

VAL_FRACTION = 0.2
SPLIT_SEED = 0
"""The split does not depend on the seed of a run, so that results of different seeds are comparable."""

MAX_ROTATION_DEG = 12.0
MAX_SHIFT = 0.12
"""Fraction of the image side; about one of the eight source pixels."""
MAX_SCALING = 0.1
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class DigitImages:
    """The digits at a model's input size, repeated over the channels."""

    originals: NDArray[np.float32] = field(repr=False)
    """(1797, 8, 8), values in [0, 1]."""
    channels: int
    height: int
    width: int
    workers: int = 0

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Pixels:
        """Return one digit, resized bilinearly: float32 (C, H, W) in [0, 1].

        With a seed it is shifted, rotated and scaled at random.
        """
        original = torch.from_numpy(self.originals[index])[None, None]
        image = functional.interpolate(original, (self.height, self.width), mode="bilinear", align_corners=False)
        if augment_seed is not None:
            grid = functional.affine_grid(_affine(augment_seed), list(image.shape), align_corners=False)
            image = functional.grid_sample(image, grid, align_corners=False)
        return image[0].expand(self.channels, -1, -1)

    @property
    def normalization(self) -> Normalization:
        """The fixed mean and standard deviation of the digits, the same for every channel."""
        return Normalization((MEAN,) * self.channels, (STD,) * self.channels)

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """Normalize by the fixed mean and standard deviation of the digits."""
        return (pixels - MEAN) / STD


def _affine(augment_seed: tuple[int, ...]) -> torch.Tensor:
    """Return a random affine map (1, 2, 3) from output to input coordinates in [-1, 1]."""
    generator = np.random.default_rng(augment_seed)
    angle = np.deg2rad(generator.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG))
    scale = 1 + generator.uniform(-MAX_SCALING, MAX_SCALING)
    shift = 2 * generator.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return torch.tensor([[[cos, -sin, shift[0]], [sin, cos, shift[1]]]], dtype=torch.float32)


def load_digit_sets(image: tuple[int, int, int]) -> tuple[Dataset, Dataset]:
    """Return the training set (1,437 digits) and the validation set (360), stratified by class.

    `image` is the input size (C, H, W).
    """
    from sklearn.datasets import load_digits  # takes a second, which runs on other images do not need
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    originals = (bunch.images / 16).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    digest = hashlib.sha256(originals.tobytes() + labels.tobytes()).hexdigest()
    train, val = train_test_split(
        np.arange(len(labels)), test_size=VAL_FRACTION, stratify=labels, random_state=SPLIT_SEED
    )

    def part(split: str, indices: NDArray[np.int64]) -> Dataset:
        kept = np.sort(indices)
        return Dataset(
            name="digits",
            split=split,
            source=DigitImages(originals, *image),
            indices=tuple(kept.tolist()),
            labels=tuple(labels[kept].tolist()),
            class_names=NAMES,
            source_digest=digest,
        )

    return part("train", train), part("val", val)
