"""Units that are still alive, the masks and zeros that follow from them, and the physical cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.edits.remove_blocks import remove_blocks
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, parameter_of
from vitslim.stages.prune.nvit.saliency import Linked


@dataclass(frozen=True)
class Units:
    """The units of all pruned axes, and the branches that were removed as a whole."""

    alive: Mapping[str, Tensor]
    """Axis name to bool (size,) on the CPU."""
    removed: frozenset[str] = field(default=frozenset())
    """Names of residual branches."""

    @property
    def lengths(self) -> dict[str, int]:
        """Number of living units of each axis."""
        return {axis: int(units.sum()) for axis, units in self.alive.items()}

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Indices of the living units, only of axes that lost some."""
        return {
            axis: tuple(torch.nonzero(units).flatten().tolist())
            for axis, units in self.alive.items()
            if not bool(units.all())
        }


def parameter_masks(
    linked: Iterable[Linked], alive: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dead: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the mask of each parameter in which a pruned axis occurs: bool of its shape, False for removed units.

    linked: all occurrences of the axes. dead: parameters of removed branches, whose masks are all False. Masks are on
    the device of the parameter.
    """
    masks: dict[str, Tensor] = {}
    for one in linked:
        weight = parameters[one.parameter]
        if one.parameter not in masks:
            masks[one.parameter] = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        units = alive[one.axis].to(weight.device)
        positions = torch.where(one.index >= 0, units[one.index.clamp(min=0)], True)
        masks[one.parameter] &= positions.view([-1 if dim == one.dim else 1 for dim in range(weight.ndim)])
    for name in dead:
        masks[name] = torch.zeros(parameters[name].shape, dtype=torch.bool, device=parameters[name].device)
    return masks


def cut_units(graph: ModelGraph, units: Units, rescale_norms: bool) -> ModelGraph:
    """Return a new graph without the removed units and branches.

    For heads, head dims and hidden units whose weights are zero the outputs do not change. Zero channels of the
    embedding change the statistics of layer norms: without them, the variance of the n remaining of N channels is
    larger by N / n for channels of mean zero. `rescale_norms` multiplies the weights of those norms by sqrt(N / n),
    which restores the scale of activations for a model that was trained with zeros.
    """
    after = remove_blocks(graph, sorted(units.removed)) if units.removed else graph
    present = {axis.name: axis for axis in after.axes.axes}
    kept = {axis: indices for axis, indices in units.kept.items() if axis in present}
    factors = _norm_factors(after, kept) if rescale_norms else {}
    after = slice_axes(after, kept) if kept else after
    weights: dict[str, nn.Parameter] = after.parameters()
    with torch.no_grad():
        for name, factor in factors.items():
            weights[name].mul_(factor)
    return after


def _norm_factors(graph: ModelGraph, kept: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Return sqrt(N / n) for the weight of each row norm over an axis that keeps n of its N indices."""
    shares = {
        site.parameter: len(kept[axis.name]) / axis.size
        for axis in graph.axes.axes
        if axis.name in kept
        for site in axis.sites
    }
    norms = [node for node in graph.module.graph.nodes if has_trait(node, Trait.ROW_NORM)]
    names = {parameter_of(argument(node, 2)) for node in norms}
    return {name: shares[name] ** -0.5 for name in names & shares.keys()}
