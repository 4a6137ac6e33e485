"""Properties of benchmarks that depend on the processor: the result file and `reduce_range`."""

from __future__ import annotations

import platform
from pathlib import Path

from paths import RESULTS

from vitslim.backends.environment import cpu_flags, device_name
from vitslim.backends.reduce_range import reduce_range_for


def result_here(name: str) -> Path:
    """Return the result file of a benchmark for this kind of processor, such as `int8-speed.avx512-vnni.json`.

    INT8 latency depends on the integer instructions of the processor, so each kind has its own file.
    """
    instructions = device_name().rpartition("(")[2].rstrip(")").lower()
    return RESULTS / f"{name}.{instructions.replace(' ', '-')}.json"


def reduce_range_here() -> bool:
    """Return the value of `reduce_range: auto` for CPU backends of this machine: false with VNNI or AMX."""
    return reduce_range_for(("onnxruntime:cpu",), cpu_flags(), platform.machine()).value
