"""Find the training and evaluation images of a run: splits in folders or a table, or a fraction for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitslim.data.files.check import check_images
from vitslim.data.files.containers.shards import list_shards
from vitslim.data.files.folders import LAYOUT_HINT, check_class_folders, list_folder
from vitslim.data.files.image_list import ImageList
from vitslim.data.files.names import printable
from vitslim.data.files.table import read_table
from vitslim.errors import InputError
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import Data

VALIDATION_FOLDERS = ("val", "valid", "validation")
NO_ROOT_HINT = "--set data.root=DIR, where DIR holds train/ and val/ with one folder per class"


@dataclass(frozen=True)
class ImageSets:
    """The images of a run, with their labels."""

    train: ImageList
    val: ImageList
    extra: Mapping[str, ImageList]
    notes: tuple[str, ...]
    """How the images were found: split, and skipped files; for the report."""


def list_sets(
    config: Data, class_names: Sequence[str] | None, progress: Progress | None = None
) -> dict[str, ImageList]:
    """Return the files of `train`, of `val` unless `data.val_fraction` takes it from `train`, and of further sets.

    No image is opened; tables, the headers of shards and the labels are read. `class_names` are those of
    `data.classes`. Raises InputError for folders that are missing or empty, broken tables, shards and datasets, and a
    validation set that is missing or there twice.
    """
    if config.root is None:
        raise InputError("`data.root` is not set", hint=NO_ROOT_HINT)
    root = Path(config.root)
    found = _by_split(config, config.root, class_names, progress or Silent())
    if "train" not in found:
        raise InputError(f"{printable(root)} has no training images", "name the split of each row: train or val")
    if "val" not in found and config.val_fraction is None:
        hint = f"set data.val_fraction, such as 0.1, to take it from the training images; {LAYOUT_HINT}"
        raise InputError(f"{printable(root)} has no validation set val/", hint)
    if "val" in found and config.val_fraction is not None:
        message = f"`data.val_fraction` is set, and {found['val'].shown} has a validation set"
        raise InputError(message, "remove data.val_fraction")
    also = {
        name: _whole(config, folder, class_names, progress or Silent()) for name, folder in config.also_evaluate.items()
    }
    return {**found, **also}


def _by_split(config: Data, root: str, class_names: Sequence[str] | None, progress: Progress) -> dict[str, ImageList]:
    """Return the images of `train` and, if it is there, of `val`."""
    path = Path(root)
    if config.kind == "webdataset":
        return list_shards(path, class_names, config.label_field, progress)
    if config.kind == "huggingface":
        from vitslim.data.files.containers.huggingface import list_dataset

        return list_dataset(root, class_names, config.label_field)
    if path.is_file():
        return read_table(path, class_names)
    if path.is_dir():
        return _split_folders(path)
    raise InputError(f"{printable(root)} does not exist", "set data.root to a folder that holds train/ and val/")


def read_sets(config: Data, listed: Mapping[str, ImageList], seed: int, progress: Progress) -> ImageSets:
    """Return the images of a run, given the result of `list_sets`, after all of them were read once.

    `seed` draws the validation set of `data.val_fraction`. Raises InputError for images that cannot be read, all of
    which it lists, and for class folders without images.
    """
    images = check_images(listed, config.max_pixels, progress)
    for name, one in images.items():
        check_class_folders(one, listed[name])
    notes = [note for name, one in images.items() for note in _notes(name, one)]
    train, val = images["train"], images.get("val")
    if val is None:
        fraction = config.val_fraction or 0.0
        chosen = draw_fraction(train, fraction, seed)
        rest = sorted(set(range(len(train.files))) - set(chosen))
        if not chosen or not rest:
            message = f"data.val_fraction: {fraction:g} of {len(train.files)} images leaves a set without images"
            raise InputError(message, "choose another fraction, or add images")
        notes.append(
            f"val: {len(chosen):,} of {len(train.files):,} images of {train.shown}, drawn "
            f"{'' if train.kind == 'none' else 'from each class '}with seed {seed} (data.val_fraction: {fraction:g})"
        )
        train, val = (_part(train, positions) for positions in (rest, chosen))
    return ImageSets(train, val, {name: images[name] for name in config.also_evaluate}, tuple(notes))


def draw_fraction(images: ImageList, fraction: float, seed: int) -> list[int]:
    """Return the positions of a fraction of the images of each class, sorted.

    The number for a class is rounded, but at least one image of a class with two stays on either side. Images with
    equal labels are a class; all images without labels are one.
    """
    generator = np.random.default_rng(seed)
    members: dict[object, list[int]] = {}
    for position, labels in enumerate(images.labels):
        members.setdefault(labels, []).append(position)
    chosen: list[int] = []
    for key in sorted(members, key=repr):
        count = len(members[key])
        taken = min(max(round(fraction * count), 1), count - 1)
        chosen += generator.permutation(members[key])[:taken].tolist()
    return sorted(chosen)


def _part(images: ImageList, positions: Sequence[int]) -> ImageList:
    """Return a part of the images, whose digest depends on all of them and on the positions."""
    digest = hashlib.sha256(f"{images.digest} {positions}".encode()).hexdigest()
    return replace(images.subset(positions), skipped={}, digest=digest)


def _split_folders(root: Path) -> dict[str, ImageList]:
    """Return the files of the splits of a folder; without any split folder, all files as `train`."""
    validation = [name for name in VALIDATION_FOLDERS if (root / name).exists()]
    if len(validation) > 1:
        found = " and ".join(f"{name}/" for name in validation)
        raise InputError(f"{printable(root)} has {found}, which are names of one split", "remove one of them")
    if not validation and not (root / "train").exists():
        return {"train": list_folder(root)}
    splits = {"train": root / "train"} | {"val": root / name for name in validation}  # noqa: B035 - at most one
    return {split: list_folder(folder) for split, folder in splits.items()}


def _whole(config: Data, root: str, class_names: Sequence[str] | None, progress: Progress) -> ImageList:
    """Return all images of a folder, or those of the only split of a table, of shards or of a dataset."""
    if config.kind == "imagefolder" and not Path(root).is_file():
        return list_folder(Path(root))
    found = _by_split(config, root, class_names, progress)
    if len(found) != 1:
        raise InputError(f"{printable(root)} has images of {len(found)} splits", "name a set of one split")
    return next(iter(found.values()))


def _notes(name: str, images: ImageList) -> Iterator[str]:
    if images.kind == "none":
        yield f"{name}: {len(images.files):,} images without labels"
    if images.skipped:
        kinds = sorted(images.skipped.items(), key=lambda item: (-item[1], item[0]))
        total = sum(images.skipped.values())
        listed = ", ".join(f"{count:,} {printable(kind)}" for kind, count in kinds)
        yield f"{name}: {len(images.files):,} images; skipped {total:,} {'file' if total == 1 else 'files'}: {listed}"
