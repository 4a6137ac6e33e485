"""The fit of operators other than matmuls, on invented latencies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitslim.pipeline.bench.operator_fit import COLUMNS, cross_validate, estimate, fit, random_lengths


@pytest.fixture
def rows() -> Any:
    """Columns of a dense model and of twelve smaller ones."""
    generator = np.random.default_rng(0)
    found = generator.uniform(0.2, 1.0, (13, COLUMNS))
    found[0], found[:, -1] = 1.0, 1.0
    return found


COEFFICIENTS = np.array([0.8, 0.5, 0.3, 0.0, 0.2, 0.1, 0.0, 0.4, 0.25])


def test_exact_latencies_are_recovered(rows: Any) -> None:
    ms = rows @ COEFFICIENTS
    found = fit(rows, ms)
    assert estimate(rows, found) == pytest.approx(ms, rel=1e-3)
    assert (found.linear, found.fixed_ms) == pytest.approx((0.8, 0.25), rel=0.02)
    check = cross_validate(rows, ms)
    assert check is not None
    assert (check.models, check.worst_error < 0.01) == (12, True)


def test_noise_shows_in_the_error_and_the_dense_model_stays_exact(rows: Any) -> None:
    ms = rows @ COEFFICIENTS * np.r_[1.0, np.random.default_rng(1).uniform(0.9, 1.1, 12)]
    check = cross_validate(rows, ms)
    assert check is not None
    assert 0.01 < check.median_error <= check.worst_error
    found = fit(rows, ms)
    assert estimate(rows[:1], found)[0] == pytest.approx(ms[0])
    assert min(found.linear, found.attention, found.fixed_ms, *found.operators_ns) >= 0


def test_a_model_that_cannot_be_pruned_has_no_error(rows: Any) -> None:
    assert cross_validate(rows[:1], np.array([2.0])) is None
    assert estimate(rows[:1], fit(rows[:1], np.array([2.0])))[0] == pytest.approx(2.0)


def test_random_lengths_stay_within_the_axes() -> None:
    sketch: Any = SimpleNamespace(axes={"e": 192, "h": 3, "m": 10}, kinds={"e": "embed", "h": "heads", "m": "mlp"})
    for seed in range(20):
        found = random_lengths(sketch, ["e", "h", "m"], np.random.default_rng(seed))
        assert found["e"] % 8 == 0
        assert 8 <= found["e"] <= 192
        assert 1 <= found["h"] <= 3
        assert found["m"] == 10
