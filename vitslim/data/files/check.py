"""One pass over the files of all data sets: which are images, whether they can be read, and the digest of the data.

The result is kept in the user's cache under the state of the files, so that the pass reads each image once.
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
from PIL import UnidentifiedImageError

from vitslim.data.files.decode import damage, reason_of, unreadable
from vitslim.data.files.file_states import state_digest
from vitslim.data.files.image_list import EncodedImage, ImageList, list_digest
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

    cache: folder of the results of earlier passes; that of the user by default. While no file has changed since such a
    pass (`state_digest`), none is opened. Raises InputError with all images that cannot be read.
    """
    decode = sum(len(images.files) for images in lists.values()) <= DECODED_MAX
    kept = _result_path(lists, cache or user_cache("images"), pixels_max, decode)
    found = _kept_result(kept, lists) if kept is not None else None
    if found is None:
        found = _read_all(lists, pixels_max, decode, progress)
        if kept is not None:
            _keep(kept, found)
    return {name: _images_only(images, *found[name]) for name, images in lists.items()}


def _read_all(
    lists: Mapping[str, ImageList], pixels_max: int, decode: bool, progress: Progress
) -> dict[str, tuple[str, list[int]]]:
    """Return the digest of each list, and the positions of the files that are no images."""
    files = [images.file(position) for images in lists.values() for position in range(len(images.files))]
    may_be_other = [images.is_folder and not Path(name).suffix for images in lists.values() for name in images.files]
    contents = list(_in_threads(_content_digest, files, progress, "reading the images"))
    are_images = _checked(files, may_be_other, pixels_max, decode, progress)
    found, start = {}, 0
    for name, images in lists.items():
        end = start + len(images.files)
        kept = [position for position in range(len(images.files)) if are_images[start + position]]
        others = [position for position in range(len(images.files)) if not are_images[start + position]]
        digest = list_digest([images.files[one] for one in kept], [contents[start + one] for one in kept])
        found[name] = (digest, others)
        start = end
    return found


def _images_only(images: ImageList, digest: str, others: Sequence[int]) -> ImageList:
    """Return a list without the files at the positions `others`, and with its digest."""
    if not others:
        return replace(images, digest=digest)
    excluded, skipped = set(others), Counter(images.skipped)
    skipped["without a suffix"] += len(excluded)
    kept = images.subset([position for position in range(len(images.files)) if position not in excluded])
    return replace(kept, skipped=skipped, digest=digest)


def _checked(
    files: Sequence[EncodedImage], may_be_other: Sequence[bool], pixels_max: int, decode: bool, progress: Progress
) -> list[bool]:
    """Return for each file whether it is an image; only a file that `may_be_other` need not be one.

    Raises InputError with all images that cannot be read.
    """
    found = list(_in_threads(lambda file: damage(file, pixels_max, decode), files, progress, "checking the images"))
    reasons = [
        reason_of(file, UnidentifiedImageError()) if reason is None and not may else reason
        for file, reason, may in zip(files, found, may_be_other, strict=True)
    ]
    broken = [(file, reason) for file, reason in zip(files, reasons, strict=True) if reason]
    if broken:
        raise unreadable(broken)
    return [reason is not None for reason in reasons]


def _content_digest(file: EncodedImage) -> str:
    """Return the size of a file and the SHA-256 digest of its first and last 64 KiB; empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            digest.update(opened.read(END_BYTES))
            size = opened.seek(0, os.SEEK_END)
            if size > END_BYTES:
                opened.seek(max(END_BYTES, size - END_BYTES))
                digest.update(opened.read(END_BYTES))
    except OSError:
        return ""  # the check of the images names the file
    return f"{size} {digest.hexdigest()}"


def _in_threads(
    function: Callable[[EncodedImage], T], files: Sequence[EncodedImage], progress: Progress, label: str
) -> Iterator[T]:
    """Yield the results in order; files are read and decoded without the interpreter lock."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS_MAX))
    try:
        results = pool.map(lambda chunk: [function(file) for file in chunk], chunks)
        for part in progress.track(results, label, total=len(chunks)):
            yield from part
    finally:
        pool.shutdown(cancel_futures=True)


def _result_path(lists: Mapping[str, ImageList], cache: Path, pixels_max: int, decode: bool) -> Path | None:
    """Return the file of the result of a pass over these files in their present state; None if it cannot be kept."""
    state = state_digest(lists)
    parts = (state, pixels_max, decode, PIL.__version__)
    return cache / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json" if state else None


def _kept_result(path: Path, lists: Mapping[str, ImageList]) -> dict[str, tuple[str, list[int]]] | None:
    """Return the result of an earlier pass over these lists; None if there is none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = {name: (str(kept[name]["digest"]), list(map(int, kept[name]["others"]))) for name in lists}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all(_are_positions(found[name][1], len(images.files)) for name, images in lists.items()) else None


def _are_positions(values: Sequence[int], count: int) -> bool:
    return all(0 <= value < count for value in values)


def _keep(path: Path, found: Mapping[str, tuple[str, list[int]]]) -> None:
    """Write the result of a pass. Without it, the next run repeats the pass."""
    result = {name: {"digest": digest, "others": others} for name, (digest, others) in found.items()}
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result).encode(), "")
