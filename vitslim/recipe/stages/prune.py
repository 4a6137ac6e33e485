"""Configs of `prune` stages: one frozen, typed config per method. `vitslim/stages/prune` runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vitslim.errors import Problem
from vitslim.recipe.config import EXPECTED, Config, KeepRate, PruningRatio, one_of
from vitslim.recipe.cost_target import CostTarget
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.train import Train
from vitslim.recipe.work import TYPICAL_BLOCKS, ImageCounts, Work

IMPORTANCES = {
    "magnitude_l1": "sum of absolute weights",
    "magnitude_l2": "sum of squared weights",
    "taylor": "first-order change of the loss, |w * g|",
    "hessian": "second-order change of the loss by the squared gradient, w^2 * g^2",
    "lamp": "magnitude relative to all larger ones of the layer",
    "random": "a random order, as a baseline",
}
"""Names of the importance scores; `stages/prune/depgraph/importance.py` computes them."""

SCORES = {
    "magnitude": "the largest weights stay",
    "wanda": "magnitude times the norm of the input activation",
    "sparsegpt": "loss that the other weights of the row cannot compensate; they are then updated",
    "kfac": "like sparsegpt, with compensation across rows by the Kronecker-factored curvature; the most accurate and "
    "the slowest",
}
"""Names of the scores that choose a 2:4 mask. All but magnitude use the calibration images."""

BY_GRADIENT = ("taylor", "hessian")
"""Importance scores from the gradient of the cross-entropy with the labels."""

PermutedAxis = Literal["mlp", "v", "embed"]


class Prune(StageConfig):
    """Keys that all pruning methods share."""

    kind: ClassVar[str] = "prune"


class PruningRatios(Config):
    """Fraction removed from each kind of axis.

    A kind that is left out follows `pruning_ratio`; heads stay. Where heads are removed, `head_dim` stays whole unless
    it is given too, because the two multiply.
    """

    heads: PruningRatio = Field(0.0, description="whole attention heads")
    head_dim: PruningRatio | None = Field(None, description="dimensions of every head (qk and v)")
    mlp: PruningRatio | None = Field(None, description="hidden units of the MLPs")
    embed: PruningRatio | None = Field(None, description="the residual stream")


class Budget(CostTarget):
    """Fraction of the stage's input model that may remain; exactly one of `macs`, `params` and `latency`."""

    LIMITS: ClassVar[tuple[str, ...]] = ("macs", "params", "latency")

    params: KeepRate | None = Field(None, description="fraction of the parameters that may remain")


class GroupSparsity(Config):
    """Sparse training before the cut, which pushes weak groups toward zero (DepGraph)."""

    gamma: PositiveFloat = Field(1e-4, description="strength of the regularization")
    alpha: PositiveFloat = Field(
        4.0, description="the weakest group is regularized 2**alpha times as strongly as the strongest"
    )
    train: Train = Train()


class DepGraph(Prune):
    """Structural pruning of coupled channels, heads and hidden units (DepGraph, CVPR 2023)."""

    phase: ClassVar[Phase] = Phase.STRUCTURE

    method: Literal["depgraph"]
    importance: Annotated[str, one_of(IMPORTANCES, "score of each index of an axis")] = "magnitude_l2"
    pruning_ratio: PruningRatio | tuple[PruningRatio, ...] = Field(
        0.5, description="fraction of each axis that is removed, or a list with one entry per block"
    )
    pruning_ratios: PruningRatios = PruningRatios()
    axes: dict[str, PruningRatio] = Field(
        {}, description="fraction removed from single axes, by the names that `vitslim axes` shows"
    )
    budget: Budget | None = Field(None, description="scale all pruning ratios until the model fits the budget")
    scope: Literal["local", "global", "isomorphic"] = Field(
        "local",
        description="indices that are ranked together. local: those of one axis; global: those of all axes, with heads "
        "apart; isomorphic: those of axes that couple layers in the same way",
    )
    mode: Literal["uniform", "bottleneck"] = Field(
        "uniform", description="uniform: prune all kinds of axes; bottleneck: keep the embedding"
    )
    round_to: PositiveInt = Field(16, description="round the number of kept indices down to a multiple of this")
    max_pruning_ratio: PruningRatio = Field(0.95, description="largest fraction removed from any axis")
    steps: PositiveInt = Field(1, description="number of pruning steps, each with new scores")
    group_sparsity: GroupSparsity | None = Field(
        None, description="sparse training before the cut, which pushes weak groups toward zero; default: none"
    )
    batches: PositiveInt = Field(8, description="calibration batches for Taylor and Hessian importance")
    batch: PositiveInt = Field(32, description="images per calibration batch")

    def work(self, images: ImageCounts) -> Work:
        """Return the work of sparse training and of scores from gradients."""
        scored = self.steps * self.batches * self.batch if self.importance in BY_GRADIENT else 0
        return super().work(images) + Work(training=scored, decoded=scored)

    @property
    def training(self) -> Train | None:
        """The schedule of sparse training; None without it."""
        return None if self.group_sparsity is None else self.group_sparsity.train

    @property
    def ranks_head_widths(self) -> bool:
        """Whether data decides the width of Q and K and that of V of each head, so that the two may differ."""
        stays = self.pruning_ratios.head_dim == 0 or (
            self.pruning_ratios.head_dim is None and self.pruning_ratios.heads
        )
        return self.scope != "local" and not stays

    @property
    def reads_labels(self) -> str:
        """The reason that the stage reads the labels of training images; empty if it does not."""
        if self.group_sparsity is not None:
            return "`group_sparsity` trains with them"
        return f"`importance: {self.importance}` is from the loss on them" if self.importance in BY_GRADIENT else ""

    @property
    def labels_hint(self) -> str:
        """How to run the stage without labels."""
        return "use `importance: magnitude_l2` without `group_sparsity`"

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield contradictions among the keys."""
        yield from super().problems(before, after)
        if self.mode == "bottleneck" and self.pruning_ratios.embed is not None:
            message = "`mode: bottleneck` does not prune the embedding"
            yield Problem("pruning_ratios.embed", message, "remove it, or use `mode: uniform`")
        for problem in self.budget.problems() if self.budget is not None else ():
            yield Problem(f"budget.{problem.where}".rstrip("."), problem.message, problem.hint)
        for problem in self.group_sparsity.train.problems() if self.group_sparsity is not None else ():
            yield Problem(f"group_sparsity.train.{problem.where}", problem.message, problem.hint)


class Depth(Prune):
    """Depth pruning: remove the blocks or residual branches whose removal changes the outputs least."""

    phase: ClassVar[Phase] = Phase.STRUCTURE

    method: Literal["depth"]
    remove: PositiveInt = Field(1, description="number of blocks or branches to remove")
    unit: Literal["block", "branch"] = Field("block", description="branch: attention and MLP are removed separately")
    batches: PositiveInt = Field(4, description="calibration batches for the sensitivity")
    batch: PositiveInt = Field(32, description="images per calibration batch")

    def work(self, images: ImageCounts) -> Work:  # noqa: ARG002
        """Return one pass over the calibration batches for each block or branch of a model of 12 blocks."""
        count = self.batches * self.batch
        units = TYPICAL_BLOCKS * (2 if self.unit == "branch" else 1)
        return Work(forward=self.remove * units * count, decoded=count)

    @property
    def removes_attention(self) -> bool:
        """Whether a block may have no attention after this stage."""
        return self.unit == "branch"


class TwoFour(Prune):
    """N:M sparsity for sparse tensor cores: N of every M weights along the reduction stay."""

    phase: ClassVar[Phase] = Phase.MASK

    method: Literal["two-four"]
    layers: Literal["gemm"] | tuple[str, ...] = Field(
        "gemm", description="gemm: all eligible layers except the head; or names of layers"
    )
    pattern: str = Field(
        "2:4",
        pattern=r"^([1-9]\d?:[1-9]\d?|2:4-pairs)$",
        description="2:4; 2:4-pairs, two of four adjacent pairs, for INT4 weights and activations; or another N:M",
        json_schema_extra={EXPECTED: "2:4, 2:4-pairs or another N:M"},
    )
    score: Annotated[str, one_of(SCORES, "criterion that chooses the mask")] = "magnitude"
    permute: tuple[PermutedAxis, ...] = Field(
        (),
        description="axes whose channels are reordered so that the mask keeps more magnitude; outputs do not change",
    )

    def work(self, images: ImageCounts) -> Work:
        """Return the passes over the calibration images that the score needs."""
        count = 0 if self.score == "magnitude" else images.calibration
        return Work(forward=count, training=count)

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield contradictions among the keys."""
        yield from super().problems(before, after)
        for axis in dict.fromkeys(self.permute):
            if self.permute.count(axis) > 1:
                yield Problem("permute", f"'{axis}' is listed twice", "remove one of them")


class Unstructured(Prune):
    """Magnitude pruning of single weights. Dense kernels get no faster; the stage reports the size in CSR."""

    phase: ClassVar[Phase] = Phase.MASK

    method: Literal["unstructured"]
    sparsity: PruningRatio = Field(0.5, description="fraction of the weights that become zero")
    scope: Literal["local", "global"] = Field(
        "global", description="weights that are ranked together: those of each layer, or of all layers"
    )
    layers: Literal["gemm"] | tuple[str, ...] = Field(
        "gemm", description="gemm: all layers except the head; or names of layers"
    )

    def warnings(self) -> Iterator[Problem]:
        """Yield a warning that unstructured zeros do not reduce latency."""
        message = "unstructured sparsity does not reduce latency: dense kernels multiply by zeros too"
        yield Problem("", message, "depgraph and depth reduce latency")
