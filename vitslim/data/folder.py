"""List and read image folders with one subfolder per class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitslim.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"})
NAMES_MAX = 3
"""Files or folders that one message names; the others are counted."""
LAYOUT_HINT = "an image folder holds one folder of images per class: DIR/train/CLASS/*.jpg, DIR/val/CLASS/*.jpg"
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""Exceptions that Pillow raises for a file that is not an image, is truncated, or declares an absurd size."""


@dataclass(frozen=True)
class ImageFolder:
    """All images below `root`, sorted by name."""

    root: Path
    files: tuple[str, ...]
    """Paths relative to the root, with `/`."""
    digest: str
    """SHA-256 over names and sizes, in hexadecimal."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, sorted."""
        return tuple(sorted({class_of(file) for file in self.files}))


def class_of(file: str) -> str:
    """Return the class folder of a file, which is given relative to the root."""
    return file.partition("/")[0]


def scan_folder(root: Path) -> ImageFolder:
    """List the images of a folder with class folders, and check the header of every file.

    Raises InputError for a folder that is missing or empty, a class folder without images, and unreadable files.
    """
    if not root.is_dir():
        raise InputError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}", hint=LAYOUT_HINT)
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}", hint="check its permissions") from error
    if not folders:
        raise InputError(f"{root} has no class folders", hint=LAYOUT_HINT)
    found = {folder.name: _images_below(folder) for folder in folders}
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise InputError(
            f"{root} has class folders without images: {join_names(empty)}",
            hint=f"an image file ends in {', '.join(sorted(SUFFIXES))}",
        )
    paths = [path for files in found.values() for path in files]
    nested = sorted({path.parent.relative_to(root).as_posix() for path in paths if path.parent.parent != root})
    if nested:
        raise InputError(
            f"{root} has folders inside class folders: {join_names(nested)}",
            hint="move their images up, or make each of them a class folder",
        )
    _check_headers(paths)
    names = tuple(sorted(path.relative_to(root).as_posix() for path in paths))
    content = "\n".join(f"{name} {(root / name).stat().st_size}" for name in names)
    return ImageFolder(root, names, hashlib.sha256(content.encode()).hexdigest())


def read_image(path: Path, mode: str) -> Image.Image:
    """Decode an image to a Pillow mode, `RGB` or `L`, upright as its EXIF orientation says.

    Values of more than 8 bits are scaled by their range. Raises InputError for a file that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return _to_8_bits(ImageOps.exif_transpose(image)).convert(mode)
    except UNREADABLE as error:
        raise _unreadable([f"{path} ({_reason(path, error)})"]) from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16-bit, 32-bit or floating-point values in mode `L`; other images unchanged.

    Pillow would clip these values to 255. The range is the smallest of [0, 1] (floating point), [0, 255] and [0, 65535]
    that holds all values, and that of the values themselves if none does.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    tops = (
        [65535.0] if image.mode.startswith("I;16") else [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
    )
    fitting = [top for top in tops if low >= 0 and high <= top]
    start, end = (0.0, fitting[0]) if fitting else (low, high)
    scaled = (values - start) * (255.0 / max(end - start, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def join_names(names: Sequence[str]) -> str:
    """Join the first `NAMES_MAX` names, and count the others."""
    more = len(names) - NAMES_MAX
    return ", ".join(names[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _check_headers(paths: Sequence[Path]) -> None:
    broken = []
    for path in paths:
        try:
            with Image.open(path):
                pass
        except UNREADABLE as error:
            broken.append(f"{path} ({_reason(path, error)})")
    if broken:
        raise _unreadable(broken)


def _unreadable(broken: Sequence[str]) -> InputError:
    return InputError(
        f"{len(broken)} {'image' if len(broken) == 1 else 'images'} cannot be read: {join_names(broken)}",
        hint="replace or delete these files",
    )


def _reason(path: Path, error: Exception) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "0 bytes"
    if isinstance(error, UnidentifiedImageError):
        return "unknown image format"
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split()) or type(error).__name__
