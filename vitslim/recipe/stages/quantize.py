"""Configs of `quantize` stages, which turn weights and activations into integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from vitslim.errors import Problem
from vitslim.recipe.config import Config
from vitslim.recipe.formats.file_form import FLOAT8_OPSET, INT4_OPSET
from vitslim.recipe.formats.profiles import PORTABLE, Profile, profiles_with
from vitslim.recipe.stage_config import StageConfig
from vitslim.recipe.stages.quantized_layers import Bits, QuantizedLayers
from vitslim.recipe.work import ImageCounts, Work

GROUP_BITS_MAX = 4
"""Weights with integer group scales: a weight times its group scale must fit into 8 bits."""

UNUSED_KEYS = {
    "float": ("activation_bits", "calibrate", "symmetric", "smooth", "activation_scaling", "attention",
              "reduce_range", "placement"),
    "dynamic": ("activation_bits", "calibrate", "symmetric"),
}  # fmt: skip
"""Value of `activations` to the keys that have no effect with it."""

FLOAT8_KEYS = ("name", "method", "format", "skip")
"""Keys that have an effect with `format: fp8`."""

_Found = tuple[str, str, str]


class Floor(Config):
    """Fidelity to the float model that `placement: auto` must keep, measured on calibration images."""

    sqnr_db: float = Field(23.0, description="smallest signal-to-quantization-noise ratio of the logits, in decibels")
    agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        0.985, description="smallest top-1 agreement; a candidate fails if its agreement is significantly lower"
    )


GRADIENT_IMAGES = 64
"""Largest number of calibration images whose gradients choose the strengths of smoothing."""
ROUNDING_IMAGES = 128
"""Largest number of calibration images that rounding uses."""
COMPARED_IMAGES = 64
"""Largest number of calibration images on which the quantized graph is compared with the float graph."""
CANDIDATES_MAX = 8
"""Largest number of candidates that `placement: auto` writes."""


class Quantize(QuantizedLayers):
    """Keys that methods with given bits share."""

    bits: Bits = Field(8, description="bits of weights")
    activation_bits: Bits = Field(8, description="bits of input activations")
    group_size: Literal[0, 16, 32, 64, 128] = Field(
        0,
        description="weights of an output channel that share a scale; 0: one scale per output channel. With integer "
        "activations, at most 4 bits are allowed, and group scales are integer multiples of the channel scale, so that "
        "the GEMM stays integer",
    )
    smooth: bool = Field(
        True,
        description="move the ranges of activation channels into the adjacent weights (SmoothQuant, Outlier "
        "Suppression+); the strength of each layer is chosen by cross-validation on the calibration images",
    )
    reduce_range: Literal["auto"] | bool = Field(
        "auto",
        description="limit weights so that sums of two adjacent products fit into 16 bits, for CPUs without VNNI. "
        "auto: on if a measured backend needs it; the lock file and the report show the resolved value",
    )
    placement: Literal["fixed", "auto"] = Field(
        "fixed",
        description="fixed: quantize all activations as `activations` specifies. auto: choose static, dynamic or float "
        "activations per layer by measured latency on the first backend that runs ONNX files, subject to `floor`",
    )
    floor: Floor = Field(Floor(), description="fidelity that `placement: auto` must keep")
    activations: str
    symmetric: bool

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield keys that contradict each other or the export profile."""
        yield from super().problems(before, after)
        profile = next((config.export_profile for config in after if config.export_profile), PORTABLE)
        for key, message, hint in self._contradictions(profile):
            yield Problem(key, message, hint)

    def _contradictions(self, profile: Profile) -> Iterator[_Found]:
        yield from self._group_contradictions(profile)
        fields = type(self).model_fields
        for key in UNUSED_KEYS.get(self.activations, ()):
            if key in fields and getattr(self, key) != fields[key].default:
                yield key, f"`activations: {self.activations}` does not use `{key}`", f"remove `{key}`"
        if self.reduce_range is True and not self.group_size and not self._has_eight_bits:
            message = f"`reduce_range` has no effect on weights of {self.bits} bits"
            yield "reduce_range", message, "remove it"
        if profile.dynamic_activations:
            return
        hint = f"use {profiles_with(lambda other: other.dynamic_activations)} in the export stage"
        if self.activations == "dynamic":
            message = f"`profile: {profile.name}` has static scales only, got `activations: dynamic`"
            yield "activations", message, hint
        if self.placement == "auto":
            message = f"`placement: auto` may choose dynamic activations, which `profile: {profile.name}` cannot store"
            yield "placement", message, hint

    def work(self, images: ImageCounts) -> Work:
        """Return the passes for ranges, smoothing, rounding and comparison, and the candidates of a search."""
        count = images.calibration
        rounding = min(ROUNDING_IMAGES, count)
        found = super().work(images) + Work(forward=rounding + 2 * min(COMPARED_IMAGES, count), training=rounding)
        if self.activations != "float":
            found += Work(forward=count, training=min(GRADIENT_IMAGES, count) if self.smooth else 0)
        if self.placement == "auto":
            found += Work(training=count, runtime=CANDIDATES_MAX * count, files=CANDIDATES_MAX)
        return found

    @property
    def fewest_bits(self) -> int:
        """The fewest bits that a quantized weight may have, but for those of `first_last_bits`."""
        return self.bits

    @property
    def lowest_opset(self) -> int:
        """The lowest ONNX opset that stores the weights of this stage: 21 for INT4 and for weight groups."""
        return INT4_OPSET if self.group_size else super().lowest_opset

    @property
    def uses_reduce_range(self) -> bool:
        """Whether `reduce_range` affects the weights: integer matmuls with 8-bit weights or integer group scales."""
        return self.activations != "float" and (self.group_size > 0 or self._has_eight_bits)

    @property
    def needs_measured_backend(self) -> str:
        """The key whose value requires measurements of candidates; empty if there is none."""
        return "placement" if self.placement == "auto" else ""

    @property
    def _has_eight_bits(self) -> bool:
        return 8 in (self.bits, self.first_last_bits)

    def _group_contradictions(self, profile: Profile) -> Iterator[_Found]:
        """Yield problems of integer group scales, which integer activations require."""
        if not self.group_size or self.activations == "float":
            return
        if self.bits > GROUP_BITS_MAX:
            message = f"group-wise scales need weights of at most {GROUP_BITS_MAX} bits here, got `bits: {self.bits}`"
            yield "group_size", message, f"set `bits: {GROUP_BITS_MAX}`, `activations: float`, or remove `group_size`"
        elif not profile.integer_group_scales:
            message = f"`profile: {profile.name}` cannot store group-wise integer scales"
            allowed = profiles_with(lambda other: other.integer_group_scales)
            yield "group_size", message, f"use {allowed}, `activations: float`, or remove `group_size`"


class Ptq(Quantize):
    """Post-training quantization from calibration images."""

    method: Literal["ptq"] = "ptq"
    format: Literal["integer", "fp8"] = Field(
        "integer",
        description="integer: weights and activations of `bits` and `activation_bits`. fp8: 8-bit floats (E4M3) for "
        "TensorRT and Hopper or Ada GPUs, with static scales of the largest magnitude; of the other keys only `skip` "
        "has an effect. Other runtimes compute them in float",
    )
    activations: Literal["static", "dynamic", "float"] = Field(
        "static",
        description="static: calibrated scales; dynamic: scales of each batch, computed at run time; float: only "
        "weights are quantized",
    )
    symmetric: bool = Field(
        False, description="quantize activations without zero point; false: use a zero point where it narrows the range"
    )
    calibrate: Literal["minmax", "mse"] = Field(
        "minmax",
        description="activation range. minmax: from the smallest to the largest value; mse: the range with the least "
        "squared error",
    )
    rotate: bool = Field(
        False,
        description="compute residual streams in a random orthogonal basis, folded into the weights (QuaRot); streams "
        "with 2:4 weights are not rotated",
    )
    activation_scaling: Literal["per-channel", "per-token", "none"] = Field(
        "per-channel",
        description="run-time scaling of activations that `smooth` cannot reach, such as those after GELU. "
        "per-channel: constant factors; per-token: divide by the largest magnitude of each token, which is more "
        "accurate and a little slower",
    )
    attention: bool = Field(False, description="quantize both attention matmuls (QK^T and PV)")
    average_bits: Annotated[float, Field(gt=2, le=8)] | None = Field(
        None,
        description="upper limit of the average bits of all quantized weights: weights whose rounding adds the most "
        "noise for their size get 8 bits; default: all weights have `bits`",
    )
    zero_points: bool = Field(
        False, description="store a zero point with the scale of each weight group; TensorRT does not support this"
    )
    rounding: Literal["nearest", "gptq"] = Field(
        "gptq", description="gptq: later weights of a row compensate for the rounding errors of earlier ones"
    )
    bias_correction: bool = Field(True, description="correct biases so that the mean output of each layer is kept")

    def work(self, images: ImageCounts) -> Work:
        """Return the work of the stage; 8-bit floats, and the operands of attention, need one pass for their ranges."""
        ranges = Work(forward=images.calibration)
        if self.format == "fp8":
            return ranges
        return super().work(images) + ranges if self.attention else super().work(images)

    @property
    def _has_eight_bits(self) -> bool:
        return super()._has_eight_bits or self.average_bits is not None

    @property
    def lowest_opset(self) -> int:
        """The lowest ONNX opset that stores the weights of this stage."""
        return FLOAT8_OPSET if self.format == "fp8" else super().lowest_opset

    @property
    def uses_reduce_range(self) -> bool:
        """Whether `reduce_range` affects the weights: never for 8-bit floats."""
        return self.format == "integer" and super().uses_reduce_range

    def _contradictions(self, profile: Profile) -> Iterator[_Found]:
        if self.format == "fp8":
            yield from self._float8_contradictions(profile)
            return
        if self.zero_points and self.activations != "float":
            message = f"`zero_points` needs `activations: float`, got `activations: {self.activations}`"
            yield "zero_points", message, "set `group_size: 32` and `activations: float`, or remove `zero_points`"
        elif self.zero_points and not self.group_size:
            message = "`zero_points` needs weight groups, got `group_size: 0`"
            yield "zero_points", message, "set `group_size: 32`, or remove `zero_points`"
        if self.average_bits is not None and self.average_bits <= self.bits:
            message = f"got `average_bits: {self.average_bits:g}`, expected more than `bits: {self.bits}`"
            yield "average_bits", message, "raise `average_bits`, lower `bits`, or remove `average_bits`"
        yield from super()._contradictions(profile)
        if not self.smooth and self.activation_scaling == "per-token":
            message = "`activation_scaling: per-token` needs `smooth: true`, got `smooth: false`"
            yield "activation_scaling", message, "remove one of the two keys"

    def _float8_contradictions(self, profile: Profile) -> Iterator[_Found]:
        """Yield keys that 8-bit floats do not use, and a profile that cannot store them."""
        for key, info in type(self).model_fields.items():
            if key not in FLOAT8_KEYS and getattr(self, key) != info.default:
                yield key, f"`format: fp8` does not use `{key}`", f"remove `{key}`"
        if not profile.float8:
            message = f"`profile: {profile.name}` cannot store 8-bit floats"
            yield "format", message, f"use {profiles_with(lambda other: other.float8)} in the export stage"
