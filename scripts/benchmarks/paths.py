"""Folders that benchmarks read and write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "results"
RUNS = ROOT / "runs"
SHARED = Path(os.environ.get("VITSLIM_SHARED_DATA", ROOT.parent / "shared" / "data"))
"""Folder with pretrained weights, images and measured GEMMs."""


def require_shared(name: str) -> Path:
    """Return a file or folder of `SHARED`; exit if it does not exist."""
    path = SHARED / name
    if not path.exists():
        sys.exit(f"error: {path} does not exist\nhint: set VITSLIM_SHARED_DATA to the folder that contains {name}")
    return path
