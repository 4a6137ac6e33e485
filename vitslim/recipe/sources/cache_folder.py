"""Folders of the user's cache that hold the files of shared recipes, and the names that such files may have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vitslim.errors import InputError
from vitslim.files import exclusive, replace_atomically, user_cache

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
def filling(folder: Path) -> Iterator[None]:
    """Keep other processes from filling a folder of the cache until the context ends; wait for one that fills it.

    Raises InputError if the cache cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder, on_wait=lambda: None))
        except OSError as error:
            raise _not_writable(folder, error) from error
        yield


@contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` on success. Raises InputError if the cache cannot be written."""
    try:
        with replace_atomically(folder) as scratch:
            yield scratch
    except OSError as error:
        raise _not_writable(folder.parent, error) from error


def _not_writable(folder: Path, error: OSError) -> InputError:
    hint = "free space, or set XDG_CACHE_HOME to a folder that can be written"
    return InputError(f"'{folder}' cannot be written: {error.strerror}", hint)
