"""Times of operators from the profiler of ONNX Runtime."""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vitslim.errors import InputError
from vitslim.results import OperatorTime
from vitslim.workload.session import OnnxModel

WARMUP, RUNS = 3, 20
KERNEL_TIME = "_kernel_time"
"""Suffix of the events of nodes."""


def operator_times(path: Path, batch: int, threads: int, provider: str) -> tuple[OperatorTime, ...]:
    """Return the median time of each operator over 20 runs of a batch of random images, after 3 for warm-up.

    Raises InputError for a file that ONNX Runtime rejects, or another fixed batch size.
    """
    with TemporaryDirectory() as folder:
        model = OnnxModel(path, threads, provider=provider, profile=Path(folder) / "profile")
        shape = model.input_shape(batch)
        images = model.convert(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        for _ in range(WARMUP + RUNS):
            model(images)
        events = json.loads(model.end_profile().read_text(encoding="utf-8"))
    return median_times(events, WARMUP, str(path))


def median_times(events: Iterable[Mapping[str, Any]], warmup: int, name: str) -> tuple[OperatorTime, ...]:
    """Return the median time of each operator, the longest first.

    events: of the profile of ONNX Runtime; durations and time stamps are microseconds. warmup: runs that do not count.
    Raises InputError, with the name of the file, if no further run is in the profile.
    """
    found = list(events)
    starts = sorted(event["ts"] for event in found if event.get("name") == "model_run")[warmup:]
    if not starts:
        raise InputError(f"the profile of '{name}' has no runs", "run it again with another version of ONNX Runtime")
    times: dict[tuple[str, str, str], list[float]] = {}
    for event in found:
        node = str(event.get("name", ""))
        if event.get("cat") == "Node" and node.endswith(KERNEL_TIME) and event["ts"] >= starts[0]:
            details = event["args"]
            key = (node.removesuffix(KERNEL_TIME), str(details["op_name"]), str(details.get("provider", "")))
            sums = times.setdefault(key, [0.0] * len(starts))
            sums[bisect(starts, event["ts"]) - 1] += event["dur"]
    medians = sorted(((key, float(np.median(sums))) for key, sums in times.items()), key=lambda item: -item[1])
    return tuple(
        OperatorTime(name=node, op=op, provider=provider, median_us=us) for (node, op, provider), us in medians
    )
