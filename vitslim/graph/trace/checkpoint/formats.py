"""Read the content of a checkpoint file: safetensors, or a file that `torch.save` wrote. No code in it is run."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vitslim.errors import InputError
from vitslim.host_memory import require_memory

LARGEST_BYTES = 64 * 10**9
"""Size above which a checkpoint is refused."""
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of files that `torch.save` writes; a valid safetensors file can also start with them."""
PLAIN_TYPES = (
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
)
"""Types that training scripts store beside the weights: command lines, paths, NumPy numbers. They hold values only."""
BROKEN_ARCHIVE = (zipfile.BadZipFile, ValueError, RuntimeError, OSError)
"""Exceptions of `zipfile` for a damaged directory, an unknown compression and an encrypted entry."""
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError,
           MemoryError, OverflowError, struct.error)  # fmt: skip
"""Exceptions of `torch.load` for a damaged file."""
DOWNLOAD_AGAIN = "download or copy it again"


def read_checkpoint(path: Path) -> Any:
    """Return the content of a checkpoint: tensors by name, or the nested values that `torch.save` wrote.

    Raises InputError with the reason if the file cannot be read, or if reading it would run code.
    """
    start = _start(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        if start.startswith(PICKLE_STARTS):
            return _read_pickle(path)
        raise InputError(f"checkpoint '{path}' is not a valid safetensors file ({error})", DOWNLOAD_AGAIN) from error


def is_flax(path: Path) -> bool:
    """Return whether a file is an archive of NumPy arrays (`.npz`), the format of Google's original ViT weights."""
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except BROKEN_ARCHIVE:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_flax(path: Path) -> dict[str, torch.Tensor]:
    """Return the arrays of an `.npz` archive.

    Raises InputError for a damaged archive, for pickled objects, and for arrays that are too large when decompressed.
    """
    _start(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (*BROKEN_ARCHIVE, EOFError, TypeError, KeyError, zlib.error, MemoryError, struct.error) as error:
        raise InputError(f"checkpoint '{path}' is not a valid NumPy archive: {error}", DOWNLOAD_AGAIN) from error


def _start(path: Path) -> bytes:
    """Return the first bytes of a file. Raises InputError with the reason if it cannot be read, or is too large."""
    if path.is_dir():
        raise InputError(f"checkpoint '{path}' is a folder", "name the file with the weights in it")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint '{path}' does not exist", "check model.checkpoint in the recipe") from error
    except OSError as error:
        raise InputError(f"checkpoint '{path}' cannot be read: {error.strerror}", "check its permissions") from error
    if not start:
        raise InputError(f"checkpoint '{path}' is empty", DOWNLOAD_AGAIN)
    _check_size(path, size)
    return start


def _check_size(path: Path, size: int) -> None:
    """Raise InputError for a checkpoint with more bytes than a model has, or than the memory holds."""
    if size > LARGEST_BYTES:
        message = f"checkpoint '{path}' has {size / 1e9:,.0f} GB, more than {LARGEST_BYTES / 1e9:.0f} GB"
        raise InputError(message, "save the weights of the model alone")
    require_memory(size, f"checkpoint '{path}'")


def _read_pickle(path: Path) -> Any:
    """Return the content of a file that `torch.save` wrote, restricted to tensors and plain values."""
    is_archive = _check_archive(path)
    try:
        # Warnings are about details of the format of a file that is refused or read anyway.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(PLAIN_TYPES)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise InputError(*_unsafe(path)) from error
    except DAMAGED as error:
        raise InputError(f"checkpoint '{path}' is damaged: {_first_line(error)}", DOWNLOAD_AGAIN) from error


def _check_archive(path: Path) -> bool:
    """Return whether a file is a zip archive; raise InputError for one that `torch.save` does not write.

    `torch.save` stores entries without compression.
    """
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except BROKEN_ARCHIVE as error:
        raise InputError(f"checkpoint '{path}' is damaged: {error}", DOWNLOAD_AGAIN) from error
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise InputError(
            f"checkpoint '{path}' is a zip archive, but not one that torch.save writes",
            "unpack it, and name the file with the weights",
        )
    return True


def _unsafe(path: Path) -> tuple[str, str]:
    """Return message and hint for a pickle with other content than tensors and plain values."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (RuntimeError, ValueError, pickle.UnpicklingError, EOFError, OSError):
        names = []
    objects = f" of type {', '.join(names[:3])}" if names else ""
    return (
        f"checkpoint '{path}' holds objects{objects}, and reading them would run code",
        "where you trust the file, save the weights alone: torch.save(model.state_dict(), 'weights.pth')",
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
