"""`doctor`: check whether this machine can run and measure, and say how to correct it. Imports no torch by itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vitslim.backends.environment import cpu_flags, environment
from vitslim.backends.machine import matmul_seconds, noise
from vitslim.backends.reduce_range import WIDE_SUMS
from vitslim.backends.registry import RUNTIMES
from vitslim.errors import BackendUnavailableError
from vitslim.files import folder_bytes, user_cache
from vitslim.host_memory import memory_bytes
from vitslim.results import Value
from vitslim.units import format_bytes, format_percent

NOISE_SECONDS = 2.0
NOISE_OK, NOISE_HIGH = 0.05, 0.15
DISK_OK, MEMORY_OK = 5e9, 4e9
"""Bytes below which a run with a larger model may fail."""


class Check(Value):
    """One line of the result."""

    name: str
    status: Literal["ok", "warning", "missing"]
    found: str
    hint: str = ""


def check_machine(folder: Path) -> tuple[Check, ...]:
    """Return the checks of this machine, for runs that write below a folder. Takes about three seconds."""
    here = environment()
    return (
        Check(name="versions", status="ok", found=", ".join(f"{name} {one}" for name, one in here.versions.items())),
        _processor(f"{here.device}, {here.cores} {'core' if here.cores == 1 else 'cores'}"),
        *_space(folder),
        _caches(user_cache()),
        *_backends(),
        judge_noise(noise(matmul_seconds(NOISE_SECONDS))),
    )


def _processor(found: str) -> Check:
    if WIDE_SUMS.keys() & cpu_flags():
        return Check(name="processor", status="ok", found=found)
    hint = "this processor has no VNNI, AMX or dot-product instructions: INT8 is smaller here, and gains less speed"
    return Check(name="processor", status="warning", found=found, hint=hint)


def _space(folder: Path) -> Iterator[Check]:
    memory = memory_bytes()
    if memory is not None:
        hint = "" if memory >= MEMORY_OK else "lower `train.batch` and `data.calibration` for models above DeiT-Tiny"
        yield Check(name="memory", status="warning" if hint else "ok", found=format_bytes(memory), hint=hint)
    free = shutil.disk_usage(folder).free
    hint = "" if free >= DISK_OK else "free space, or choose another folder with --out; `vitslim runs prune` helps"
    yield Check(name="free disk", status="warning" if hint else "ok", found=format_bytes(free), hint=hint)


def _caches(cache: Path) -> Check:
    """Return the folders of the user's cache with their sizes, those of every kind of cache that there is."""
    folders = sorted(path for path in cache.glob("*") if path.is_dir())
    sizes = ", ".join(f"{path.name} {format_bytes(folder_bytes(path))}" for path in folders) or "empty"
    found = f"{cache}: {sizes}"
    place = cache if cache.exists() else next(parent for parent in cache.parents if parent.exists())
    if os.access(place, os.W_OK):
        return Check(name="caches", status="ok", found=found)
    hint = "set XDG_CACHE_HOME to a folder that can be written: without it, every run repeats the work"
    return Check(name="caches", status="warning", found=found, hint=hint)


def _backends() -> Iterator[Check]:
    for name, runtime in RUNTIMES.items():
        try:
            runtime.require()
        except BackendUnavailableError as error:
            yield Check(name=name, status="missing", found=error.message, hint=error.hint)
        else:
            yield Check(name=name, status="ok", found="available")


def judge_noise(value: float) -> Check:
    """Return the check of the noise of repeated equal runs: interquartile range over median."""
    found = f"equal runs differ by {format_percent(value)} (interquartile range over median)"
    if value < NOISE_OK:
        return Check(name="noise", status="ok", found=found)
    hint = "stop other programs, or raise `report.seconds`"
    if value >= NOISE_HIGH:
        hint += f"; speedups below {1 + value:.2f}x cannot be told from noise"
    return Check(name="noise", status="warning", found=found, hint=hint)
