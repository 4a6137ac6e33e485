"""Iterative pruning inside a training run: it follows the steps, zeroes units, keeps snapshots and ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vitslim.graph.sketch import ModelSketch
from vitslim.stages.prune.model_costs import ModelCosts
from vitslim.stages.prune.nvit.allocation import Allocator, Step
from vitslim.stages.prune.nvit.saliency import (
    Linked,
    RunningSaliency,
    Scaling,
    moved,
    unit_saliency,
)
from vitslim.stages.prune.nvit.units import Units, parameter_masks
from vitslim.training.hook import TrainingHook

ROUNDING = 1e-9
"""Tolerance for floating-point rounding when a cost is compared with its limit, as a fraction of the limit."""

APPROACH = 1.1
"""The first correction comes when the cost is at most this multiple of the limit."""


@dataclass(frozen=True)
class Plan:
    """Everything about a pruning run that does not change."""

    sketch: ModelSketch
    costs: ModelCosts
    linked: tuple[Linked, ...]
    """All occurrences of the pruned axes in parameters."""
    scaling: Scaling
    allocator: Allocator
    snapshots: Mapping[str, float]
    """Name to the fraction of the dense cost at which the model is kept."""
    interval: int
    momentum: float
    updates_weights: bool
    """Whether the weights are trained between pruning steps."""
    correct: Callable[[Units, float], float]
    """Takes units and the limit; returns the limit at which the measured latency is right, the same if it is right."""

    def cost_of(self, units: Units) -> float:
        """Return the cost of the model with these units."""
        return self.costs.of(units.lengths, units.removed)


@dataclass
class Snapshot:
    """The model at the moment at which it met a target."""

    units: Units
    weights: dict[str, Tensor]
    """By parameter name, on the CPU."""


@dataclass
class Pruner(TrainingHook):
    """The hook of the training loop."""

    plan: Plan
    limit: float
    """Cost at which pruning ends."""
    units: Units
    steps: int = 0
    """Pruning steps so far."""
    finished: bool = False
    approached: bool = False
    """Whether the limit was corrected when the cost came close to it."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.running = RunningSaliency(self.plan.momentum)
        self.branches = sorted(branch.name for branch in self.plan.sketch.branches)

    @property
    def updates_weights(self) -> bool:
        """Whether the weights are trained between pruning steps."""
        return self.plan.updates_weights

    @property
    def uses_soft_loss(self) -> bool:
        """Whether a pruning step was made."""
        return self.steps > 0

    def start(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        """Receive the trained parameters and their masks, which are changed in place."""
        device = next(iter(parameters.values())).device
        self.parameters, self.masks = parameters, masks
        self.linked = [one for one in moved(self.plan.linked, device) if one.parameter in parameters]
        self.scored = [one for one in moved(self.plan.scaling.linked, device) if one.parameter in parameters]

    def after_backward(self) -> None:
        """Add the saliencies of one mini-batch."""
        self.running.add(unit_saliency(self.scored, self.parameters, self.plan.scaling.divisor))

    def after_update(self, step: int) -> bool:
        """Prune after every `interval` steps; return whether the limit is met."""
        if step % self.plan.interval == 0:
            self._prune()
        return self.finished

    def _prune(self) -> None:
        saliency = {axis: values.cpu() for axis, values in self.running.update().items()}
        before = Step(saliency, self.units, self.steps, self.limit)
        self.units = self.plan.allocator.next_units(before)
        if not self.approached and self.plan.cost_of(self.units) <= APPROACH * self.limit:
            self.approached = True
            self._correct(before)
        while not self.finished and self._meets_limit():
            self._correct(before)
        self._zero_removed()
        if self.steps == 0:
            self.running.reset()
        self.steps += 1
        self._keep_snapshots(self.plan.cost_of(self.units))

    def _meets_limit(self) -> bool:
        return self.plan.cost_of(self.units) <= self.limit * (1 + ROUNDING)

    def _correct(self, before: Step) -> None:
        """Correct the limit, and choose the units again; end if the limit is right, or no other units meet it."""
        corrected = self.plan.correct(self.units, self.limit)
        if corrected == self.limit:
            self.finished = self._meets_limit()
            return
        self.limit = corrected
        others = self.plan.allocator.next_units(replace(before, limit=corrected))
        self.finished = others.lengths == self.units.lengths and self._meets_limit()
        self.units = others

    def _zero_removed(self) -> None:
        dead = {name for branch in self.plan.sketch.branches if branch.name in self.units.removed
                for name in branch.parameters if name in self.parameters}  # fmt: skip
        with torch.no_grad():
            for name, mask in parameter_masks(self.linked, self.units.alive, self.parameters, dead).items():
                self.masks[name].logical_and_(mask)
                self.parameters[name].mul_(self.masks[name])

    def _keep_snapshots(self, cost: float) -> None:
        """Keep the model under the names of all targets that it meets first now."""
        for name, share in self.plan.snapshots.items():
            if name not in self.snapshots and cost <= share * self.plan.costs.dense * (1 + ROUNDING):
                weights = {key: weight.detach().to("cpu", copy=True) for key, weight in self.parameters.items()}
                self.snapshots[name] = Snapshot(self.units, weights)

    def state(self) -> Mapping[str, Tensor]:
        """Return units, saliencies, masks and snapshots by name."""
        state = {
            "steps": torch.tensor([self.steps, self.running.count, self.approached]),
            "limit": torch.tensor(self.limit).double(),
        }
        state |= self._units_state("", self.units)
        state |= {f"total.{axis}": values for axis, values in self.running.total.items()}
        state |= {f"smoothed.{axis}": values for axis, values in self.running.smoothed.items()}
        for name, snapshot in self.snapshots.items():
            state |= self._units_state(f"snapshot.{name}.", snapshot.units)
            state |= {f"snapshot.{name}.weight.{key}": weight for key, weight in snapshot.weights.items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the run, with the masks that follow from its units."""
        device = next(iter(self.parameters.values())).device
        self.steps, self.running.count, approached = (int(value) for value in state["steps"])
        self.approached = bool(approached)
        self.limit = float(state["limit"])
        self.units = self._units_of(state, "")
        self.running.total = {k: v.to(device) for k, v in _below(state, "total.").items()}
        self.running.smoothed = {k: v.to(device) for k, v in _below(state, "smoothed.").items()}
        for name in self.plan.snapshots:
            if weights := _below(state, f"snapshot.{name}.weight."):
                self.snapshots[name] = Snapshot(self._units_of(state, f"snapshot.{name}."), weights)
        if self.steps:
            self._zero_removed()

    def _units_state(self, prefix: str, units: Units) -> dict[str, Tensor]:
        removed = torch.tensor([name in units.removed for name in self.branches], dtype=torch.bool)
        return {f"{prefix}alive.{axis}": alive for axis, alive in units.alive.items()} | {f"{prefix}removed": removed}

    def _units_of(self, state: Mapping[str, Tensor], prefix: str) -> Units:
        removed = zip(self.branches, state[f"{prefix}removed"].tolist(), strict=True)
        return Units(_below(state, f"{prefix}alive."), frozenset(name for name, gone in removed if gone))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
