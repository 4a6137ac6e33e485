"""Image files under the evaluation transform of the timm model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from vitslim.data.classes import ClassMap, class_list
from vitslim.data.dataset import DataModule, Dataset
from vitslim.data.files.decode import read_image
from vitslim.data.files.image_list import ImageList
from vitslim.data.files.names import printable
from vitslim.data.files.sets import list_sets, read_sets
from vitslim.data.labels import label_indices, map_labels
from vitslim.data.source import Normalization, Pixels
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource, Preprocessing
from vitslim.progress import Progress
from vitslim.recipe.schema import PIXELS_MAX, Data

WORKERS_MAX = 16
"""Maximum number of decoding threads; there is at most one per core."""
MODES = {1: "L", 3: "RGB"}
"""Pillow mode by number of input channels."""
MIN_CROP_AREA = 0.7
MAX_CROP_ASPECT = 4 / 3


@dataclass(frozen=True)
class FileImages:
    """Decodes image files to a model's input size."""

    images: ImageList = field(repr=False)
    image: tuple[int, int, int]
    preprocessing: Preprocessing
    transform: Callable[[Image.Image], torch.Tensor] = field(repr=False)
    """timm's evaluation transform up to the normalization: uint8 (C, H, W)."""
    pixels_max: int = PIXELS_MAX
    """Images with more pixels are refused."""
    workers: int = field(default_factory=lambda: min(os.cpu_count() or 1, WORKERS_MAX))

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> Pixels:
        """Return one image, uint8 (C, H, W); with a seed, a random crop of at least 70 % of its area, maybe flipped."""
        channels, height, width = self.image
        image = read_image(self.images.file(index), MODES[channels], self.pixels_max)
        if augment_seed is not None:
            resample = Image.Resampling[self.preprocessing.interpolation.upper()]
            return _random_crop(image, (width, height), resample, np.random.default_rng(augment_seed))
        return self.transform(image)

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


def load_image_sets(
    config: Data,
    source: ModelSource,
    seed: int,
    progress: Progress,
    listed: Mapping[str, ImageList] | None = None,
) -> DataModule:
    """Return the training and validation images of `data.root`, and further sets, with the model's classes as labels.

    `calibration` is the whole training set. listed: the result of `list_sets`, if it is known. Raises InputError
    for folders and tables that are missing or broken, for images that cannot be read, and for labels that are not a
    class of the model.
    """
    if source.image[0] not in MODES:
        raise InputError(
            f"the model takes {source.image[0]} channels, images have 1 or 3",
            hint="set model.kwargs.in_chans to 3",
        )
    listed = list_sets(config, class_list(config.classes), progress) if listed is None else listed
    found = read_sets(config, listed, seed, progress)
    lists = {"train": found.train, "val": found.val, **found.extra}
    class_map = map_labels(list(lists.values()), source.classes, config.classes)
    notes = list(found.notes)
    for name in found.extra if source.classes == 0 else ():
        if not set(lists[name].classes) <= class_map.index.keys():
            lists[name] = replace(lists[name], kind="none")
            notes.append(f"{name}: used without labels, because its classes are not those of the training images")
    sets = {name: _labeled(name, images, class_map, source, config.max_pixels) for name, images in lists.items()}
    rule = (f"classes: {class_map.rule}",) if class_map.rule else ()
    extra = {name: sets[name] for name in found.extra}
    return DataModule(sets["train"], sets["val"], sets["train"], extra, (*notes, *rule))


def _labeled(split: str, images: ImageList, class_map: ClassMap, source: ModelSource, pixels_max: int) -> Dataset:
    channels, height, width = source.image
    transform = create_transform(
        input_size=(channels, height, width),
        interpolation=source.preprocessing.interpolation,
        crop_pct=source.preprocessing.crop_pct,
        crop_mode=source.preprocessing.crop_mode,
        mean=source.preprocessing.mean,  # fills the border
        normalize=False,
    )
    name = images.source.stem if not images.is_folder or split not in ("train", "val") else images.source.parent.name
    return Dataset(
        name=printable(name),
        split=split,
        source=FileImages(images, source.image, source.preprocessing, transform, pixels_max),
        indices=tuple(range(len(images.files))),
        labels=label_indices(images, class_map),
        class_names=class_map.names,
        source_digest=images.digest,
        class_rule=class_map.rule,
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
