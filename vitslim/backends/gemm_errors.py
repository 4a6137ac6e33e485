"""Errors of predicted GEMM latencies against measured ones: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitslim.backends.gemm_list import Gemm
from vitslim.results import Value

Floats = npt.NDArray[np.float64]


class GemmError(Value):
    """Errors of predicted times, as fractions of the measured time."""

    model: str
    """`simulator`, `roofline`, or `noise` for the difference between two measurements of equal work."""
    name: str
    """Dtype and `dense` or `2:4`, or `pooled`."""
    rows: int
    mean: float
    median: float
    p90: float


class GemmSpeedup(Value):
    """Predicted against measured speedup by 2:4, over GEMMs that were measured dense and 2:4."""

    name: str
    pairs: int
    mean_error: float
    rank_correlation: float
    direction_right: float
    """Fraction of pairs for which prediction and measurement are both speedups or both slowdowns."""
    slowdowns: int
    caught: int
    """Measured slowdowns that are predicted as slowdowns."""
    false_slowdowns: int
    """Predicted slowdowns that are not measured."""


def error_statistics(model: str, name: str, predicted: Floats, measured: Floats) -> GemmError:
    """Return mean, median and 90th percentile of |predicted / measured - 1|; both float64 (n,)."""
    errors = np.abs(predicted / measured - 1)
    return GemmError(
        model=model,
        name=name,
        rows=len(errors),
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        p90=float(np.percentile(errors, 90)),
    )


def by_class(gemms: Sequence[Gemm], predicted_us: Floats, model: str = "simulator") -> list[GemmError]:
    """Return the errors by dtype, dense and 2:4 separately, and pooled. GEMMs without a measured time are ignored."""
    kept = [i for i, g in enumerate(gemms) if g.measured_us is not None]
    names = [f"{gemms[i].dtype} {'2:4' if gemms[i].sparse else 'dense'}" for i in kept]
    predicted, measured = predicted_us[kept], np.array([gemms[i].measured_us for i in kept], np.float64)
    classes = [
        error_statistics(model, name, *(values[[n == name for n in names]] for values in (predicted, measured)))
        for name in dict.fromkeys(names)
    ]
    return [*classes, error_statistics(model, "pooled", predicted, measured)] if kept else []


def speedups(gemms: Sequence[Gemm], predicted_us: Floats) -> list[GemmSpeedup]:
    """Return the statistics of the speedup by 2:4, for each dtype and pooled, over GEMMs measured dense and 2:4."""
    times: dict[tuple[str, int, int, int, int], dict[bool, tuple[float, float]]] = {}
    for g, us in zip(gemms, predicted_us, strict=True):
        if g.measured_us is not None:
            times.setdefault((g.dtype, g.m, g.n, g.k, g.count), {})[g.sparse] = (g.measured_us, float(us))
    pairs = [(key[0], both[False], both[True]) for key, both in times.items() if len(both) == 2]
    rows = {
        dtype: np.array([(d[0] / s[0], d[1] / s[1]) for kind, d, s in pairs if dtype in (kind, "pooled")])
        for dtype in [*dict.fromkeys(pair[0] for pair in pairs), "pooled"]
    }
    return [_speedup(name, *values.T) for name, values in rows.items() if len(values)]


def _speedup(name: str, measured: Floats, predicted: Floats) -> GemmSpeedup:
    slow, predicted_slow = measured < 1, predicted < 1
    return GemmSpeedup(
        name=name,
        pairs=len(measured),
        mean_error=float(np.abs(predicted / measured - 1).mean()),
        rank_correlation=rank_correlation(measured, predicted),
        direction_right=float((slow == predicted_slow).mean()),
        slowdowns=int(slow.sum()),
        caught=int((slow & predicted_slow).sum()),
        false_slowdowns=int((~slow & predicted_slow).sum()),
    )


def rank_correlation(first: Floats, second: Floats) -> float:
    """Return Spearman's coefficient, in [-1, 1]; equal values share their mean rank. 0 when one side is constant."""
    a, b = (_ranks(values) - (len(values) - 1) / 2 for values in (first, second))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def noise(gemms: Sequence[Gemm]) -> GemmError | None:
    """Return the difference between BF16 and FP16 times of equal GEMMs.

    Both run at the same rate, so this is the smallest error that a model can reach. None without such pairs.
    """
    times = {(g.dtype, g.m, g.n, g.k, g.count, g.sparse): g.measured_us for g in gemms if g.measured_us is not None}
    pairs = [
        (us, other) for key, us in times.items()
        if key[0] == "FP16" and (other := times.get(("BF16", *key[1:]))) is not None
    ]  # fmt: skip
    if not pairs:
        return None
    first, second = np.array(pairs).T
    return error_statistics("noise", "FP16 against BF16", first, second)
