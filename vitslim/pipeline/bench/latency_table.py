"""Build latency tables: the matmul shapes that pruning can reach, their latencies on a monotone grid, other operators.

The latency of a block at any lengths of its axes is the sum over its matmuls, each interpolated in the grid, and over
its other operators, whose times are fitted to whole pruned models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence, Set
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vitslim.backends.environment import environment
from vitslim.backends.matmul_times import MatmulTimes
from vitslim.backends.monotone import Floats, filled, smoothed
from vitslim.backends.registry import Backend, Measured
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import OPERATOR_KINDS, ModelSketch, Size, sketch
from vitslim.graph.trace.revit import trace_model
from vitslim.latency_grid import LatencyGrid, MatmulLatencies, Precision, Shape
from vitslim.pipeline.bench.operator_fit import Fit, cross_validate, features, fit
from vitslim.pipeline.bench.table_models import Timing, pruned_models
from vitslim.pipeline.bench.token_latency import token_latency
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import Model
from vitslim.results import LatencyTable, TableCheck

SMALLEST = 1 / 8
"""Shortest length in a table, as a fraction of the dense length."""
MULTIPLE = 8
"""Channel lengths are multiples of this, except the dense one."""
POINTS = {"measured": 8, "simulated": 16}
"""Points for each length; simulated points are cheap, but enlarge the file."""
TOKEN_POINTS = 8
"""Numbers of tokens in a table, at dense lengths of all other axes."""
MODELS = 12
"""Pruned models that are exported and timed."""
DIGITS = 6
"""Significant digits of an entry."""


def build_table(
    model: Model,
    backend: Backend,
    batch: int = 1,
    threads: int = 1,
    progress: Progress | None = None,
    *,
    precision: Precision = "float32",
    models: int | None = None,
) -> LatencyTable:
    """Return the latency table of a timm model with random weights; only measured backends use `threads`.

    models: number of pruned models to which the latency of operators other than matmuls is fitted; None: MODELS.
    Raises UsageError or InputError for a model that cannot be traced, StageError for one that cannot be exported,
    BackendUnavailableError for a backend that is missing.
    """
    backend.require()
    progress = progress or Silent()
    kind: Literal["measured", "simulated"] = "measured" if isinstance(backend, Measured) else "simulated"
    progress.say(f"tracing and exporting {model.name}")
    graph = trace_model(model)
    dense = sketch(graph)
    shapes = grid_shapes(dense, POINTS[kind])
    if kind == "simulated":
        shapes = completed(shapes)
    with tempfile.TemporaryDirectory() as folder:
        timing = Timing(backend, batch, threads, precision, Path(folder), progress)
        timing.write(graph, timing.dense)
        times = timing.matmul_times(shapes)
        samples = _samples(graph, dense, timing, MODELS if models is None else models)
        fitted, latencies, check = _fitted(times, samples)
        rest_ms = max(0.0, times.dense_ms - _matmuls_ms(latencies, dense))
        tokens = token_latency(
            graph, dense, rest_ms, times.dense_ms, lambda found: _matmuls_ms(latencies, found), timing.shares
        )
    return LatencyTable(
        model=model.name, kwargs=model.kwargs, backend=backend.name, kind=kind, precision=precision,
        settings=dict(times.settings), batch=batch, threads=threads if kind == "measured" else None,
        environment=environment(), n=times.n, spread=times.spread, dense_ms=times.dense_ms, rest_ms=rest_ms,
        **tokens._asdict(), matmuls=latencies, fixed_ms=fitted.fixed_ms, check=check,
        operators_ns=dict(zip(OPERATOR_KINDS, fitted.operators_ns, strict=True)),
    )  # fmt: skip


class _Samples(NamedTuple):
    """Whole models and their latencies, the dense one first."""

    sketches: list[ModelSketch]
    shares: list[float]
    """Latency over that of the dense model."""


def _samples(graph: ModelGraph, dense: ModelSketch, timing: Timing, count: int) -> _Samples:
    pruned = {f"pruned{number}": one for number, one in enumerate(pruned_models(graph, dense, count))}
    shares = timing.shares(pruned) if pruned else {}
    return _Samples([dense, *map(sketch, pruned.values())], [1.0, *shares.values()])


def _fitted(times: MatmulTimes, samples: _Samples) -> tuple[Fit, MatmulLatencies, TableCheck | None]:
    """Return the fit, the latencies of matmuls with their factors, and the error of the fit."""
    single = matmul_latencies(times.ms)
    rows = np.stack([features(one, single.at) for one in samples.sketches])
    ms = np.array(samples.shares) * times.dense_ms
    fitted = fit(rows, ms)
    factors = {True: fitted.linear, False: fitted.attention}
    scaled = matmul_latencies({shape: factors[shape[0] == 1] * value for shape, value in times.ms.items()})
    return fitted, scaled, cross_validate(rows, ms)


def _matmuls_ms(latencies: MatmulLatencies, found: ModelSketch) -> float:
    return sum(latencies.at(p.shape(found.axes), not p.weight) for p in found.matmuls)


def grid_shapes(dense: ModelSketch, points: int) -> tuple[Shape, ...]:
    """Return the shapes of a table: for each matmul a grid over its lengths that pruning can shorten, and token counts.

    Raises InputError for a model without a matmul by a weight.
    """
    movable = dense.kinds.keys() - dense.frozen.keys()
    shapes: set[Shape] = set()
    for p in dense.matmuls:
        count, *lengths = (
            _lengths(size, dense.axes, movable, points, multiple)
            for size, multiple in ((p.count, 1), *((size, MULTIPLE) for size in (p.rows, p.reduce, p.columns)))
        )
        several = [c for c in count if c > 1] or [1]
        shapes.update((c, m, k, n) for c, m, k, n in product(several, *lengths))
    tokens = set(dense.token_axes.values())
    if not dense.squeeze_obstacle and len(tokens) == 1:
        (axis,) = tokens
        for length in grid_lengths(dense.axes[axis], TOKEN_POINTS, 1):
            shapes.update(p.shape({**dense.axes, axis: length}) for p in dense.matmuls)
    if not any(shape[0] == 1 for shape in shapes):
        raise InputError("this model has no matmul by a weight", "build a latency table of an image classifier")
    return tuple(sorted(shapes))


def completed(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Return every combination of the lengths that occur, separately for matmuls by a weight and of activations."""
    kinds = [shape for shape in shapes if shape[0] == 1], [shape for shape in shapes if shape[0] > 1]
    return tuple(shape for kind in kinds for shape in product(*_axes(kind)))


def _axes(shapes: Collection[Shape]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return the lengths that occur, ascending."""
    counts, rows, reduce, columns = (sorted({shape[i] for shape in shapes}) for i in range(4))
    return counts, rows, reduce, columns


def _lengths(size: Size, axes: Mapping[str, int], movable: Set[str], points: int, multiple: int) -> list[int]:
    full = size.value(axes)
    can_move = any(name in movable for _, names in size.terms for name in names)
    return grid_lengths(full, points, multiple) if can_move else [full]


def grid_lengths(full: int, points: int, multiple: int) -> list[int]:
    """Return about `points` ascending lengths from an eighth of `full` to `full`.

    All but the last are multiples of `multiple`; the last one is `full`.
    """
    exact = np.linspace(full * SMALLEST, full, points) / multiple
    rounded = {max(1, round(float(value))) * multiple for value in exact}
    return sorted({length for length in rounded if length < full} | {full})


def matmul_latencies(ms: Mapping[Shape, float]) -> MatmulLatencies:
    """Return monotone grids of the latencies of single shapes: count 1 is a matmul by a weight, more of activations.

    Entries have six digits.
    """
    linear = _grid(*_monotone({shape: time for shape, time in ms.items() if shape[0] == 1}))
    several = {shape: time for shape, time in ms.items() if shape[0] > 1}
    return MatmulLatencies(linear=linear, attention=_grid(*_monotone(several)) if several else None)


def _monotone(ms: Mapping[Shape, float]) -> tuple[Sequence[Sequence[int]], Floats]:
    """Return the lengths that occur, and an entry for every combination of them."""
    axes = _axes(ms)
    values = np.array([ms.get(shape, np.nan) for shape in product(*axes)])
    return axes, filled(smoothed(values.reshape([len(axis) for axis in axes])), axes)


def _grid(axes: Sequence[Sequence[int]], values: Floats) -> LatencyGrid:
    counts, rows, reduce, columns = map(tuple, axes)
    ms = tuple(float(f"{value:.{DIGITS}g}") for value in values.flat)
    return LatencyGrid(counts=counts, rows=rows, reduce=reduce, columns=columns, ms=ms)
