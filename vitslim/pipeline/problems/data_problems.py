"""Problems between the stages and gates of a recipe and its images, which `plan` finds without opening an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vitslim.errors import Problem
from vitslim.progress import Progress
from vitslim.recipe.schema import Data, Recipe

if TYPE_CHECKING:
    from vitslim.data.files.image_list import ImageList, LabelKind

LABEL_GATES = ("top1_drop_max", "top1_min", "map_min")
HOW_TO_LABEL = "or give the images labels: one folder per class, or a table with the column `label`"


def data_problems(recipe: Recipe, listed: Mapping[str, ImageList]) -> tuple[Problem, ...]:
    """Return the stages and gates that need labels, if the images of the recipe have none.

    A feature extractor needs no labels; the task of the recipe must be known. listed: the images of `data.root` by
    split; without any, as without `data.root`, nothing is checked.
    """
    if recipe.data.kind == "digits":
        return tuple(_task_problems(recipe, "one", "the digits"))
    return tuple(_label_problems(recipe, listed)) if listed else ()


def list_images(config: Data, progress: Progress) -> dict[str, ImageList]:
    """Return the images of `data.root` by split; none without `data.root`, and for the digits.

    Raises InputError as `list_sets`: for a folder that is missing or empty, and a table, shards or a dataset that are
    broken.
    """
    if config.root is None:
        return {}
    from vitslim.data.classes import class_list
    from vitslim.data.files.sets import list_sets

    return list_sets(config, class_list(config.classes), progress)


def _label_problems(recipe: Recipe, sets: Mapping[str, ImageList]) -> Iterator[Problem]:
    train = sets["train"]
    yield from _task_problems(recipe, train.kind, train.shown)
    if train.kind == "none" and recipe.model.task != "features":
        for position, config in enumerate(recipe.stages):
            if config.reads_labels:
                message = f"the images of {train.shown} have no labels, and {config.reads_labels}"
                where = f"stages.{position}.{config.kind}"
                yield Problem(where, message, f"{config.labels_hint}; {HOW_TO_LABEL}")
    val = sets.get("val", train)
    if val.kind == "none":
        for gate in LABEL_GATES:
            if getattr(recipe.gates, gate) is not None:
                message = f"the images of {val.shown} have no labels, so its metric is not known"
                yield Problem(f"gates.{gate}", message, f"remove the gate, {HOW_TO_LABEL}")


def _task_problems(recipe: Recipe, kind: LabelKind, shown: str) -> Iterator[Problem]:
    """Yield a problem if the images have one label, and the task needs any number, or the other way round."""
    if kind == "several" and recipe.model.task == "classify":
        message = f"model.task is classify, and the column `labels` of {shown} has any number of labels"
        yield Problem("model.task", message, "set model.task to multilabel")
    if kind == "one" and recipe.model.task == "multilabel":
        message = f"model.task is multilabel, and the images of {shown} have one label each"
        yield Problem("model.task", message, "name a table with the column `labels`, or set model.task to classify")
