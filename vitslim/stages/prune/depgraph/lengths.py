"""How many indices of an axis stay, and which. Pure arithmetic (DepGraph, section 4 of the specs)."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import ceil, floor, gcd, lcm

import torch
from torch import Tensor


def step_of(round_to: int, multiplicities: Iterable[int]) -> int:
    """The finest step for the length of an axis, so that every layer size it makes is a multiple of `round_to`.

    multiplicities: for each layer dimension in which the axis occurs, how often one of its indices occurs there. The
    MLP's hidden axis occurs once: step 16 for `round_to` 16. The dims of a head occur once a head: with 3 heads the
    step is 16, with 4 heads it is 4, because then 4 x 4 = 16. Without any layer dimension the step is 1.
    """
    return lcm(*(round_to // gcd(round_to, count) for count in multiplicities))


def keep_count(size: int, ratio: float, step: int) -> int:
    """How many of `size` indices stay: `int(size * (1 - ratio))` rounded down to a multiple of `step`, at least `step`.

    ratio in [0, 1) is taken as the decimal number that was written, so 0.9 of 10 leaves 1 and not the 0 of binary
    rounding. Never more than `size`.
    """
    share = floor(size * (1 - Fraction(repr(ratio))))
    return min(size, max(step, share // step * step))


def least_count(size: int, max_ratio: float, step: int) -> int:
    """The fewest of `size` indices that may stay when no more than `max_ratio` may go: a multiple of `step`, or all."""
    share = ceil(size * (1 - Fraction(repr(max_ratio))))
    return min(size, max(1, -(-share // step)) * step)


def kept_indices(scores: Tensor, count: int) -> tuple[int, ...]:
    """The `count` indices with the largest scores, in ascending order; of equal scores the lower index stays.

    scores: float (n,), finite; 0 < count <= n.
    """
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))
