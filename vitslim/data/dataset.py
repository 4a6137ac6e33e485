"""What a labeled set of images is: a source that decodes, and the positions of it that the set uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from vitslim.data.batches import Batches, split_positions
from vitslim.data.held import HeldImages
from vitslim.data.source import KEPT_BYTES_MAX, Pixels, Source
from vitslim.progress import Progress

HELD_BATCH = 64
"""Images that travel to a device at a time."""


@dataclass(frozen=True)
class Dataset:
    """Labeled images in a fixed order. An item is (normalized float32 tensor (C, H, W), class index of the model)."""

    name: str
    """`digits`, or the name of the folder."""
    split: str
    """`train`, `val`, `calibration`, or the name given in `data.also_evaluate`."""
    source: Source = field(repr=False)
    indices: tuple[int, ...] = field(repr=False)
    """Positions in the source."""
    labels: tuple[int, ...] = field(repr=False)
    """Class index of the model for each item."""
    class_names: tuple[str, ...] = field(repr=False)
    """In words, by class index of the model."""
    source_digest: str = field(repr=False)
    """sha256 of the whole source, in hexadecimal."""
    variation: int | None = None
    """Seed of the random variation of training images; None gives the evaluation transform."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self.source.normalize(self.pixels(position)[None])[0], self.labels[position]

    @cached_property
    def digest(self) -> str:
        """sha256 of the source and of the positions used, in hexadecimal."""
        positions = np.asarray(self.indices, dtype="<i8").tobytes()
        return hashlib.sha256(self.source_digest.encode() + positions).hexdigest()

    def pixels(self, position: int) -> Pixels:
        """The decoded image at a position, before normalization."""
        index = self.indices[position]
        return self.source.pixels(index, None if self.variation is None else (self.variation, index))

    def batches(self, batch: int, shuffle_seed: int | None = None, drop_last: bool = False) -> Batches:
        """Batches of `batch` images, in order, or shuffled by a seed; the last may be smaller, unless it is dropped."""
        positions = split_positions(len(self), batch, shuffle_seed, drop_last)
        return Batches(positions, self.pixels, self.labels, self.source.normalize, self.source.workers)

    def varied(self, seed: int) -> Dataset:
        """The same images under a small random variation; equal seeds give equal images."""
        return replace(self, variation=seed)

    def held(self, device: torch.device, progress: Progress) -> Dataset:
        """The same images, decoded now and held on a device; this set itself where they need too much memory."""
        if not len(self) or len(self) * self.pixels(0).nbytes > KEPT_BYTES_MAX:
            return self
        batches = self.batches(HELD_BATCH).on(device)
        pixels = torch.cat(list(progress.track(batches.decoded(), "decoding images", total=len(batches))))
        place = {index: position for position, index in enumerate(self.indices)}
        return replace(self, source=HeldImages(self.source, pixels, place))

    def subset(self, positions: Sequence[int], split: str | None = None) -> Dataset:
        """Only these positions, in this order."""
        return replace(
            self,
            split=split or self.split,
            indices=tuple(self.indices[position] for position in positions),
            labels=tuple(self.labels[position] for position in positions),
        )

    def balanced(self, count: int | None, seed: int = 0, split: str | None = None) -> Dataset:
        """`count` items (all when None or more than there are), as evenly over the classes as they allow.

        The choice depends only on the labels and the seed, and keeps the set's order.
        """
        if count is None or count >= len(self):
            return self if split is None else replace(self, split=split)
        generator = np.random.default_rng(seed)
        shuffled = generator.permutation(len(self))
        labels = np.asarray(self.labels)[shuffled]
        turn = np.zeros(len(self), dtype=np.int64)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            turn[members] = np.arange(len(members))
        chosen = shuffled[np.argsort(turn, kind="stable")[:count]]
        return self.subset([int(position) for position in np.sort(chosen)], split)


def batches(dataset: Dataset, batch: int, shuffle_seed: int | None = None, drop_last: bool = False) -> Batches:
    """`dataset.batches(...)` as a function."""
    return dataset.batches(batch, shuffle_seed, drop_last)


@dataclass(frozen=True)
class DataModule:
    """Everything a run reads. `val` is for evaluation only: nothing is trained or calibrated on it."""

    train: Dataset
    val: Dataset
    calibration: Dataset
    """A class-balanced part of `train`, under the evaluation transform."""
    extra: Mapping[str, Dataset] = field(default_factory=dict)
    """Further evaluation sets by the names given in `data.also_evaluate`."""

    @cached_property
    def digest(self) -> str:
        """sha256 over the digests of all parts, in hexadecimal."""
        parts = {"train": self.train, "val": self.val, "calibration": self.calibration, **self.extra}
        text = "\n".join(f"{name} {part.digest}" for name, part in sorted(parts.items()))
        return hashlib.sha256(text.encode()).hexdigest()
