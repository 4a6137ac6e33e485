"""Config of `prune: {method: nvit}`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from vitslim.errors import Problem
from vitslim.recipe.config import EXPECTED, Config, KeepRate
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.stages.prune import Budget, Prune
from vitslim.recipe.stages.training import TrainedWithTeacher

Structure = Literal["embed", "heads", "qk", "v", "mlp"]
STRUCTURES: tuple[Structure, ...] = ("embed", "heads", "qk", "v", "mlp")


class Groups(Config):
    """Units of each kind of axis that are removed together.

    A group becomes a multiple of this where 2:4 kernels need it: with an odd number of heads, `v` loses 16 at once.
    """

    embed: PositiveInt = Field(16, description="channels of the residual stream")
    heads: PositiveInt = Field(2, description="attention heads")
    qk: PositiveInt = Field(8, description="dimensions of queries and keys, the same number in all heads of a block")
    v: PositiveInt = Field(8, description="dimensions of values, the same number in all heads of a block")
    mlp: PositiveInt = Field(16, description="hidden units of the MLPs")

    def of(self, kind: str) -> int:
        """Return the group of a kind of axis."""
        found: int = getattr(self, kind)
        return found


class Nvit(Prune, TrainedWithTeacher):
    """Global latency-aware pruning of embedding, heads, head dims and hidden units while training (NViT, CVPR 2023)."""

    phase: ClassVar[Phase] = Phase.STRUCTURE

    method: Literal["nvit"]
    budget: Budget = Field(
        Budget(macs=0.5), description="fraction of the latency, MACs or parameters at which pruning ends"
    )
    snapshots: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], KeepRate] = Field(
        {},
        json_schema_extra={
            EXPECTED: "a mapping of names, of lower-case letters, digits and '-', each to a number above 0 and up to 1"
        },
        description="further results of the same run: a name, and the fraction of the budget's cost at which the model "
        "is kept. The stages after this one run for each of them, and write the artifact OUT-NAME",
    )
    allocation: Literal["published", "solver"] = Field(
        "published",
        description="published: each pruning step removes the groups with the lowest scores of the whole model; "
        "solver: a dynamic program chooses the widths of all blocks, and the branches that stay, for the least loss",
    )
    structures: Literal["all"] | Annotated[tuple[Structure, ...], Field(min_length=1)] = Field(
        "all", description="kinds of axes that lose units: embed, heads, qk, v and mlp, or some of them"
    )
    group: Groups = Groups()
    eta: Annotated[float, Field(ge=0)] = Field(
        5e-4,
        description="weight of the cost that a unit saves against its saliency; 0: saliency alone (published only)",
    )
    eta_rescale: bool = Field(
        True,
        description="scale `eta` by 0.0808 over the cost of the first block, which keeps the published balance on any "
        "backend; false: costs in seconds",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="weight of earlier saliencies in the average over pruning steps"
    )
    interval: PositiveInt = Field(100, description="training steps, and mini-batches of saliencies, per pruning step")
    per_step: PositiveInt = Field(
        32, description="units that each pruning step removes (published only, without `steps`)"
    )
    steps: PositiveInt | None = Field(
        None,
        description="number of pruning steps that save equal shares of the cost, each with new saliencies; without it, "
        "the solver prunes in one step, and the published ranking removes `per_step` units in each step",
    )
    remove_blocks: bool = Field(
        True, description="whether attention and MLP branches may be removed as a whole (solver only)"
    )
    update_weights: bool = Field(
        True, description="train the weights between pruning steps; false: only their gradients are used"
    )
    measure: bool = Field(
        False,
        description="measure the pruned model, correct the budget and prune again, at most three times, until the "
        "measured latency is within 2 % of the budget",
    )

    @property
    def kinds(self) -> tuple[Structure, ...]:
        """Kinds of axes that lose units."""
        return STRUCTURES if self.structures == "all" else self.structures

    @property
    def needs_measured_backend(self) -> str:
        """The key that needs a measured backend that runs ONNX files; empty if there is none."""
        return "measure" if self.measure else ""

    @property
    def needs_labels(self) -> str:
        """The reason that the stage needs a model with classes; empty if it does not."""
        return "the saliency is the gradient of the loss with labels"

    @property
    def snapshot_names(self) -> tuple[str, ...]:
        """Names of further results of this stage."""
        return tuple(self.snapshots)

    @property
    def removes_attention(self) -> bool:
        """Whether a block may have no attention after this stage."""
        return self.allocation == "solver" and self.remove_blocks

    @property
    def ranks_head_widths(self) -> bool:
        """Whether data decides the width of Q and K and that of V of each head, so that the two may differ."""
        return not {"qk", "v"}.isdisjoint(self.kinds)

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield contradictions among the keys."""
        yield from super().problems(before, after)
        for problem in self.budget.problems():
            yield Problem(f"budget.{problem.where}".rstrip("."), problem.message, problem.hint)
        if len([key for key in self.budget.LIMITS if getattr(self.budget, key) is not None]) == 1:
            yield from self._target_problems()
        if len(set(self.kinds)) < len(self.kinds):
            yield Problem("structures", "a kind is listed twice", "remove one of them")
        if self.update_weights is False and self.train.ema is not None:
            yield Problem("train.ema", "`ema` averages weights, and `update_weights: false` trains none", "remove it")

    def _target_problems(self) -> Iterator[Problem]:
        key, share = self.budget.limit
        for name, fraction in self.snapshots.items():
            if fraction <= share:
                message = f"got {fraction:g}, which is not above the budget of {share:g}, where pruning ends"
                yield Problem(f"snapshots.{name}", message, "lower the budget, or remove the snapshot")
        if key != "latency" and self.measure:
            yield Problem("measure", f"`measure` corrects a latency, and the budget limits {key}", "set it to false")
        if key != "latency" and not self.eta_rescale:
            message = f"`eta_rescale: false` compares saliencies with seconds, and the budget limits {key}"
            yield Problem("eta_rescale", message, "remove the key")
