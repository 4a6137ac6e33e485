"""Config of `quantize: {method: qat}`, which learns scales together with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from vitslim.errors import Problem
from vitslim.recipe.config import ASSUMED, Config
from vitslim.recipe.formats.profiles import Profile
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.stages.quantize import Quantize
from vitslim.recipe.stages.quantized_layers import Bits
from vitslim.recipe.stages.training import TEACHER_WORDS, FeatureWeight, Teachers, TrainedWithTeacher


class OwnBits(Config):
    """Bits of one layer that differ from those of the others."""

    weight: Bits | None = Field(None, description="bits of the weight; default: `bits`")
    activation: Bits | None = Field(None, description="bits of the input activation; default: `activation_bits`")


class Qat(Quantize, TrainedWithTeacher):
    """Quantization-aware training: all scales are learned together with the weights (LSQ, GPUSQ)."""

    phase: ClassVar[Phase] = Phase.PRECISION

    method: Literal["qat"]
    activations: Literal["static", "float"] = Field(
        "static",
        json_schema_extra={ASSUMED: True},
        description="static: learned scales; float: only weights are quantized",
    )
    symmetric: bool = Field(
        True, json_schema_extra={ASSUMED: True}, description="quantize activations without zero point; false: with one"
    )
    calibrate: Literal["minmax", "mse"] = Field(
        "mse",
        json_schema_extra={ASSUMED: True},
        description="initial activation range. minmax: from the smallest to the largest value; mse: the range with the "
        "least squared error",
    )
    rounding: Literal["nearest", "gptq"] = Field(
        "gptq", json_schema_extra={ASSUMED: True}, description="initial rounding of weights"
    )
    attention: bool = Field(False, description="quantize both attention matmuls (QK^T and PV)")
    layer_bits: dict[str, OwnBits] = Field(
        {},
        description="bits of single layers, such as those that `method: nipq` has learned, by name: blocks.0.attn.qkv, "
        "or blocks.0.attention.query (key, probability, value) for operands of attention",
    )
    feature_weight: FeatureWeight | None = Field(
        None,
        description="weights of the blocks in the feature loss, from the feature losses of an earlier stage; default: "
        "equal weights",
    )
    teacher: Teachers = Field("previous", description=TEACHER_WORDS)

    @property
    def fewest_bits(self) -> int:
        """The fewest bits that a quantized weight may have, but for those of `first_last_bits`."""
        return min([self.bits, *(own.weight for own in self.layer_bits.values() if own.weight is not None)])

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield keys that contradict each other, the export profile or the earlier stages."""
        yield from super().problems(before, after)
        if self.feature_weight is not None:
            for problem in self.feature_weight.problems(self.loss.feature, before):
                yield Problem(f"feature_weight.{problem.where}".rstrip("."), problem.message, problem.hint)

    def _group_contradictions(self, profile: Profile) -> Iterator[tuple[str, str, str]]:  # noqa: ARG002
        """Yield a problem for integer group scales, which training would not keep."""
        if self.group_size and self.activations != "float":
            message = "training does not keep group scales that are integer multiples of the channel scale"
            yield "group_size", message, "use `method: ptq`, `activations: float`, or remove `group_size`"
