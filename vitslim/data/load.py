"""Load the datasets of a run from the `data` entry of a recipe."""

from __future__ import annotations

from pathlib import Path

from vitslim.data.dataset import DataModule, Dataset
from vitslim.data.digits import NAMES, load_digit_sets
from vitslim.data.imagefolder import load_folder_sets
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.schema import Data

RESERVED = frozenset({"train", "val", "calibration"})
"""Names of the datasets that every run has."""


def load_data(config: Data, source: ModelSource, seed: int) -> DataModule:
    """Return the training, validation, calibration and further evaluation sets at the model's input size.

    The seed chooses only the calibration images; splits and evaluation subsets do not depend on it.
    Raises InputError for folders and images that are missing or unreadable, or that do not fit the model's classes.
    """
    train, val, extra = _digits(config, source) if config.kind == "digits" else _folders(config, source)
    return DataModule(
        train=train,
        val=val.balanced(config.eval_images),
        calibration=calibration_set(train, config.calibration, seed),
        extra={name: part.balanced(config.eval_images) for name, part in extra.items()},
    )


def calibration_set(train: Dataset, count: int, seed: int) -> Dataset:
    """Return a class-balanced part of the training set, without augmentation; all of it if it is smaller."""
    return train.balanced(count, seed, split="calibration")


def _digits(config: Data, source: ModelSource) -> tuple[Dataset, Dataset, dict[str, Dataset]]:
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
    return train, val, {}


def _folders(config: Data, source: ModelSource) -> tuple[Dataset, Dataset, dict[str, Dataset]]:
    if config.root is None:
        raise InputError(
            "`data.root` is not set",
            hint="--set data.root=DIR, where DIR holds train/ and val/ with one folder per class",
        )
    also = {name: Path(folder) for name, folder in config.also_evaluate.items()}
    if reserved := sorted(RESERVED & also.keys()):
        raise InputError(
            f"`data.also_evaluate` uses the reserved name '{reserved[0]}'", hint="give the folder another name"
        )
    return load_folder_sets(Path(config.root), also, source, config.classes)
