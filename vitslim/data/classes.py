"""Map class names to the outputs of the model, and to readable names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.utils.misc import natural_key

from vitslim.data.files.names import join_names, printable
from vitslim.errors import InputError
from vitslim.recipe.schema import CLASS_ORDERS

IMAGENET_CLASSES = 1000
WORDNET_ID = re.compile(r"n\d{8}")
LARGEST_LIST_BYTES = 10_000_000
"""Size above which a file of class names is refused."""


@dataclass(frozen=True)
class ClassMap:
    """Class indices and class names of a data set's folders."""

    index: Mapping[str, int]
    """Folder name to class index of the model."""
    names: tuple[str, ...]
    """Readable names by class index."""
    rule: str = ""
    """The rule that ties class names to indices, for the report; empty without labels."""


def map_classes(root: Path, folders: Sequence[str], classes: int, order: str | Sequence[str] | None = None) -> ClassMap:
    """Map the class folders of a data set to the outputs of a model with `classes` classes.

    Folders with WordNet ids are mapped to the ImageNet classes of a model that has as many. order: `timm` or
    `torchvision`, a file with one folder name per line, or the folder names in the order of the outputs; None: the
    order of both timm and torchvision. A model without a classifier (0 classes) takes any folders. Raises InputError
    for folders that are no class of the model, for outputs without a folder, unless `order` names them, and where timm
    and torchvision number the folders differently.
    """
    names = class_list(order)
    if not classes:  # the labels of a feature extractor only have to differ between the folders
        ordered = names or folder_order(folders, str(order or "torchvision"))
        rule = "one for each folder of the training images; the model has no outputs for them"
        return replace(_listed(root, folders, len(ordered), ordered), rule=rule)
    if names is not None:
        return _listed(root, folders, classes, names)
    if len(folders) > classes:
        raise InputError(
            f"{printable(root)} has {len(folders)} class folders, the model has {classes} classes",
            hint=f"use a model with {len(folders)} classes (model.kwargs.num_classes), or fewer folders",
        )
    if _is_imagenet(folders, classes):
        return _imagenet(root, folders, classes)
    if len(folders) < classes:
        raise InputError(
            f"{printable(root)} has {len(folders)} class folders, the model has {classes} classes",
            hint="name the folder of each output in data.classes, or set model.kwargs.num_classes",
        )
    if order is None and is_ambiguous(folders, classes):
        by_name, by_number = (join_names(folder_order(folders, one)) for one in ("torchvision", "timm"))
        raise InputError(
            f"timm and torchvision number the folders of {printable(root)} differently: {by_number}; {by_name}",
            hint="set data.classes to timm or torchvision, whichever loader the model was trained with",
        )
    ordered = folder_order(folders, str(order or "torchvision"))
    loader = order or ("both timm and torchvision" if len(folders) > 1 else "one class")
    rule = f"the order of {loader}: {join_names(ordered)}"
    return ClassMap({name: index for index, name in enumerate(ordered)}, _readable_names(ordered), rule)


def folder_order(folders: Sequence[str], order: str) -> tuple[str, ...]:
    """Return folder names in an order of `CLASS_ORDERS`: by characters as in torchvision, by numbers as in timm."""
    return tuple(sorted(sorted(folders), key=natural_key)) if order == "timm" else tuple(sorted(folders))


def is_ambiguous(folders: Sequence[str], classes: int) -> bool:
    """Return whether timm and torchvision give the folders of a data set different class indices."""
    if _is_imagenet(folders, classes):
        return False
    return folder_order(folders, "timm") != folder_order(folders, "torchvision")


def class_list(order: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the folder names that `data.classes` lists, in the order of the outputs; None if it lists none.

    Raises InputError for a file that cannot be read.
    """
    if order is None or order in CLASS_ORDERS:
        return None
    if not isinstance(order, str):
        return tuple(order)
    path = Path(order)
    try:
        if path.stat().st_size > LARGEST_LIST_BYTES:
            raise InputError(f"'{path}' is larger than {LARGEST_LIST_BYTES // 10**6} MB", "write one name per line")
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        hint = "set data.classes to timm, torchvision, or a file with one folder name per line"
        raise InputError(f"the class list '{path}' cannot be read", hint) from error


def _listed(root: Path, folders: Sequence[str], classes: int, names: Sequence[str]) -> ClassMap:
    if len(names) != classes or len(set(names)) != len(names):
        problem = f"lists {len(names)} names" if len(names) != classes else "lists a name twice"
        raise InputError(
            f"data.classes {problem}, the model has {classes} classes", "name the folder of each output once"
        )
    index = {name: position for position, name in enumerate(names)}
    unknown = [name for name in folders if name not in index]
    if unknown:
        message = f"{printable(root)} has class folders that data.classes does not list: {join_names(unknown)}"
        raise InputError(message, "list them, or remove the folders")
    return ClassMap(index, _readable_names(names), "the names of data.classes, in this order")


def _is_imagenet(folders: Sequence[str], classes: int) -> bool:
    """Return whether the folders are to be mapped to the classes of an ImageNet model by their WordNet ids."""
    has_ids = any(map(WORDNET_ID.fullmatch, folders))
    fewer = classes == IMAGENET_CLASSES and len(folders) < classes
    return infer_imagenet_subset({"num_classes": classes}) is not None and (has_ids or fewer)


def _imagenet(root: Path, folders: Sequence[str], classes: int) -> ClassMap:
    subset = infer_imagenet_subset({"num_classes": classes}) or "imagenet-1k"
    info = ImageNetInfo(subset)
    index = {synset: position for position, synset in enumerate(_synsets(info))}
    unknown = [name for name in folders if name not in index]
    if unknown:
        raise InputError(
            f"{printable(root)} has class folders that are not ImageNet classes: {join_names(unknown)}",
            hint=f"a {classes}-class model needs folders named by WordNet id, such as n01440764 for tench; or name the "
            "folder of each output in data.classes",
        )
    return ClassMap(index, tuple(info.label_descriptions()), f"WordNet ids in the order of {subset}")


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
