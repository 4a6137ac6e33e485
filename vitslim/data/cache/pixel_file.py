"""A file of decoded 8-bit images to which several processes append.

Each record holds the index of an image, a checksum, and the pixels. Records are read, not mapped into memory: a process
that maps a file dies when another one shortens it, and the pages are in the memory of the system either way.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from filelock import FileLock

HEADER = struct.Struct("<qI")
"""Index of the image and CRC-32 of index and pixels."""
SUFFIX = ".pixels"
LOCK_FILE = ".lock"
LOCK_SECONDS = 10
"""Writers hold the lock of the folder for one record; it ends with its process."""


class PixelFile:
    """Images of equal size in one file of a folder. Safe for several threads and processes.

    An unusable folder or file is reported once, and behaves as an empty file to which nothing can be added.
    """

    def __init__(self, path: Path, image_bytes: int, folder_bytes: int, say: Callable[[str], None]) -> None:
        """image_bytes: of one image. folder_bytes: limit of all files in the folder together. say: shows a message."""
        self._path, self._record, self._limit, self._say = path, HEADER.size + image_bytes, folder_bytes, say
        self._starts: dict[int, int] = {}
        self._scanned = 0
        self._threads = Lock()
        self._file: BinaryIO | None = None
        self._can_append, self._is_damaged = True, False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            os.utime(path)  # the least recently used file is deleted first
        except OSError as error:
            self._stop(f"cannot be written ({error.strerror or error})")
            self._open_for_reading()
        self._scan()

    def read(self, index: int) -> memoryview | None:
        """Return the pixels of an image, a writable copy; None if the file does not hold them intact."""
        with self._threads:
            start = self._starts.get(index)
            if start is None or self._file is None:
                return None
            record = _read_at(self._file, start, self._record)
            pixels = memoryview(record)[HEADER.size :]
            if len(record) == self._record and HEADER.unpack_from(record) == (index, _checksum(index, pixels)):
                return pixels
            del self._starts[index]
            if not self._is_damaged:
                self._is_damaged = True
                self._say(f"the decoded images in '{self._path}' are damaged: those affected are decoded again")
            return None

    def append(self, index: int, pixels: memoryview) -> bool:
        """Add an image, unless the file has it. Return whether the file holds it."""
        with self._threads:
            if not self._can_append or self._file is None:
                return index in self._starts
            try:
                with FileLock(self._path.parent / LOCK_FILE, timeout=LOCK_SECONDS):
                    self._scan()
                    return index in self._starts or self._append(self._file, index, pixels)
            except OSError as error:
                self._stop(f"cannot be written ({error.strerror or error})")
                return False

    def _append(self, file: BinaryIO, index: int, pixels: memoryview) -> bool:
        if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(file.fileno())):
            self._stop("were deleted meanwhile")
            return False
        if not self._make_room():
            self._stop(f"fill the {self._limit / 1e9:g} GB of `data.cache_gb`")
            return False
        record = HEADER.pack(index, _checksum(index, pixels)) + pixels
        file.seek(self._scanned)  # over what a process left that ended in the middle of a record
        if file.write(record) != len(record):
            file.truncate(self._scanned)
            raise OSError("the disk is full")
        self._starts[index] = self._scanned
        self._scanned += len(record)
        return True

    def _make_room(self) -> bool:
        """Delete the least recently used other files while the folder is too large; return whether a record fits."""
        others = {one: one.stat() for one in self._path.parent.glob(f"*{SUFFIX}") if one != self._path}
        total = self._scanned + self._record + sum(one.st_size for one in others.values())
        for one, found in sorted(others.items(), key=lambda item: item[1].st_mtime):
            if total <= self._limit or self._scanned + self._record > self._limit:
                break
            one.unlink()
            total -= found.st_size
        return total <= self._limit

    def _scan(self) -> None:
        """Read the headers of the records that this or another process has added."""
        if self._file is None:
            return
        end = os.fstat(self._file.fileno()).st_size // self._record * self._record
        for start in range(self._scanned, end, self._record):
            header = _read_at(self._file, start, HEADER.size)
            if len(header) == HEADER.size:
                self._starts[HEADER.unpack(header)[0]] = start
        self._scanned = end

    def _open_for_reading(self) -> None:
        try:
            self._file = self._path.open("rb", buffering=0)
        except OSError:
            self._file = None

    def _stop(self, reason: str) -> None:
        self._can_append = False
        self._say(f"the decoded images in '{self._path.parent}' {reason}: further images are decoded in each run")


def _read_at(file: BinaryIO, start: int, count: int) -> bytearray:
    """Return bytes of a file, fewer if it ends before them or cannot be read.

    A position of its own, where the system has such reads: processes that were forked share that of the file.
    """
    try:
        if hasattr(os, "pread"):
            return bytearray(os.pread(file.fileno(), count, start))
        file.seek(start)
        return bytearray(file.read(count))
    except OSError:
        return bytearray()


def _checksum(index: int, pixels: memoryview) -> int:
    return zlib.crc32(pixels, zlib.crc32(index.to_bytes(8, "little", signed=True)))
