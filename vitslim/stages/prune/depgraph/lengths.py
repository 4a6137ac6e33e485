"""Arithmetic of lengths: the number of kept indices of an axis, and the kept indices themselves."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import ceil, floor, gcd, lcm

import torch
from torch import Tensor


def step_of(round_to: int, multiplicities: Iterable[int]) -> int:
    """Return the finest step of an axis length for which every layer dimension is a multiple of `round_to`.

    multiplicities: for each layer dimension in which the axis occurs, how often each of its indices occurs there. The
    hidden axis of an MLP occurs once: step 16 for `round_to` 16. The dimensions of a head occur once in each head: with
    3 heads the step is 16, with 4 heads it is 4, because 4 x 4 = 16. Without any layer dimension the step is 1.
    """
    return lcm(*(round_to // gcd(round_to, count) for count in multiplicities))


def keep_count(size: int, ratio: float, step: int) -> int:
    """Return `int(size * (1 - ratio))` rounded down to a multiple of `step`, at least `step` and at most `size`.

    ratio: in [0, 1), taken as the decimal number that was written: 0.9 of 10 leaves 1, where binary rounding gives 0.
    """
    share = floor(size * (1 - Fraction(repr(ratio))))
    return min(size, max(step, share // step * step))


def least_count(size: int, max_ratio: float, step: int) -> int:
    """Return the smallest length of an axis that loses at most `max_ratio`: a multiple of `step`, or `size`."""
    share = ceil(size * (1 - Fraction(repr(max_ratio))))
    return min(size, max(1, -(-share // step)) * step)


def kept_indices(scores: Tensor, count: int) -> tuple[int, ...]:
    """Return the `count` indices with the largest scores, in ascending order; of equal scores the lower index is kept.

    scores: float (n,), finite; 0 < count <= n.
    """
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))
