"""Which axes are cut, and to what length: the policy of structural pruning, decided on the sketch alone.

`plan` and the stage itself ask the same function, so what was announced is what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import DepGraph
from vitslim.results import LayerNote
from vitslim.stages.prune.select import keep_count, step_of

CUT_KINDS = {"uniform": ("qk", "v", "mlp", "embed", "other"), "bottleneck": ("qk", "v", "mlp")}
"""Mode to the kinds of axes that it cuts, the first to choose first. The number of heads stays."""

TRANSFORMER_KINDS = {"qk", "v", "mlp", "embed"}
"""Kinds whose frozen axes are worth a line in the report when they are long enough to be cut; the rest are tables."""


@dataclass(frozen=True)
class Cuts:
    """What a stage will cut."""

    keep: dict[str, int]
    """Axis name to the number of indices that stay, less than there are."""
    skipped: tuple[LayerNote, ...]
    """Axes of the mode that stay whole, each with its reason."""


def choose_cuts(sketch: ModelSketch, config: DepGraph) -> Cuts:
    """The axes that the mode names, each cut by `ratio` and rounded down to what `round_to` asks of its layers.

    Where two axes multiply in one dimension of a layer only one is cut, so that ratios do not compound.
    """
    keep: dict[str, int] = {}
    skipped = []
    for axis in _candidates(sketch, config.mode):
        size, step = sketch.axes[axis], _step(sketch, axis, config.round_to)
        count = keep_count(size, config.ratio, step)
        if reason := sketch.frozen.get(axis, ""):
            if sketch.kinds[axis] in TRANSFORMER_KINDS and size > step:
                skipped.append(_skip(axis, reason))
        elif rival := next((other for other in keep if _multiply(sketch, axis, other)), ""):
            skipped.append(_skip(axis, f"multiplies with {rival}, which is cut already"))
        elif count == size:
            skipped.append(_skip(axis, _nothing_goes(size, step, config.ratio)))
        else:
            keep[axis] = count
    return Cuts({axis: keep[axis] for axis in sketch.axes if axis in keep}, tuple(skipped))


def _candidates(sketch: ModelSketch, mode: str) -> list[str]:
    """Axes of the mode's kinds, by kind, then the longer first."""
    order = CUT_KINDS[mode]
    axes = [axis for axis, kind in sketch.kinds.items() if kind in order]
    return sorted(axes, key=lambda axis: (order.index(sketch.kinds[axis]), -sketch.axes[axis]))


def _layer_terms(sketch: ModelSketch) -> Iterator[tuple[str, ...]]:
    """The axes that multiply in a dimension of a layer: `(heads, qk)` and `(heads, v)` for a fused qkv's outputs."""
    for product in sketch.products:
        if product.weight:
            for size in (product.reduce, product.columns):
                yield from (names for _, names in size.terms)


def _step(sketch: ModelSketch, axis: str, round_to: int) -> int:
    counts = [
        prod(sketch.axes[n] for n in names) // sketch.axes[axis] for names in _layer_terms(sketch) if axis in names
    ]
    return step_of(round_to, counts)


def _multiply(sketch: ModelSketch, axis: str, other: str) -> bool:
    return any(axis in names and other in names for names in _layer_terms(sketch))


def _nothing_goes(size: int, step: int, ratio: float) -> str:
    if size <= step:
        return f"has {size} indices and is cut in steps of {step}"
    return f"ratio {ratio:g} takes none of its {size} indices"


def _skip(axis: str, reason: str) -> LayerNote:
    return LayerNote(layer=axis, what="skipped", reason=reason)
