"""Latency-aware pruning of DeiT-Tiny: error of latency tables, accuracy after training, and without training.

Models, tables and logits are kept in runs/nvit-bench, one JSON row for each finished arm, so that an interrupted run
continues; delete the folder to start again. Methods score and train on training images, and are judged on validation
images and on one image of each of 500 ImageNet classes. Takes about six hours on two idle cores. Needs the folder that
VITSLIM_SHARED_DATA names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from by_processor import result_here
from nvit_arms import FOLDER
from nvit_free import free_rows
from nvit_tables import table_rows
from nvit_trained import trained_rows
from paths import RESULTS
from result_file import write_result

ACCURACY, TABLES = RESULTS / "nvit-deit-tiny.json", "nvit-tables"


def run() -> dict[str, float]:
    """Write scripts/results/nvit-deit-tiny.json and the table errors of this processor; return the main figures."""
    parts: dict[str, dict[str, Any]] = {"trained": {}, "free": {}}
    tables = dict(_shown(table_rows()))
    write_result(result_here(TABLES), rows=tables)
    for part, rows in (("trained", trained_rows()), ("free", free_rows())):
        for name, row in _shown(rows):
            parts[part][name] = row
            write_result(ACCURACY, **parts)
    figures = {f"{name} {key}": value for name, row in tables.items() for key, value in row.items()}
    for name, row in parts["trained"].items():
        figures |= {f"{name} {key}": row[key] for key in ("measured_share", "top1_val") if key in row}
    return figures


def _shown(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Print each row, and append it to runs/nvit-bench/rows.jsonl."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "rows.jsonl").open("a", encoding="utf-8") as file:
        for name, row in rows:
            line = json.dumps({name: row})
            print(line, flush=True)
            file.write(f"{line}\n")
            file.flush()
            yield name, row
