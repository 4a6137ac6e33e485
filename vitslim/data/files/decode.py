"""Open image files by their content, and decode them to 8 bits."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vitslim.data.files.image_list import EncodedImage
from vitslim.data.files.names import join_names, printable
from vitslim.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
"""Formats that are read. Others that Pillow knows run programs (EPS), or hold no photographs."""
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
"""Exceptions that Pillow raises for a file that is not an image, or is truncated or damaged."""
MAGIC_BYTES = 16
"""Bytes by which Pillow's plugins accept a file."""
DRAFT_SCALE = 8
"""JPEG files are checked at an eighth of their size, which reads the whole file and is several times as fast."""


class TooManyPixelsError(ValueError):
    """An image has more pixels than `data.max_pixels`."""


@contextmanager
def open_image(file: EncodedImage, pixels_max: int) -> Iterator[ImageFile.ImageFile]:
    """Yield an image whose header is read, whatever the suffix of the file.

    Raises UnidentifiedImageError for content of no format of `FORMATS`, TooManyPixelsError, and the exceptions of
    `UNREADABLE` for a damaged header.
    """
    Image.init()
    with file.open("rb") as opened:
        image = _identified(opened, str(file))
        if image.width * image.height > pixels_max:
            size = f"{image.width} x {image.height} pixels"
            raise TooManyPixelsError(f"{size}, data.max_pixels is {pixels_max:,}")
        with image:
            yield image


def _identified(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Return the image in an open file, as `Image.open` does, whose limit on pixels is one for the whole process."""
    beginning = file.read(MAGIC_BYTES)
    for format_name in FORMATS:
        factory, accept = Image.OPEN[format_name]
        if accept is not None and accept(beginning) is not True:
            continue
        file.seek(0)
        try:
            return factory(file, name)
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # another format with the same first bytes
    raise UnidentifiedImageError("unknown image format")


def read_image(file: EncodedImage, mode: str, pixels_max: int) -> Image.Image:
    """Decode an image to a Pillow mode, `RGB` or `L`, upright as its EXIF orientation says.

    Values of more than 8 bits are scaled by their range. Transparency is dropped, as by the loaders of timm and
    torchvision. Raises InputError for a file that cannot be decoded.
    """
    try:
        with open_image(file, pixels_max) as image:
            upright = _to_8_bits(ImageOps.exif_transpose(image))
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")  # the same colors, without a warning of Pillow
            return upright.convert(mode)
    except UNREADABLE as error:
        raise unreadable([(file, reason_of(file, error))]) from error


def damage(file: EncodedImage, pixels_max: int, decode: bool) -> str | None:
    """Return why an image cannot be read; empty if it can, and None for content of no format of `FORMATS`.

    Without `decode` only the header is read.
    """
    try:
        with open_image(file, pixels_max) as image:
            if decode:
                small = max(1, image.width // DRAFT_SCALE), max(1, image.height // DRAFT_SCALE)
                image.draft(image.mode, small)
                image.load()
    except UnidentifiedImageError:
        return None
    except UNREADABLE as error:
        return reason_of(file, error)
    return ""


def reason_of(file: EncodedImage, error: Exception) -> str:
    """Return the reason of an exception of `UNREADABLE` in a few words."""
    if _is_empty(file):
        return "0 bytes"
    if isinstance(error, UnidentifiedImageError):
        return "unknown image format"
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split()) or type(error).__name__


def _is_empty(file: EncodedImage) -> bool:
    try:
        with file.open("rb") as opened:
            return not opened.read(1)
    except OSError:
        return False


def unreadable(broken: Sequence[tuple[EncodedImage, str]]) -> InputError:
    """Return the error for unreadable files, each with its reason."""
    images = "1 image" if len(broken) == 1 else f"{len(broken)} images"
    listed = join_names([f"{printable(str(file))} ({reason})" for file, reason in broken])
    too_large = any("data.max_pixels" in reason for _, reason in broken)
    hint = "; raise data.max_pixels for large scans" if too_large else ""
    return InputError(f"{images} cannot be read: {listed}", hint=f"replace or delete these files{hint}")


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
