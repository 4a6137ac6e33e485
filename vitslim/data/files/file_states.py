"""Whether files are unchanged since an earlier run, without reading them.

As the index of git does, it compares the size, the times and the inode of each file. A file that was changed within
`TICK_S` before it is read could change again without a new time, so that nothing is kept about it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitslim.data.files.image_list import ImageList

TICK_S = 2.0
"""Coarsest resolution of file times (FAT)."""
BATCH = 10_000
"""Files whose states are hashed at a time."""


def path_state(path: Path) -> str | None:
    """Return a SHA-256 digest of the absolute path and the state of one file, as `state_digest`; None likewise."""
    digest = hashlib.sha256()
    try:
        return _settled(digest, _add_states(digest, "", [os.fspath(path.absolute())]))
    except OSError:
        return None


def state_digest(lists: Mapping[str, ImageList]) -> str | None:
    """Return a SHA-256 digest that changes with every change of the images: of their files, names and order.

    It covers path, size, time of modification, time of change and inode of each file on disk; of containers those of
    the container, and the names in it. None if a file cannot be found, was changed less than `TICK_S` ago, or a
    container has no files.
    """
    digest, newest = hashlib.sha256(), 0
    try:
        for name, images in lists.items():
            digest.update(f"{name}\n{images.is_folder}\n{len(images.files)}\n".encode())
            if images.container and not images.container.paths:
                return None
            paths = [os.fspath(path) for path in images.container.paths] if images.container else images.files
            if images.container:
                digest.update(os.fsencode("\0".join(images.files)))
            digest.update(os.fsencode(images.root))
            before = "" if images.container else f"{images.root}{os.sep}"
            newest = max(newest, _add_states(digest, before, paths))
    except OSError:
        return None
    return _settled(digest, newest)


def _settled(digest: hashlib._Hash, newest: int) -> str | None:
    """Return the hexadecimal digest if no file was changed within `TICK_S`; `newest` is in nanoseconds."""
    return None if newest > time.time_ns() - int(TICK_S * 1e9) else digest.hexdigest()


def _add_states(digest: hashlib._Hash, before: str, paths: Sequence[str]) -> int:
    """Add the states of the files `before` + path, and return the newest time in nanoseconds."""
    newest = 0
    for start in range(0, len(paths), BATCH):
        parts = []
        for path in paths[start : start + BATCH]:
            state = os.stat(before + path)  # noqa: PTH116 - of a million files
            newest = max(newest, state.st_mtime_ns, state.st_ctime_ns)
            parts.append(f"{path}\0{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}")
        digest.update(os.fsencode("\n".join(parts)))
    return newest
