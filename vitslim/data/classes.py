"""From class folders to the model's class indices, and to names in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo

from vitslim.data.folder import listed
from vitslim.errors import InputError

IMAGENET_CLASSES = 1000
WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassMap:
    """Class folders of a data set as classes of a model."""

    index: Mapping[str, int]
    """Folder name to class index of the model."""
    words: tuple[str, ...]
    """Names by class index."""


def map_classes(root: Path, folders: Sequence[str], classes: int) -> ClassMap:
    """WordNet ids of a 1000-class model map to ImageNet's classes; other folders count in sorted order.

    `folders` are the sorted class folders of `root`. Raises InputError for folders that are no class of the model.
    """
    if len(folders) > classes:
        raise InputError(
            f"{root} has {len(folders)} class folders, the model has {classes} classes",
            hint=f"use a model with {len(folders)} classes (model.kwargs.num_classes), or fewer folders",
        )
    if classes == IMAGENET_CLASSES and (len(folders) < classes or any(map(WORDNET_ID.fullmatch, folders))):
        return _imagenet(root, folders)
    return ClassMap({name: index for index, name in enumerate(folders)}, _in_words(folders))


def labels_of(root: Path, folders: Sequence[str], class_map: ClassMap) -> dict[str, int]:
    """Class index of each folder of a further set; InputError names folders that the class map does not know."""
    unknown = [name for name in folders if name not in class_map.index]
    if unknown:
        raise InputError(
            f"{root} has class folders that are no class of the model: {listed(unknown)}",
            hint=f"folders are named as in train/, such as {listed(sorted(class_map.index))}",
        )
    return {name: class_map.index[name] for name in folders}


def _imagenet(root: Path, folders: Sequence[str]) -> ClassMap:
    info = ImageNetInfo()
    index = {synset: position for position, synset in enumerate(_synsets(info))}
    unknown = [name for name in folders if name not in index]
    if unknown:
        raise InputError(
            f"{root} has class folders that are no ImageNet class: {listed(unknown)}",
            hint="a 1000-class model needs folders named by WordNet id, such as n01440764 for tench",
        )
    return ClassMap(index, tuple(info.label_descriptions()))


def _in_words(folders: Sequence[str]) -> tuple[str, ...]:
    """Descriptions of WordNet ids; any other name is a word already."""
    if not any(map(WORDNET_ID.fullmatch, folders)):
        return tuple(folders)
    info = ImageNetInfo("imagenet-22k")
    known = set(_synsets(info))
    return tuple(info.label_name_to_description(name) if name in known else name for name in folders)


def _synsets(info: ImageNetInfo) -> list[str]:
    """WordNet ids in the order of the class indices."""
    synsets: list[str] = info.label_names()  # type: ignore[no-untyped-call]
    return synsets
