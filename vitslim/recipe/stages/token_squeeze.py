"""Configs of `token-squeeze` stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from vitslim.errors import Problem
from vitslim.recipe.config import ASSUMED, KeepRate
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.train import Train

Rounding = Literal["ceil", "floor"]


class TokenSqueeze(StageConfig):
    """Keys that all token methods share."""

    kind: ClassVar[str] = "token-squeeze"
    phase: ClassVar[Phase] = Phase.TOKENS

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

    blocks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (3, 6, 9), description="positions of the blocks that squeeze tokens after their attention"
    )
    keep_rate: KeepRate | tuple[KeepRate, ...] = Field(
        0.7,
        description="fraction of the present patch tokens that each of these blocks keeps; a list has one for each",
    )

    @property
    def squeezed_blocks(self) -> tuple[int, ...]:
        """Positions of the blocks in which this stage reduces the number of tokens."""
        return self.blocks

    @property
    def rounded(self) -> Rounding:
        """Rounding of the number of kept tokens."""
        return "ceil"

    @property
    def keep_rates(self) -> dict[int, float]:
        """Position of each block to its keep rate."""
        rates = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,) * len(self.blocks)
        return dict(zip(self.blocks, rates, strict=False))

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield a problem for a list of keep rates that has not one for each block, besides those of all methods."""
        yield from super().problems(before, after)
        if isinstance(self.keep_rate, tuple) and len(self.keep_rate) != len(self.blocks):
            message = f"got {len(self.keep_rate)} keep rates for {len(self.blocks)} blocks"
            yield Problem("keep_rate", message, "give one number, or a list with one for each of `blocks`")


class Etps(KeepBest):
    """eTPS: keep the tokens with the highest class attention and squeeze the others into them (TPS, CVPR 2023)."""

    method: Literal["etps"]
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
    macs_weight: PositiveFloat = Field(
        100.0,
        description="weight of the squared distance from `macs` in the loss; the other term is the KL divergence from "
        "the predictions without squeezing",
        json_schema_extra={ASSUMED: True},
    )
    train: Train = Field(
        Train(epochs=3, batch=16, lr=0.1, wd=0.0),
        description="schedule of learning the rates on the calibration images; weights do not change",
        json_schema_extra={ASSUMED: True},
    )

    @property
    def schedule(self) -> Train:
        """The training schedule of the stage."""
        return self.train

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield a problem for training keys that have no effect on rates, besides those of all methods."""
        yield from super().problems(before, after)
        if self.train.mix or self.train.augment != "none":
            key = "mix" if self.train.mix else "augment"
            message = "rates are learned from predictions on the unchanged calibration images"
            yield Problem(f"train.{key}", message, f"remove `{key}`")
