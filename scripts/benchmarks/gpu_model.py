"""Errors of the tensor-core model on GEMMs that its constants were not fitted to.

Uses the GEMMs of a100_gemm_calibration.csv in the folder VITSLIM_SHARED_DATA, in five folds by shape. For comparison:
the roofline, and the difference between FP16 and BF16 measurements of equal GEMMs. Writes
scripts/results/gpu-model.json.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpu_fit import summary, unseen_us, usable, write_summary

from vitslim.backends.gemm_list import read_gemms
from vitslim.backends.simulated.gpu.spec import load_gpu

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(os.environ.get("VITSLIM_SHARED_DATA", ROOT.parent / "shared" / "data")) / "a100_gemm_calibration.csv"
FOLDS = 5


def run() -> dict[str, float]:
    """Fit five times, predict the held-out fold of each fit, compare."""
    if not TABLE.is_file():
        sys.exit(f"no measured GEMMs at {TABLE}: set VITSLIM_SHARED_DATA")
    spec = load_gpu("a100")
    gemms = usable(read_gemms(TABLE))
    figures = summary(gemms, unseen_us(gemms, spec, FOLDS), spec)
    write_summary(figures, TABLE)
    return figures
