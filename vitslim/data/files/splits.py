"""Names of the splits of a data set."""

from __future__ import annotations

UNUSED = "test"
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": UNUSED}
"""Split by its name in tables, shards and datasets; images of `test` are not read."""
