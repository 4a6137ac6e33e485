"""One pass over the files of all data sets: which are images, whether they can be read, and the digest of the data.

The result is kept in the user's cache under the digest of the files, so that the pass decodes each image once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import PIL

from vitslim.data.files.decode import damage, unreadable
from vitslim.data.files.image_list import ImageList, list_digest
from vitslim.errors import InputError
from vitslim.files import user_cache, write_atomically
from vitslim.progress import Progress

DECODED_MAX = 20_000
"""Images that are decoded before a run; of larger sets only the headers are read, and each image on first use."""
END_BYTES = 1 << 16
"""Bytes at the beginning and at the end of a file that the digest covers."""
THREADS_MAX = 16
CHUNK = 64
"""Files that a thread reads at a time."""

T = TypeVar("T")


def check_images(
    lists: Mapping[str, ImageList], pixels_max: int, progress: Progress, cache: Path | None = None
) -> dict[str, ImageList]:
    """Return the lists without the files that are no images, which are counted as skipped, and with their digests.

    cache: folder of the results of earlier passes; that of the user by default. Raises InputError with all images that
    cannot be read.
    """
    paths = [images.root / file for images in lists.values() for file in images.files]
    contents = list(_in_threads(_content_digest, paths, progress, "reading the images"))
    decode = len(paths) <= DECODED_MAX
    key = list_digest([str(path) for path in paths], contents)
    kept = (cache or user_cache("images")) / f"{_cache_key(key, pixels_max, decode)}.json"
    are_images = _kept_result(kept, len(paths))
    if are_images is None:
        listed = [bool(images.lines) for images in lists.values() for _ in images.files]
        are_images = _checked(paths, listed, pixels_max, decode, progress)
        # Without the result of this pass, the next run repeats it.
        with contextlib.suppress(OSError, InputError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            others = [position for position, is_image in enumerate(are_images) if not is_image]
            write_atomically(kept, json.dumps(others).encode(), "")
    found, start = {}, 0
    for name, images in lists.items():
        end = start + len(images.files)
        found[name] = _images_only(images, are_images[start:end], contents[start:end])
        start = end
    return found


def _images_only(images: ImageList, are_images: Sequence[bool], contents: Sequence[str]) -> ImageList:
    positions = [position for position, is_image in enumerate(are_images) if is_image]
    skipped = Counter(images.skipped)
    if no_images := len(images.files) - len(positions):
        skipped["without a suffix"] += no_images
    digest = list_digest([images.files[position] for position in positions], [contents[p] for p in positions])
    return replace(images.subset(positions), skipped=skipped, digest=digest)


def _checked(
    paths: Sequence[Path], listed: Sequence[bool], pixels_max: int, decode: bool, progress: Progress
) -> list[bool]:
    """Return for each file whether it is an image, which those that are `listed` in a table must be.

    Raises InputError with all images that cannot be read.
    """
    found = list(_in_threads(lambda path: damage(path, pixels_max, decode), paths, progress, "checking the images"))
    reasons = ["unknown image format" if one is None and must else one for one, must in zip(found, listed, strict=True)]
    broken = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    if broken:
        raise unreadable(broken)
    return [reason is not None for reason in reasons]


def _content_digest(path: Path) -> str:
    """Return the size of a file and the SHA-256 digest of its first and last 64 KiB; empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            digest.update(file.read(END_BYTES))
            size = file.seek(0, os.SEEK_END)
            if size > END_BYTES:
                file.seek(max(END_BYTES, size - END_BYTES))
                digest.update(file.read(END_BYTES))
    except OSError:
        return ""  # the check of the images names the file
    return f"{size} {digest.hexdigest()}"


def _in_threads(function: Callable[[Path], T], paths: Sequence[Path], progress: Progress, label: str) -> Iterator[T]:
    """Yield the results in order; files are read and decoded without the interpreter lock."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS_MAX))
    try:
        results = pool.map(lambda chunk: [function(path) for path in chunk], chunks)
        for part in progress.track(results, label, total=len(chunks)):
            yield from part
    finally:
        pool.shutdown(cancel_futures=True)


def _cache_key(digest: str, pixels_max: int, decode: bool) -> str:
    parts = (digest, pixels_max, decode, PIL.__version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _kept_result(path: Path, count: int) -> list[bool] | None:
    """Return the result of an earlier pass over `count` files; None if there is none."""
    try:
        others = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(others, list) or not all(isinstance(one, int) and 0 <= one < count for one in others):
        return None
    found = [True] * count
    for position in others:
        found[position] = False
    return found
