"""Memory of this machine, and a check before large files and models are opened."""

from __future__ import annotations

import os
from pathlib import Path

from vitslim.errors import InputError
from vitslim.units import format_bytes

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the memory limit of a container."""


def memory_bytes() -> int | None:
    """Return the memory that processes here may use, with the limit of a container; None where it is unknown."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [file.read_text().strip() for file in LIMITS if file.is_file()]
    return min([total, *(int(limit) for limit in limits if limit.isdecimal())])


def require_memory(needed: int, name: str) -> None:
    """Raise InputError if the weights of `name` alone, in bytes, take more memory than this machine has."""
    available = memory_bytes()
    if available is not None and needed > available:
        message = f"{name} takes {format_bytes(needed)} of memory, this machine has {format_bytes(available)}"
        raise InputError(message, "use a smaller model, or a machine with more memory")
