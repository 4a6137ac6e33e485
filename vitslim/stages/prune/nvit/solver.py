"""Widths of all blocks, and the branches that stay, for the least total saliency within a budget.

Given the lengths of the axes that branches share (the embedding), each branch chooses the lengths of its own axes, or
is removed: a multiple-choice knapsack problem, which a dynamic program over the cost solves. The shared lengths are
searched one axis after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitslim.errors import StageError
from vitslim.stages.prune.model_costs import REST, ModelCosts
from vitslim.stages.prune.nvit.structures import Structure
from vitslim.stages.prune.nvit.units import Units

Floats = npt.NDArray[np.float64]

CELLS = 2000
"""Number of cells into which the costs between the cheapest solution and the budget are divided."""
SWEEPS = 4
"""Largest number of passes over the shared axes."""
ROUNDING = 1e-9
"""Tolerance for floating-point rounding when a cost is compared with the budget, as a fraction of the budget."""


class Option(NamedTuple):
    """One choice for a branch."""

    cost: float
    loss: float
    lengths: dict[str, int] | None
    """None if the branch is removed."""


@dataclass(frozen=True)
class Allocation:
    """One allocation problem."""

    structures: tuple[Structure, ...]
    costs: ModelCosts
    saliency: Mapping[str, Tensor]
    """Of each unit, float64 (size,) by axis, not negative."""
    units: Units
    """Units that may stay."""
    removable: frozenset[str]
    """Branches that may be removed."""

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """Axis name to the summed saliency of the units that are lost at each number of kept units: (size + 1,)."""
        found = {}
        for one in self.structures:
            alive = self.units.alive[one.axis]
            values = np.sort(self.saliency[one.axis][alive].cpu().numpy())
            found[one.axis] = np.concatenate([[0.0], np.cumsum(values)])[::-1]
        return found

    @cached_property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """Axis name to the lengths that it may get."""
        now = self.units.lengths
        return {one.axis: tuple(n for n in one.lengths if n <= now[one.axis]) for one in self.structures}

    @cached_property
    def own(self) -> dict[str, tuple[str, ...]]:
        """Branch to the pruned axes that occur in no other part of the model; without branches that are removed."""
        found: dict[str, tuple[str, ...]] = {}
        for name, part in self.costs.parts.items():
            if name != REST and name not in self.units.removed:
                others = frozenset[str]().union(*(p.axes for n, p in self.costs.parts.items() if n != name))
                found[name] = tuple(one.axis for one in self.structures if one.axis in part.axes - others)
        return found

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Pruned axes that belong to no single branch."""
        inside = {axis for axes in self.own.values() for axis in axes}
        gone = frozenset[str]().union(*(self.costs.parts[name].axes for name in self.units.removed))
        used = {axis for name, part in self.costs.parts.items() if name not in self.units.removed for axis in part.axes}
        return tuple(one.axis for one in self.structures if one.axis not in inside and one.axis not in gone - used)

    def loss_of(self, lengths: Mapping[str, int]) -> float:
        """Return the saliency that is lost at these lengths."""
        return sum(float(self.losses[axis][length]) for axis, length in lengths.items())

    def removal_loss(self, branch: str) -> float:
        """Return the saliency that is lost with a branch: all its heads or hidden units."""
        kinds = {one.axis: one.kind for one in self.structures}
        axes = [axis for axis in self.own[branch] if kinds[axis] in {"heads", "mlp"}] or list(self.own[branch])
        return sum(float(self.losses[axis][0]) for axis in axes)


def solve_widths(problem: Allocation, limit: float) -> tuple[dict[str, int], frozenset[str]]:
    """Return the length of each axis, and the removed branches, with the least lost saliency and at most `limit` cost.

    A branch loses the saliencies of all units that its axes lose; one that is removed loses those of all its heads or
    hidden units.

    Exact in the widths of branches up to the cells of the dynamic program: for the chosen shared lengths, no allocation
    that costs at least one cell a branch less than the limit loses less. Raises StageError, with the reachable cost, if
    the smallest allocation costs more than the limit.
    """
    tables = _OptionTables(problem)
    least = tables.least({axis: problem.choices[axis][0] for axis in problem.shared})
    if least > limit * (1 + ROUNDING):
        raise _unreachable(limit, least, problem.costs.dense)
    best: _Best | None = None
    shared = _start(problem, tables, limit)
    for _ in range(SWEEPS):
        before = best
        for axis in problem.shared or ("",):
            for length in problem.choices.get(axis, (0,)):
                best = _better(best, problem, tables, {**shared, axis: length} if axis else shared, limit)
            shared = shared if best is None else best.shared
        if best is before or len(problem.shared) < 2:
            break
    if best is None:
        raise _unreachable(limit, least, problem.costs.dense)
    return _result(problem, best.shared, best.chosen)


class _Best(NamedTuple):
    loss: float
    shared: dict[str, int]
    chosen: list[Option]


def _unreachable(limit: float, least: float, dense: float) -> StageError:
    message = f"{limit / dense:.3f} of the cost cannot be reached: {least / dense:.3f} remains at the smallest widths"
    return StageError(message, "raise the budget, or lower the groups")


def _start(problem: Allocation, tables: _OptionTables, limit: float) -> dict[str, int]:
    """Return shared lengths to search from: the largest common fraction of all choices that can meet the limit."""
    for step in range(16, 0, -1):
        found = {axis: problem.choices[axis][round(step / 16 * (len(problem.choices[axis]) - 1))]
                 for axis in problem.shared}  # fmt: skip
        if tables.least(found) <= limit * (1 + ROUNDING):
            return found
    return {axis: problem.choices[axis][0] for axis in problem.shared}


def _better(
    best: _Best | None, problem: Allocation, tables: _OptionTables, shared: dict[str, int], limit: float
) -> _Best | None:
    """Return the better of the best solution and that with these shared lengths; None if there is none."""
    lost = problem.loss_of(shared)
    if best is not None and lost >= best.loss:
        return best
    chosen = choose_options(tables.options(shared), limit - tables.fixed(shared))
    if chosen is None:
        return best
    total = lost + sum(option.loss for option in chosen)
    return _Best(total, shared, chosen) if best is None or total < best.loss else best


def _result(
    problem: Allocation, shared: Mapping[str, int], chosen: Sequence[Option]
) -> tuple[dict[str, int], frozenset[str]]:
    lengths = problem.units.lengths | dict(shared)
    removed = set(problem.units.removed)
    for branch, option in zip(problem.own, chosen, strict=True):
        if option.lengths is None:
            removed.add(branch)
        else:
            lengths |= option.lengths
    return lengths, frozenset(removed)


class _OptionTables:
    """Options of each branch for given shared lengths, each computed once."""

    def __init__(self, problem: Allocation) -> None:
        self.problem = problem
        self._known: dict[tuple[str, tuple[int, ...]], list[Option]] = {}
        self.combinations = {
            branch: [dict(zip(axes, found, strict=True))
                     for found in product(*(problem.choices[axis] for axis in axes))]
            for branch, axes in problem.own.items()
        }  # fmt: skip

    def options(self, shared: Mapping[str, int]) -> list[list[Option]]:
        """Return the options of each branch that are not worse than another in both cost and loss, cheapest first."""
        return [self._of(branch, shared) for branch in self.problem.own]

    def fixed(self, shared: Mapping[str, int]) -> float:
        """Return the cost outside of the branches that choose."""
        inside = {*self.problem.own, *self.problem.units.removed}
        return self.problem.costs.of(self.problem.units.lengths | dict(shared), inside)

    def least(self, shared: Mapping[str, int]) -> float:
        """Return the smallest cost with these shared lengths."""
        found = self.options(shared)
        total = self.fixed(shared) + sum(min(option.cost for option in own) for own in found)
        return total + _last_branch(found)

    def _of(self, branch: str, shared: Mapping[str, int]) -> list[Option]:
        key = branch, tuple(shared[axis] for axis in self.problem.shared)
        if key not in self._known:
            self._known[key] = self._computed(branch, shared)
        return self._known[key]

    def _computed(self, branch: str, shared: Mapping[str, int]) -> list[Option]:
        problem, part = self.problem, self.problem.costs.parts[branch]
        base = problem.units.lengths | dict(shared)
        found = [Option(part.cost(base | own), problem.loss_of(own), own) for own in self.combinations[branch]]
        if branch in problem.removable:
            found.append(Option(0.0, problem.removal_loss(branch), None))
        return pareto(found)


def _last_branch(options: Sequence[Sequence[Option]]) -> float:
    """Return the cost of the cheapest branch that stays, if all of them could be removed."""
    if not options or any(own[0].lengths is not None for own in options):
        return 0.0
    return min((own[1].cost for own in options if len(own) > 1), default=0.0)


def pareto(options: Iterable[Option]) -> list[Option]:
    """Return the options that no other one beats in both cost and loss, the cheapest first."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.cost, one.loss)):
        if not found or option.loss < found[-1].loss:
            found.append(option)
    return found


def choose_options(options: Sequence[Sequence[Option]], budget: float, cells: int = CELLS) -> list[Option] | None:
    """Return one option of each branch with the least total loss and a total cost of at most `budget`.

    options: of each branch, from `pareto`. At least one branch stays. Costs are rounded up to a cell, which is 1 /
    `cells` of the range from the smallest possible total to the budget: no choice that costs at least one cell a branch
    less than the budget loses less than the result. None if no choice fits.
    """
    spare = budget - sum(own[0].cost for own in options)
    if spare < -ROUNDING * abs(budget):
        return None
    cell = max(spare / cells, np.finfo(float).tiny)
    bins = [np.minimum(np.ceil([(option.cost - own[0].cost) / cell * (1 - 1e-12) for option in own]), cells + 1)
            .astype(np.int64) for own in options]  # fmt: skip
    table = np.full((2, cells + 1), np.inf)  # first index: whether a branch stays
    table[0, 0] = 0.0
    sources = []
    for own, steps in zip(options, bins, strict=True):
        table, source = _after_branch(table, own, steps)
        sources.append(source)
    stays = 1 if options else 0
    if not np.isfinite(table[stays]).any():
        return None
    return _traced(options, bins, sources, stays, int(table[stays].argmin()))


def _after_branch(
    table: Floats, own: Sequence[Option], steps: npt.NDArray[np.int64]
) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Return the table after one more branch, and the option and state before it of each entry, -1 if unreached."""
    width = table.shape[1]
    new, sources = np.full_like(table, np.inf), np.full(table.shape, -1, dtype=np.int32)
    for position, (option, step) in enumerate(zip(own, steps, strict=True)):
        if step >= width:
            continue
        for state in (0, 1):
            after = state if option.lengths is None else 1
            moved = table[state, : width - step] + option.loss
            better = moved < new[after, step:]
            new[after, step:][better] = moved[better]
            sources[after, step:][better] = 2 * position + state
    return new, sources


def _traced(
    options: Sequence[Sequence[Option]], bins: Sequence[npt.NDArray[np.int64]],
    sources: Sequence[npt.NDArray[np.int32]], state: int, cell: int,
) -> list[Option]:  # fmt: skip
    chosen = []
    for own, steps, source in zip(reversed(options), reversed(bins), reversed(sources), strict=True):
        position, before = divmod(int(source[state, cell]), 2)
        chosen.append(own[position])
        cell, state = cell - int(steps[position]), before
    return chosen[::-1]
