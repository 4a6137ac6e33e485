"""Writing files whole: a failure, or Ctrl-C, leaves what was there."""

from __future__ import annotations

import os
import tempfile
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
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        raise InputError(f"'{path}' cannot be written: {error.strerror}", hint) from error
