"""Latency of a whole model from its matmuls and its other operators: a fit on pruned models, and its error.

Times of single matmuls do not add up to a model: its weights do not stay in the cache, and normalizations, softmax,
activations and transpositions cost time as well. A linear model of both is fitted to the latency of a few pruned
models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear

from vitslim.graph.sketch import OPERATOR_KINDS, ModelSketch
from vitslim.latency_grid import Shape
from vitslim.results import TableCheck

Floats = npt.NDArray[np.float64]

SCALES = ((0.1, 2.0), (0.0, 2.0))
"""Limits of the factors on the times of single matmuls: by a weight, and of two activations, which may be fused."""
DENSE_WEIGHT = 100.0
"""Weight of the dense model, whose latency the fit must meet, against one pruned model."""
RIDGE = 1e-4
"""Weight of the squared coefficients, each times the largest value of its column, relative to the dense latency."""
COLUMNS = 3 + len(OPERATOR_KINDS)
"""Matmuls by a weight, of two activations, operators by kind, and a constant."""


class Fit(NamedTuple):
    """Coefficients of the latency of a model."""

    linear: float
    """Factor on the times of matmuls by a weight."""
    attention: float
    """Factor on the times of matmuls of two activations."""
    operators_ns: tuple[float, ...]
    """Nanoseconds for each value that operators of each kind compute, in the order of OPERATOR_KINDS."""
    fixed_ms: float


def features(sketch: ModelSketch, matmul_ms: Callable[[Shape, bool], float]) -> Floats:
    """Return the columns of one model, float64 (COLUMNS,): milliseconds of matmuls, millions of values, and 1."""
    times = [sum(matmul_ms(p.shape(sketch.axes), not p.weight) for p in sketch.matmuls if bool(p.weight) is is_linear)
             for is_linear in (True, False)]  # fmt: skip
    values = [sum(o.elements.value(sketch.axes) for o in sketch.operators if o.kind == kind) / 1e6
              for kind in OPERATOR_KINDS]  # fmt: skip
    return np.array([*times, *values, 1.0])


def fit(rows: Floats, ms: Floats) -> Fit:
    """Return the coefficients with the least squared relative error; none is negative.

    rows: float64 (n, COLUMNS), the first of the dense model. ms: float64 (n,). The result is scaled so that the dense
    model is exact.
    """
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    importance = np.where(np.arange(len(ms)) == 0, DENSE_WEIGHT, 1.0) / ms
    low, high = np.zeros(COLUMNS), np.full(COLUMNS, np.inf)
    for column, (least, most) in enumerate(SCALES):
        low[column], high[column] = least * scale[column], most * scale[column]
    # A little ridge regression makes the solution unique when columns are proportional to one another.
    system = np.concatenate([(rows / scale) * importance[:, None], RIDGE * np.eye(COLUMNS) / ms[0]])
    target = np.concatenate([ms * importance, np.zeros(COLUMNS)])
    found = lsq_linear(system, target, bounds=(low, high), method="bvls").x / scale
    found *= ms[0] / float(rows[0] @ found)
    return Fit(float(found[0]), float(found[1]), tuple(map(float, found[2:-1])), float(found[-1]))


def estimate(rows: Floats, found: Fit) -> Floats:
    """Return the milliseconds of each model, float64 (n,)."""
    ms: Floats = rows @ np.array([found.linear, found.attention, *found.operators_ns, found.fixed_ms])
    return ms


def cross_validate(rows: Floats, ms: Floats) -> TableCheck | None:
    """Return the errors of each pruned model by a fit to all others; None with fewer than two pruned models."""
    if len(ms) < 3:
        return None
    errors = []
    for left_out in range(1, len(ms)):
        others = np.arange(len(ms)) != left_out
        found = fit(rows[others], ms[others])
        errors.append(abs(float(estimate(rows[[left_out]], found)[0]) / ms[left_out] - 1))
    return TableCheck(models=len(errors), median_error=float(np.median(errors)), worst_error=max(errors))


def random_lengths(sketch: ModelSketch, axes: Sequence[str], generator: np.random.Generator) -> dict[str, int]:
    """Return random lengths of some axes: a fraction for each kind, which varies a little between axes of the kind.

    Lengths are multiples of 8, those of heads any number; fractions lie between 0.2 and 1.
    """
    fractions = {kind: generator.uniform(0.25, 1.0) for kind in sorted({sketch.kinds[axis] for axis in axes})}
    lengths = {}
    for axis in axes:
        size, step = sketch.axes[axis], 1 if sketch.kinds[axis] == "heads" else 8
        share = float(np.clip(fractions[sketch.kinds[axis]] * generator.uniform(0.8, 1.25), 0.0, 1.0))
        lengths[axis] = size if size < 2 * step else min(size, max(1, round(share * size / step)) * step)
    return lengths
