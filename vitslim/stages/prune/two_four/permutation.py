"""Orders of input channels in which an N:M mask keeps more magnitude (Pool and Yu, NeurIPS 2021, for 2:4).

Pure tensor mathematics. Swapping two columns of different groups changes these two groups alone. The magnitude that a
group keeps with one of its columns replaced is a sum of maxima, so that all swaps of a matrix are one table of L1
distances between columns.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from vitslim.sparsity import Pattern
from vitslim.stages.prune.two_four.patterns import TWO_OF_FOUR

SMALLEST_GAIN = 1e-5
"""As a fraction of the largest group; smaller gains are float32 rounding."""
LIMIT_S = 60.0


def find_permutation(weight: Tensor, pattern: Pattern = TWO_OF_FOUR, limit_s: float = LIMIT_S) -> Tensor:
    """Return an order of the columns of `weight` in which the pattern keeps at least as much magnitude: int64 (in,).

    weight: float (out, in), `in` a multiple of the pattern's span; layers that share their input are stacked along
    `out`. Starts from the current order; every step takes the best swaps of disjoint pairs of groups. Ends when no swap
    of columns of two groups gains, or after `limit_s` seconds. Raises ValueError for another shape.
    """
    if weight.ndim != 2 or weight.shape[1] % pattern.span:
        raise ValueError(f"expected a weight (out, in) with in a multiple of {pattern.span}, got {tuple(weight.shape)}")
    size = weight.detach().abs().T.contiguous().float()  # one row per channel
    order = torch.arange(len(size))
    least = SMALLEST_GAIN * float(kept_magnitude(size, pattern).max())
    table = _replacements(size, order, torch.arange(len(size)), pattern)
    until = perf_counter() + limit_s
    while perf_counter() < until:
        swaps = _best_swaps(_gains(table, size, order, pattern), least, pattern.span)
        if not len(swaps):
            break
        first, second = swaps.T
        order[first], order[second] = order[second].clone(), order[first].clone()
        groups = torch.unique(swaps // pattern.span)
        slots = (groups[:, None] * pattern.span + torch.arange(pattern.span)).flatten()
        table[slots] = _replacements(size, order, slots, pattern)
    return order


def kept_magnitude(size: Tensor, pattern: Pattern = TWO_OF_FOUR) -> Tensor:
    """Return the magnitude that the pattern keeps of each group: float (groups,). size: magnitudes (in, out)."""
    kept: Tensor = _units(size, pattern).topk(pattern.kept, dim=1).values.sum(dim=(1, 2))
    return kept


def efficacy(weight: Tensor, order: Tensor, pattern: Pattern = TWO_OF_FOUR) -> float:
    """Return the fraction of the magnitude that the pattern loses against unstructured pruning that an order restores.

    weight: float (out, in). 0 when the pattern loses nothing. Source: NVIDIA apex, permutation_lib.
    """
    size = weight.detach().abs().T.double()
    best = size.flatten().topk(size.numel() * pattern.kept // pattern.group).values.sum()
    before, after = kept_magnitude(size, pattern).sum(), kept_magnitude(size[order], pattern).sum()
    return float((after - before) / (best - before)) if best > before else 0.0


def _units(size: Tensor, pattern: Pattern) -> Tensor:
    """Return the sums of the units of adjacent channels: (groups, units of a group, out)."""
    return size.reshape(-1, pattern.group, pattern.width, size.shape[1]).sum(dim=2)


def _replacements(size: Tensor, order: Tensor, slots: Tensor, pattern: Pattern) -> Tensor:
    """Return the kept magnitude of each slot's group with its channel replaced by each other: (slots, channels).

    With N kept, of the other units and a new one the N largest are the N - 1 largest of the others, and the larger of
    the next and the new one, which is the new channel plus its partners; `max(a, b) = (a + b + |a - b|) / 2`.
    """
    units = _units(size[order], pattern)
    group, unit = slots // pattern.span, slots % pattern.span // pattern.width
    others = torch.stack([units[group, (unit + shift) % pattern.group] for shift in range(1, pattern.group)])
    *largest, next_one = others.topk(pattern.kept, dim=0).values
    partners = units[group, unit] - size[order[slots]]
    base = sum((one.sum(dim=1) for one in largest), torch.zeros(len(slots)))
    distance = torch.cdist(next_one - partners, size, p=1.0)
    at_least: Tensor = (next_one + partners).sum(dim=1)[:, None] + size.sum(dim=1)[None, :]
    return base[:, None] + (at_least + distance) / 2


def _gains(table: Tensor, size: Tensor, order: Tensor, pattern: Pattern) -> Tensor:
    """Return the gain in kept magnitude of each swap of two slots: float (slots, slots), zero within a group."""
    crossed = table[:, order]
    kept = kept_magnitude(size[order], pattern).repeat_interleave(pattern.span)
    gains = crossed + crossed.T - kept[:, None] - kept[None, :]
    group = torch.arange(len(order)) // pattern.span
    gains[group[:, None] == group[None, :]] = 0.0
    return gains


def _best_swaps(gains: Tensor, least: float, span: int) -> Tensor:
    """Return the swaps with gains above `least`, the best first, each group at most once: int64 (swaps, 2)."""
    best, partner = gains.max(dim=1)
    taken: set[int] = set()
    chosen = []
    for slot in torch.argsort(best, descending=True, stable=True).tolist():
        other = int(partner[slot])
        groups = {slot // span, other // span}
        if float(best[slot]) <= least or groups & taken:
            continue
        taken |= groups
        chosen.append((slot, other))
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 2)
