"""Fit of the constants of the tensor-core model: least squares from several starts, and errors on held-out folds."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from paths import RESULTS, ROOT
from result_file import write_result
from ruamel.yaml import YAML
from scipy.optimize import least_squares

from vitslim.backends.gemm_errors import by_class, noise, speedups
from vitslim.backends.gemm_list import Gemm, read_gemms
from vitslim.backends.simulated.gpu.gemm_times import gemm_us, roofline_us, widths
from vitslim.backends.simulated.gpu.spec import (
    Calibration,
    Errors,
    Fitted,
    FittedPrecisions,
    GpuSpec,
    Pair,
    load_gpu,
)
from vitslim.backends.simulated.gpu.tensor_core import TILES, Chip, Constants, Widths, gemm_time

Floats = npt.NDArray[np.float64]

SPECS = ROOT / "vitslim" / "backends" / "simulated" / "gpu"
RESULT = RESULTS / "gpu-model.json"
HEADER = """# Written by scripts/calibrate_gpu.py. Never edit a constant by hand.
# errors: percent of the measured time, on held-out folds.
"""

RANGES: dict[str, tuple[float, float, float]] = {
    "floor_us": (0.5, 6.5, 4.0),
    **{f"tile {rows}x{columns}": (0.15, 1.0, 0.8) for rows, columns in TILES},
    "dram": (0.4, 1.2, 0.75),
    "fill_us": (0.0, 8.0, 2.0),
    "sharpness": (1.5, 12.0, 4.0),
    "l2": (0.2, 1.6, 0.7),
    "reduction": (0.2, 4.0, 1.0),
    "quantization": (0.0, 1.0, 0.6),
    "resident": (0.05, 1.5, 0.5),
    "spill": (0.0, 2.0, 0.8),
    "raster": (1.0, 16.0, 4.0),
    "step_us": (0.0, 0.5, 0.1),
    "throttle": (0.0, 0.5, 0.05),
}
"""Minimum, maximum and initial value of each constant."""
NEAR = 0.04
"""Scale of the soft-L1 loss: smaller errors count squared, larger ones linearly."""
STARTS = 2
SMALL_SHAPE = 128
SMALL_WEIGHT = 4.0
"""Weight of GEMMs with no side above `SMALL_SHAPE`: they determine the floor, and there are few of them."""


def constants_of(point: Floats) -> Constants:
    """Return the constants of a point of the unbounded search space."""
    low, high, _ = np.array(list(RANGES.values())).T
    values = (low + (high - low) / (1 + np.exp(-point))).tolist()
    names = list(RANGES)
    fields = dict(zip(names, values, strict=True))
    tiles = tuple(fields.pop(name) for name in names if name.startswith("tile "))
    return Constants(tiles=tiles, **fields)


def fit(shapes: Floats, measured_us: Sequence[Floats], chip: Chip, ops: float, widths: Widths,
        starts: int = STARTS) -> Constants:  # fmt: skip
    """Fit constants to GEMMs `shapes` (n, 3: M, N, K), each measured once in every array of `measured_us`."""
    sizes = np.column_stack([np.ones(len(shapes)), shapes])
    logs = [np.log(times) for times in measured_us]
    weight = np.where((shapes <= SMALL_SHAPE).all(axis=1), SMALL_WEIGHT, 1.0)

    def residuals(point: Floats) -> Floats:
        estimate = np.log(gemm_time(sizes, chip, ops, constants_of(point), widths).total_us)
        return np.concatenate([weight * (estimate - one) for one in logs])

    low, high, start = np.array(list(RANGES.values())).T
    center = np.log((start - low) / (high - start))
    generator = np.random.default_rng(0)
    best = None
    for index in range(starts):
        point = center + (0.7 * generator.standard_normal(len(center)) if index else 0.0)
        found = least_squares(residuals, point, loss="soft_l1", f_scale=NEAR, max_nfev=60, diff_step=1e-3)
        best = found if best is None or found.cost < best.cost else best
    return constants_of(center if best is None else best.x)


SIDE_MAX = 65_535
"""GEMMs with a larger dimension are not used: some of them are outliers."""
PRECISIONS = {"fp16": ("FP16", "BF16"), "int8": ("INT8",)}


def usable(gemms: Sequence[Gemm]) -> list[Gemm]:
    """Return the measured GEMMs with no dimension above `SIDE_MAX`."""
    return [g for g in gemms if g.measured_us is not None and max(g.m, g.n, g.k) <= SIDE_MAX]


def fitted(gemms: Sequence[Gemm], spec: GpuSpec, starts: int = STARTS) -> FittedPrecisions:
    """Fit the constants of all precisions, dense and 2:4; FP16 and BF16 share theirs."""
    pairs = {}
    for precision, dtypes in PRECISIONS.items():
        kinds = {}
        for name, sparse in (("dense", False), ("sparse", True)):
            rows = [g for g in gemms if g.dtype in dtypes and g.sparse is sparse]
            if not rows:
                sys.exit(f"error: the file has no measured {name} GEMMs of {' or '.join(dtypes)}\nhint: add some")
            shapes = sorted({(g.m, g.n, g.k) for g in rows})
            times = [{(g.m, g.n, g.k): g.measured_us for g in rows if g.dtype == dtype} for dtype in dtypes]
            measured = [np.array([one[shape] for shape in shapes], np.float64) for one in times if len(one)]
            found = fit(np.array(shapes, np.float64), measured, spec.device(), spec.rate(precision, sparse),
                        widths(rows[0], spec), starts)  # fmt: skip
            kinds[name] = Fitted.model_validate(asdict(found))
        pairs[precision] = Pair(**kinds)
    return FittedPrecisions(**pairs)


def fold_numbers(gemms: Sequence[Gemm], folds: int) -> list[int]:
    """Return the fold of each GEMM; all rows of a shape are in the same one."""
    shapes = sorted({(g.m, g.n, g.k) for g in gemms})
    order = np.random.default_rng(0).permutation(len(shapes))
    number = {shapes[place]: index % folds for index, place in enumerate(order)}
    return [number[g.m, g.n, g.k] for g in gemms]


def unseen_us(gemms: Sequence[Gemm], spec: GpuSpec, folds: int, starts: int = STARTS) -> Floats:
    """Predict each GEMM with constants that were fitted to the other folds."""
    numbers = np.array(fold_numbers(gemms, folds))
    predicted = np.zeros(len(gemms))
    for index in range(folds):
        rest = [g for g, number in zip(gemms, numbers, strict=True) if number != index]
        places = np.flatnonzero(numbers == index)
        other = with_constants(spec, fitted(rest, spec, starts))
        predicted[places] = gemm_us([gemms[place] for place in places], other)
        print(f"fold {index + 1} of {folds}", flush=True)
    return predicted


def with_constants(spec: GpuSpec, constants: FittedPrecisions) -> GpuSpec:
    """Return the chip with other constants."""
    return spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"constants": constants})})


def calibrate(path: Path, chip: str, folds: int) -> None:
    """Fit the constants, evaluate them on held-out folds, and write them into the packaged settings of the chip."""
    spec = load_gpu(chip)
    gemms = usable(read_gemms(path))
    constants = fitted(gemms, spec)
    predicted = unseen_us(gemms, spec, folds)
    statistics = by_class(gemms, predicted)
    write_summary(summary(gemms, predicted, spec), path)
    calibration = Calibration(
        chip=chip,
        date=date.today().isoformat(),
        rows=len(gemms),
        source=path.name,
        folds=folds,
        lengths=lengths(gemms),
        errors={s.name: Errors(rows=s.rows, mean=_percent(s.mean), median=_percent(s.median), p90=_percent(s.p90))
                for s in statistics},
        constants=constants,
    )  # fmt: skip
    write_calibration(calibration, SPECS / f"{chip}.calibration.yaml")
    if not spec.calibrated:
        print(f"to use the constants, set `calibrated_on: {chip}` in {SPECS / chip}.yaml")
    for s in statistics:
        print(f"{s.name:12} n {s.rows:4}  mean {s.mean:6.1%}  median {s.median:6.1%}  p90 {s.p90:6.1%}")


def lengths(gemms: Sequence[Gemm]) -> dict[str, tuple[int, int]]:
    """Return the 5th and 95th percentile of each length."""
    sides = np.array([(g.m, g.n, g.k) for g in gemms])
    low, high = np.percentile(sides, (5, 95), axis=0, method="nearest").astype(int)
    return {name: (int(a), int(b)) for name, a, b in zip("MNK", low, high, strict=True)}


def summary(gemms: Sequence[Gemm], predicted: Floats, spec: GpuSpec) -> dict[str, float]:
    """Return errors on held-out folds, of the roofline and of a second measurement, and statistics of 2:4 speedups."""
    figures: dict[str, float] = {}
    models = {"model": by_class(gemms, predicted), "roofline": by_class(gemms, roofline_us(gemms, spec))}
    floor = noise(gemms)
    models |= {"noise": [floor]} if floor else {}
    for model, statistics in models.items():
        for s in statistics:
            figures |= {f"{model}, {s.name}, {key}": value for key, value in
                        (("mean", s.mean), ("median", s.median), ("p90", s.p90))}  # fmt: skip
    for one in speedups(gemms, predicted):
        figures |= {
            f"2:4 speedup, {one.name}, rank correlation": one.rank_correlation,
            f"2:4 speedup, {one.name}, mean error": one.mean_error,
            f"2:4 speedup, {one.name}, correct direction": one.direction_right,
            f"2:4 speedup, {one.name}, slowdowns": one.slowdowns,
            f"2:4 speedup, {one.name}, predicted slowdowns": one.caught,
            f"2:4 speedup, {one.name}, false slowdowns": one.false_slowdowns,
        }
    return figures


def write_summary(figures: dict[str, float], source: Path) -> None:
    """Write the figures and the name of the file with the measured GEMMs."""
    write_result(RESULT, source=source.name, figures=figures)


def write_calibration(calibration: Calibration, target: Path) -> None:
    """Write constants with four digits, and the data of the fit."""
    values = calibration.model_dump()
    values["constants"] = _rounded(values["constants"])
    values["lengths"] = {name: list(pair) for name, pair in values["lengths"].items()}
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 120
    yaml.dump(values, text)
    target.write_text(HEADER + text.getvalue(), encoding="utf-8")
    print(f"wrote {target}")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}")


def _percent(fraction: float) -> float:
    return round(100 * fraction, 2)
