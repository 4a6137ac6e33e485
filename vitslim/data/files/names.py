"""Names of files and folders in messages and reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

NAMES_MAX = 10
"""Files or folders that one message names; the others are counted."""


def printable(name: str | Path) -> str:
    r"""Return a name of the file system as text: bytes that are not UTF-8 become `\xe9`, control characters `\n`."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def join_names(names: Sequence[str]) -> str:
    """Join the first `NAMES_MAX` names, and count the others."""
    more = len(names) - NAMES_MAX
    return ", ".join(map(printable, names[:NAMES_MAX])) + (f" and {more} more" if more > 0 else "")
