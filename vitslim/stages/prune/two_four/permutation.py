"""Orders of input channels in which a 2:4 mask keeps more magnitude (Pool and Yu, NeurIPS 2021).

Pure tensor mathematics. Swapping two columns of different groups of four changes these two groups alone. The magnitude
that a group keeps with one of its columns replaced is a sum of maxima, so that all swaps of a matrix are one table of
L1 distances between columns.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from vitslim.stages.prune.two_four.patterns import TWO_OF_FOUR

GROUP, KEPT = TWO_OF_FOUR.group, TWO_OF_FOUR.kept
SMALLEST_GAIN = 1e-5
"""As a fraction of the largest group; smaller gains are float32 rounding."""
LIMIT_S = 60.0


def find_permutation(weight: Tensor, limit_s: float = LIMIT_S) -> Tensor:
    """Return an order of the columns of `weight` in which 2:4 keeps at least as much magnitude as now: int64 (in,).

    weight: float (out, in), `in` a multiple of 4; layers that share their input are stacked along `out`. Starts from
    the current order; every step takes the best swaps of disjoint pairs of groups. Ends when no swap gains, or after
    `limit_s` seconds. Raises ValueError for another shape.
    """
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ValueError(f"expected a weight (out, in) with in a multiple of {GROUP}, got {tuple(weight.shape)}")
    size = weight.detach().abs().T.contiguous().float()  # one row per channel
    order = torch.arange(len(size))
    least = SMALLEST_GAIN * float(kept_magnitude(size).max())
    table = _replacements(size, order, torch.arange(len(size)))
    until = perf_counter() + limit_s
    while perf_counter() < until:
        swaps = _best_swaps(_gains(table, size, order), least)
        if not len(swaps):
            break
        first, second = swaps.T
        order[first], order[second] = order[second].clone(), order[first].clone()
        groups = torch.unique(swaps // GROUP)
        slots = (groups[:, None] * GROUP + torch.arange(GROUP)).flatten()
        table[slots] = _replacements(size, order, slots)
    return order


def kept_magnitude(size: Tensor) -> Tensor:
    """Return the magnitude that 2:4 keeps of each group: float (groups,). size: magnitudes (in, out)."""
    groups = size.reshape(-1, GROUP, size.shape[1])
    kept: Tensor = groups.topk(KEPT, dim=1).values.sum(dim=(1, 2))
    return kept


def efficacy(weight: Tensor, order: Tensor) -> float:
    """Return the fraction of the magnitude lost by 2:4 against 50 % unstructured pruning that an order restores.

    weight: float (out, in). 0 when 2:4 loses nothing. Source: NVIDIA apex, permutation_lib.
    """
    size = weight.detach().abs().T.double()
    best = size.flatten().topk(size.numel() // 2).values.sum()
    before, after = kept_magnitude(size).sum(), kept_magnitude(size[order]).sum()
    return float((after - before) / (best - before)) if best > before else 0.0


def _replacements(size: Tensor, order: Tensor, slots: Tensor) -> Tensor:
    """Return the kept magnitude of each slot's group with its channel replaced by each other: (slots, channels).

    Of three values and a new one, the two largest are the largest of the three, and the larger of the second and the
    new one; `max(a, b) = (a + b + |a - b|) / 2`.
    """
    group = slots // GROUP * GROUP
    others = torch.stack([group + (slots - group + shift) % GROUP for shift in range(1, GROUP)])
    largest, second = size[order[others]].topk(KEPT, dim=0).values
    distance = torch.cdist(second, size, p=1.0)
    kept: Tensor = largest.sum(dim=1)[:, None] + (second.sum(dim=1)[:, None] + size.sum(dim=1)[None, :] + distance) / 2
    return kept


def _gains(table: Tensor, size: Tensor, order: Tensor) -> Tensor:
    """Return the gain in kept magnitude of each swap of two slots: float (slots, slots), zero within a group."""
    crossed = table[:, order]
    kept = kept_magnitude(size[order]).repeat_interleave(GROUP)
    gains = crossed + crossed.T - kept[:, None] - kept[None, :]
    group = torch.arange(len(order)) // GROUP
    gains[group[:, None] == group[None, :]] = 0.0
    return gains


def _best_swaps(gains: Tensor, least: float) -> Tensor:
    """Return the swaps with gains above `least`, the best first, each group at most once: int64 (swaps, 2)."""
    best, partner = gains.max(dim=1)
    taken: set[int] = set()
    chosen = []
    for slot in torch.argsort(best, descending=True, stable=True).tolist():
        other = int(partner[slot])
        groups = {slot // GROUP, other // GROUP}
        if float(best[slot]) <= least or groups & taken:
            continue
        taken |= groups
        chosen.append((slot, other))
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 2)
