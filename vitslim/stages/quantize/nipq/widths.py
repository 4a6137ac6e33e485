"""Choice of whole numbers of bits near the learned ones, within the limit of a cost. Pure mathematics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitslim.stages.quantize.nipq.costs import Cost

SLACK = 1e-9
"""Relative excess over a limit that rounding errors explain."""


class _Move(NamedTuple):
    """New widths of some tensors."""

    widths: Mapping[int, int]
    cost: float
    distance: float
    """Mean change of the squared distances of its tensors from the learned bits."""


def choose_widths(
    learned: Tensor, allowed: Sequence[Sequence[int]], cost: Cost, together: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Return one allowed width for each tensor, near its learned bits, whose cost is at most the limit: int64 (n,).

    learned: float (n,). allowed: ascending widths of each tensor. together: positions of tensors whose widths may also
    change in one move, where the cost depends on the widest of them. Widths are rounded to the nearest allowed one.
    While the cost is above the limit, the move that adds the least squared distance from the learned bits is made, so
    all widths are lowered alike; then widths below the learned bits are raised as long as the cost allows. Raises
    ValueError if the smallest widths cost more than the limit.
    """
    search = _Search(learned.tolist(), allowed, cost, together)
    ceiling = cost.limit * (1 + SLACK)
    while search.cost > ceiling:
        cheaper = [move for move in search.moves(-1) if move.cost < search.cost]
        if not cheaper:
            raise ValueError(f"the smallest cost is {search.cost:g}, above the limit of {cost.limit:g}")
        search.make(min(cheaper, key=lambda move: (move.distance, move.cost)))
    while fitting := [move for move in search.moves(1) if move.cost <= ceiling]:
        search.make(min(fitting, key=lambda move: (move.distance, move.cost)))
    return torch.tensor(search.widths)


def smallest_widths(allowed: Sequence[Sequence[int]]) -> Tensor:
    """Return the smallest allowed width of each tensor: int64 (n,)."""
    return torch.tensor([min(widths) for widths in allowed])


class _Search:
    """The widths so far, and the moves from them."""

    def __init__(
        self, learned: Sequence[float], allowed: Sequence[Sequence[int]], cost: Cost, together: Sequence[Sequence[int]]
    ) -> None:
        self._learned, self._allowed, self._cost = learned, allowed, cost
        self._units = [(index,) for index in range(len(learned))] + [tuple(unit) for unit in together]
        self.widths = [_nearest(bits, options) for bits, options in zip(learned, allowed, strict=True)]
        self.cost = cost.deployed(torch.tensor(self.widths))

    def moves(self, direction: int) -> Iterator[_Move]:
        """Yield the moves of each tensor, or of several together, to the next width below (-1) or above (1)."""
        for unit in self._units:
            found = {index: width for index in unit if (width := self._next(index, direction)) is not None}
            if found:
                widths = [found.get(index, width) for index, width in enumerate(self.widths)]
                change = sum(self._distance(i, width) - self._distance(i, self.widths[i]) for i, width in found.items())
                yield _Move(found, self._cost.deployed(torch.tensor(widths)), change / len(found))

    def make(self, move: _Move) -> None:
        """Change the widths."""
        for index, width in move.widths.items():
            self.widths[index] = width
        self.cost = move.cost

    def _next(self, index: int, direction: int) -> int | None:
        if direction > 0 and self.widths[index] >= self._learned[index]:
            return None
        options = self._allowed[index]
        place = options.index(self.widths[index]) + direction
        return options[place] if 0 <= place < len(options) else None

    def _distance(self, index: int, width: int) -> float:
        return (width - self._learned[index]) ** 2


def _nearest(bits: float, options: Sequence[int]) -> int:
    """Return the nearest width; of two equally near ones the larger."""
    return min(options, key=lambda width: (abs(width - bits), -width))
