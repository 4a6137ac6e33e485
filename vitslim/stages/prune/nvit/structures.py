"""The axes that NViT prunes, each with the number of units that it loses at once, computed from the sketch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd, lcm, prod

from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Nvit
from vitslim.results import LayerNote

OUT_MULTIPLE, IN_MULTIPLE = 8, 16
"""Multiples of output and input features that 2:4 kernels need."""


@dataclass(frozen=True)
class Structure:
    """One axis to prune."""

    axis: str
    kind: str
    """embed, heads, qk, v or mlp."""
    size: int
    group: int
    """Units that are removed together; after any removal the length is a multiple of it."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """All lengths that the axis can have, ascending; the smallest is one group."""
        whole = range(self.group, self.size + 1, self.group)
        return (*whole, self.size) if self.size % self.group else tuple(whole)


@dataclass(frozen=True)
class Structures:
    """The axes of one model that a recipe prunes."""

    pruned: tuple[Structure, ...]
    skipped: tuple[LayerNote, ...] = ()
    """Axes that stay whole, each with its reason."""

    @property
    def kinds(self) -> dict[str, str]:
        """Axis name to kind."""
        return {one.axis: one.kind for one in self.pruned}


def find_structures(sketch: ModelSketch, config: Nvit) -> Structures:
    """Return the axes of the recipe's kinds, with groups that keep all layers fit for 2:4 sparsity.

    The group of an axis is the recipe's, or a multiple of it: every dimension of a weight in which the axis occurs
    stays a multiple of 8 outputs or 16 inputs, whatever lengths the other pruned axes get.
    """
    wanted = {axis: kind for axis, kind in sketch.kinds.items() if kind in config.kinds}
    notes = [LayerNote(layer=axis, result="skipped", reason=reason)
             for axis in wanted if (reason := sketch.frozen.get(axis, ""))]  # fmt: skip
    open_axes = {axis: kind for axis, kind in wanted.items() if axis not in sketch.frozen}
    weighted = {name for size in sketch.parameters.values() for name in size.axes()}
    found = []
    for axis, kind in open_axes.items():
        size, group = sketch.axes[axis], _aligned_group(sketch, axis, open_axes, config)
        reason = "" if axis in weighted else "occurs in no parameter"
        if size <= group:
            reason = f"has {size} units and is pruned in groups of {group}"
        if reason:
            notes.append(LayerNote(layer=axis, result="skipped", reason=reason))
        else:
            found.append(Structure(axis, kind, size, group))
    return Structures(tuple(found), tuple(notes))


def _aligned_group(sketch: ModelSketch, axis: str, kinds: Mapping[str, str], config: Nvit) -> int:
    """Return the recipe's group, or the smallest multiple of it that keeps the dimensions of weights aligned."""
    group = config.group.of(kinds[axis])
    if kinds[axis] == "heads":
        # Heads set the multiplicity of qk and v, whose groups are aligned to it.
        return group
    steps = [
        multiple // gcd(multiple, prod(_divisor(sketch, name, kinds, config) for name in others))
        for multiple, others in _occurrences(sketch, axis)
    ]
    return lcm(group, *steps)


def _divisor(sketch: ModelSketch, axis: str, kinds: Mapping[str, str], config: Nvit) -> int:
    """Return a certain divisor of the length of an axis, whatever is removed."""
    return gcd(sketch.axes[axis], config.group.of(kinds[axis])) if axis in kinds else sketch.axes[axis]


def _occurrences(sketch: ModelSketch, axis: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the needed multiple and the other axes of each product of lengths in a dimension of a linear layer."""
    for p in sketch.matmuls:
        if not p.weight or p.convolution:
            continue
        for multiple, size in ((IN_MULTIPLE, p.reduce), (OUT_MULTIPLE, p.columns)):
            for _, names in size.terms:
                if axis in names:
                    yield multiple, tuple(name for name in names if name != axis)


def misaligned_layers(sketch: ModelSketch) -> list[LayerNote]:
    """Return a note for each linear layer, but heads, whose size 2:4 kernels do not take."""
    notes = []
    for layer in sketch.linears:
        reasons = []
        if layer.out_features % OUT_MULTIPLE:
            reasons.append(f"{layer.out_features} outputs are not a multiple of {OUT_MULTIPLE}")
        if layer.in_features % IN_MULTIPLE:
            reasons.append(f"{layer.in_features} inputs are not a multiple of {IN_MULTIPLE}")
        if reasons and layer.role != "head" and not layer.convolution:
            notes.append(LayerNote(layer=layer.weight, result="not fit for 2:4", reason=" and ".join(reasons)))
    return notes
