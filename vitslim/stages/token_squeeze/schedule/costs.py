"""Cost of each block as a function of its token counts, from the sketch of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from vitslim.graph.sketch import Matmul, ModelSketch, Size, TokenCut
from vitslim.graph.sketch.token_matmuls import ROLE
from vitslim.stages.token_squeeze.schedule.cost_model import CostModel
from vitslim.stages.token_squeeze.schedule.solver import Floats, Ints, least_cost, total

Cuts = Callable[[ModelSketch, Mapping[str, int]], Mapping[str, TokenCut]]
"""Returns the planned squeezing of some blocks of a sketch, from block name to the number of kept patch tokens."""


@dataclass(frozen=True)
class ScheduleCosts:
    """Costs of a model whose blocks receive and pass on different numbers of patch tokens."""

    counts: tuple[int, ...]
    """Numbers of patch tokens that a block may pass on, falling; the first is that of the model."""
    blocks: tuple[str, ...]
    """All blocks, in order."""
    cost: Floats
    """float64 (blocks, counts, counts) for received and passed on tokens; infinite where a block cannot do that."""
    fixed: float
    """Cost that does not depend on token counts."""

    @property
    def dense(self) -> float:
        """Cost of the model without squeezing."""
        return self.of((0,) * len(self.blocks))

    @property
    def least(self) -> float:
        """Smallest cost of any schedule."""
        return self.fixed + least_cost(self.cost)

    def of(self, levels: Sequence[int]) -> float:
        """Return the cost of the model; the positions in `counts` after each block are given."""
        return self.fixed + total(self.cost, levels)


def schedule_costs(
    sketch: ModelSketch, candidates: Collection[str], counts: Sequence[int], cuts: Cuts, model: CostModel, added: int
) -> ScheduleCosts:
    """Return the costs of all blocks. The sketch is one without squeezed blocks; its blocks share one token axis.

    candidates: blocks that may squeeze tokens. added: tokens that the method adds to the kept ones of a block.
    """
    segments = _segments(sketch)
    known: dict[Any, Floats] = {}
    costs = []
    for name, matmuls in segments.items():
        block = replace(sketch, matmuls=matmuls, blocks=(name,), branches=(), parameters={})
        key = (name in candidates, *(p.shape(block.axes) for p in matmuls))
        if key not in known:
            known[key] = _block_cost(block, name in candidates, np.asarray(counts), cuts, model, added)
        costs.append(known[key])
    at_input = any(cut.at_input for cut in cuts(sketch, dict.fromkeys(candidates, int(counts[-1]))).values())
    others = _other_operators(np.asarray(counts) + sketch.prefix_tokens, len(costs), at_input, model)
    before = [p.shape(sketch.axes) for p in sketch.matmuls[: _first(sketch)]]
    fixed = model.rest + float(model.matmuls(np.array(before, dtype=np.int64).reshape(-1, 4)).sum())
    return ScheduleCosts(tuple(counts), tuple(segments), np.stack(costs) + others, fixed)


def _other_operators(tokens: Ints, blocks: int, at_input: bool, model: CostModel) -> Floats:
    """Return the cost of the operators of one block other than matmuls, float64 (counts, counts).

    Half of them belong to the attention, whose tokens are those before a squeeze that is not at the input.
    """
    processed = (np.broadcast_to(tokens, (len(tokens),) * 2) if at_input else tokens[:, None]) + tokens
    squeezes = 1.0 - np.eye(len(tokens))
    costs: Floats = model.tokens / (blocks * tokens[0]) * processed / 2 + model.squeeze * squeezes
    return costs


def _first(sketch: ModelSketch) -> int:
    """Return the position of the first matmul that belongs to a block."""
    return next(i for i, p in enumerate(sketch.matmuls) if p.block in sketch.blocks)


def _segments(sketch: ModelSketch) -> dict[str, tuple[Matmul, ...]]:
    """Return the matmuls from the first one of each block up to the first one of the next block."""
    found: dict[str, list[Matmul]] = {name: [] for name in sketch.blocks}
    name = sketch.blocks[0]
    for p in sketch.matmuls[_first(sketch) :]:
        name = p.block or name
        found[name].append(p)
    return {name: tuple(matmuls) for name, matmuls in found.items()}


def _block_cost(
    sketch: ModelSketch, is_candidate: bool, counts: Ints, cuts: Cuts, model: CostModel, added: int
) -> Floats:
    """Return the cost of the only block of a sketch, float64 (counts, counts)."""
    (name,) = sketch.blocks
    tokens = counts + sketch.prefix_tokens
    axis = sketch.token_axes[name]
    cost = np.full((len(counts), len(counts)), np.inf)
    np.fill_diagonal(cost, _summed(sketch.matmuls, {**sketch.axes, axis: tokens}, model))
    if not is_candidate:
        return cost
    cut = cuts(sketch, {name: int(counts[-1])})[name]
    after = sketch.with_squeeze({name: replace(cut, matmuls=())})
    sizes = {**after.axes, axis: tokens[:, None], after.token_axes[name]: tokens}
    both = _summed(after.matmuls, sizes, model)
    own = replace(sketch, matmuls=tuple(p for p in sketch.matmuls if p.role in {"attention", "proj"}))
    for i, j in zip(*np.triu_indices(len(counts), 1), strict=True):
        kept = int(counts[j]) - added
        if kept >= 1:
            cost[i, j] = both[i, j] + _squeezing(own, name, int(tokens[i]), kept, cuts, model)
    return cost


def _squeezing(sketch: ModelSketch, name: str, tokens: int, kept: int, cuts: Cuts, model: CostModel) -> float:
    """Return the cost of the matmuls of the method itself in one block."""
    before = sketch.with_sizes({sketch.token_axes[name]: tokens})
    after = before.with_squeeze(cuts(before, {name: kept}))
    shapes = [p.shape(after.axes) for p in after.matmuls if p.role == ROLE]
    return float(model.matmuls(np.array(shapes, dtype=np.int64).reshape(-1, 4)).sum())


def _summed(matmuls: Sequence[Matmul], axes: Mapping[str, Any], model: CostModel) -> Floats:
    """Return the cost of matmuls for arrays of axis lengths that broadcast; its shape is that of the result."""
    shapes = [np.broadcast_arrays(*(_lengths(s, axes) for s in (p.count, p.rows, p.reduce, p.columns)))
              for p in matmuls]  # fmt: skip
    costs = [model.matmuls(np.stack(shape, axis=-1).astype(np.int64)) for shape in shapes]
    lengths = np.broadcast_shapes(*(np.shape(length) for length in axes.values()))
    return np.broadcast_to(sum(costs, np.zeros(())), lengths)


def _lengths(size: Size, axes: Mapping[str, Any]) -> npt.NDArray[Any]:
    return np.asarray(sum(factor * prod(axes[name] for name in names) for factor, names in size.terms))
