"""Find the order of the class folders with which a model was trained, where timm and torchvision differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vitslim.data import load_data
from vitslim.data.classes import is_ambiguous
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


def resolve_class_order(recipe: Recipe, dense: ModelGraph, progress: Progress) -> tuple[Recipe, tuple[LayerNote, ...]]:
    """Return the recipe with `data.classes` set, and a note for the report; unchanged if the order is known.

    The order counts under which the dense model is right more often on training images. Raises InputError if the orders
    are less than ten points apart.
    """
    data = recipe.data
    train = Path(data.root or "") / "train"
    if data.kind != "imagefolder" or data.classes is not None or not train.is_dir():
        return recipe, ()
    folders = [path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if len(folders) != dense.source.classes or not is_ambiguous(folders, dense.source.classes):
        return recipe, ()
    found, count = _accuracies(recipe, dense, progress)
    best, other = sorted(found, key=found.__getitem__, reverse=True)
    figures = f"{found[best]:.1%} of {count} training images are right, {found[other]:.1%} in the order of {other}"
    if found[best] - found[other] < MARGIN:
        raise InputError(
            f"timm and torchvision number the folders of {train} differently, and the dense model does not decide: in "
            f"the order of {best}, {figures}",
            "set data.classes to timm or torchvision, whichever loader the model was trained with",
        )
    changed = recipe.model_copy(update={"data": data.model_copy(update={"classes": best})})
    return changed, (LayerNote(layer=RESOLVED_KEY, result=f"data.classes = {best}", reason=figures),)


def _accuracies(recipe: Recipe, dense: ModelGraph, progress: Progress) -> tuple[Mapping[str, float], int]:
    """Return top-1 of the dense model under each order of the class folders, and the number of training images."""
    found: dict[str, float] = {}
    predicted = torch.empty(0)
    for order in CLASS_ORDERS:
        config = recipe.data.model_copy(update={"classes": order})
        # Balanced under one order, the images would not be the same under the other: take them evenly.
        train = load_data(config, dense.source, recipe.seed).train
        images = train.subset(range(0, len(train), max(1, len(train) // IMAGES)))
        if not len(predicted):
            predicted = predict(dense.module, images, BATCH, progress, "order of the classes")[0].argmax(dim=1)
        found[order] = float((predicted == torch.tensor(images.labels)).float().mean())
    return found, len(predicted)
