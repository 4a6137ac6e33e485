"""Errors of the tensor-core model on held-out GEMMs, into scripts/results/gpu-model.json.

Uses the GEMMs of a100_gemm_calibration.csv in the folder VITSLIM_SHARED_DATA, in five folds by shape. For comparison:
the roofline, and the difference between FP16 and BF16 measurements of equal GEMMs.
"""

from __future__ import annotations

from gpu_fit import summary, unseen_us, usable, write_summary
from paths import require_shared

from vitslim.backends.gemm_list import read_gemms
from vitslim.backends.simulated.gpu.spec import load_gpu

TABLE = "a100_gemm_calibration.csv"
FOLDS = 5


def run() -> dict[str, float]:
    """Fit five times, predict the held-out fold of each fit, and return the errors."""
    table = require_shared(TABLE)
    spec = load_gpu("a100")
    gemms = usable(read_gemms(table))
    figures = summary(gemms, unseen_us(gemms, spec, FOLDS), spec)
    write_summary(figures, table)
    return figures
