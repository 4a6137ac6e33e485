"""Folders of the user's cache that hold the files of shared recipes, and the names that such files may have."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitslim.errors import InputError
from vitslim.files import user_cache

MAX_ENTRIES = 2000
MAX_BYTES = 2_000_000_000
"""Bytes of all files of a shared recipe, among them weights."""
MAX_DEPTH = 8
"""Folders above a file, and the file itself."""
LONGEST_NAME = 200


def cache_folder() -> Path:
    """Return the folder `recipes` in the user's cache folder, which may not exist yet."""
    return user_cache("recipes")


def name_problem(name: str) -> str:
    """Return the reason why a file of this name is not extracted; empty for a relative path below a folder."""
    parts = name.split("/")
    if name.startswith("/") or ":" in name:
        return "an absolute path"
    if "\\" in name or not name.isprintable():
        return "a backslash or a control character in a name"
    if any(part in {"", ".", ".."} for part in parts):
        return "'..', '.' or an empty part in a path"
    if len(parts) > MAX_DEPTH:
        return f"a path of more than {MAX_DEPTH} parts"
    return f"a name of more than {LONGEST_NAME} characters" if max(map(len, parts)) > LONGEST_NAME else ""


@contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """Yield a private temporary folder that becomes `folder` on success; a folder of another process stays.

    Raises InputError if the cache cannot be written.
    """
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        yield scratch
        if not folder.is_dir():
            scratch.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            hint = "free space, or set XDG_CACHE_HOME to a folder that can be written"
            raise InputError(f"'{folder.parent}' cannot be written: {error.strerror}", hint) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
