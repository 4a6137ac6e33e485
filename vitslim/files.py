"""Writing files and folders whole: a failure, or Ctrl-C, leaves what was there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitslim.errors import InputError


def write_whole(path: Path, data: bytes, hint: str) -> None:
    """Write under another name beside the target first, then rename: the target is always whole.

    Raises InputError with the hint when it cannot be written.
    """
    scratch = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
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
def folder_written_whole(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that takes its place when the block ends well, and vanishes when it does not."""
    scratch, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)  # within the block: Ctrl-C may come as soon as it is there
        yield scratch
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        scratch.rename(target)
    finally:
        if old.exists() and not target.exists():  # Ctrl-C between the two renames
            old.rename(target)
        for rest in (scratch, old):
            shutil.rmtree(rest, ignore_errors=True)
