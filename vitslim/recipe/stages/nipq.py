"""Config of `quantize: {method: nipq}`, which learns the bits of every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vitslim.errors import Problem, closest
from vitslim.recipe.backend_names import SIM, known_backends
from vitslim.recipe.config import ASSUMED, Config, KeepRate
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.recipe.stages.quantized_layers import Bits, QuantizedLayers
from vitslim.recipe.stages.training import TEACHER_WORDS, Teachers, TrainedWithTeacher

BITS_MAX = 8
"""Most bits of an integer that a file stores."""
CONTAINERS = (4, BITS_MAX)
"""Bits of the integers that files and devices store."""

AllowedBits = Annotated[tuple[Bits, ...], Field(min_length=1)]


class BitTarget(Config):
    """The limit that the learned bits meet; exactly one of `average_bits`, `bops`, `size_mb` and `latency`."""

    LIMITS: ClassVar[tuple[str, ...]] = ("average_bits", "bops", "size_mb", "latency")
    """Keys of which exactly one is given."""

    average_bits: Annotated[float, Field(ge=2, le=8)] | None = Field(
        None, description="average bits of all weights, and of all activations, weighted by their number of elements"
    )
    bops: PositiveFloat | None = Field(
        None,
        description="10^9 bit operations for one image: MACs times the bits of both operands, 32 for a float operand; "
        "2:4 weights count half",
    )
    size_mb: PositiveFloat | None = Field(
        None, description="10^6 bytes of all parameters as a file stores them, in containers of 4 or 8 bits"
    )
    latency: KeepRate | None = Field(
        None, description="fraction of the latency of all matmuls in 16-bit floats that may remain; needs `backend`"
    )
    backend: str | None = Field(None, description="simulated target that `latency` refers to, such as sim:a100")
    batch: PositiveInt = Field(1, description="images of one inference, for `latency`")

    @property
    def limit(self) -> tuple[str, float]:
        """The limit that is set: its key and value."""
        return next((key, value) for key in self.LIMITS if (value := getattr(self, key)) is not None)

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions among the keys; `where` is relative to the target."""
        given = [key for key in self.LIMITS if getattr(self, key) is not None]
        if len(given) != 1:
            *most, last = self.LIMITS
            message = f"got {' and '.join(given) or 'none'}, expected exactly one of {', '.join(most)} and {last}"
            yield Problem("", message, f"keep one: {given[0]}" if given else "for example {average_bits: 4}")
        if self.latency is None and self.backend is not None:
            yield Problem("backend", "got a backend without `latency`", "add `latency`, or remove `backend`")
        if self.latency is not None and self.backend is None:
            yield Problem("backend", "`latency` needs a simulated target", "for example `backend: sim:a100`")
        simulated = [name for name in known_backends() if name.startswith(SIM)]
        if self.backend is not None and self.backend not in simulated:
            message = f"got '{self.backend}', expected a simulated target"
            yield Problem("backend", message, closest(self.backend, simulated))


class Nipq(QuantizedLayers, TrainedWithTeacher):
    """Quantization-aware training that learns the bits of every weight and activation (NIPQ).

    Published for CNNs; on transformers it is an extension without a published result. Noise first replaces rounding,
    and ranges and bits are learned under a target. The last epochs train with the real quantizer and fixed bits. Batch
    norms are re-estimated at the end.
    """

    phase: ClassVar[Phase] = Phase.PRECISION

    method: Literal["nipq"]
    target: BitTarget | None = Field(
        None, description="limit that the learned bits meet; needed unless `bits` and `activation_bits` are fixed"
    )
    bits: Bits | AllowedBits | None = Field(
        None,
        description="bits of weights: one number for fixed bits; a list of the widths to choose from at the end of the "
        "noise epochs, such as [4, 8], for which runtimes have kernels, and between which bits are learned; default: "
        "every integer of `bit_range`",
    )
    activation_bits: Bits | AllowedBits | None = Field(
        None, description="bits of activations, with the same values as `bits`"
    )
    bit_range: tuple[Annotated[int, Field(ge=2, le=14)], ...] = Field(
        (2, BITS_MAX),
        description="smallest and largest number of bits where no widths are given; training starts in the middle. "
        "Published: [2, 14]",
        json_schema_extra={ASSUMED: True},
    )
    attention: bool = Field(True, description="quantize both attention matmuls (QK^T and PV)")
    granularity: Literal["per-tensor", "per-channel"] = Field(
        "per-tensor", description="weights that share a scale: all weights of a layer, or those of an output channel"
    )
    noise: Literal["uniform", "empirical"] = Field(
        "uniform",
        description="uniform: within half a quantization step; empirical: with the distribution of the rounding "
        "errors of the tensor, which is much slower",
        json_schema_extra={ASSUMED: True},
    )
    stochastic_bits: bool = Field(
        True, description="round learned bits up or down at random in each step; false: to the nearest integer"
    )
    learn_ranges: bool = Field(True, description="learn the range of each tensor; false: keep the calibrated range")
    calibrate: Literal["mse", "minmax", "published"] = Field(
        "mse",
        description="initial ranges. mse: the least squared error at the initial bits; minmax: up to the largest "
        "magnitude; published: softplus of the largest weight, of 3 for signed and of 6 for unsigned activations",
        json_schema_extra={ASSUMED: True},
    )
    bit_loss: PositiveFloat = Field(
        1.0,
        description="weight of the loss term that pulls the bits to the target. 1 was published for MobileNet-v2; with "
        "`average_bits` the pull is proportional to the number of elements, so small models need more",
    )
    bit_lr: PositiveFloat = Field(0.02, description="peak learning rate of the bits", json_schema_extra={ASSUMED: True})
    range_lr: PositiveFloat = Field(
        0.002,
        description="peak learning rate of ranges, relative to their size",
        json_schema_extra={ASSUMED: True},
    )
    quantized_epochs: Annotated[int, Field(ge=0)] = Field(
        1,
        description="last epochs of `train.epochs`, which train with the real quantizer and fixed bits",
        json_schema_extra={ASSUMED: True},
    )
    batch_norm_batches: PositiveInt = Field(
        100,
        description="training batches from which batch norms are re-estimated; no effect without batch norms",
        json_schema_extra={ASSUMED: True},
    )
    teacher: Teachers = Field("previous", description=TEACHER_WORDS)

    @property
    def fewest_bits(self) -> int:
        """The fewest bits that a quantized weight may have, but for those of `first_last_bits`."""
        return min(self.bits if isinstance(self.bits, tuple) else (self.bits or self.bit_range[0],))

    @property
    def learns_weights(self) -> bool:
        """Whether the bits of weights are learned."""
        return not isinstance(self.bits, int)

    @property
    def learns_activations(self) -> bool:
        """Whether the bits of activations are learned."""
        return not isinstance(self.activation_bits, int)

    def allowed(self, value: int | tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the widths that a value of `bits` or `activation_bits` allows, ascending."""
        if value is None:
            return tuple(range(self.bit_range[0], self.bit_range[1] + 1))
        return (value,) if isinstance(value, int) else tuple(sorted(set(value)))

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield contradictions among the keys."""
        yield from super().problems(before, after)
        if len(self.bit_range) != 2 or self.bit_range[0] >= self.bit_range[1]:
            message = f"got {list(self.bit_range)}, expected the smallest and the largest number of bits"
            yield Problem("bit_range", message, "for example [2, 8]")
            return
        yield from self._width_problems()
        yield from self._target_problems()
        if self.quantized_epochs >= self.train.epochs:
            message = (
                f"got {self.quantized_epochs}, which leaves no epoch with noise of `train.epochs: {self.train.epochs}`"
            )
            yield Problem("quantized_epochs", message, "lower it, or raise `train.epochs`")

    def _width_problems(self) -> Iterator[Problem]:
        low, high = self.bit_range
        for key in ("bits", "activation_bits"):
            value = getattr(self, key)
            if value is None and high > BITS_MAX:
                message = f"no export profile stores more than {BITS_MAX} bits, got `bit_range` up to {high}"
                yield Problem(key, message, f"list the allowed bits, or set `bit_range: [{low}, {BITS_MAX}]`")
            if isinstance(value, tuple) and len(set(value)) == 1:
                yield Problem(key, "got a list of one width", f"write `{key}: {value[0]}` for fixed bits")

    def _container_problems(self, target: BitTarget) -> Iterator[Problem]:
        """Yield learned widths whose price is that of a wider container."""
        key = target.limit[0] if target.size_mb is not None or target.latency is not None else ""
        priced = {"size_mb": ("bits",), "latency": ("bits", "activation_bits")}.get(key, ())
        for name in priced:
            value = getattr(self, name)
            if not isinstance(value, int) and not set(self.allowed(value)) <= set(CONTAINERS):
                found = "every integer of `bit_range`" if value is None else str(list(value))
                message = f"`{key}` counts containers of 4 and 8 bits, got {found}"
                yield Problem(name, message, f"set `{name}: {list(CONTAINERS)}`")

    def _target_problems(self) -> Iterator[Problem]:
        learned = [k for k, on in (("bits", self.learns_weights), ("activation_bits", self.learns_activations)) if on]
        if self.target is None:
            if learned:
                message = f"`{learned[0]}` is learned, which needs a target"
                yield Problem("target", message, f"for example {{average_bits: 4}}, or fix `{learned[0]}`")
            return
        for problem in self.target.problems():
            yield Problem(f"target.{problem.where}".rstrip("."), problem.message, problem.hint)
        if not learned:
            message = "no bits are learned: `bits` and `activation_bits` are fixed"
            yield Problem("target", message, "remove `target`, or a fixed number")
        elif self.target.size_mb is not None and not self.learns_weights:
            message = f"the size does not depend on activations, and weights have fixed `bits: {self.bits}`"
            yield Problem("target.size_mb", message, "learn `bits`, or use another target")
        yield from self._container_problems(self.target)
        if (average := self.target.average_bits) is not None:
            for key in learned:
                least = min(self.allowed(getattr(self, key)))
                if average < least:
                    message = f"got {average:g}, below the fewest bits that `{key}` allows, {least}"
                    yield Problem("target.average_bits", message, f"raise it, or allow fewer `{key}`")
