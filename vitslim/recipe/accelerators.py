"""Settings of the approximations of simulated accelerators, and the schedule of cascade pruning.

The functional half of an accelerator (`vitslim.graph.approximate`) and its performance half
(`vitslim.backends.simulated`) read the same settings. The YAML file of each target holds the default values.
Sources: SpAtten (Wang et al., HPCA 2021), FACT (Qin et al., ISCA 2023).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitslim.recipe.config import Config, PruningRatio

Fraction = Annotated[float, Field(ge=0, le=1, strict=False)]
Ratio = Annotated[PruningRatio, Field(strict=False)]
ROUNDING = 1e-9
"""Subtracted before rounding up, so that 0.7 of 10 is 7."""


class Cascade(Config):
    """Cascade pruning: tokens or heads that a layer removes are absent from all later layers."""

    pruning_ratio: Ratio = Field(description="mean fraction that a layer removes, over the layers that remove any")
    start_ratio: Ratio | None = Field(
        description="fraction that the first of these layers removes; the last removes 2 x pruning_ratio - "
        "start_ratio, the others between. null: pruning_ratio in all of them"
    )
    free_layers: Fraction = Field(description="fraction of the layers, from the first, that remove nothing")

    @model_validator(mode="after")
    def _check_end(self) -> Cascade:
        if not 0 <= self.end_ratio < 1:
            raise ValueError(
                f"the last layer would remove 2 x pruning_ratio - start_ratio = {self.end_ratio:g}, "
                "allowed: from 0 to below 1"
            )
        return self

    @property
    def end_ratio(self) -> float:
        """Fraction that the last pruning layer removes."""
        start = self.pruning_ratio if self.start_ratio is None else self.start_ratio
        return round(2 * self.pruning_ratio - start, 12)

    @property
    def is_active(self) -> bool:
        """Whether any layer removes anything."""
        return self.pruning_ratio > 0

    def ratios(self, layers: int) -> tuple[float, ...]:
        """Return the fraction that each of `layers` layers removes.

        The last layer removes nothing: no attention follows that would become cheaper.
        """
        free = math.ceil(self.free_layers * layers - ROUNDING)
        count = max(0, layers - 1 - free)
        start, end = (self.pruning_ratio if self.start_ratio is None else self.start_ratio), self.end_ratio
        if count == 1:
            inner = [self.pruning_ratio]
        else:
            inner = [start + (end - start) * place / (count - 1) for place in range(count)]
        return tuple([0.0] * (layers - count - 1) + inner + [0.0] * min(1, layers))

    def kept(self, count: int, layers: int, least: int = 1) -> tuple[int, ...]:
        """Return how many of `count` tokens or heads are left after each of `layers` layers, at least `least`.

        Fractions are multiplied before rounding up, so that small counts are pruned as well.
        """
        left, fraction = [], 1.0
        for ratio in self.ratios(layers):
            fraction *= 1 - ratio
            left.append(max(min(least, count), math.ceil(count * fraction - ROUNDING)))
        return tuple(left)


class LocalValues(Config):
    """Local value pruning: each query of each head reads only the V rows of its largest probabilities."""

    pruning_ratio: Ratio = Field(description="fraction of the V rows that a query does not read")

    def kept(self, keys: int) -> int:
        """Return how many of the V rows of `keys` keys a query reads, at least one."""
        return max(1, math.ceil(keys * (1 - self.pruning_ratio) - ROUNDING))


class ProgressiveQuantization(Config):
    """Progressive quantization: low bits of K and Q are read only for queries with flat probabilities."""

    msb: Literal[4, 6, 8, 10, 12] = Field(description="bits of Q, K and V that are always read")
    lsb: Literal[0, 4] = Field(description="bits of Q and K that are read on demand; 0: static quantization")
    threshold: Fraction = Field(description="a query with a largest probability below it reads the low bits")


class SpattenSettings(Config):
    """The approximations of SpAtten."""

    name: Literal["spatten"] = "spatten"
    token: Cascade
    head: Cascade
    value: LocalValues
    pq: ProgressiveQuantization


class EagerPrediction(Config):
    """Eager prediction of attention by products of leading ones."""

    topk_ratio: Annotated[float, Field(gt=0, le=1, strict=False)] = Field(
        description="fraction of the keys that each query attends to"
    )
    onehot_margin: Annotated[float, Field(ge=0, strict=False)] | None = Field(
        description="a row whose largest predicted logit exceeds the second largest by more than this copies one V row "
        "and skips Q; null: never"
    )

    def kept(self, keys: int) -> int:
        """Return how many of `keys` keys a query attends to."""
        return max(1, math.ceil(keys * self.topk_ratio - ROUNDING))


class MixedFfn(Config):
    """MLP with INT8 for important tokens and INT4, the upper half of the INT8 bits, for the others."""

    hi_fraction: Literal["mean"] | Fraction = Field(
        description="a token whose share of all selections is at least this is INT8; mean: 1 / tokens; 0: all are INT8"
    )
    int4_rate: Literal[2, 4] = Field(
        description="MACs of an INT4 token in the time of an INT8 MAC. 2: weights stay INT8; 4: they are INT4 as well"
    )


class FactSettings(Config):
    """The approximations of FACT."""

    name: Literal["fact"] = "fact"
    ep: EagerPrediction
    ffn: MixedFfn


Accelerator = SpattenSettings | FactSettings
"""Settings of an accelerator that changes results."""
AcceleratorName = Literal["spatten", "fact"]
