"""Count the images of a recipe, without opening one."""

from __future__ import annotations

from collections.abc import Mapping

from vitslim.data import DataModule
from vitslim.pipeline.problems.data_problems import list_images
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.work import ImageCounts

DIGITS = {"train": 1437, "val": 360}


def planned_counts(config: Data) -> ImageCounts | None:
    """Return the counts of a recipe; None without `data.root`. Raises InputError for a folder that cannot be listed."""
    if config.kind == "digits":
        return _counts(config, DIGITS)
    if config.root is None:
        return None
    sets = {name: len(images.files) for name, images in list_images(config, Silent()).items()}
    held_out = round((config.val_fraction or 0) * sets["train"])
    return _counts(config, {"val": held_out} | sets | {"train": sets["train"] - held_out})


def loaded_counts(data: DataModule) -> ImageCounts:
    """Return the counts of the data sets of a run."""
    evaluated = len(data.val) + sum(map(len, data.extra.values()))
    return ImageCounts(len(data.train), len(data.calibration), evaluated)


def _counts(config: Data, sizes: Mapping[str, int]) -> ImageCounts:
    evaluated = [count for name, count in sizes.items() if name != "train"]
    limit = config.eval_images
    return ImageCounts(
        train=sizes["train"],
        calibration=min(config.calibration, sizes["train"]),
        evaluated=sum(count if limit is None else min(limit, count) for count in evaluated),
    )
