"""Results of one benchmark on several processors: `int8-speed.avx512-vnni.json` beside `int8-speed.avx2.json`.

INT8 is another matter with instructions for products of codes than without, so that the one does not replace the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitslim.backends.environment import device_name

RESULTS = Path(__file__).resolve().parents[1] / "results"


def result_here(name: str) -> Path:
    """Where the result of a benchmark on this machine's processor goes."""
    units = device_name().rpartition("(")[2].rstrip(")").lower()
    return RESULTS / f"{name}.{units.replace(' ', '-')}.json"


def results_of(name: str) -> Iterator[dict[str, Any]]:
    """What was found on each kind of processor, `environment` included, the fastest instructions first."""
    for path in sorted(RESULTS.glob(f"{name}.*.json"), reverse=True):
        yield json.loads(path.read_text(encoding="utf-8"))
