"""Find the order of the class folders with which a model was trained, where timm and torchvision differ."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vitslim.data import load_data
from vitslim.data.classes import folder_order, is_ambiguous
from vitslim.data.files.image_list import ImageList
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress
from vitslim.recipe.schema import CLASS_ORDERS, Recipe
from vitslim.results import RESOLVED_KEY, LayerNote
from vitslim.training.evaluate import predict

IMAGES = 200
"""Training images on which the orders are compared."""
BATCH = 25
MARGIN = 0.1
"""Smallest difference in top-1 that decides."""


def resolve_class_order(
    recipe: Recipe, dense: ModelGraph, listed: Mapping[str, ImageList], progress: Progress
) -> tuple[Recipe, tuple[LayerNote, ...]]:
    """Return the recipe with `data.classes` set, and a note for the report; unchanged if the order is known.

    listed: the images of `data.root` by split. The order counts under which the dense model is right more often on
    training images. Raises InputError if the orders are less than ten points apart.
    """
    data = recipe.data
    if not listed or data.classes is not None:
        return recipe, ()
    train = listed["train"]
    if (
        train.class_order
        or len(train.classes) != dense.source.classes
        or not is_ambiguous(train.classes, dense.source.classes)
    ):
        return recipe, ()
    found, count = _accuracies(recipe, dense, listed, progress)
    best, other = sorted(found, key=found.__getitem__, reverse=True)
    figures = f"{found[best]:.1%} of {count} training images are right, {found[other]:.1%} in the order of {other}"
    if found[best] - found[other] < MARGIN:
        raise InputError(
            f"timm and torchvision number the classes of {train.shown} differently, and the dense model does not "
            f"decide: in the order of {best}, {figures}",
            "set data.classes to timm or torchvision, whichever loader the model was trained with",
        )
    changed = recipe.model_copy(update={"data": data.model_copy(update={"classes": best})})
    return changed, (LayerNote(layer=RESOLVED_KEY, result=f"data.classes = {best}", reason=figures),)


def _accuracies(
    recipe: Recipe, dense: ModelGraph, listed: Mapping[str, ImageList], progress: Progress
) -> tuple[Mapping[str, float], int]:
    """Return top-1 of the dense model under each order of the classes, and the number of training images."""
    first, classes = CLASS_ORDERS[0], listed["train"].classes
    config = recipe.data.model_copy(update={"classes": first})
    # Balanced under one order, the images would not be the same under the other: take them evenly.
    train = load_data(config, dense.source, recipe.seed, progress, listed).train
    images = train.subset(range(0, len(train), max(1, len(train) // IMAGES)))
    logits, labels = predict(dense.module, images, BATCH, progress, "order of the classes")
    predicted = logits.argmax(dim=1)
    found = {}
    for order in CLASS_ORDERS:
        index = {name: position for position, name in enumerate(folder_order(classes, order))}
        moved = torch.tensor([index[name] for name in folder_order(classes, first)])
        found[order] = (predicted == moved[labels]).float().mean().item()
    return found, len(predicted)
