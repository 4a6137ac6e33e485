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
        label_of: dict[str, ImageLabels] = {folder: (name,) for folder, name in names.items()}
        labels: tuple[ImageLabels, ...] = tuple(label_of[class_folder(name)] for name in files)
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
    if images.kind == "none" or not images.is_folder:
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
        with os.scandir(root) as entries:
            top = sorted(entries, key=lambda entry: entry.name)
        folders = [entry.name for entry in top if entry.is_dir() and _kind_of(entry.name) is None]
        for entry in top:
            kind = _kind_of(entry.name)
            if entry.is_dir():
                _add_files(entry.path, f"{entry.name}/", kind, files, skipped)
            elif _is_file(entry):
                _add_file(entry.name, entry.name, kind, files, skipped)
    except OSError as error:
        raise InputError(f"{printable(root)} cannot be read: {error.strerror}", "check its permissions") from error
    return sorted(files), folders


def _add_files(place: str, before: str, kind: str | None, files: list[str], skipped: Counter[str]) -> None:
    """Add the files below a folder, with `before` before their names; `kind` is that of a folder that is skipped."""
    with os.scandir(place) as entries:
        for entry in entries:
            name, own = entry.name, kind or _kind_of(entry.name)
            if entry.is_dir(follow_symlinks=False):
                _add_files(entry.path, f"{before}{name}/", own, files, skipped)
            elif _is_file(entry):
                _add_file(name, before + name, own, files, skipped)


def _add_file(name: str, path: str, kind: str | None, files: list[str], skipped: Counter[str]) -> None:
    """Add a file that is an image by its suffix, or count it as skipped."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - of a million files
    kind = kind or ("" if suffix in SUFFIXES else suffix)
    if kind:
        skipped[kind] += 1
    else:
        files.append(path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file, or a link to nothing, which the check of the images then names."""
    if not entry.is_symlink():
        return entry.is_file()
    return Path(entry.path).is_file() or not Path(entry.path).exists()
