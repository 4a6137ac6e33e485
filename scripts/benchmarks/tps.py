"""Token squeezing on DeiT-Tiny: accuracy without training, latency, and accuracy after the same training.

Models, logits and training states are kept in runs/tps-bench, so that an interrupted run continues; delete the folder
to start again. Methods calibrate and train on training images, and are judged on validation images and on one image of
each of 500 ImageNet classes. Takes about two hours on two idle cores. Needs the folder that VITSLIM_SHARED_DATA names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from by_processor import result_here
from paths import RESULTS, RUNS
from result_file import write_result
from tps_free import free_rows
from tps_speed import speed_rows
from tps_trained import trained_rows

FOLDER = RUNS / "tps-bench"
LATENCY = "tps-speed"


def run() -> dict[str, float]:
    """Write the latency of this processor, and tps-free.json and tps-trained.json; return top-1, agreement, speedup."""
    parts: dict[str, dict[str, Any]] = {"free": {}, "trained": {}}
    speed = dict(_shown(speed_rows()))
    write_result(result_here(LATENCY), rows=speed)
    for part, rows in (("free", free_rows(FOLDER / "free")), ("trained", trained_rows(FOLDER / "trained"))):
        for name, row in _shown(rows):
            parts[part][name] = row
            write_result(RESULTS / f"tps-{part}.json", rows=parts[part])
    figures = {f"{name} {key}": row[key] for name, row in speed.items() for key in row if key.startswith("speedup")}
    for rows in parts.values():
        figures |= {f"{name} {key}": row[key] for name, row in rows.items() for key in ("top1_val", "agreement_val")}
    return figures


def _shown(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterable[tuple[str, dict[str, Any]]]:
    for name, row in rows:
        print(json.dumps({name: row}), flush=True)
        yield name, row
