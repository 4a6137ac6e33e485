"""Costs of a model with pruned structures: what a budget can reach, and the share of each block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitslim.errors import Problem
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Nvit
from vitslim.results import BlockWidths, PrunedWidths
from vitslim.stages.prune.model_costs import Lengths, ModelCosts, model_costs
from vitslim.stages.prune.nvit.structures import Structures
from vitslim.stages.prune.nvit.units import Units

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
"""Keys of a budget, with their names in messages."""
ALL_BLOCKS = "all blocks"
LEVELS = 64
"""Number of uniform fractions between the dense model and the smallest one."""


def costs(sketch: ModelSketch, found: Structures, config: Nvit, latency: LatencyTable | None) -> ModelCosts:
    """Return the cost that the budget limits."""
    return model_costs(sketch, config.budget.limit[0], [one.axis for one in found.pruned], latency)


def problems(sketch: ModelSketch, found: Structures, config: Nvit, latency: LatencyTable | None) -> list[Problem]:
    """Return a problem for a model without an axis to prune, for a table of other dimensions, and for a budget that
    even the smallest lengths exceed."""
    if not found.pruned:
        reasons = sorted({note.reason for note in found.skipped}) or ["no axis of these kinds was found"]
        return [Problem("structures", f"nothing can be pruned: {'; '.join(reasons[:3])}", "lower the groups")]
    if latency is not None and (missing := missing_dimensions(sketch, found, latency)):
        message = (
            f"the latency table has only one length for {', '.join(missing)}, so it cannot tell what pruning saves"
        )
        hint = "build the table again with `vitslim bench --table MODEL`, or remove the kind from `structures`"
        return [Problem("budget.table", message, hint)]
    key, share = config.budget.limit
    found_costs = costs(sketch, found, config, latency)
    least = found_costs.of({one.axis: one.lengths[0] for one in found.pruned}) / found_costs.dense
    if least <= share:
        return []
    message = f"{share:g} of the {WORDS[key]} cannot be reached: {least:.3f} remains with every axis at its smallest"
    return [Problem(f"budget.{key}", message, "raise the budget, lower the groups, or prune more structures")]


def missing_dimensions(sketch: ModelSketch, found: Structures, latency: LatencyTable) -> list[str]:
    """Return the kinds of pruned axes along which the grids of a table do not vary."""
    missing: dict[str, None] = {}
    for p in sketch.matmuls:
        grid = latency.matmuls.linear if p.weight or p.count.value(sketch.axes) == 1 else latency.matmuls.attention
        sizes = (p.count, p.rows, p.reduce, p.columns)
        for one in found.pruned:
            places = [place for place, size in enumerate(sizes) if one.axis in size.axes()]
            if any(grid is None or len(grid.lengths[place]) < 2 for place in places):
                missing[one.kind] = None
    return list(missing)


def uniform_lengths(sketch: ModelSketch, found: Structures, config: Nvit, latency: LatencyTable | None) -> Lengths:
    """Return the largest lengths within the budget at which every axis has lost the same fraction of its choices."""
    found_costs, share = costs(sketch, found, config, latency), config.budget.limit[1]
    for level in range(LEVELS, 0, -1):
        lengths = {one.axis: one.lengths[round(level / LEVELS * (len(one.lengths) - 1))] for one in found.pruned}
        if found_costs.of(lengths) <= share * found_costs.dense:
            return lengths
    return {one.axis: one.lengths[0] for one in found.pruned}


def share_of(sketch: ModelSketch, found: Structures, config: Nvit, latency: LatencyTable | None, units: Units) -> float:
    """Return the cost of the model with these units as a share of the dense cost."""
    found_costs = costs(sketch, found, config, latency)
    return found_costs.of(units.lengths, units.removed) / found_costs.dense


def pruned_widths(
    sketch: ModelSketch, found: Structures, config: Nvit, latency: LatencyTable | None, units: Units
) -> PrunedWidths:
    """Return the dimensions of every block before and after pruning, and its share of the cost, for the report."""
    key, found_costs, lengths = config.budget.limit[0], costs(sketch, found, config, latency), units.lengths
    gone = frozenset[str]().union(*(found_costs.parts[name].axes for name in units.removed))
    stay = (part.axes for name, part in found_costs.parts.items() if name not in units.removed)
    gone -= frozenset[str]().union(*stay)
    widths: dict[str, dict[str, tuple[int, int]]] = {}
    for one in found.pruned:
        block = next((name for name in sketch.blocks if one.axis.startswith(f"{name}.")), ALL_BLOCKS)
        kind = one.kind if one.kind not in widths.get(block, {}) else one.axis
        widths.setdefault(block, {})[kind] = one.size, 0 if one.axis in gone else lengths[one.axis]
    blocks = []
    for name in (ALL_BLOCKS, *sketch.blocks):
        parts = found_costs.blocks.get(name, ())
        before = sum(found_costs.parts[part].cost({}) for part in parts)
        after = sum(found_costs.parts[part].cost(lengths) for part in parts if part not in units.removed)
        if name in widths or parts:
            blocks.append(BlockWidths(block=name, widths=widths.get(name, {}), share_before=before / found_costs.dense,
                                      share_after=after / found_costs.dense))  # fmt: skip
    is_latency = key == "latency" and latency is not None
    table = f"{latency.backend}, batch {latency.batch}, {latency.precision}" if latency and is_latency else ""
    source = latency.kind if latency and is_latency else "counted"
    return PrunedWidths(cost=WORDS[key], source=source, table=table, blocks=tuple(blocks))
