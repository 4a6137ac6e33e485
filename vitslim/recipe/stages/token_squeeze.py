"""Configs of `token-squeeze` stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vitslim.errors import Problem
from vitslim.recipe.config import ASSUMED, KeepRate
from vitslim.recipe.cost_target import CostTarget
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.train import Train
from vitslim.recipe.work import TYPICAL_BLOCKS, ImageCounts, Work

Rounding = Literal["ceil", "floor"]

DEFAULT_BLOCKS = (3, 6, 9)
DEFAULT_KEEP_RATE = 0.7


class TokenSqueeze(StageConfig):
    """Keys that all token methods share."""

    kind: ClassVar[str] = "token-squeeze"
    phase: ClassVar[Phase] = Phase.TOKENS

    @property
    def advice_if_slower(self) -> str:
        """Reason and remedy for a model that this stage makes slower, as the end of a warning."""
        return "squeezing tokens costs more than it saves; squeeze fewer blocks, or keep fewer tokens in each"

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield a problem for attention that an earlier stage may remove, and for blocks that are squeezed twice."""
        yield from super().problems(before, after)
        yield from self._all_blocks_problems(before)
        if any(config.removes_attention for config in before):
            message = "an earlier stage may remove the attention that token-squeeze reads its scores from"
            yield Problem("", message, "squeeze tokens first, or remove whole blocks with `unit: block`")
        owner = {block: f"stages.{i}" for i, config in reversed(list(enumerate(before)))
                 for block in config.squeezed_blocks}  # fmt: skip
        for block in self.squeezed_blocks:
            if block in owner:
                message = f"block {block} is already squeezed by {owner[block]}"
                yield Problem("blocks", message, "list each block once")
            owner.setdefault(block, "this stage")

    @property
    def squeezes_all_blocks(self) -> bool:
        """Whether this stage reduces the number of tokens in every block."""
        return False

    def _all_blocks_problems(self, before: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield a problem if this stage or an earlier one leaves no block to the other."""
        for i, config in enumerate(before):
            if isinstance(config, TokenSqueeze) and (self.squeezes_all_blocks or config.squeezes_all_blocks):
                message = f"stages.{i} and this stage squeeze the same blocks, as one of them has `blocks: all`"
                yield Problem("", message, "list the blocks of each stage, or keep one of the two stages")


class KeepBest(TokenSqueeze):
    """Keys of methods that keep the tokens with the highest attention scores after the attention of some blocks."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="positions of the blocks that squeeze tokens after their attention; default: 3, 6 and 9. With "
        "`schedule`: positions of the blocks that may squeeze tokens; default: all but the last",
    )
    keep_rate: KeepRate | tuple[KeepRate, ...] | None = Field(
        None,
        description="fraction of the present patch tokens that each of these blocks keeps; a list has one for each; "
        "default: 0.7",
    )
    schedule: CostTarget | None = Field(
        None,
        description="choose how many tokens each block keeps by its sensitivity on calibration images, so that the "
        "model meets this cost; replaces `keep_rate` and `rounding`; default: none",
    )

    def work(self, images: ImageCounts) -> Work:
        """Return one pass over the calibration images for each block whose sensitivity a schedule needs."""
        return Work() if self.schedule is None else Work(forward=TYPICAL_BLOCKS * images.calibration)

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the blocks that squeeze tokens by a keep rate."""
        return DEFAULT_BLOCKS if self.blocks is None else self.blocks

    @property
    def squeezed_blocks(self) -> tuple[int, ...]:
        """Positions of the blocks in which this stage reduces the number of tokens; unknown for a schedule."""
        return self.positions if self.schedule is None else ()

    @property
    def rounded(self) -> Rounding:
        """Rounding of the number of kept tokens."""
        return "ceil"

    @property
    def keep_rates(self) -> dict[int, float]:
        """Position of each block to its keep rate."""
        rate = DEFAULT_KEEP_RATE if self.keep_rate is None else self.keep_rate
        rates = rate if isinstance(rate, tuple) else (rate,) * len(self.positions)
        return dict(zip(self.positions, rates, strict=False))

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield problems of the keep rates and of the schedule, besides those of all methods."""
        yield from super().problems(before, after)
        if self.schedule is not None:
            yield from self._schedule_problems(self.schedule, (*before, *after))
        elif isinstance(self.keep_rate, tuple) and len(self.keep_rate) != len(self.positions):
            message = f"got {len(self.keep_rate)} keep rates for {len(self.positions)} blocks"
            yield Problem("keep_rate", message, "give one number, or a list with one for each of `blocks`")

    def _schedule_problems(self, schedule: CostTarget, others: Sequence[StageConfig]) -> Iterator[Problem]:
        for problem in schedule.problems():
            yield Problem(f"schedule.{problem.where}".rstrip("."), problem.message, problem.hint)
        if self.keep_rate is not None:
            yield Problem("keep_rate", "`schedule` chooses the number of kept tokens itself", "remove one of the two")
        if any(config.kind == self.kind for config in others):
            message = "another stage squeezes tokens too, so their number is not known here"
            yield Problem("schedule", message, f"keep one {self.kind} stage, or use `blocks` and `keep_rate` in both")


class Etps(KeepBest):
    """eTPS: keep the tokens with the highest class attention and squeeze the others into them (TPS, CVPR 2023)."""

    method: Literal["etps"] = "etps"
    rounding: Rounding = Field(
        "ceil", description="rounding of the number of kept tokens", json_schema_extra={ASSUMED: True}
    )

    @property
    def rounded(self) -> Rounding:
        """Rounding of the number of kept tokens."""
        return self.rounding


class Evit(KeepBest):
    """EViT: keep the tokens with the highest class attention and fuse the others into one token (ICLR 2022)."""

    method: Literal["evit"]


class PruneOnly(KeepBest):
    """Keep the tokens with the highest class attention and drop the others: eTPS without fusion, for comparison."""

    method: Literal["prune-only"]


class WithPredictors(TokenSqueeze):
    """Keys of methods whose predictors choose the tokens at the input of some blocks; a later `distill` trains them."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (3, 6, 9), description="positions of the blocks that predict at their input which tokens stay"
    )
    keep_rate: KeepRate | tuple[KeepRate, ...] = Field(
        0.7,
        description="the n-th of these blocks keeps keep_rate ** n of the patch tokens before the first one; a list "
        "gives the fraction of each block itself",
    )
    rounding: Rounding = Field("floor", description="rounding of the number of kept tokens")

    @property
    def squeezed_blocks(self) -> tuple[int, ...]:
        """Positions of the blocks in which this stage reduces the number of tokens."""
        return self.blocks

    @property
    def inserts_predictors(self) -> bool:
        """Whether any block keeps fewer than all tokens."""
        return min(self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,), default=1) < 1

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield problems of the keep rates, missing training, and other squeezes after the first predictor."""
        yield from super().problems(before, after)
        yield from self._rate_problems()
        if self.inserts_predictors and not any(config.trains_predictors for config in after):
            message = f"no later stage trains the predictors of {self.method}"
            yield Problem(
                "", message, "add `distill: {loss: {ratio: 2}}` after it, or use etps, which needs no training"
            )
        others = {b for config in (*before, *after) if not config.inserts_predictors for b in config.squeezed_blocks}
        late = sorted(block for block in others if self.blocks and block >= min(self.blocks))
        if late and self.inserts_predictors:
            message = f"another stage squeezes block {late[0]} without a predictor, after block {min(self.blocks)}"
            yield Problem("blocks", message, "use one method for all blocks from the first predictor on")

    def _rate_problems(self) -> Iterator[Problem]:
        rates = self.keep_rate
        if not isinstance(rates, tuple):
            return
        if len(rates) != len(self.blocks):
            message = f"got {len(rates)} keep rates for {len(self.blocks)} blocks"
            yield Problem("keep_rate", message, "give one number, or a list with one for each of `blocks`")
        elif (ordered := [rate for _, rate in sorted(zip(self.blocks, rates, strict=True))]) != sorted(rates)[::-1]:
            message = f"got {ordered}: a block cannot keep more of the first tokens than the block before it"
            yield Problem("keep_rate", message, "list fractions of the tokens before the first block, in falling order")


class Dtps(WithPredictors):
    """dTPS: keep the tokens that predictors choose and squeeze the others into them (TPS, CVPR 2023)."""

    method: Literal["dtps"]


class DynamicVit(WithPredictors):
    """DynamicViT: keep the tokens that predictors choose and drop the others (NeurIPS 2021)."""

    method: Literal["dynamicvit"]


class Merging(TokenSqueeze):
    """Keys of methods that merge similar tokens after the attention of many blocks."""

    blocks: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        "all", description="all, or positions of the blocks that merge tokens after their attention"
    )
    proportional_attention: bool = Field(
        True, description="whether later attentions count a merged token as often as the tokens that it stands for"
    )

    @property
    def squeezed_blocks(self) -> tuple[int, ...]:
        """Positions of the blocks in which this stage reduces the number of tokens; empty for `blocks: all`."""
        return () if isinstance(self.blocks, str) else self.blocks

    @property
    def squeezes_all_blocks(self) -> bool:
        """Whether this stage reduces the number of tokens in every block."""
        return self.blocks == "all"


class Tome(Merging):
    """ToMe: merge pairs of patch tokens with similar keys in every block (ICLR 2023)."""

    method: Literal["tome"]
    remove: Annotated[int, Field(ge=0)] = Field(
        13, description="number of patch tokens that each block removes by merging, at most half of them"
    )
    decrease: bool = Field(
        False, description="remove twice as many in the first block, none in the last and linearly fewer between them"
    )


class DiffRate(Merging):
    """DiffRate: drop unimportant tokens and merge others, at rates learned on calibration images (ICCV 2023)."""

    method: Literal["diffrate"]
    macs: KeepRate = Field(0.65, description="MACs after this stage, as a fraction of those before")
    candidates: Annotated[int, Field(ge=2, le=200)] = Field(
        40,
        description="number of candidate rates, from 0 in equal steps to below 1",
        json_schema_extra={ASSUMED: True},
    )
    train: Train = Field(
        Train(epochs=2, batch=8, lr=0.4, wd=0.0),
        description="schedule of learning the rates on the calibration images; weights do not change",
        json_schema_extra={ASSUMED: True},
    )

    @property
    def training(self) -> Train:
        """The training schedule of the stage."""
        return self.train

    def work(self, images: ImageCounts) -> Work:
        """Return the predictions on the calibration images and the training of the rates on them."""
        count = min(self.train.images or images.calibration, images.calibration)
        return Work(forward=count, training=self.train.epochs * count)

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield a problem for training keys that have no effect on rates, besides those of all methods."""
        yield from super().problems(before, after)
        keys = [key for key in ("mixup", "cutmix") if getattr(self.train, key)]
        for key in keys if self.train.augment == "none" else [*keys, "augment"]:
            message = "rates are learned from predictions on the unchanged calibration images"
            yield Problem(f"train.{key}", message, f"remove `{key}`")
