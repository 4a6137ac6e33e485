from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.backends.monotone import filled, smoothed

LENGTHS = [[1, 2], [8, 16, 64], [8, 24, 32, 40]]


def test_smoothing_is_the_cumulative_maximum() -> None:
    raised = smoothed(np.array([[1.0, 5.0, 2.0], [3.0, 1.0, np.nan]]))
    np.testing.assert_array_equal(raised, [[1.0, 5.0, 5.0], [3.0, 5.0, np.nan]])


def test_an_unknown_entry_is_scaled_by_macs_from_the_nearest() -> None:
    ms = np.array([[1.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_allclose(filled(ms, [[8, 16], [8, 16]]), [[1.0, 2.0], [2.0, 4.0]])


def test_an_unknown_entry_stays_between_its_neighbors() -> None:
    ms = np.array([[1.0, np.nan, 1.5]])
    np.testing.assert_allclose(filled(ms, [[1], [8, 16, 64]]), [[1.0, 1.5, 1.5]])


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.95))
@settings(max_examples=100, deadline=None)
def test_filling_keeps_known_entries_and_is_monotone(seed: int, missing: float) -> None:
    generator = np.random.default_rng(seed)
    noise = generator.random([len(axis) for axis in LENGTHS])
    unknown = generator.random(noise.shape) < missing
    unknown[0, 0, 0] = False
    known = smoothed(np.where(unknown, np.nan, noise))
    whole = filled(known, LENGTHS)
    np.testing.assert_array_equal(whole[~unknown], known[~unknown])
    for axis in range(whole.ndim):
        assert (np.diff(whole, axis=axis) >= 0).all()


def test_smoothing_twice_changes_nothing() -> None:
    once = smoothed(np.random.default_rng(0).random((4, 5)))
    np.testing.assert_array_equal(smoothed(once), once)
    assert once[-1, -1] == pytest.approx(once.max())
