"""Result files of benchmarks that depend on the processor: `int8-speed.avx512-vnni.json`, `int8-speed.avx2.json`.

INT8 latency depends on the integer instructions of the processor, so each kind of processor has its own file.
"""

from __future__ import annotations

from pathlib import Path

from vitslim.backends.environment import device_name

RESULTS = Path(__file__).resolve().parents[1] / "results"


def result_here(name: str) -> Path:
    """Return the result file of a benchmark for the processor of this machine."""
    units = device_name().rpartition("(")[2].rstrip(")").lower()
    return RESULTS / f"{name}.{units.replace(' ', '-')}.json"
