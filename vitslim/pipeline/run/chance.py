"""A warning about a dense model that is hardly better than chance on the validation images."""

from __future__ import annotations

from collections import Counter

from vitslim.data import Dataset
from vitslim.recipe.schema import Recipe
from vitslim.results import StageRecord
from vitslim.units import format_percent

NEAR = 0.1
"""Fraction of the way from chance to 100 % below which top-1 is near chance."""


def chance(dataset: Dataset) -> float:
    """Return the top-1 accuracy of the most common class for every image, in (0, 1]."""
    return max(Counter(dataset.labels).values()) / len(dataset)


def accuracy_warnings(recipe: Recipe, dense: StageRecord, val: Dataset) -> tuple[str, ...]:
    """Return a warning if the model of a checkpoint is near chance on `val`; random weights are expected to be."""
    found = next((one.metrics.get("top1") for one in dense.accuracies if one.dataset == "val"), None)
    if recipe.model.checkpoint is None or found is None or not val.is_labeled:
        return ()
    level = chance(val)
    if found >= level + NEAR * (1 - level):
        return ()
    return (
        f"top-1 of the dense model on val is {format_percent(found)}, and the most common class alone gives "
        f"{format_percent(level)}: probably the order of the classes (data.classes) or the preprocessing "
        "(model.preprocessing) is not that with which the checkpoint was trained",
    )
