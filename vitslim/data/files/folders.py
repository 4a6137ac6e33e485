"""List the files of a folder: one folder per class, or images without labels."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from vitslim.data.files.image_list import ImageLabels, ImageList
from vitslim.data.files.names import join_names, printable
from vitslim.errors import InputError

LAYOUT_HINT = (
    "an image folder holds one folder of images per class: DIR/train/CLASS/*.jpg, DIR/val/CLASS/*.jpg; or images "
    "without labels: DIR/train/*.jpg"
)
SUFFIXES = frozenset(
    {"", ".jpg", ".jpeg", ".jfif", ".jp2", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"}
)
"""Suffixes of images, in lower case. The content decides on the format, and on a file without a suffix."""
SYSTEM_FILES = {"__macosx": "__MACOSX", ".ds_store": ".DS_Store", "thumbs.db": "Thumbs.db"}
"""Files and folders that operating systems write, by lower-case name."""
HIDDEN = "hidden"
OUTSIDE = "outside of class folders"
"""Kinds of skipped files."""


def list_folder(root: Path) -> ImageList:
    """Return the files of a folder that are images by their suffix, or have none; they are not opened.

    Hidden files and those of operating systems are skipped, and counted as the others. The labels are the names of the
    folders in it. A folder without folders has images without labels.
    Raises InputError for a folder that is missing, empty or unreadable, and for two class folders of the same name.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{printable(root)} {problem}", hint=LAYOUT_HINT)
    skipped: Counter[str] = Counter()
    files, folders = _files_below(root, skipped)
    if not folders and not files:
        raise InputError(f"{printable(root)} has no class folders and no images", hint=LAYOUT_HINT)
    if folders:
        beside = [name for name in files if "/" not in name]
        skipped[OUTSIDE] += len(beside)
        files = [name for name in files if "/" in name]
        names = {folder: printable(folder) for folder in folders}
        if len(set(names.values())) < len(names):
            raise InputError(f"{printable(root)} has two class folders of the same name", "rename one of them")
        labels: tuple[ImageLabels, ...] = tuple((names[class_folder(name)],) for name in files)
    else:
        labels = ((),) * len(files)
    kept = +skipped  # counts above zero
    return ImageList(root, tuple(files), labels, "one" if folders else "none", root, kept)


def class_folder(file: str) -> str:
    """Return the class folder of a file, which is given relative to the root."""
    return file.partition("/")[0]


def check_class_folders(images: ImageList, listed: ImageList) -> None:
    """Check the images of a folder, given all files that were listed.

    Raises InputError for a folder without images, class folders without images, and folders inside class folders.
    """
    if not images.files:
        raise InputError(f"{images.shown} has no images", hint=LAYOUT_HINT)
    if images.kind == "none" or images.lines:
        return
    folders = {name: printable(name) for name in _class_folders(listed.root)}
    empty = sorted(folders.keys() - {class_folder(file) for file in images.files})
    if empty:
        message = f"{printable(images.root)} has class folders without images: {join_names(empty)}"
        raise InputError(message, hint="add images, or remove these folders")
    nested = sorted({file.rpartition("/")[0] for file in images.files if file.count("/") > 1})
    if nested:
        raise InputError(
            f"{printable(images.root)} has folders inside class folders: {join_names(nested)}",
            hint="move their images up, or make each of them a class folder",
        )


def _class_folders(root: Path) -> list[str]:
    return [entry.name for entry in os.scandir(root) if entry.is_dir() and _kind_of(entry.name) is None]


def _kind_of(name: str) -> str | None:
    """Return the kind of a file or folder that is skipped by its name; None for any other."""
    return SYSTEM_FILES.get(name.lower(), HIDDEN if name.startswith(".") else None)


def _files_below(root: Path, skipped: Counter[str]) -> tuple[list[str], list[str]]:
    """Return the files below a folder by their relative paths, and the folders in it; both sorted.

    Counts the files that are skipped. Links to folders are followed at the first level only, so that no link leads in
    a circle.
    """
    files: list[str] = []
    try:
        top = sorted(os.scandir(root), key=lambda entry: entry.name)
        folders = [entry.name for entry in top if entry.is_dir() and _kind_of(entry.name) is None]
        for entry in top:
            path = Path(root, entry.name)
            names = _walk(path, Path(entry.name)) if entry.is_dir() else [entry.name] if _is_file(path) else []
            for name in names:
                suffix = Path(name).suffix.lower()
                kind = next(filter(None, map(_kind_of, name.split("/"))), "" if suffix in SUFFIXES else suffix)
                if kind:
                    skipped[kind] += 1
                else:
                    files.append(name)
    except OSError as error:
        raise InputError(f"{printable(root)} cannot be read: {error.strerror}", "check its permissions") from error
    return sorted(files), folders


def _walk(folder: Path, name: Path) -> list[str]:
    """Return the files below a folder, with `name` before their relative paths."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, _, files in os.walk(folder, onerror=fail):
        inside = Path(place).relative_to(folder)
        found += [(name / inside / file).as_posix() for file in files if _is_file(Path(place, file))]
    return found


def _is_file(path: Path) -> bool:
    """Return whether a path is a file, or a link to nothing, which the check of the images then names."""
    return path.is_file() or not path.exists()
