"""Labeled datasets: an image source, and the indices in it that the dataset uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch

from vitslim.data.batches import Batches, Labels, split_positions
from vitslim.data.preloaded import PreloadedImages
from vitslim.data.rand_augment import rand_augmented
from vitslim.data.source import CACHE_BYTES_MAX, Pixels, Source
from vitslim.progress import Progress

UNLABELED = -1
"""Label of every image of a data set without labels; no loss and no metric accepts it."""
PRELOAD_BATCH = 64
"""Images that are copied to a device at a time."""


@dataclass(frozen=True)
class Dataset:
    """Labeled images in a fixed order. An item is (normalized float32 tensor (C, H, W), class index)."""

    name: str
    """`digits`, or the name of the folder."""
    split: str
    """`train`, `val`, `calibration`, or a name from `data.also_evaluate`."""
    source: Source = field(repr=False)
    indices: tuple[int, ...] = field(repr=False)
    """Indices in the source."""
    labels: Labels = field(repr=False)
    """Class index of each image, or a tuple of class indices of each; `UNLABELED` without labels."""
    class_names: tuple[str, ...] = field(repr=False)
    """Readable names by class index."""
    source_digest: str = field(repr=False)
    """SHA-256 of the whole source, in hexadecimal."""
    augment_seed: int | None = None
    """Seed of the augmentation of training images; None applies the evaluation transform."""
    class_rule: str = field(default="", repr=False)
    """The rule that ties labels to the outputs of the model, for the report."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def is_labeled(self) -> bool:
        """Whether the images have labels."""
        return UNLABELED not in self.labels

    @property
    def has_several_labels(self) -> bool:
        """Whether an image may have any number of labels; each label is then a tuple of class indices."""
        return any(isinstance(label, tuple) for label in self.labels)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int | tuple[int, ...]]:
        return self.source.normalize(self.pixels(position)[None])[0], self.labels[position]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the source and of the indices, in hexadecimal."""
        positions = np.asarray(self.indices, dtype="<i8").tobytes()
        return hashlib.sha256(self.source_digest.encode() + positions).hexdigest()

    def pixels(self, position: int) -> Pixels:
        """Return the decoded image at a position, before normalization."""
        index = self.indices[position]
        return self.source.pixels(index, None if self.augment_seed is None else (self.augment_seed, index))

    def stacked(self) -> torch.Tensor:
        """Return all images as one tensor: normalized float32 (n, C, H, W)."""
        return torch.stack([self[position][0] for position in range(len(self))])

    def batches(self, batch: int, shuffle_seed: int | None = None, drop_last: bool = False) -> Batches:
        """Return batches of `batch` images, in order, or shuffled by a seed; `drop_last` drops a smaller last batch."""
        positions = split_positions(len(self), batch, shuffle_seed, drop_last)
        return Batches(positions, self.pixels, self.labels, self.source.normalize, self.source.workers,
                       classes=len(self.class_names))  # fmt: skip

    def augmented(self, seed: int) -> Dataset:
        """Return the same images under a small random augmentation; equal seeds give equal images."""
        return replace(self, augment_seed=seed)

    def rand_augmented(self) -> Dataset:
        """Return the same images, to which `augmented` also applies RandAugment."""
        return replace(self, source=rand_augmented(self.source))

    def preloaded(self, device: torch.device, progress: Progress) -> Dataset:
        """Return the same images, decoded and stored on a device; this dataset itself if they need too much memory."""
        if not len(self) or len(self) * self.pixels(0).nbytes > CACHE_BYTES_MAX:
            return self
        batches = self.batches(PRELOAD_BATCH).on(device)
        pixels = torch.cat(list(progress.track(batches.decoded(), "decoding images", total=len(batches))))
        position_of = {index: position for position, index in enumerate(self.indices)}
        return replace(self, source=PreloadedImages(self.source, pixels, position_of))

    def subset(self, positions: Sequence[int], split: str | None = None) -> Dataset:
        """Return the images at these positions, in this order."""
        return replace(
            self,
            split=split or self.split,
            indices=tuple(self.indices[position] for position in positions),
            labels=_chosen(self.labels, positions),
        )

    def balanced(self, count: int | None, seed: int = 0, split: str | None = None) -> Dataset:
        """Return `count` images, balanced over the classes; all of them if `count` is None or larger than the dataset.

        Images with any number of labels are balanced over their sets of labels.

        The choice depends only on the labels and the seed. The order is that of the dataset.
        """
        if count is None or count >= len(self):
            return self if split is None else replace(self, split=split)
        generator = np.random.default_rng(seed)
        shuffled = generator.permutation(len(self))
        groups = {label: number for number, label in enumerate(dict.fromkeys(self.labels))}
        labels = np.asarray([groups[label] for label in self.labels])[shuffled]
        by_class = np.argsort(labels, kind="stable")
        first_of_class = np.searchsorted(labels[by_class], labels[by_class])
        rank_in_class = np.empty(len(self), dtype=np.int64)
        rank_in_class[by_class] = np.arange(len(self)) - first_of_class
        chosen = shuffled[np.argsort(rank_in_class, kind="stable")[:count]]
        return self.subset([int(position) for position in np.sort(chosen)], split)


def _chosen(labels: Labels, positions: Sequence[int]) -> Labels:
    return cast("Labels", tuple(labels[position] for position in positions))


def batches(dataset: Dataset, batch: int, shuffle_seed: int | None = None, drop_last: bool = False) -> Batches:
    """Return `dataset.batches(batch, shuffle_seed, drop_last)`."""
    return dataset.batches(batch, shuffle_seed, drop_last)


@dataclass(frozen=True)
class DataModule:
    """All datasets of a run. `val` is for evaluation only: nothing is trained or calibrated on it."""

    train: Dataset
    val: Dataset
    calibration: Dataset
    """A class-balanced part of `train`, without augmentation."""
    extra: Mapping[str, Dataset] = field(default_factory=dict)
    """Further evaluation sets by their names in `data.also_evaluate`."""
    notes: tuple[str, ...] = ()
    """How images and labels were found, for the report."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the digests of all datasets, in hexadecimal."""
        parts = {"train": self.train, "val": self.val, "calibration": self.calibration, **self.extra}
        text = "\n".join(f"{name} {part.digest}" for name, part in sorted(parts.items()))
        return hashlib.sha256(text.encode()).hexdigest()
