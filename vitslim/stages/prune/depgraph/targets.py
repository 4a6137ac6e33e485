"""The axes that a recipe prunes, each with its ratio and step, computed from the sketch alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from statistics import fmean

from vitslim.errors import Problem, closest
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import DepGraph
from vitslim.results import LayerNote
from vitslim.stages.prune.depgraph.lengths import keep_count, least_count, step_of

ORDER = ("qk", "v", "mlp", "embed", "other", "heads")
"""Kinds of axes that can be cut. Of two axes that multiply, the one of the earlier kind is cut."""

MODES = {"uniform": frozenset(ORDER), "bottleneck": frozenset({"qk", "v", "mlp", "heads"})}

TRANSFORMER_KINDS = {"heads", "qk", "v", "mlp", "embed"}
"""Kinds whose frozen axes the report lists when they are long enough to be cut; other frozen axes are lookup tables."""

KEY_OF_KIND = {"heads": "heads", "qk": "head_dim", "v": "head_dim", "mlp": "mlp", "embed": "embed"}
"""Kind of an axis to its key in `pruning_ratios`."""


@dataclass(frozen=True)
class Target:
    """An axis to cut."""

    axis: str
    size: int
    ratio: float
    """Fraction to remove, above zero."""
    step: int
    """The length after the cut is a multiple of this."""
    least: int
    """Smallest length after the cut."""

    def length(self, factor: float) -> int:
        """Return the number of kept indices when the ratio is multiplied by `factor`, which is not negative."""
        ratio = self.ratio * factor
        if ratio <= 0:
            return self.size
        return self.least if ratio >= 1 else max(self.least, keep_count(self.size, ratio, self.step))


@dataclass(frozen=True)
class Targets:
    """The axes of one model that a recipe prunes."""

    cut: tuple[Target, ...]
    skipped: tuple[LayerNote, ...] = ()
    """Axes that stay whole, each with its reason."""
    problems: tuple[Problem, ...] = ()
    """Keys that do not fit this model."""


def find_targets(sketch: ModelSketch, config: DepGraph) -> Targets:
    """Return the axes that the recipe names or its mode covers, without those that cannot be cut.

    Axes that multiply in one dimension of a parameter are both cut only when the recipe names each of them, in `axes`
    or by its kind in `pruning_ratios`; otherwise their ratios would compound.
    """
    if problems := tuple(_problems(sketch, config)):
        return Targets((), (), problems)
    return _Choice(sketch, config).targets()


def _problems(sketch: ModelSketch, config: DepGraph) -> Iterator[Problem]:
    count, blocks = len(config.pruning_ratio) if isinstance(config.pruning_ratio, tuple) else None, len(sketch.blocks)
    if count is not None and count != blocks:
        message = f"got {count} {'entry' if count == 1 else 'entries'}, but the model has {blocks} blocks"
        yield Problem("pruning_ratio", message, f"give one number, or a list of {blocks}")
    for name in config.axes:
        if name not in sketch.kinds:
            hint = closest(name, set(sketch.kinds) - set(sketch.frozen))
            if hint.startswith("all"):
                hint = "`vitslim axes` shows the names of all axes"
            yield Problem(f"axes.{name}", f"the model has no axis '{name}'", hint)
        elif reason := sketch.frozen.get(name):
            yield Problem(f"axes.{name}", f"'{name}' cannot be cut: it {reason}", "leave it out")


class _Choice:
    """One pass over the axes, in which those that the recipe names come first."""

    def __init__(self, sketch: ModelSketch, config: DepGraph) -> None:
        self.sketch, self.config = sketch, config
        self.ratios = _ratios(sketch, config)
        self.named = {axis for axis, ratio in self.ratios.items() if ratio > 0 and _is_named(sketch, config, axis)}
        self.partners = _partners(sketch)
        self.scored = {name for weight, size in sketch.parameters.items() if weight.endswith(".weight")
                       for _, names in size.terms for name in names}  # fmt: skip
        self.cut: dict[str, Target] = {}
        self.whole: set[str] = set()

    def targets(self) -> Targets:
        """Return the axes to cut, and the axes that the recipe refers to and that stay whole, each with its reason."""
        notes = []
        for axis in sorted(self.ratios, key=self._rank):
            target = self._target(axis)
            reason = self._obstacle(target)
            if not reason:
                self.cut[axis] = target
                continue
            self.whole.add(axis)
            if axis not in self.sketch.frozen or self._is_reported(target):
                notes.append(LayerNote(layer=axis, result="skipped", reason=reason))
        return Targets(tuple(self.cut[axis] for axis in self.sketch.axes if axis in self.cut), tuple(notes))

    def _rank(self, axis: str) -> tuple[bool, int, int]:
        kind = self.sketch.kinds[axis]
        return axis not in self.named, ORDER.index(kind) if kind in ORDER else len(ORDER), -self.sketch.axes[axis]

    def _target(self, axis: str) -> Target:
        size, config = self.sketch.axes[axis], self.config
        step = step_of(config.round_to, (prod(self._unit(n) for n in others) for others in self.partners.get(axis, ())))
        return Target(axis, size, self.ratios[axis], step, least_count(size, config.max_pruning_ratio, step))

    def _unit(self, axis: str) -> int:
        """Return a certain divisor of the length of an axis: its step when it is cut, 1 while that is not decided, else
        its length."""
        if axis in self.cut:
            return self.cut[axis].step
        return 1 if axis in self.named - self.whole else self.sketch.axes[axis]

    def _obstacle(self, target: Target) -> str:
        axis = target.axis
        rivals = [] if axis in self.named else [n for n in self.cut if n in self.sketch.factors.get(axis, ())]
        if reason := self.sketch.frozen.get(axis, ""):
            return reason
        if rivals:
            return f"multiplies with {rivals[0]}, which is already cut"
        if axis not in self.scored:
            return "occurs in no weight, so it cannot be scored"
        return self._too_short(target)

    def _too_short(self, target: Target) -> str:
        size, step = target.size, target.step
        if size <= step:
            return f"has {size} indices and is cut in steps of {step}"
        if target.ratio == 0:
            return f"pruning ratio 0 removes none of its {size} indices"
        if target.least == size:
            limit = self.config.max_pruning_ratio
            return f"max_pruning_ratio {limit:g} allows no step of {step} of its {size} indices"
        return ""

    def _is_reported(self, target: Target) -> bool:
        return self.sketch.kinds[target.axis] in TRANSFORMER_KINDS and target.size > target.step


def _ratios(sketch: ModelSketch, config: DepGraph) -> dict[str, float]:
    """Return the axes that the recipe refers to, with the fraction to remove.

    When all are zero, a budget scales all kinds alike.
    """
    ratios = {}
    for axis, kind in sketch.kinds.items():
        if axis in config.axes:
            ratios[axis] = config.axes[axis]
        elif kind in MODES[config.mode] and (kind != "heads" or config.pruning_ratios.heads > 0):
            key = KEY_OF_KIND.get(kind)
            own = getattr(config.pruning_ratios, key) if key else None
            ratios[axis] = _block_ratio(sketch, config, axis) if own is None else own
    if config.budget is not None and not any(ratios.values()):
        ratios |= {axis: 1.0 for axis in ratios if not _is_named(sketch, config, axis)}
    return ratios


def _is_named(sketch: ModelSketch, config: DepGraph, axis: str) -> bool:
    """Whether the recipe names the axis itself or its kind."""
    key = KEY_OF_KIND.get(sketch.kinds[axis])
    return axis in config.axes or (key is not None and getattr(config.pruning_ratios, key) is not None)


def _block_ratio(sketch: ModelSketch, config: DepGraph, axis: str) -> float:
    """Return the ratio of the block that holds an axis; outside of blocks the mean of the list."""
    if not isinstance(config.pruning_ratio, tuple):
        return config.pruning_ratio
    holders = [block for block in sketch.blocks if axis.startswith(f"{block}.")]
    if not holders:
        return fmean(config.pruning_ratio)
    return config.pruning_ratio[sketch.blocks.index(max(holders, key=len))]


def _partners(sketch: ModelSketch) -> dict[str, set[tuple[str, ...]]]:
    """Return for each axis the axes that multiply with it, one tuple for each of its occurrences in a layer size."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for product in sketch.matmuls:
        if product.weight:
            for _, names in (*product.reduce.terms, *product.columns.terms):
                for position, name in enumerate(names):
                    found.setdefault(name, set()).add(names[:position] + names[position + 1 :])
    return found
