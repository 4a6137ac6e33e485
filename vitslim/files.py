"""Files of stages and runs, atomic writing, and exclusive use of a folder.

After an error or Ctrl-C, the previous content is still there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from vitslim.errors import InputError, UsageError

MODEL_FILE = "model.onnx"
"""Name of the exported model in the folder of a stage, and in that of a run with the plain layout."""
LOCK_FILE = ".lock"
"""Name of the file by which a process keeps others out of a folder."""
PARTIAL = ".partial"
"""Suffix of temporary files and folders, which a process that is killed leaves behind."""
LONGEST_NAME_BYTES = 255
"""Longest name of a file that file systems allow."""
MANIFEST_FILE = "manifest.json"
"""Name of the file that lists all others in the folder of a run."""


@dataclass(frozen=True)
class LayoutFiles:
    """The files of a layout, with paths relative to the folder of the run, `/` between their parts."""

    model: str = MODEL_FILE
    """Path of the ONNX file."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Path of each further file to its content."""
    notes: tuple[str, ...] = ()
    """Limits of these files, for the report."""


def find_model(folder: Path) -> Path:
    """Return the path of the model in the folder of a run: `model.onnx`, unless its manifest names another file."""
    try:
        name = str(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["model_file"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        name = MODEL_FILE
    return folder / (name if is_inside(name) else MODEL_FILE)


def is_inside(name: str) -> bool:
    """Return whether the name of a file, as a manifest states it, is that of a path below its folder."""
    path = PurePosixPath(name)
    is_file_name = bool(path.name) and name.isprintable() and len(name.encode()) <= LONGEST_NAME_BYTES
    return is_file_name and not path.is_absolute() and ".." not in path.parts


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache(name: str = "") -> Path:
    """Return the folder `vitslim/NAME` in the user's cache folder, or that of all caches; it may not exist."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "vitslim" / name


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if it does not exist. Links are not followed."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another process may delete it meanwhile
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    return total


def write_atomically(path: Path, data: bytes, hint: str) -> None:
    """Write a temporary file in the same folder, then rename it to `path`.

    Raises InputError with the hint if it cannot be written.
    """
    scratch = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL, delete=False
        ) as file:
            scratch = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror}", hint) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other processes out of a folder until the context ends; the lock ends with the process that holds it.

    Temporary files of processes that were killed are deleted first. on_wait: called once before waiting for another
    process. Raises UsageError without it while another process holds the lock, OSError if the folder cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if on_wait is None:
            hint = "wait until it has ended, or choose another folder"
            raise UsageError(f"another run is writing to '{folder}'", hint) from error
        on_wait()
        lock.acquire()
    try:
        _delete_partial(folder)
        yield
    finally:
        # While it is held, so that no other process takes a file that is about to go: filelock opens a new one then.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _delete_partial(folder: Path) -> None:
    """Delete temporary files in a folder and in its folders."""
    for path in (*folder.glob(f".*{PARTIAL}"), *folder.glob(f"*/.*{PARTIAL}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def replace_atomically(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which replaces it on success and is deleted on any exception."""
    scratch, old = (target.with_name(f".{target.name}{suffix}") for suffix in (PARTIAL, ".old"))
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)  # inside the try block: Ctrl-C may come right after the folder is made
        yield scratch
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        scratch.rename(target)
    finally:
        if old.exists() and not target.exists():  # Ctrl-C came between the two renames
            old.rename(target)
        for folder in (scratch, old):
            shutil.rmtree(folder, ignore_errors=True)
