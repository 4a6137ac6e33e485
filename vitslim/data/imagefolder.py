"""Image folders under the evaluation transform of the timm model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from vitslim.data.classes import ClassMap, labels_of, map_classes
from vitslim.data.dataset import Dataset
from vitslim.data.folder import ImageFolder, class_of, read_image, scan_folder
from vitslim.data.source import CACHE_BYTES_MAX, Normalization, Pixels
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource, Preprocessing

WORKERS_MAX = 16
"""Maximum number of decoding threads; there is at most one per core."""
MODES = {1: "L", 3: "RGB"}
"""Pillow mode by number of input channels."""
MIN_CROP_AREA = 0.7
MAX_CROP_ASPECT = 4 / 3


@dataclass(frozen=True)
class FileImages:
    """Decodes the files of a folder to a model's input size."""

    folder: ImageFolder = field(repr=False)
    image: tuple[int, int, int]
    preprocessing: Preprocessing
    transform: Callable[[Image.Image], torch.Tensor] = field(repr=False)
    """timm's evaluation transform up to the normalization: uint8 (C, H, W)."""
    cache: dict[int, Pixels] = field(default_factory=dict, repr=False)
    """Decoded images by index, of at most `CACHE_BYTES_MAX` bytes."""
    workers: int = field(default_factory=lambda: min(os.cpu_count() or 1, WORKERS_MAX))

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Pixels:
        """Return one image, uint8 (C, H, W); with a seed, a random crop of at least 70 % of its area, maybe flipped."""
        if augment_seed is None and index in self.cache:
            return self.cache[index]
        channels, height, width = self.image
        image = read_image(self.folder.root / self.folder.files[index], MODES[channels])
        if augment_seed is not None:
            resample = Image.Resampling[self.preprocessing.interpolation.upper()]
            return _random_crop(image, (width, height), resample, np.random.default_rng(augment_seed))
        pixels = self.transform(image)
        if len(self.cache) < CACHE_BYTES_MAX // pixels.nbytes:
            self.cache[index] = pixels
        return pixels

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the model's preprocessing."""
        return Normalization(self.preprocessing.mean, self.preprocessing.std)

    def normalize(self, pixels: Pixels) -> torch.Tensor:
        """Convert to normalized float32 by the same operations as timm's transform, so that results are bit-equal."""
        images = pixels.to(torch.float32).div_(255)
        mean, std = (
            torch.tensor(v).view(-1, 1, 1).to(pixels.device, non_blocking=True)
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return images.sub_(mean).div_(std)


def load_folder_sets(
    root: Path, also: Mapping[str, Path], source: ModelSource, order: str | Sequence[str] | None = None
) -> tuple[Dataset, Dataset, dict[str, Dataset]]:
    """Return `train` and `val` below `root`, and further folders by name, labeled with the model's classes.

    order: of the class folders, see `map_classes`. Raises InputError for missing folders, unreadable images, and
    folders that are not a class of the model.
    """
    if source.image[0] not in MODES:
        raise InputError(
            f"the model takes {source.image[0]} channels, images have 1 or 3",
            hint="set model.kwargs.in_chans to 3",
        )
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {problem}", hint="set data.root to a folder that holds train/ and val/")
    folders = {name: scan_folder(path) for name, path in {"train": root / "train", "val": root / "val", **also}.items()}
    class_map = map_classes(folders["train"].root, folders["train"].classes, source.classes, order)
    sets = {name: _labeled(name, folder, class_map, source) for name, folder in folders.items()}
    return sets["train"], sets["val"], {name: sets[name] for name in also}


def _labeled(split: str, folder: ImageFolder, class_map: ClassMap, source: ModelSource) -> Dataset:
    label = labels_of(folder.root, folder.classes, class_map)
    channels, height, width = source.image
    transform = create_transform(
        input_size=(channels, height, width),
        interpolation=source.preprocessing.interpolation,
        crop_pct=source.preprocessing.crop_pct,
        crop_mode=source.preprocessing.crop_mode,
        mean=source.preprocessing.mean,  # fills the border
        normalize=False,
    )
    return Dataset(
        name=folder.root.name if split not in ("train", "val") else folder.root.parent.name,
        split=split,
        source=FileImages(folder, source.image, source.preprocessing, transform),
        indices=tuple(range(len(folder.files))),
        labels=tuple(label[class_of(file)] for file in folder.files),
        class_names=class_map.names,
        source_digest=folder.digest,
    )


def _random_crop(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, generator: np.random.Generator
) -> Pixels:
    """Return a random crop, resized to `size` (width, height) and flipped half of the time: uint8 (C, H, W)."""
    area = image.width * image.height * generator.uniform(MIN_CROP_AREA, 1)
    aspect = math.exp(generator.uniform(-1, 1) * math.log(MAX_CROP_ASPECT))
    width, height = min(image.width, math.sqrt(area * aspect)), min(image.height, math.sqrt(area / aspect))
    left, top = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
    crop = image.resize(size, resample, box=(left, top, left + width, top + height))
    if generator.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(crop))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
