"""Checks of stored sparsity patterns."""

from __future__ import annotations

import numpy as np

from vitslim.sparsity import is_two_four

ROWS = np.array([[1, 2, 0, 0, 0, 3, 4, 0], [0, 0, 0, 1, 1, 0, 1, 0]])


def test_the_pattern_is_judged_along_the_given_axis() -> None:
    assert is_two_four(ROWS == 0)
    assert is_two_four(ROWS.T == 0, axis=0)
    assert not is_two_four(np.array([[1, 2, 3, 0, 0, 0, 0, 0]]) == 0)
    assert not is_two_four(np.repeat(ROWS, 4, axis=0).T == 0)


def test_lengths_without_whole_groups_have_no_pattern() -> None:
    assert not is_two_four(ROWS[:, :6] == 0)
    assert not is_two_four(np.zeros((0, 4), bool))
    assert not is_two_four(np.zeros((4, 0), bool))
