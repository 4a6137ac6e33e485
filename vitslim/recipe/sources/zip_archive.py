"""Zip archives that `vitslim recipes pack` wrote. Every archive is treated as hostile.

Names, links, sizes and counts are checked before the first byte is extracted.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from vitslim.errors import InputError
from vitslim.recipe.sources.cache_folder import MAX_BYTES, MAX_ENTRIES, cache_folder, filling, kept, name_problem

MAIN = "recipe.yaml"
"""Name of the recipe in its archive."""
MAX_RATIO = 100
"""Uncompressed bytes over compressed bytes, of an entry or an archive above `RATIO_FROM` bytes."""
RATIO_FROM = 1_000_000
DIRECTORY_BYTES = MAX_ENTRIES * 500
"""Largest directory of an archive."""
HINT = "pack it again: vitslim recipes pack RECIPE"

_END, _END_BYTES, _LOCATOR_BYTES, _COMMENT_BYTES = b"PK\5\6", 22, 20, 65535
_LOCATOR = b"PK\6\7"
_ENCRYPTED = 1
_DAMAGED = (BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def unpack(archive: Path) -> Path:
    """Return a folder of the user's cache with the files of an archive; its name is the SHA-256 digest of the archive.

    Raises InputError for an archive that cannot be read, is damaged, exceeds a limit of size, count, compression ratio
    or depth, contains links, duplicates, encrypted entries or names that leave the folder, or has no `recipe.yaml`.
    """
    try:
        with archive.open("rb") as file:
            _check_directory(file, archive)
            file.seek(0)
            folder = cache_folder() / "zip" / hashlib.file_digest(file, "sha256").hexdigest()
            if not folder.is_dir():
                with filling(folder.parent):
                    if not folder.is_dir():
                        _extract(file, archive, folder)
    except OSError as error:
        raise InputError(
            f"'{archive}' cannot be read: {error.strerror}", "check the path and its permissions"
        ) from error
    return folder


def _extract(file: BinaryIO, archive: Path, folder: Path) -> None:
    try:
        with ZipFile(file) as contents, kept(folder) as scratch:
            _check_entries(contents.infolist(), archive, file.seek(0, 2))
            for entry in filter(_is_file, contents.infolist()):
                target = scratch / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with contents.open(entry) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    except _DAMAGED as error:
        raise InputError(f"'{archive}' is damaged, or not a zip archive", HINT) from error


def _check_directory(file: BinaryIO, archive: Path) -> None:
    """Refuse an archive whose directory is missing, or too large to be read into memory."""
    size = file.seek(0, 2)
    if size > MAX_BYTES + DIRECTORY_BYTES:
        _refuse(archive, f"larger than {MAX_BYTES / 1e9:g} GB")
    file.seek(max(0, size - _END_BYTES - _COMMENT_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    place = len(tail) - _END_BYTES
    if tail[place : place + 4] != _END:
        place = tail.rfind(_END)
    end = tail[place:]
    if place < 0 or len(end) < _END_BYTES:
        raise InputError(f"'{archive}' is damaged, or not a zip archive", HINT)
    if tail[max(0, place - _LOCATOR_BYTES) :].startswith(_LOCATOR):
        _refuse(archive, "in the format ZIP64")
    count, length = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if count > MAX_ENTRIES or length > DIRECTORY_BYTES:
        _refuse(archive, f"an archive of more than {MAX_ENTRIES} entries")


def _check_entries(entries: Sequence[ZipInfo], archive: Path, size: int) -> None:
    """Refuse an archive with an entry that is not a plain file below the folder, or with too large contents.

    size: bytes of the archive. Entries may share compressed bytes, so their sum is compared with it.
    """
    if len(entries) > MAX_ENTRIES:
        _refuse(archive, f"an archive of more than {MAX_ENTRIES} entries")
    names = [entry.filename.rstrip("/").casefold() for entry in entries]
    files = {name for name, entry in zip(names, entries, strict=True) if _is_file(entry)}
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    if len(set(names)) < len(names) or files & folders:
        _refuse(archive, "an archive in which a name occurs twice")
    for entry in entries:
        if problem := _entry_problem(entry):
            _refuse(archive, f"an archive with {problem}: {entry.orig_filename[:80]!r}")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES:
        _refuse(archive, f"larger than {MAX_BYTES / 1e9:g} GB when it is unpacked")
    if total > max(RATIO_FROM, MAX_RATIO * size):
        _refuse(archive, f"an archive with a compression ratio above {MAX_RATIO}")
    if MAIN not in {entry.filename for entry in entries}:
        raise InputError(f"'{archive}' is not a packed recipe: it has no {MAIN}", HINT)


def _is_file(entry: ZipInfo) -> bool:
    return not entry.filename.endswith("/")


def _entry_problem(entry: ZipInfo) -> str:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if problem := name_problem(entry.orig_filename.removesuffix("/")):
        return problem
    if entry.filename != entry.orig_filename:  # an extra field can rename an entry
        return "an entry of two names"
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "a link or a special file"
    if entry.flag_bits & _ENCRYPTED:
        return "an encrypted entry"
    if entry.compress_type not in {ZIP_STORED, ZIP_DEFLATED}:
        return "an unusual compression"
    is_bomb = entry.file_size > max(RATIO_FROM, MAX_RATIO * entry.compress_size)
    return f"a compression ratio above {MAX_RATIO}" if is_bomb else ""


def _refuse(archive: Path, what: str) -> NoReturn:
    raise InputError(f"'{archive}' is refused: it is {what}", HINT)
