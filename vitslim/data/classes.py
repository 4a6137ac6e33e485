"""Map class folders to the class indices of the model, and to readable class names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo

from vitslim.data.folder import join_names
from vitslim.errors import InputError

IMAGENET_CLASSES = 1000
WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassMap:
    """Class indices and class names of a data set's folders."""

    index: Mapping[str, int]
    """Folder name to class index of the model."""
    names: tuple[str, ...]
    """Readable names by class index."""


def map_classes(root: Path, folders: Sequence[str], classes: int) -> ClassMap:
    """Map WordNet ids to ImageNet's classes for a model with 1000 classes, and number other folders in sorted order.

    `folders` are the sorted class folders of `root`. Raises InputError for folders that are not a class of the model.
    """
    if len(folders) > classes:
        raise InputError(
            f"{root} has {len(folders)} class folders, the model has {classes} classes",
            hint=f"use a model with {len(folders)} classes (model.kwargs.num_classes), or fewer folders",
        )
    if classes == IMAGENET_CLASSES and (len(folders) < classes or any(map(WORDNET_ID.fullmatch, folders))):
        return _imagenet(root, folders)
    return ClassMap({name: index for index, name in enumerate(folders)}, _readable_names(folders))


def labels_of(root: Path, folders: Sequence[str], class_map: ClassMap) -> dict[str, int]:
    """Return the class index of each folder of another set. Raises InputError for folders that `class_map` lacks."""
    unknown = [name for name in folders if name not in class_map.index]
    if unknown:
        raise InputError(
            f"{root} has class folders that are not classes of the model: {join_names(unknown)}",
            hint=f"name the folders as in train/, such as {join_names(sorted(class_map.index))}",
        )
    return {name: class_map.index[name] for name in folders}


def _imagenet(root: Path, folders: Sequence[str]) -> ClassMap:
    info = ImageNetInfo()
    index = {synset: position for position, synset in enumerate(_synsets(info))}
    unknown = [name for name in folders if name not in index]
    if unknown:
        raise InputError(
            f"{root} has class folders that are not ImageNet classes: {join_names(unknown)}",
            hint="a 1000-class model needs folders named by WordNet id, such as n01440764 for tench",
        )
    return ClassMap(index, tuple(info.label_descriptions()))


def _readable_names(folders: Sequence[str]) -> tuple[str, ...]:
    """Replace WordNet ids by their descriptions; other names are returned unchanged."""
    if not any(map(WORDNET_ID.fullmatch, folders)):
        return tuple(folders)
    info = ImageNetInfo("imagenet-22k")
    known = set(_synsets(info))
    return tuple(info.label_name_to_description(name) if name in known else name for name in folders)


def _synsets(info: ImageNetInfo) -> list[str]:
    """Return the WordNet ids in the order of the class indices."""
    synsets: list[str] = info.label_names()  # type: ignore[no-untyped-call]
    return synsets
