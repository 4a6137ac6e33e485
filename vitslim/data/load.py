"""Load the datasets of a run from the `data` entry of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vitslim.data.cache.cached_images import cached
from vitslim.data.dataset import DataModule, Dataset
from vitslim.data.digits import NAMES, load_digit_sets
from vitslim.data.files.image_list import ImageList
from vitslim.data.imagefolder import load_image_sets
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import Data

RESERVED = frozenset({"train", "val", "calibration"})
"""Names of the datasets that every run has."""


def load_data(
    config: Data,
    source: ModelSource,
    seed: int,
    progress: Progress | None = None,
    listed: Mapping[str, ImageList] | None = None,
) -> DataModule:
    """Return the training, validation, calibration and further evaluation sets at the model's input size.

    The seed chooses the calibration images, and the validation images of `data.val_fraction`; nothing else depends on
    it. listed: the result of `list_sets`, if it is known. Raises InputError for folders and images that are missing or
    unreadable, or that do not fit the model's classes.
    """
    if config.kind == "digits":
        data = _digits(config, source)
    else:
        data = _images(config, source, seed, progress or Silent(), listed)
    return replace(
        data,
        val=data.val.balanced(config.eval_images),
        calibration=calibration_set(data.train, config.calibration, seed),
        extra={name: part.balanced(config.eval_images) for name, part in data.extra.items()},
    )


def calibration_set(train: Dataset, count: int, seed: int) -> Dataset:
    """Return a class-balanced part of the training set, without augmentation; all of it if it is smaller."""
    return train.balanced(count, seed, split="calibration")


def _digits(config: Data, source: ModelSource) -> DataModule:
    if config.also_evaluate:
        raise InputError(
            "`data.also_evaluate` needs `data.kind: imagefolder`, got digits", hint="remove `data.also_evaluate`"
        )
    if source.classes and source.classes < len(NAMES):
        raise InputError(
            f"the digits have {len(NAMES)} classes, the model has {source.classes}",
            hint="set model.kwargs.num_classes to 10",
        )
    train, val = load_digit_sets(source.image)
    return DataModule(train, val, train)


def _images(
    config: Data, source: ModelSource, seed: int, progress: Progress, listed: Mapping[str, ImageList] | None
) -> DataModule:
    if reserved := sorted(RESERVED & config.also_evaluate.keys()):
        raise InputError(
            f"`data.also_evaluate` uses the reserved name '{reserved[0]}'", hint="give the folder another name"
        )
    data = load_image_sets(config, source, seed, progress, listed)
    sets = {"train": data.train, "val": data.val, **data.extra}
    kept = {name: cached(part, source, config.cache_gb, progress) for name, part in sets.items()}
    extra = {name: kept[name] for name in data.extra}
    return replace(data, train=kept["train"], val=kept["val"], calibration=kept["train"], extra=extra)
