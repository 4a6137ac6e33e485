"""Fit the tensor-core model to measured GEMMs and write the constants into the settings of a chip.

Use: .venv/bin/python scripts/calibrate_gpu.py GEMMS.csv --chip a100
GEMMS.csv has the columns M, N, K, dtype and either dense_us and sparse24_us or sparse and measured_us, as
`vitslim bench --gemms` fills it on a GPU. Rows with a dimension of 65,536 or more are ignored: some are outliers.

The fit minimizes the mean of |log(estimate / measured)| with a soft-L1 loss, from several starting points. The printed
errors are on held-out folds; all rows of a shape are in one fold. Only this script writes constants.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from gpu_fit import calibrate  # noqa: E402


def main() -> None:
    """Parse the command line, fit, write."""
    parser = argparse.ArgumentParser(description="Fit the tensor-core model to measured GEMMs.")
    parser.add_argument("gemms", type=Path)
    parser.add_argument("--chip", default="a100", help="packaged settings to write the constants into")
    parser.add_argument("--folds", type=int, default=5)
    arguments = parser.parse_args()
    calibrate(arguments.gemms, arguments.chip, arguments.folds)


if __name__ == "__main__":
    main()
